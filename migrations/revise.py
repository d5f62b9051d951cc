"""Writes a revision from what the stores and the migrations differ in: `python -m migrations.revise "What changes"`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command

from sendense_db.migrate import alembic_config, migrations_folder


def revise(message: str) -> Path:
    """Returns the file of the new revision; its number follows the last one."""
    numbers = [int(path.name[:4]) for path in (migrations_folder() / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")]
    with tempfile.TemporaryDirectory() as folder:
        config = alembic_config(f"sqlite:///{folder}/catalogue.sqlite")
        config.attributes["batch"] = bool(numbers)  # SQLite alters a table by copying it; making one needs no copy
        command.upgrade(config, "head")
        made = command.revision(config, message, autogenerate=True, rev_id=f"{max(numbers, default=0) + 1:04}")
    path = Path(made.path)  # type: ignore[union-attr]
    # What SQLite's dialect writes for a boolean means nothing to PostgreSQL.
    text = path.read_text().replace("read_only IS 0", "NOT read_only")
    for number, word in (("1", "true"), ("0", "false")):
        text = text.replace(f"server_default=sa.text('{number}')", f"server_default=sa.{word}()")
    path.write_text(text)
    return path


if __name__ == "__main__":
    print(revise(sys.argv[1]))  # noqa: T201
