"""What the shell offers on TAB: names that the server knows.

A completer never fails and never waits long: what the server does not tell in time is not offered. Bash takes an offer
as it is written, so names with blanks or quotes are quoted for it; zsh and fish quote by themselves.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable

import typer

SECONDS = 2.0
"""How long a TAB may take."""

_MOST = 200
"""Offers; more help nobody."""


def vm_names(incomplete: str) -> list[str]:
    """Names of VMs."""

    def ask() -> Iterable[str]:
        from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
        from sendense_ctl.connection import open_gateway

        gateway = open_gateway()
        with gateway.channel() as channel:
            stub = backup_pb2_grpc.VmServiceStub(channel)
            answer = gateway.call(stub.ListVms, backup_pb2.ListVmsRequest(), timeout=SECONDS)
        return sorted({vm.vm_name for vm in answer.vms})

    return _offers(ask, incomplete)


def backup_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of backups, newest first; of one VM where `--vm` stands before."""

    def ask() -> Iterable[str]:
        from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
        from sendense_ctl.connection import open_gateway

        gateway = open_gateway()
        with gateway.channel() as channel:
            stub = backup_pb2_grpc.BackupServiceStub(channel)
            request = backup_pb2.ListBackupsRequest(vm_name=ctx.params.get("vm") or "", page_size=_MOST)
            answer = gateway.call(stub.ListBackups, request, timeout=SECONDS)
        return [backup.backup_id for backup in answer.backups]

    return _offers(ask, incomplete)


def mount_ids(incomplete: str) -> list[str]:
    """Ids of mounts."""
    return _offers(lambda: [mount_id for mount_id, _ in _mounts()], incomplete)


def guest_paths(ctx: typer.Context, incomplete: str) -> list[str]:
    """Paths in the guest, of the mount that stands before on the line, or of one of the backup that does.

    Nothing is mounted for it: mounting takes longer than a TAB may.
    """

    def ask() -> Iterable[str]:
        mount_id = ctx.params.get("mount_id") or ""
        backup_id = ctx.params.get("backup_id") or ""
        if not mount_id and backup_id:
            mount_id = next((each for each, of_backup in _mounts() if of_backup.startswith(backup_id)), "")
        directory = incomplete.rpartition("/")[0] + "/"
        return [directory + name for name in _names(mount_id, directory)] if mount_id else []

    return _offers(ask, incomplete)


def _mounts() -> list[tuple[str, str]]:
    """Returns each mount's id and its backup's."""
    from sendense.restore.v1 import restore_pb2, restore_pb2_grpc
    from sendense_ctl.connection import open_gateway

    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        answer = gateway.call(stub.ListMounts, restore_pb2.ListMountsRequest(), timeout=SECONDS)
    return [(mount.mount_id, mount.backup_id) for mount in answer.mounts]


def _names(mount_id: str, directory: str) -> list[str]:
    """Returns the names in a directory of the guest; those of directories end in a slash."""
    from sendense.restore.v1 import restore_pb2, restore_pb2_grpc
    from sendense_ctl.connection import open_gateway

    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        request = restore_pb2.ListFilesRequest(mount_id=mount_id, path=directory, page_size=_MOST)
        answer = gateway.call(stub.ListFiles, request, timeout=SECONDS)
    return [entry.name + ("/" if entry.type == "directory" else "") for entry in answer.entries]


def _offers(ask: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    """Asks, keeps what fits, and quotes it where the shell does not."""
    found: list[str] = []
    # Whatever goes wrong, a TAB prints nothing into the line that is being typed.
    with contextlib.suppress(Exception):
        found = [name for name in ask() if name.startswith(incomplete) and name.isprintable()][:_MOST]
    in_bash = os.environ.get("_SENDENSE_CTL_COMPLETE", "").endswith("bash")
    return [shlex.quote(name) for name in found] if in_bash else found
