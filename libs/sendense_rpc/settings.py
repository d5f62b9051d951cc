"""Settings that every process shares: where its state lies and how it names itself.

Each service's `config.py` derives from `ServiceSettings` with its own env prefix; read once in `main`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from sendense_rpc.identity import Issuer, TokenVerifier


class ServiceSettings(BaseSettings):
    """What a process must know before anything else. `SENDENSE_HOME` is the root of all state on this machine.

    Attributes:
        rpc_listen: `address:port` on which the service also listens for other machines, over mTLS; empty for none. Each
            service has its own, such as `SENDENSE_REPOSITORY_RPC_LISTEN`.
        peers: Services on other machines: `SENDENSE_PEERS={"repository": "10.0.0.2:7443"}`.
        mtls_dir: Directory with this machine's certificate, see `sendense_rpc.mtls`.
        jwks: File with the public keys of Sendense's own tokens; None for the one that the access service writes.
        oidc_issuer: A further issuer (`iss`) whose tokens are taken; empty for none.
        oidc_audience: What its tokens' `aud` must hold.
        oidc_jwks: File with its public keys; None for the file that the access service fetches from `oidc_jwks_url`.
        oidc_jwks_url: `https` address of its public keys.
        oidc_role_claim: The claim of its tokens that names a role of Sendense.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    home: Path = Field(default=Path("var"), validation_alias="SENDENSE_HOME")
    log_format: str = Field(default="console", validation_alias="SENDENSE_LOG_FORMAT")
    database_url: str = Field(default="", validation_alias="SENDENSE_DATABASE_URL")
    rpc_listen: str = ""
    peers: dict[str, str] = Field(default_factory=dict, validation_alias="SENDENSE_PEERS")
    mtls_dir: Path | None = Field(default=None, validation_alias="SENDENSE_MTLS_DIR")
    jwks: Path | None = Field(default=None, validation_alias="SENDENSE_JWKS")
    oidc_issuer: str = Field(default="", validation_alias="SENDENSE_OIDC_ISSUER")
    oidc_audience: str = Field(default="sendense", validation_alias="SENDENSE_OIDC_AUDIENCE")
    oidc_jwks: Path | None = Field(default=None, validation_alias="SENDENSE_OIDC_JWKS")
    oidc_jwks_url: str = Field(default="", validation_alias="SENDENSE_OIDC_JWKS_URL")
    oidc_role_claim: str = Field(default="sendense_role", validation_alias="SENDENSE_OIDC_ROLE_CLAIM")

    @property
    def root(self) -> Path:
        """The absolute path of the state directory."""
        return self.home.absolute()

    @property
    def run_dir(self) -> Path:
        """Directory of the Unix sockets."""
        return self.root / "run"

    @property
    def jwks_file(self) -> Path:
        """Public keys that tokens are verified with."""
        return self.jwks or self.root / "keys" / "jwks.json"

    @property
    def oidc_jwks_file(self) -> Path:
        """Public keys of the further issuer."""
        return self.oidc_jwks or self.root / "keys" / "oidc-jwks.json"

    @property
    def further_issuers(self) -> tuple[Issuer, ...]:
        """The issuer that is a setting, if there is one."""
        if not self.oidc_issuer:
            return ()
        return (
            Issuer(
                name=self.oidc_issuer,
                audience=self.oidc_audience,
                jwks_file=self.oidc_jwks_file,
                algorithms=("RS256", "ES256", "EdDSA"),
                role_claim=self.oidc_role_claim,
                prefix="oidc:",
            ),
        )

    def verifier(self) -> TokenVerifier:
        """Returns what verifies tokens in this process."""
        return TokenVerifier(self.jwks_file, self.revoked_file, self.further_issuers)

    @property
    def revoked_file(self) -> Path:
        """Revoked token ids, written by the access service."""
        return self.root / "keys" / "revoked.json"

    def socket(self, service: str) -> Path:
        """Returns the Unix socket of a service's gRPC server on this machine."""
        return self.run_dir / f"{service}.sock"

    def metrics_socket(self, service: str) -> Path:
        """Returns the Unix socket on which a service of this machine answers with its metrics."""
        return self.run_dir / f"{service}.metrics"

    def identity_file(self, service: str) -> Path:
        """Returns the file (0600) that holds the service's workload token."""
        return self.root / "keys" / "identities" / f"{service}.token"

    @property
    def catalogue_url(self) -> str:
        """SQLAlchemy URL of the catalogue: the embedded SQLite file unless `SENDENSE_DATABASE_URL` says otherwise."""
        return self.database_url or f"sqlite+aiosqlite:///{self.root / 'db' / 'sendense.sqlite'}"
