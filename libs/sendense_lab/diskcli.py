"""`sendense-lab disk …`: disks as the hypervisor sees them."""

from __future__ import annotations

from pathlib import Path

import typer

from sendense_lab.printing import DISK, JSON, client, show, size

app = typer.Typer(no_args_is_help=True, help="Disks as the hypervisor sees them.")


@app.command("changed")
def disk_changed(
    name: str,
    disk: str = DISK,
    since: str = typer.Option(..., help="Change id, or * for all areas that hold data."),
    snapshot: str | None = typer.Option(None, help="Up to this snapshot (id or name); else up to now."),
    json_: bool = JSON,
) -> None:
    """Shows the areas of a disk that changed since a change id."""
    show(
        lambda: client().changed(name, disk, since, snapshot=snapshot),
        lambda shown: f"{len(shown['areas'])} areas, {shown['bytes']} bytes ({size(shown['bytes'])})",
        json_,
    )


@app.command("export")
def disk_export(
    name: str,
    output: Path,
    disk: str = DISK,
    snapshot: str | None = typer.Option(None, help="Content of this snapshot (id or name); else of now."),
    json_: bool = JSON,
) -> None:
    """Writes a disk's raw content to a sparse file."""
    show(
        lambda: client().export(name, disk, output, snapshot=snapshot),
        lambda shown: f"{shown['output']}: {size(shown['bytes'])}",
        json_,
    )


@app.command("resize")
def disk_resize(
    name: str,
    to: str = typer.Argument(..., metavar="SIZE", help="As 128M."),
    disk: str = DISK,
    reset_tracking: bool = typer.Option(False, help="Begin change tracking anew; else the change ids stay good."),
    json_: bool = JSON,
) -> None:
    """Grows a disk; no file system is told."""
    show(
        lambda: client().resize_disk(name, disk, to, tracking="reset" if reset_tracking else "keep"),
        lambda shown: f"{shown['label']}: {size(shown['capacity_bytes'])}",
        json_,
    )


@app.command("reset-tracking")
def disk_reset_tracking(
    name: str,
    disk: str | None = typer.Option(None, help="Index, device key or uuid; all disks, if not given."),
    json_: bool = JSON,
) -> None:
    """Begins change tracking anew, under another uuid: former change ids are worth nothing."""
    show(
        lambda: client().reset_tracking(name, disk),
        lambda shown: f"{len(shown['disks'])} disks are tracked from now on",
        json_,
    )
