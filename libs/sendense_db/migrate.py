"""Brings a catalogue to the newest schema: `upgrade(url)`, or `python -m sendense_db.migrate [url]`.

The migrations themselves are in `migrations/` of the source tree, because they need every service's tables and
libraries never import services. They are found beside the packages (a checkout, an editable install) or where
`SENDENSE_MIGRATIONS` points; anything else fails and says so.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config

from sendense_rpc.errors import Kind, SendenseError


class MigrationsNotFound(SendenseError):
    """The folder with the migrations is not where it should be."""

    def __init__(self, looked: Path) -> None:
        super().__init__(
            f"there are no migrations at {looked}",
            kind=Kind.FAILED_PRECONDITION,
            reason="MIGRATIONS_NOT_FOUND",
            help="Set SENDENSE_MIGRATIONS to the folder `migrations` of the same version's source tree.",
            metadata={"path": str(looked)},
        )


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the catalogue at `url` to a revision; does nothing when it is there.

    Several processes may do so at once: one migrates, the others wait for it. Blocks; call it before the event loop
    runs, or in a thread.

    Args:
        url: SQLAlchemy URL, with an async driver or without.
        revision: Where to.

    Raises:
        MigrationsNotFound: The folder with the migrations is missing.
        TimeoutError: Another process has been migrating for too long.
    """
    command.upgrade(alembic_config(url), revision)


def alembic_config(url: str) -> Config:
    """Returns what Alembic's commands need, for the catalogue at `url`."""
    folder = migrations_folder()
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_path_separator", "os")
    # As an attribute: a URL may hold a password, and `%` means something in an option.
    config.attributes["url"] = url
    return config


def migrations_folder() -> Path:
    """Returns the folder that holds `env.py` and `versions`.

    Raises:
        MigrationsNotFound: It is missing.
    """
    chosen = os.environ.get("SENDENSE_MIGRATIONS")
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "migrations"
    if not (folder / "env.py").is_file():
        raise MigrationsNotFound(folder)
    return folder


def main() -> None:
    """Migrates the catalogue named on the command line, else the one of this environment."""
    from sendense_rpc.settings import ServiceSettings

    settings = ServiceSettings()
    if len(sys.argv) < 2:
        (settings.root / "db").mkdir(parents=True, exist_ok=True, mode=0o700)
    upgrade(sys.argv[1] if len(sys.argv) > 1 else settings.catalogue_url)


if __name__ == "__main__":
    main()
