"""The client: generated stubs on one channel, and the few things that take more than one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

import grpc

from sendense.access.v1 import access_pb2_grpc, audit_pb2_grpc
from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.exports.v1 import exports_pb2_grpc
from sendense.repository.v1 import repository_pb2_grpc
from sendense.restore.v1 import restore_pb2_grpc
from sendense_client.calls import Calls
from sendense_client.errors import Unavailable

FINAL = frozenset({"completed", "failed", "cancelled"})
"""The states in which a backup has ended."""
TIMEOUT = 60.0
_RECONNECT_SECONDS = 1.0
_MAX_MESSAGE_BYTES = 8 << 20


class Client:
    """Calls Sendense's gateway; a context manager that closes its channel. Threads may share one.

    Each attribute is a generated stub: its methods take the request messages of `sendense.<area>.v1`, optionally
    `timeout=` in seconds, and raise `ApiError` or one of its subclasses.

    Args:
        endpoint: `https://host:port`.
        token: The bearer token, or a function that returns it, for tokens that are renewed.
        ca_file: Certificate (PEM) that the gateway's must descend from; None trusts the system's.
        timeout: Seconds for a call that names no deadline of its own.

    Raises:
        ValueError: The endpoint is no address.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | Callable[[], str],
        *,
        ca_file: Path | str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError(f"{endpoint!r} is no address of a gateway: it is https://host:port")
        self.endpoint = endpoint.rstrip("/")
        self._ca_file = Path(ca_file) if ca_file else None
        self._token: Callable[[], str] = token if callable(token) else lambda: token
        self.channel = grpc.intercept_channel(
            self._open(parts.scheme, parts.hostname, parts.port), Calls(self._token, timeout)
        )
        self.backups = backup_pb2_grpc.BackupServiceStub(self.channel)
        self.vms = backup_pb2_grpc.VmServiceStub(self.channel)
        self.repositories = repository_pb2_grpc.RepositoryServiceStub(self.channel)
        self.restore = restore_pb2_grpc.RestoreServiceStub(self.channel)
        self.exports = exports_pb2_grpc.ExportServiceStub(self.channel)
        self.access = access_pb2_grpc.AccessServiceStub(self.channel)
        self.agents = access_pb2_grpc.AgentRegistryServiceStub(self.channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self.channel)

    @classmethod
    def of_node(cls, home: Path | str, *, timeout: float = TIMEOUT) -> Self:
        """Returns a client of the node whose state directory this is, as its administrator.

        Raises:
            OSError: The node does not run, or its files may not be read.
        """
        root = Path(home)
        endpoint = (root / "endpoint").read_text().strip()
        token_file = root / "admin.token"
        token_file.stat()
        ca = root / "tls" / "ca.crt"
        return cls(
            endpoint, lambda: token_file.read_text().strip(), ca_file=ca if ca.exists() else None, timeout=timeout
        )

    def follow(self, backup_id: str) -> Iterator[backup_pb2.Backup]:
        """Yields a backup whenever it changed, until it has ended; joins again when the connection breaks.

        Raises:
            ApiError: There is no such backup, or nobody answered for a minute.
        """
        lost_at = 0.0
        while True:
            try:
                for backup in self.backups.WatchBackup(backup_pb2.WatchBackupRequest(backup_id=backup_id)):
                    lost_at = 0.0
                    yield backup
                    if backup.status in FINAL:
                        return
            except Unavailable:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > TIMEOUT:
                    raise
            time.sleep(_RECONNECT_SECONDS)

    def back_up(self, vm_name: str, *, full: bool = False, repository: str = "") -> backup_pb2.Backup:
        """Backs up a VM and returns the backup when it has ended; its `status` says how.

        Raises:
            ApiError: It could not be started.
        """
        request = backup_pb2.StartBackupRequest(
            vm_name=vm_name, backup_type="full" if full else "incremental", repository=repository
        )
        backup = self.backups.StartBackup(request)
        for seen in self.follow(backup.backup_id):
            backup = seen
        return backup

    def download(self, mount_id: str, path: str, target: BinaryIO) -> int:
        """Writes a file of a mounted restore point to `target` and returns its length in bytes.

        Raises:
            ApiError: There is no such mount or file, or it may not be read.
            httpx.HTTPError: The transfer broke off; what was written so far is not the file.
        """
        import ssl

        import httpx

        from sendense_client.downloads import refusal

        context = ssl.create_default_context(cafile=self._ca_file)
        headers = {"Authorization": f"Bearer {self._token()}"}
        address = f"{self.endpoint}/api/v1/restore/{mount_id}/download"
        written = 0
        with httpx.stream(
            "GET", address, params={"path": path}, headers=headers, verify=context, timeout=TIMEOUT
        ) as answer:
            if answer.status_code != httpx.codes.OK:
                raise refusal(answer.read())
            for part in answer.iter_bytes():
                written += target.write(part)
        return written

    def close(self) -> None:
        """Closes the channel."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, scheme: str, host: str, port: int | None) -> grpc.Channel:
        target = f"[{host}]:{port or 443}" if ":" in host else f"{host}:{port or 443}"
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if scheme == "http":
            return grpc.insecure_channel(target, options)
        roots = self._ca_file.read_bytes() if self._ca_file else None
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
