"""The commands of `sendense-lab`, each with `--json` for programs and a table for people."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import humanize
import typer
from rich.console import Console
from rich.table import Table

from sendense_lab.client import LabClient
from sendense_lab.config import LabSettings
from sendense_lab.errors import LabError

JSON = typer.Option(False, "--json", help="Print JSON for programs.")
FILE = typer.Option(None, help="Local file with the bytes.")
OUTPUT = typer.Option(None, help="Local file; standard output if not given.")
DISKS = typer.Option(..., help="Size and file system, as 2G:ext4; repeat for more disks.")
Shown = dict[str, Any]

vm_app = typer.Typer(no_args_is_help=True, help="Virtual machines.")
guest_app = typer.Typer(no_args_is_help=True, help="What the guest does.")
disk_app = typer.Typer(no_args_is_help=True, help="Disks as the hypervisor sees them.")
fault_app = typer.Typer(no_args_is_help=True, help="Misbehaviour on demand.")


def register(app: typer.Typer) -> None:
    """Adds all commands to the application."""
    app.add_typer(vm_app, name="vm")
    app.add_typer(guest_app, name="guest")
    app.add_typer(disk_app, name="disk")
    app.add_typer(fault_app, name="fault")
    app.command(name="info")(info)


def _client() -> LabClient:
    return LabClient(LabSettings().home)


def _fail(err: LabError, *, as_json: bool) -> NoReturn:
    if as_json:
        error = {"reason": err.reason, "message": err.message, "help": err.help}
        typer.echo(json.dumps({"error": error}), err=True)
    else:
        typer.echo(f"{err.message}\n{err.help}".strip(), err=True)
    raise typer.Exit(1)


def _show(ask: Callable[[], Shown], human: Callable[[Shown], object], as_json: bool) -> Shown:
    try:
        answer = ask()
    except LabError as err:
        _fail(err, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(answer, indent=1))
    else:
        shown = human(answer)
        if isinstance(shown, Table):
            Console().print(shown)
        else:
            typer.echo(shown)
    return answer


def _size(count: int) -> str:
    return humanize.naturalsize(count, binary=True)


def _table(columns: list[str], rows: list[list[object]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def info(json_: bool = JSON) -> None:
    """Shows where the simulated vCenter is and what it holds."""
    _show(_client().info, lambda shown: _table(["what", "value"], [[k, v] for k, v in shown.items()]), json_)


@vm_app.command("list")
def vm_list(json_: bool = JSON) -> None:
    """Lists all VMs."""

    def human(shown: Shown) -> Table:
        return _table(
            ["id", "name", "folder", "power", "CBT", "snapshots", "disks"],
            [
                [
                    vm["moref"],
                    vm["name"],
                    vm["folder"],
                    vm["power_state"],
                    "on" if vm["change_tracking"] else "off",
                    vm["snapshots"],
                    ", ".join(f"{_size(d['capacity_bytes'])} {d['filesystem']}" for d in vm["disks"]),
                ]
                for vm in shown["vms"]
            ],
        )

    _show(lambda: {"vms": _client().vms()}, human, json_)


@vm_app.command("create")
def vm_create(
    name: str,
    disk: list[str] = DISKS,
    seed: int = typer.Option(1, help="Seed of all content."),
    small_files: int = typer.Option(3000, help="Files of 1 to 64 KiB, over all disks."),
    folder: str = typer.Option("", help="Folder; the same name may be in several."),
    json_: bool = JSON,
) -> None:
    """Creates a powered-on VM whose disks hold real file systems."""
    _show(
        lambda: _client().create_vm(name, disk, seed=seed, small_files=small_files, folder=folder),
        lambda vm: f"{vm['moref']} {vm['name']}: {len(vm['disks'])} disks",
        json_,
    )


@vm_app.command("delete")
def vm_delete(name: str, json_: bool = JSON) -> None:
    """Deletes a VM with its disks, snapshots and kept contents."""
    _show(lambda: _client().delete_vm(name), lambda vm: f"{vm['moref']} {vm['name']} deleted", json_)


@vm_app.command("snapshots")
def vm_snapshots(name: str, json_: bool = JSON) -> None:
    """Lists a VM's snapshots, the open ones and those removed but kept."""

    def human(shown: Shown) -> Table:
        return _table(
            ["id", "name", "description", "created", "state", "change ids"],
            [
                [
                    snapshot["moref"],
                    snapshot["name"],
                    snapshot["description"],
                    snapshot["created"][:19],
                    "kept" if snapshot["kept"] else "open",
                    "\n".join(f"{disk['disk']}: {disk['change_id'] or '-'}" for disk in snapshot["disks"]),
                ]
                for snapshot in shown["snapshots"]
            ],
        )

    _show(lambda: {"snapshots": _client().snapshots(name)}, human, json_)


