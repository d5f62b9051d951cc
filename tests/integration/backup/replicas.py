"""Several backup services on one PostgreSQL: each on a machine of its own, as far as sockets and state go."""

from __future__ import annotations

from pathlib import Path

from sendense_backup.config import BackupSettings

OWN = ("backup.sock", "backup.metrics")


def replica(settings: BackupSettings, home: Path) -> BackupSettings:
    """Returns settings of a further machine's process: the same services and keys, sockets of its own."""
    (home / "run").mkdir(parents=True)
    (home / "keys").symlink_to(settings.root / "keys")
    for each in settings.run_dir.iterdir():
        if each.name not in OWN:
            (home / "run" / each.name).symlink_to(each)
    return settings.model_copy(update={"home": home})
