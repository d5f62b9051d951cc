"""Mounts and downloads, as commands use them."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

import httpx

from sendense.restore.v1 import restore_pb2, restore_pb2_grpc
from sendense_ctl.connection import Gateway
from sendense_ctl.failures import LocalError
from sendense_rpc.errors import Kind, RemoteError

MOUNT_SECONDS = 120.0
"""A mount under emulation takes up to 10 s; a journal to replay more."""

_CHUNK = 1 << 20
_POLL_SECONDS = 0.5


def mount(gateway: Gateway, backup_id: str) -> restore_pb2.Mount:
    """Mounts a restore point read-only."""
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        request = restore_pb2.MountBackupRequest(backup_id=backup_id, mode="read-only")
        mounted: restore_pb2.Mount = gateway.call(stub.MountBackup, request, timeout=MOUNT_SECONDS)
        while mounted.state == "mounting":
            time.sleep(_POLL_SECONDS)
            mounted = gateway.call(stub.GetMount, restore_pb2.GetMountRequest(mount_id=mounted.mount_id))
        if mounted.state == "failed":
            raise RemoteError(
                mounted.error_message,
                kind=Kind.FAILED_PRECONDITION,
                reason=mounted.error_reason or "MOUNT_FAILED",
                help="",
            )
        return mounted


def list_mounts(gateway: Gateway) -> restore_pb2.ListMountsResponse:
    """Lists what is mounted."""
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        answer: restore_pb2.ListMountsResponse = gateway.call(stub.ListMounts, restore_pb2.ListMountsRequest())
        return answer


def list_directory(gateway: Gateway, mount_id: str, path: str) -> restore_pb2.ListFilesResponse:
    """Lists a whole directory, page after page."""
    whole = restore_pb2.ListFilesResponse(path=path)
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        token = ""
        while True:
            request = restore_pb2.ListFilesRequest(mount_id=mount_id, path=path, page_size=1000, page_token=token)
            page = gateway.call(stub.ListFiles, request)
            whole.entries.extend(page.entries)
            token = page.next_page_token
            if not token:
                return whole


def unmount(gateway: Gateway, mount_id: str, *, force: bool = False) -> None:
    """Unmounts; waits for running downloads unless forced."""
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        request = restore_pb2.UnmountBackupRequest(mount_id=mount_id, force=force)
        gateway.call(stub.UnmountBackup, request, timeout=MOUNT_SECONDS)


def download(gateway: Gateway, mount_id: str, path: str, output: Path) -> int:
    """Downloads a file, or a directory as a tar, and returns the bytes written.

    It is written beside `output` and renamed when it is whole, so that a broken download never looks like the file.

    Raises:
        RemoteError: What the server answered.
        LocalError: The output cannot be written, or the connection broke.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    url = f"{gateway.endpoint}/api/v1/restore/{mount_id}/download"
    headers = {"Authorization": f"Bearer {gateway.token}"}
    trust = ssl.create_default_context(cafile=gateway.ca_file)
    try:
        with (
            httpx.Client(verify=trust, timeout=60) as client,
            client.stream("GET", url, params={"path": path}, headers=headers) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise _refused(answer)
            with partial.open("wb") as file:
                written = 0
                for chunk in answer.iter_raw(_CHUNK):
                    written += file.write(chunk)
                os.fsync(file.fileno())
        partial.replace(output)
    except httpx.HTTPError as error:
        raise LocalError(f"the download of {path} broke: {error}", "Nothing was written; try again.") from error
    except OSError as error:
        raise LocalError(f"{output} cannot be written: {error.strerror}", "Name another --output.") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


_KIND_OF_STATUS = {
    400: Kind.INVALID_ARGUMENT,
    401: Kind.UNAUTHENTICATED,
    403: Kind.PERMISSION_DENIED,
    404: Kind.NOT_FOUND,
}


def _refused(answer: httpx.Response) -> RemoteError:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    return RemoteError(
        body.get("message", f"the server answered {answer.status_code}"),
        kind=_KIND_OF_STATUS.get(answer.status_code, Kind.UNAVAILABLE),
        reason=body.get("reason", f"HTTP_{answer.status_code}"),
        help=body.get("help", ""),
    )
