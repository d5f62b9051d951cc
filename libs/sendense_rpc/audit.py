"""What a service was asked to do, on its way into the audit log of the access service.

Each event is written to a file of the service (0600, fsync) before the caller hears the answer, and sent to the access
service, which records an event once, whatever it is sent again. So no answer to a mutation is without its entry, and
neither the access service's absence nor a crash of this process loses one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import structlog

from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

OK = "ok"
"""The result of what was done; what was refused has its reason instead."""
_BATCH = 500
_RETRY_SECONDS = 2.0
_GATHER_SECONDS = 0.2
"""How long events gather after some were sent: a storm of refusals becomes few entries' transactions, not thousands."""
_LAST_TRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """What somebody asked for, and what became of it.

    Attributes:
        actor: Subject of the token.
        token_id: The token's id.
        action: Such as `BackupService.DeleteBackup`.
        target: What it was done to.
        result: `ok`, or the reason of the refusal.
        source: Address that the request came from.
        request_id: The request's id in the logs.
        event_id: Made up here: the same event is recorded once.
        occurred_at: When, in UTC, ISO 8601.
    """

    actor: str
    token_id: str
    action: str
    target: str
    result: str
    source: str
    request_id: str
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    occurred_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


class AuditLog(Protocol):
    """Where events go."""

    async def record(self, event: AuditEvent) -> None:
        """Keeps an event; when it returns, no crash loses it."""


Send = Callable[[Sequence[AuditEvent]], Awaitable[None]]
"""Sends events, in order, to the access service; raises SendenseError or OSError when it cannot."""


class AuditSpool:
    """Events of this process, kept in a file until they are sent; an asynchronous context manager that sends.

    Args:
        file: Where they wait.
        send: Sends them.
    """

    def __init__(self, file: Path, send: Send) -> None:
        self._file = file
        self._send = send
        self._waiting: list[AuditEvent] = []
        self._more = asyncio.Event()
        self._lock = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._waiting = await asyncio.to_thread(_load, self._file)
        if self._waiting:
            self._more.set()
        self._sender = asyncio.create_task(self._send_for_ever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sender:
            self._sender.cancel()
            await asyncio.wait([self._sender])
        # What cannot be sent now waits in the file for the next start.
        with contextlib.suppress(SendenseError, OSError, TimeoutError):
            async with asyncio.timeout(_LAST_TRY_SECONDS):
                await self._send_all()

    async def record(self, event: AuditEvent) -> None:
        """Keeps an event; when it returns, it is on disk."""
        async with self._lock:
            try:
                await asyncio.to_thread(_append, self._file, event)
            except OSError as error:
                # What was done cannot be undone for it; the event is still sent as long as this process lives.
                log.error("an audit event is not on disk", why=str(error), action=event.action)  # noqa: TRY400
            self._waiting.append(event)
        self._more.set()

    async def _send_for_ever(self) -> None:
        while True:
            await self._more.wait()
            try:
                await self._send_all()
            except (SendenseError, OSError) as error:
                log.warning("audit events wait", count=len(self._waiting), why=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await asyncio.sleep(_GATHER_SECONDS)

    async def _send_all(self) -> None:
        while self._waiting:
            batch = self._waiting[:_BATCH]
            await self._send(batch)
            async with self._lock:
                del self._waiting[: len(batch)]
                if not self._waiting:
                    await asyncio.to_thread(self._file.unlink, missing_ok=True)
        self._more.clear()


def _append(file: Path, event: AuditEvent) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as opened:
        opened.write(json.dumps(asdict(event)).encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def _load(file: Path) -> list[AuditEvent]:
    """Returns what an earlier run did not send; a last line that a crash cut off was never answered for."""
    if not file.exists():
        return []
    events = []
    for line in file.read_text().splitlines():
        try:
            events.append(AuditEvent(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            log.warning("an audit event is cut off", file=str(file))
    return events
