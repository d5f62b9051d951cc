"""The access service's settings; env prefix `SENDENSE_ACCESS_`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings

DAY = 24 * 3600


class AccessSettings(ServiceSettings):
    """Where the keys lie and how long the administrator's first token is good."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="SENDENSE_ACCESS_")

    admin_token_lifetime_seconds: int = Field(default=365 * DAY, ge=60, le=365 * DAY)

    @property
    def keys_dir(self) -> Path:
        """Directory of the signing key, the JWKS, the revoked ids and the workload identities."""
        return self.root / "keys"

    @property
    def audit_head_file(self) -> Path:
        """The signed head of the audit log (0600): what shows that its end was cut off."""
        return self.root / "keys" / "audit-head.token"

    @property
    def admin_token_file(self) -> Path:
        """The administrator's token (0600), made at the first start."""
        return self.root / "admin.token"
