"""`sendense-ctl repository …`: where backups are kept, how they fill, and whether storage and catalogue agree."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from sendense.backup.v1 import import_pb2, import_pb2_grpc
from sendense.repository.v1 import repository_pb2, repository_pb2_grpc
from sendense_ctl.connection import open_gateway
from sendense_ctl.failures import ExitCode
from sendense_ctl.output import console, duration, moment, print_facts, print_json, print_table, printable, size

app = typer.Typer(no_args_is_help=True, help="Where backups are kept.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]
Name = Annotated[str, typer.Argument(help="The repository's name or id.")]
Reserve = Annotated[int | None, typer.Option("--reserve-gib", min=0, help="Room that is never used, in GiB.")]
Lock = Annotated[
    int | None, typer.Option("--lock-days", min=0, help="Days for which nobody can delete a restore point.")
]

_SCAN_SECONDS = 3600.0
_DAY = 86_400


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the repositories and their room."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)
        answer = gateway.call(stub.ListRepositories, repository_pb2.ListRepositoriesRequest())
    if json_:
        print_json(answer)
        return
    rows = [
        [r.name, r.repository_type, _state(r), size(r.available_size_bytes), size(r.total_size_bytes), r.path]
        for r in answer.repositories
    ]
    print_table(["NAME", "TYPE", "STATE", "FREE>", "SIZE>", "PATH"], rows, "No repositories.")
    for each in answer.repositories:
        if each.warning:
            console.print(printable(each.warning), markup=False)


@app.command()
def get(name: Name, json_: Json = False) -> None:
    """Show a repository: its settings, how it fills, and what is wrong with it."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)
        found = gateway.call(stub.GetRepository, repository_pb2.GetRepositoryRequest(repository_id=name))
    _show(found, json_=json_)


@app.command()
def add(
    name: Annotated[str, typer.Option("--name", help="Unique name.")],
    path: Annotated[str, typer.Option("--path", help="Absolute path of an empty directory on the server.")],
    kind: Annotated[str, typer.Option("--type", help="local, or nfs for a mounted network file system.")] = "local",
    reserve_gib: Reserve = None,
    lock_days: Lock = None,
    immutable: Annotated[bool, typer.Option("--immutable", help="Make committed files immutable (chattr +i).")] = False,
    json_: Json = False,
) -> None:
    """Register a directory as a repository."""
    gateway = open_gateway()
    request = repository_pb2.CreateRepositoryRequest(
        name=name,
        repository_type=kind,
        path=path,
        reserve_bytes=_gib(reserve_gib),
        lock_seconds=(lock_days or 0) * _DAY,
        immutable_files=immutable,
        request_id=uuid.uuid4().hex,
    )
    with gateway.channel() as channel:
        made = gateway.call(repository_pb2_grpc.RepositoryServiceStub(channel).CreateRepository, request)
    if json_:
        print_json(made)
    else:
        console.print(f"Repository {printable(made.name)} is at {printable(made.path)}.", markup=False)


@app.command()
def edit(
    name: Name,
    rename: Annotated[str, typer.Option("--rename", help="Its new name.")] = "",
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it takes new backups.")] = None,
    reserve_gib: Reserve = None,
    lock_days: Lock = None,
    immutable: Annotated[
        bool | None, typer.Option("--immutable/--no-immutable", help="Make committed files immutable (chattr +i).")
    ] = None,
    json_: Json = False,
) -> None:
    """Change a repository; what is not given stays. A lock is never shortened for restore points that exist."""
    gateway = open_gateway()
    request = repository_pb2.UpdateRepositoryRequest(
        repository_id=name,
        name=rename,
        enabled=enabled,
        reserve_bytes=_gib(reserve_gib),
        lock_seconds=None if lock_days is None else lock_days * _DAY,
        immutable_files=immutable,
        request_id=uuid.uuid4().hex,
    )
    with gateway.channel() as channel:
        changed = gateway.call(repository_pb2_grpc.RepositoryServiceStub(channel).UpdateRepository, request)
    _show(changed, json_=json_)