@guest_app.command("write")
def guest_write(
    name: str,
    disk: int = typer.Option(0),
    offset: int = typer.Option(..., help="First byte."),
    file: Path | None = FILE,
    seed: int = typer.Option(0, help="Seed of the bytes, with --length."),
    length: int = typer.Option(0, help="How many bytes."),
    json_: bool = JSON,
) -> None:
    """Writes a byte range of a disk."""
    _show(
        lambda: _client().guest_write(name, disk, offset, file=file, seed=seed, length=length),
        lambda shown: f"{shown['bytes']} bytes written",
        json_,
    )


@guest_app.command("put")
def guest_put(name: str, local: Path, path: str, json_: bool = JSON) -> None:
    """Puts a local file into the guest."""
    _show(
        lambda: _client().guest_put(name, local, path),
        lambda shown: f"{shown['path']}: {shown['bytes']} bytes",
        json_,
    )


@guest_app.command("rm")
def guest_rm(name: str, path: str, json_: bool = JSON) -> None:
    """Removes a file or a directory of the guest."""
    _show(
        lambda: _client().guest_rm(name, path),
        lambda shown: f"{shown['path']}: {shown['files']} files removed",
        json_,
    )


@guest_app.command("cat")
def guest_cat(
    name: str,
    path: str,
    output: Path | None = OUTPUT,
    json_: bool = JSON,
) -> None:
    """Reads a file of the guest."""
    if output is not None:
        _show(
            lambda: _client().guest_cat(name, path, output),
            lambda shown: f"{shown['path']}: {shown['bytes']} bytes",
            json_,
        )
        return
    with tempfile.TemporaryDirectory(prefix="sendense-lab-") as folder:
        copy = Path(folder) / "file"
        try:
            _client().guest_cat(name, path, copy)
        except LabError as err:
            _fail(err, as_json=json_)
        sys.stdout.buffer.write(copy.read_bytes())
        sys.stdout.buffer.flush()


@guest_app.command("run")
def guest_run(
    name: str,
    share: float = typer.Option(0.05, help="About this share of the file bytes changes."),
    seed: int = typer.Option(0, help="Makes the changes repeatable."),
    json_: bool = JSON,
) -> None:
    """Changes files at random: overwrites, creates, deletes, appends, renames."""
    _show(
        lambda: _client().guest_run(name, share=share, seed=seed),
        lambda shown: (
            f"{shown['files_changed']} files, {_size(shown['bytes_changed'])} changed"
            f" ({shown['share']:.1%} of {_size(shown['file_bytes'])})"
        ),
        json_,
    )


@disk_app.command("changed")
def disk_changed(
    name: str,
    disk: int = typer.Option(0),
    since: str = typer.Option(..., help="Change id, or * for all areas that hold data."),
    snapshot: str | None = typer.Option(None, help="Up to this snapshot (id or name); else up to now."),
    json_: bool = JSON,
) -> None:
    """Shows the areas of a disk that changed since a change id."""
    _show(
        lambda: _client().changed(name, disk, since, snapshot=snapshot),
        lambda shown: f"{len(shown['areas'])} areas, {shown['bytes']} bytes ({_size(shown['bytes'])})",
        json_,
    )


@disk_app.command("export")
def disk_export(
    name: str,
    output: Path,
    disk: int = typer.Option(0),
    snapshot: str | None = typer.Option(None, help="Content of this snapshot (id or name); else of now."),
    json_: bool = JSON,
) -> None:
    """Writes a disk's raw content to a sparse file."""
    _show(
        lambda: _client().export(name, disk, output, snapshot=snapshot),
        lambda shown: f"{shown['output']}: {_size(shown['bytes'])}",
        json_,
    )


@fault_app.command("page-areas")
def fault_page_areas(
    areas: int | None = typer.Argument(None, help="Areas in one answer; none for the default."),
    json_: bool = JSON,
) -> None:
    """Sets the page size of QueryChangedDiskAreas."""
    _show(
        lambda: _client().set_page_areas(areas),
        lambda shown: f"{shown['page_areas']} areas in one answer",
        json_,
    )


@fault_app.command("lose-sessions")
def fault_lose_sessions(json_: bool = JSON) -> None:
    """Ends all sessions at once."""
    _show(_client().lose_sessions, lambda shown: f"{shown['sessions']} sessions ended", json_)
