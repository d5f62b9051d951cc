"""`sendense-ctl backup mount|files|find|extract|export|serve …` and `sendense-ctl file …`: getting things back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sendense.restore.v1 import restore_pb2
from sendense_ctl import disks, files
from sendense_ctl.completion import backup_ids, guest_paths, mount_ids, vm_names
from sendense_ctl.connection import open_gateway
from sendense_ctl.failures import LocalError
from sendense_ctl.history import history_of
from sendense_ctl.output import console, moment, print_json, print_table, printable, size

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]
Vm = Annotated[str, typer.Option("--vm", help="Name of the VM.", autocompletion=vm_names)]
BackupId = Annotated[
    str, typer.Option("--backup-id", help="Backup id, or a unique beginning of one.", autocompletion=backup_ids)
]
MountId = Annotated[str, typer.Option("--mount-id", help="The mount.", autocompletion=mount_ids)]
GuestDirectory = Annotated[str, typer.Option("--path", help="Directory in the guest.", autocompletion=guest_paths)]
Backend = Annotated[str, typer.Option("--backend", help="kernel or guestfs; default: what fits.")]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File with passphrases of encrypted volumes, one a line.")
]
Force = Annotated[bool, typer.Option("--force", help="Although a verification found damage, or an audit doubts it.")]

file = typer.Typer(no_args_is_help=True, help="Files across restore points.")


def register(app: typer.Typer) -> None:
    """Adds the commands to `sendense-ctl backup`."""
    for name, command in (
        ("mount", mount),
        ("mounts", mounts),
        ("umount", umount),
        ("files", list_files),
        ("find", find),
        ("extract", extract),
        ("export", export),
        ("serve", serve),
        ("served", served),
        ("unserve", unserve),
    ):
        app.command(name)(command)


def mount(
    backup_id: BackupId,
    path: Annotated[Path | None, typer.Option("--path", help="Show the files here too, as a link.")] = None,
    backend: Backend = "",
    passphrase_file: PassphraseFile = None,
    disk: Annotated[list[int] | None, typer.Option("--disk", help="Only this disk; can be repeated.")] = None,
    force: Force = False,
    json_: Json = False,
) -> None:
    """Mount a restore point read-only, to browse it."""
    gateway = open_gateway()
    if path is not None and os.path.lexists(path) and not _is_empty_directory(path):
        raise LocalError(f"{path} exists already", "Name a path that is not there yet, or an empty directory.")
    mounted = files.mount(
        gateway,
        restore_pb2.MountBackupRequest(
            backup_id=backup_id,
            backend=backend,
            passphrases=files.read_passphrases(passphrase_file),
            disk_ids=disk or [],
            force=force,
        ),
    )
    if path is not None:
        if not Path(mounted.mount_path).is_dir():
            files.unmount(gateway, mounted.mount_id)
            raise LocalError(
                f"{mounted.mount_path} cannot be seen from this machine",
                "Run this on the server, or use `sendense-ctl backup files` and `extract`.",
            )
        if path.is_dir():
            path.rmdir()
        path.symlink_to(mounted.mount_path)
    if json_:
        print_json(mounted)
        return
    console.print(f"{mounted.mount_id} is mounted at {path or mounted.mount_path}", markup=False)
    console.print(f"by {mounted.backend}: {printable(mounted.backend_reason)}", markup=False)
    for note in mounted.notes:
        console.print(f"note: {printable(note)}", markup=False)
    _print_volumes(mounted)
    console.print(f"Unmount it with: sendense-ctl backup umount --mount-id {mounted.mount_id}", markup=False)


def _print_volumes(mounted: restore_pb2.Mount) -> None:
    rows = [
        [v.name, v.file_system or "–", v.label or "–", size(v.size_bytes), v.guest_path or v.error or "–"]
        for v in mounted.volumes
    ]
    print_table(["VOLUME", "TYPE", "LABEL", "SIZE>", "IN THE GUEST"], rows, "No volumes were found.")


def mounts(json_: Json = False) -> None:
    """List what is mounted."""
    answer = files.list_mounts(open_gateway())
    if json_:
        print_json(answer)
        return
    rows = [[m.mount_id, m.backup_id, m.state, m.mount_path, moment(m.expires_at)] for m in answer.mounts]
    print_table(["MOUNT", "BACKUP", "STATE", "PATH", "UNTIL"], rows, "Nothing is mounted.")


def umount(
    mount_id: Annotated[str, typer.Option("--mount-id", help="The mount.", autocompletion=mount_ids)] = "",
    path: Annotated[Path | None, typer.Option("--path", help="The link that `mount --path` made.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Cut running downloads.")] = False,
) -> None:
    """Unmount a restore point, named by its id or by the link to it."""
    if bool(mount_id) == (path is not None):
        raise LocalError("either --mount-id or --path is needed", "`sendense-ctl backup mounts` lists what is mounted.")
    if path is not None:
        if not path.is_symlink():
            raise LocalError(f"{path} is no link to a mount", "Name the path that was given to `backup mount`.")
        mount_id = path.readlink().name
    files.unmount(open_gateway(), mount_id, force=force)
    if path is not None:
        path.unlink()
    console.print(f"{printable(mount_id)} is unmounted.")


def list_files(
    mount_id: MountId,
    path: GuestDirectory = "/",
    order_by: Annotated[str, typer.Option("--sort", help="name, size or modified; -size turns it round.")] = "",
    pattern: Annotated[str, typer.Option("--pattern", help="Only names that match, such as '*.log'.")] = "",
    json_: Json = False,
) -> None:
    """List a directory of a mounted restore point."""
    answer = files.list_directory(open_gateway(), mount_id, path, order_by=order_by, pattern=pattern)
    if json_:
        print_json(answer)
        return
    print_table(_COLUMNS, [_row(e, e.name) for e in answer.entries], "The directory is empty.")


def find(
    mount_id: MountId,
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as '*.log'.")],
    path: GuestDirectory = "/",
    limit: Annotated[int, typer.Option("--limit", help="Most answers.")] = 100,
    json_: Json = False,
) -> None:
    """Look for names below a directory of a mounted restore point."""
    answer = files.search(open_gateway(), mount_id, path, pattern, limit)
    if json_:
        print_json(answer)
        return
    print_table(_COLUMNS, [_row(e, e.path) for e in answer.entries], f"None of {answer.examined} names matches.")
    if answer.truncated:
        console.print("There may be more: look below a smaller directory, or raise --limit.")


_COLUMNS = ["TYPE", "MODE", "SIZE>", "MODIFIED", "NAME"]


def _row(entry: restore_pb2.FileEntry, name: str) -> list[str]:
    shown = name + (f" → {entry.link_target}" if entry.link_target else "")
    return [entry.type, f"{entry.mode:04o}", size(entry.size_bytes), moment(entry.modified_at), shown]


def extract(
    backup_id: BackupId,
    file: Annotated[
        str, typer.Option("--file", help="Path in the guest; a directory comes as archive.", autocompletion=guest_paths)
    ],
    output: Annotated[Path, typer.Option("--output", help="Where to write it.")],
    archive: Annotated[str, typer.Option("--archive", help="Form of a directory: tar, tar.zst or zip.")] = "tar",
    backend: Backend = "",
    passphrase_file: PassphraseFile = None,
    force: Force = False,
    json_: Json = False,
) -> None:
    """Get a file or a directory back out of a restore point."""
    gateway = open_gateway()
    request = restore_pb2.MountBackupRequest(
        backup_id=backup_id, backend=backend, passphrases=files.read_passphrases(passphrase_file), force=force
    )
    mounted = files.mount(gateway, request)
    try:
        written = files.download(gateway, mounted.mount_id, {"path": file, "archive": archive}, output)
    finally:
        files.unmount(gateway, mounted.mount_id)
    if json_:
        print_json({"backup_id": mounted.backup_id, "file": file, "output": str(output), "size_bytes": str(written)})
    else:
        console.print(f"{printable(file)} → {output} ({size(written)})", markup=False)


def export(
    backup_id: BackupId,
    output: Annotated[Path, typer.Option("--output", help="Where to write the image.")],
    format_: Annotated[str, typer.Option("--format", help="raw, qcow2 or vmdk.")] = "qcow2",
    disk: Annotated[int, typer.Option("--disk", help="Number of the disk.")] = 0,
    force: Force = False,
    json_: Json = False,
) -> None:
    """Write a whole disk of a restore point into an image file."""
    exported = disks.export(open_gateway(), backup_id, disk, format_, output, force=force, quiet=json_)
    if json_:
        print_json(exported)
    else:
        console.print(f"disk {disk} of {exported.backup_id} → {output}", markup=False)


def serve(backup_id: BackupId, force: Force = False, json_: Json = False) -> None:
    """Offer all disks of a restore point read-only over NBD, on a Unix socket of the server."""
    point = disks.serve(open_gateway(), backup_id, force=force)
    if json_:
        print_json(point)
        return
    for disk in point.disks:
        console.print(f"disk {disk.disk_id}: {disk.uri}", markup=False, soft_wrap=True)
    console.print(f"End it with: sendense-ctl backup unserve --served-id {point.served_id}", markup=False)


def served(json_: Json = False) -> None:
    """List the restore points that are served over NBD."""
    answer = disks.list_served(open_gateway())
    if json_:
        print_json(answer)
        return
    rows = [[p.served_id, p.backup_id, str(len(p.disks)), moment(p.expires_at)] for p in answer.points]
    print_table(["SERVED", "BACKUP", "DISKS>", "UNTIL"], rows, "Nothing is served.")


def unserve(served_id: Annotated[str, typer.Option("--served-id", help="What `serve` printed.")]) -> None:
    """End serving a restore point; its clients are cut off."""
    disks.stop_serving(open_gateway(), served_id)
    console.print(f"{printable(served_id)} is not served any more.")


@file.callback()
def _file() -> None:
    """Files across restore points."""


@file.command()
def history(
    vm: Vm,
    path: Annotated[str, typer.Option("--path", help="Path in the guest.")],
    limit: Annotated[int, typer.Option("--limit", help="Only so many of the newest restore points.")] = 50,
    json_: Json = False,
) -> None:
    """Show in which restore points a file exists, and when it changed. Each point is mounted for a moment."""
    versions = list(history_of(open_gateway(), vm, path, limit))
    if json_:
        print_json({"vm_name": vm, "path": path, "versions": [version.as_json() for version in versions]})
        return
    rows = [
        [v.backup_id, v.state, size(v.entry.size_bytes) if v.entry else "–", v.modified, v.problem] for v in versions
    ]
    print_table(["BACKUP", "FILE", "SIZE>", "MODIFIED", ""], rows, "The VM has no completed backup.")


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
