"""`sendense-lab guest …`: what the guest does."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import typer

from sendense_lab.errors import LabError
from sendense_lab.printing import DISK, JSON, client, fail, show, size

FILE = typer.Option(None, help="Local file with the bytes.")
OUTPUT = typer.Option(None, help="Local file; standard output if not given.")
app = typer.Typer(no_args_is_help=True, help="What the guest does.")


@app.command("write")
def guest_write(
    name: str,
    disk: str = DISK,
    offset: int = typer.Option(..., help="First byte."),
    file: Path | None = FILE,
    seed: int = typer.Option(0, help="Seed of the bytes, with --length."),
    length: int = typer.Option(0, help="How many bytes."),
    zero: bool = typer.Option(False, "--zero", help="Write zeros, with --length."),
    json_: bool = JSON,
) -> None:
    """Writes a byte range of a disk."""
    show(
        lambda: client().guest_write(name, disk, offset, file=file, seed=seed, length=length, zero=zero),
        lambda shown: f"{shown['bytes']} bytes written",
        json_,
    )


@app.command("put")
def guest_put(name: str, local: Path, path: str, json_: bool = JSON) -> None:
    """Puts a local file into the guest."""
    show(
        lambda: client().guest_put(name, local, path),
        lambda shown: f"{shown['path']}: {shown['bytes']} bytes",
        json_,
    )


@app.command("rm")
def guest_rm(name: str, path: str, json_: bool = JSON) -> None:
    """Removes a file or a directory of the guest."""
    show(
        lambda: client().guest_rm(name, path),
        lambda shown: f"{shown['path']}: {shown['files']} files removed",
        json_,
    )


@app.command("cat")
def guest_cat(
    name: str,
    path: str,
    output: Path | None = OUTPUT,
    json_: bool = JSON,
) -> None:
    """Reads a file of the guest."""
    if output is not None:
        show(
            lambda: client().guest_cat(name, path, output),
            lambda shown: f"{shown['path']}: {shown['bytes']} bytes",
            json_,
        )
        return
    with tempfile.TemporaryDirectory(prefix="sendense-lab-") as folder:
        copy = Path(folder) / "file"
        try:
            client().guest_cat(name, path, copy)
        except LabError as err:
            fail(err, as_json=json_)
        sys.stdout.buffer.write(copy.read_bytes())
        sys.stdout.buffer.flush()


@app.command("run")
def guest_run(
    name: str,
    share: float = typer.Option(0.05, help="About this share of the file bytes changes."),
    seed: int = typer.Option(0, help="Makes the changes repeatable."),
    json_: bool = JSON,
) -> None:
    """Changes files at random: overwrites, creates, deletes, appends, renames."""
    show(
        lambda: client().guest_run(name, share=share, seed=seed),
        lambda shown: (
            f"{shown['files_changed']} files, {size(shown['bytes_changed'])} changed"
            f" ({shown['share']:.1%} of {size(shown['file_bytes'])})"
        ),
        json_,
    )


@app.command("start-writing")
def guest_start_writing(
    name: str,
    seed: int = typer.Option(0, help="Of places and bytes."),
    length: int = typer.Option(1 << 20, help="Most bytes of one write."),
    pause_ms: float = typer.Option(5, help="Between two writes."),
    json_: bool = JSON,
) -> None:
    """Lets the guest write by itself, at random, on its disks without a file system."""
    show(
        lambda: client().start_writing(name, seed=seed, length=length, pause_ms=pause_ms),
        lambda shown: f"the guest of {shown['vm']} is writing",
        json_,
    )


@app.command("stop-writing")
def guest_stop_writing(name: str, json_: bool = JSON) -> None:
    """Lets the guest rest again."""
    show(lambda: client().stop_writing(name), lambda shown: f"{shown['writes']} writes", json_)
