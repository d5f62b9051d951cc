"""Prepares the state directory: folders, keys, identities, the administrator's token and the catalogue's schema.

Every function may be called at each start: what is there and good stays.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from sendense_access.keys import SigningKey, write_private, write_workload_identities
from sendense_db.migrate import upgrade
from sendense_node.config import NodeSettings
from sendense_node.machines import PORTS, require_machine
from sendense_rpc.errors import SendenseError
from sendense_rpc.identity import TokenVerifier

ADMIN_LIFETIME = 365 * 24 * 3600
"""Seconds for which the administrator's token is good."""

_FOLDERS = ("run", "run/agents", "keys", "db", "log", "nbd", "nbd/conf.d", "agent", "tls", "backups", "restore")


def prepare(settings: NodeSettings) -> None:
    """Makes the state directory ready for the processes of this machine to start.

    Raises:
        MachineNotReady: One of several machines was not given what it proves itself with.
    """
    settings.root.mkdir(parents=True, exist_ok=True)
    for folder in _FOLDERS:
        (settings.root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    if settings.runs("access"):
        key = SigningKey.load_or_create(settings.root / "keys")
        write_workload_identities(key, settings.root / "keys")
        if not _is_good(settings, settings.admin_token_file):
            write_private(settings.admin_token_file, key.sign("admin", "admin", ADMIN_LIFETIME).encode())
    require_machine(settings)
    installation = settings.root / "installation-id"
    if not installation.exists():
        installation.write_text(str(uuid.uuid4()))
    if any(settings.runs(service) for service in PORTS):
        upgrade(settings.catalogue_url)


def _is_good(settings: NodeSettings, token_file: Path) -> bool:
    if not token_file.exists():
        return False
    verifier = TokenVerifier(settings.jwks_file, settings.revoked_file)
    try:
        verifier.verify(f"Bearer {token_file.read_text().strip()}")
    except SendenseError:
        return False
    return True
