"""`sendense-ctl backup …`: start, follow, list, chain, delete, and getting files back."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.markup import escape
from rich.text import Text

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_ctl import job, restore
from sendense_ctl.completion import backup_ids, vm_names
from sendense_ctl.connection import open_gateway
from sendense_ctl.failures import ExitCode
from sendense_ctl.output import (
    age,
    console,
    duration,
    moment,
    print_error,
    print_facts,
    print_json,
    print_table,
    printable,
    size,
)
from sendense_ctl.progress import FINAL, follow

app = typer.Typer(no_args_is_help=True, help="Start backups, look at them, get files back.")
app.command("verify")(job.verify)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]
Vm = Annotated[str, typer.Option("--vm", help="Name of the VM.", autocompletion=vm_names)]
BackupId = Annotated[
    str, typer.Option("--backup-id", help="Backup id, or a unique beginning of one.", autocompletion=backup_ids)
]


@app.command()
def start(
    vm: Vm = "",
    vm_uuid: Annotated[str, typer.Option("--vm-uuid", help="Instance uuid, where the name is not unique.")] = "",
    backup_type: Annotated[str, typer.Option("--type", help="full or incremental.")] = "incremental",
    repository: Annotated[
        str, typer.Option("--repository", help="Name of the repository; default: the default one.")
    ] = "",
    quiesce: Annotated[bool, typer.Option("--quiesce", help="Ask the guest to quiesce its file systems.")] = False,
    exclude_disk: Annotated[
        list[str] | None, typer.Option("--exclude-disk", help="Leave a disk out: its label, device key or uuid.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the backup until it has ended.")] = True,
    json_: Json = False,
) -> None:
    """Back up a VM and follow the progress. Ctrl-C leaves the backup running."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        request = backup_pb2.StartBackupRequest(
            vm_name=vm,
            vm_uuid=vm_uuid,
            backup_type=backup_type,
            repository=repository,
            quiesce=quiesce,
            exclude_disks=exclude_disk or [],
            request_id=uuid.uuid4().hex,
        )
        backup = gateway.call(stub.StartBackup, request)
        if not json_:
            console.print(f"Backup {printable(backup.backup_id)} was queued.")
        if wait:
            backup = _follow(gateway, channel, backup.backup_id, quiet=json_)
        _show_outcome(backup, json_=json_)


@app.command()
def watch(backup_id: BackupId, json_: Json = False) -> None:
    """Join a running backup and follow its progress."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        _show_outcome(_follow(gateway, channel, backup_id, quiet=json_), json_=json_)


def _follow(gateway: object, channel: object, backup_id: str, *, quiet: bool) -> backup_pb2.Backup:
    try:
        return follow(gateway, channel, backup_id, quiet=quiet)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        print_error("stopped following", f"The backup goes on: sendense-ctl backup watch --backup-id {backup_id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _show_outcome(backup: backup_pb2.Backup, *, json_: bool) -> None:
    if json_:
        print_json(backup)
    elif backup.status == "completed":
        seconds = (backup.completed_at.ToDatetime() - backup.started_at.ToDatetime()) / timedelta(seconds=1)
        console.print(
            f"[green]completed[/]: {backup.backup_type}, {size(backup.bytes_transferred)} in {duration(seconds)}"
        )
        rows = [[d.label, d.backup_type, size(d.bytes_transferred), d.reason] for d in backup.disks]
        print_table(["DISK", "TYPE", "MOVED>", "WHY"], rows, "No disks.")
        if backup.consistency_note:
            console.print(f"[yellow]crash-consistent[/]: {printable(backup.consistency_note)}")
        if backup.alert:
            console.print(f"[red]alert[/]: {printable(backup.alert)}")
    elif backup.status in FINAL:
        print_error(f"backup {backup.backup_id} is {backup.status}: {backup.error_message}", reason=backup.error_reason)
    if backup.status in ("failed", "cancelled"):
        raise typer.Exit(ExitCode.BACKUP_FAILED)


@app.command("list")
def list_(
    vm: Annotated[str, typer.Option("--vm", help="Only backups of this VM.", autocompletion=vm_names)] = "",
    status: Annotated[str, typer.Option("--status", help="Only backups with this status.")] = "",
    json_: Json = False,
) -> None:
    """List backups, newest first."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        whole = backup_pb2.ListBackupsResponse()
        token = ""
        while True:
            request = backup_pb2.ListBackupsRequest(vm_name=vm, status=status, page_size=1000, page_token=token)
            page = gateway.call(stub.ListBackups, request)
            whole.backups.extend(page.backups)
            token = page.next_page_token
            if not token:
                break
    if json_:
        print_json(whole)
        return
    rows = [
        [b.backup_id, b.backup_type, b.status, size(b.bytes_transferred), *([] if vm else [b.vm_name])]
        for b in whole.backups
    ]
    # The id holds the moment; the VM's name is a column only where it can differ.
    print_table(["BACKUP", "TYPE", "STATUS", "MOVED>", *([] if vm else ["VM"])], rows, "No backups yet.")


