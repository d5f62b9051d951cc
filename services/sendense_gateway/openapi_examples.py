"""Examples of the API's description; tests/integration/gateway/test_gateway_examples.py sends each of them.

Paths and fields are those of the product's specification, character for character where it names them.
"""

from __future__ import annotations

from typing import Any

_POLICY = {
    "name": "nightly",
    "include": [{"pattern": "pg*"}],
    "cron": "0 22 * * *",
    "time_zone": "Europe/Berlin",
    "retention": {"keep_last": 7, "keep_weekly": 4},
    "repository": "local",
}

BODIES: dict[str, dict[str, Any]] = {
    "StartBackup": {"vm_name": "pgtest2", "backup_type": "full", "repository": "local"},
    "CancelBackup": {},
    "MountBackup": {"backup_id": "backup-pgtest2-20251004120000", "mode": "read-only"},
    "CreateToken": {"subject": "ann", "role": "operator", "lifetime_seconds": 2592000, "vms": ["pgtest2"]},
    "EnrollAgent": {
        "agent_id": "site-1",
        "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP//////////////////////////////////////////",
    },
    "CreateRepository": {"name": "second", "repository_type": "local", "path": "/srv/second"},
    "ReloadExports": {},
    "CreateEnrollment": {"agent_id": "dc2", "tunnel_address": "backup.example.org:443"},
    "ConsolidateBackups": {
        "first_backup_id": "backup-pgtest2-20251004120000",
        "last_backup_id": "backup-pgtest2-20251006120000",
    },
    "StartDiskExport": {"backup_id": "backup-pgtest2-20251004120000", "disk_id": 0, "format": "qcow2"},
    "CreatePolicy": {"spec": _POLICY},
    "UpdatePolicy": {"spec": _POLICY},
    "ServePoint": {"backup_id": "backup-pgtest2-20251004120000"},
}
"""For RPCs with a body, the body."""

VALUES: dict[str, str] = {
    "backup_id": "backup-pgtest2-20251004120000",
    "mount_id": "mount-0b0f2d2e-6a5e-4b0a-9a53-4f6f8a0f2a11",
    "repository_id": "local",
    "export_name": "backup-ctx-pgtest2-20251005-120000-disk0-full-20251005T120000",
    "token_id": "5f2b1c7de0a94f5e8b0a4f6f8a0f2a11",
    "agent_id": "site-1",
    "vm_name": "pgtest2",
    "path": "/var/www/html",
    "pattern": "*.php",
    "policy_id": "policy-nightly",
    "job_id": "backup-pgtest2-20251004120000",
    "rpc": "POST /api/v1/backup/start",
}
"""Values of parameters that must be given."""
