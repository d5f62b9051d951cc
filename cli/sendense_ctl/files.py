"""Mounts and downloads, as commands use them."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Mapping
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


def read_passphrases(path: Path | None) -> list[str]:
    """Reads passphrases, one a line; they are never taken from the command line, where all users could read them.

    Raises:
        LocalError: The file cannot be read.
    """
    if path is None:
        return []
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"{path} cannot be read: {error}", "Name a file that holds the passphrase.") from error


def mount(gateway: Gateway, request: restore_pb2.MountBackupRequest) -> restore_pb2.Mount:
    """Mounts a restore point read-only and waits until it is."""
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
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


def look(gateway: Gateway, mount_id: str, path: str) -> restore_pb2.FileEntry:
    """Describes one file."""
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        entry: restore_pb2.FileEntry = gateway.call(
            stub.GetFile, restore_pb2.GetFileRequest(mount_id=mount_id, path=path)
        )
        return entry


def search(gateway: Gateway, mount_id: str, path: str, pattern: str, limit: int) -> restore_pb2.SearchFilesResponse:
    """Looks for names below a directory."""
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        request = restore_pb2.SearchFilesRequest(mount_id=mount_id, path=path, pattern=pattern, limit=limit)
        found: restore_pb2.SearchFilesResponse = gateway.call(stub.SearchFiles, request)
        return found


def list_directory(
    gateway: Gateway, mount_id: str, path: str, *, order_by: str = "", pattern: str = ""
) -> restore_pb2.ListFilesResponse:
    """Lists a whole directory, page after page."""
    whole = restore_pb2.ListFilesResponse(path=path)
    with gateway.channel() as channel:
        stub = restore_pb2_grpc.RestoreServiceStub(channel)
        token = ""
        while True:
            request = restore_pb2.ListFilesRequest(
                mount_id=mount_id, path=path, page_size=1000, page_token=token, order_by=order_by, pattern=pattern
            )
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


def download(
    gateway: Gateway,
    resource_id: str,
    query: Mapping[str, str],
    output: Path,
    *,
    sparse: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> int:
    """Downloads a file, a directory as an archive, or a whole disk, and returns the bytes of the output.

    It is written beside `output` and renamed when it is whole, so that a broken download never looks like the file.

    Args:
        gateway: The way to the server.
        resource_id: A mount, or a disk export.
        query: Such as the path in the mount.
        output: Where to write it.
        sparse: Leave holes where a whole block is zero.
        on_bytes: Told how many bytes have come.

    Raises:
        RemoteError: What the server answered.
        LocalError: The output cannot be written, or the connection broke.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    url = f"{gateway.endpoint}/api/v1/restore/{resource_id}/download"
    headers = {"Authorization": f"Bearer {gateway.token}"}
    trust = ssl.create_default_context(cafile=gateway.ca_file)
    try:
        with (
            httpx.Client(verify=trust, timeout=60) as client,
            client.stream("GET", url, params=dict(query), headers=headers) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise _refused(answer)
            with partial.open("wb") as file:
                written = 0
                for chunk in answer.iter_raw(_CHUNK):
                    if sparse and not chunk.strip(b"\0"):
                        file.seek(len(chunk), os.SEEK_CUR)
                    else:
                        file.write(chunk)
                    written += len(chunk)
                    on_bytes(written)
                file.truncate(written)
                os.fsync(file.fileno())
        partial.replace(output)
    except httpx.HTTPError as error:
        raise LocalError(
            f"the download of {query.get('path') or resource_id} broke: {error}", "Nothing was written; try again."
        ) from error
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