@app.command()
def probe(name: Name, json_: Json = False) -> None:
    """Try whether backups can be kept in a repository now."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)
        found = gateway.call(stub.ProbeRepository, repository_pb2.ProbeRepositoryRequest(repository_id=name))
    if json_:
        print_json(found)
    else:
        rows = [[each.name, "ok" if each.passed else "FAILED", each.finding] for each in found.results]
        print_table(["TRIAL", "RESULT", "FINDING"], rows, "Nothing was tried.")
    if not found.usable:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def remove(
    name: Name,
    forget_points: Annotated[
        bool, typer.Option("--forget-points", help="Forget its restore points too; the files stay.")
    ] = False,
) -> None:
    """Forget a repository. Its files are not touched; it can be added and imported again."""
    gateway = open_gateway()
    request = repository_pb2.DeleteRepositoryRequest(
        repository_id=name, forget_points=forget_points, request_id=uuid.uuid4().hex
    )
    with gateway.channel() as channel:
        gateway.call(repository_pb2_grpc.RepositoryServiceStub(channel).DeleteRepository, request)
    console.print(f"Repository {printable(name)} is forgotten; its files are where they were.", markup=False)


@app.command()
def scan(
    name: Name,
    take: Annotated[bool, typer.Option("--import", help="Import the restore points that only storage has.")] = False,
    json_: Json = False,
) -> None:
    """Compare a repository's storage with the catalogue, both ways."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = repository_pb2_grpc.RepositoryServiceStub(channel)
        request = repository_pb2.ScanRepositoryRequest(repository_id=name)
        report = gateway.call(stub.ScanRepository, request, timeout=_SCAN_SECONDS)
        imported = import_pb2.ImportPointsResponse()
        if take and report.importable_points:
            wanted = import_pb2.ImportPointsRequest(repository=name, request_id=uuid.uuid4().hex)
            service = import_pb2_grpc.ImportServiceStub(channel)
            imported = gateway.call(service.ImportPoints, wanted, timeout=_SCAN_SECONDS)
    if json_:
        print_json(imported if take else report)
    else:
        _show_scan(report)
        if take:
            _show_import(imported)
    if imported.refused:
        raise typer.Exit(ExitCode.FAILED)


def _show_scan(report: repository_pb2.ScanReport) -> None:
    console.print(f"{report.agreed_points} restore points agree.")
    rows = [[each.backup_id, each.vm_name, moment(each.committed_at)] for each in report.importable_points]
    print_table(["ONLY ON STORAGE", "VM", "COMMITTED"], rows, "Storage has no restore point that is not known.")
    rows = [[each.kind, each.path, each.backup_id or "–", each.finding] for each in report.findings]
    print_table(["KIND", "PATH", "BACKUP", "FINDING"], rows, "Nothing else differs.")


def _show_import(imported: import_pb2.ImportPointsResponse) -> None:
    console.print(f"{len(imported.imported_backup_ids)} restore points were imported.")
    rows = [[each.backup_id, each.reason, each.message] for each in imported.refused]
    if rows:
        print_table(["NOT IMPORTED", "REASON", "WHY"], rows, "")


def _gib(number: int | None) -> int | None:
    return None if number is None else number << 30


def _state(repository: repository_pb2.Repository) -> str:
    if repository.problem:
        return "unusable"
    return "ok" if repository.enabled else "disabled"


def _show(repository: repository_pb2.Repository, *, json_: bool) -> None:
    if json_:
        print_json(repository)
        return
    r = repository
    facts = [
        ("Name", r.name),
        ("Id", r.repository_id),
        ("Type", r.repository_type),
        ("Path", r.path),
        ("State", _state(r) + (f": {r.problem}" if r.problem else "")),
        ("Free", f"{size(r.available_size_bytes)} of {size(r.total_size_bytes)}, besides {size(r.reserve_bytes)} kept"),
        ("Restore points", f"{r.point_count}, {size(r.stored_bytes)}"),
        ("Grows", f"{size(r.growth_bytes_per_day)} a day" if r.growth_bytes_per_day else "not known yet"),
        ("Full", moment(r.full_at) if r.HasField("full_at") else "not to be expected"),
        ("Lock", duration(r.lock_seconds) if r.lock_seconds else "none"),
        ("Immutable files", "yes" if r.immutable_files else "no"),
    ]
    print_facts(facts)
    if r.warning:
        console.print(printable(r.warning), markup=False)