@app.command()
def get(backup_id: BackupId, json_: Json = False) -> None:
    """Show one backup with its disks."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        backup = gateway.call(stub.GetBackup, backup_pb2.GetBackupRequest(backup_id=backup_id))
    if json_:
        print_json(backup)
        return
    facts = [
        ("backup", backup.backup_id),
        ("vm", backup.vm_name),
        ("type", backup.backup_type),
        ("status", backup.status + (f" ({backup.progress.phase})" if backup.progress.phase else "")),
        ("builds on", backup.parent_backup_id or "–"),
        ("repository", f"{backup.repository}: {backup.repository_path}"),
        ("moved", f"{size(backup.bytes_transferred)} of {size(backup.total_bytes)}"),
        ("created", moment(backup.created_at)),
        ("ended", moment(backup.completed_at)),
    ]
    if backup.consistency:
        facts.append(("snapshot", " – ".join(filter(None, (backup.consistency, backup.consistency_note)))))
    if backup.alert:
        facts.append(("alert", backup.alert))
    if backup.error_message:
        facts.append(("error", f"{backup.error_message} [{backup.error_reason}]"))
    print_facts(facts)
    rows = [
        [d.label, d.backup_type, d.status, size(d.capacity_bytes), size(d.bytes_transferred), d.reason]
        for d in backup.disks
    ]
    print_table(["DISK", "TYPE", "STATUS", "CAPACITY>", "MOVED>", "WHY"], rows, "No disks yet.")


@app.command()
def chain(vm: Vm, json_: Json = False) -> None:
    """Draw a VM's chains: fulls and the increments that build on them."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        answer = gateway.call(stub.GetChain, backup_pb2.GetChainRequest(vm_name=vm))
    if json_:
        print_json(answer)
        return
    from rich.tree import Tree

    tree = Tree(f"{escape(printable(answer.vm_name))}, {size(answer.total_size_bytes)} in all")
    for one in answer.chains:
        state = "current" if one.current else "older"
        disk = tree.add(f"disk {one.disk_id}: {one.total_backups} layers, {size(one.total_size_bytes)} ({state})")
        full = disk
        for layer in one.layers:
            # Increments stand side by side below their full: each builds on the one above it.
            branch = (disk if layer.backup_type == "full" else full).add(
                f"{layer.backup_id} [dim]{'full ' if layer.backup_type == 'full' else '+'}{size(layer.size_bytes)}, "
                f"{age(layer.created_at)}, "
                f"{_soundness(layer)}[/]"
            )
            full = branch if layer.backup_type == "full" else full
    console.print(tree)


def _soundness(layer: backup_pb2.ChainLayer) -> str:
    if layer.doubt:
        return f"[/][red]{escape(printable(layer.doubt))}[/][dim]"
    return f"verified {age(layer.verified_at)}" if layer.HasField("verified_at") else "unverified"


@app.command()
def why(vm: Vm, json_: Json = False) -> None:
    """Say why each backup of a VM is full or not, why it is kept, and why others are gone."""
    from sendense_ctl.why import explain

    answers = explain(open_gateway(), vm)
    if json_:
        print_json({"vm_name": vm, "backups": [asdict(answer) for answer in answers]})
        return
    for answer in answers:
        console.print(Text.assemble((answer.backup_id, "bold"), f"  {answer.state}"))
        print_facts([(name, text) for name, text in (("why", answer.why_so), ("here", answer.why_here)) if text], 2)
    if not answers:
        console.print("It was never backed up.")


@app.command()
def log(backup_id: BackupId, json_: Json = False) -> None:
    """Show a backup's job log."""
    gateway = open_gateway()
    whole = backup_pb2.ListLogEntriesResponse()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        token = ""
        while True:
            request = backup_pb2.ListLogEntriesRequest(backup_id=backup_id, page_size=1000, page_token=token)
            page = gateway.call(stub.ListLogEntries, request)
            whole.entries.extend(page.entries)
            token = page.next_page_token
            if not token:
                break
    if json_:
        print_json(whole)
        return
    rows = [[moment(e.created_at), e.level, e.step, e.message] for e in whole.entries]
    print_table(["TIME", "LEVEL", "STEP", "MESSAGE"], rows, "The log is empty.")


@app.command()
def cancel(backup_id: BackupId, json_: Json = False) -> None:
    """Stop a running backup; what it made is undone."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        backup = gateway.call(stub.CancelBackup, backup_pb2.CancelBackupRequest(backup_id=backup_id))
    if json_:
        print_json(backup)
    else:
        console.print(f"Backup {printable(backup.backup_id)} is {backup.status}; it stops at its next chunk.")


@app.command()
def delete(
    backup_id: BackupId,
    cascade: Annotated[bool, typer.Option("--cascade", help="Delete the backups that build on it too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    json_: Json = False,
) -> None:
    """Delete a backup."""
    gateway = open_gateway()
    request = backup_pb2.DeleteBackupRequest(backup_id=backup_id, cascade=cascade, dry_run=dry_run)
    with gateway.channel() as channel:
        answer = gateway.call(backup_pb2_grpc.BackupServiceStub(channel).DeleteBackup, request, timeout=300)
    if json_:
        print_json(answer)
        return
    verb = "would be deleted" if answer.dry_run else "deleted"
    for deleted in answer.backup_ids:
        console.print(f"{printable(deleted)} {verb}")
    console.print(f"{size(answer.freed_bytes)} {'would come' if answer.dry_run else 'came'} back")


restore.register(app)
