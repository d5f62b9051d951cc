"""A mutation that is asked for twice is done once: a caller that heard no answer asks again with its `request_id`.

The first good answer to a caller's request id is kept for a day and given again. A failure is not kept: it changed
nothing, and the next try may succeed. While the first call still runs, the second waits for it; a caller that goes away
ends neither. When the process dies between the change and the keeping of its answer, the repeated request runs again,
so creating RPCs also refuse a second thing of the same name, or look for the id in their own transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from google.protobuf.message import Message

from sendense_rpc.errors import Kind, SendenseError

KEPT_FOR = timedelta(days=1)
"""How long an answer is kept."""


class RequestIdReused(SendenseError):
    """The caller used a request id again for another request."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"the request id '{request_id}' came with another request before",
            kind=Kind.INVALID_ARGUMENT,
            reason="REQUEST_ID_REUSED",
            help="Make up a new request id for each new request; repeat one only with the same request.",
            metadata={"request_id": request_id},
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """A request that was done.

    Attributes:
        digest: SHA-256 of the request.
        answer: The answer, serialized.
    """

    digest: str
    answer: bytes


class Ledger(Protocol):
    """Where answers are kept; `sendense_db.requests` is the one in the catalogue."""

    async def find(self, key: str) -> Kept | None:
        """Returns what is kept under a key, unless it is older than `KEPT_FOR`."""

    async def keep(self, key: str, kept: Kept) -> None:
        """Keeps an answer; one that is there already stays."""


def scoped(caller: str, method: str, request_id: str) -> str:
    """Returns a request id that is the caller's and the method's own, for services that keep ids in their rows.

    Two callers that make up the same id, or one that uses an id for two kinds of requests, never meet there.
    """
    return _key(caller, method, request_id)[:32]


def _key(caller: str, method: str, request_id: str) -> str:
    return hashlib.sha256("\0".join((caller, method, request_id)).encode()).hexdigest()


class Repeats:
    """Runs each request once.

    Args:
        ledger: Where answers are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running: dict[str, asyncio.Task[Message]] = {}

    async def once(
        self,
        caller: str,
        method: str,
        request: Message,
        request_id: str,
        work: Callable[[], Awaitable[Message]],
        answer_type: Callable[[bytes], Message],
    ) -> Message:
        """Returns the answer to a request: a kept one, or that of `work`.

        Args:
            caller: Who asks; ids of different callers never meet.
            method: What is asked for.
            request: The request, `request_id` included.
            request_id: The id, not empty.
            work: Does it.
            answer_type: Reads a serialized answer.

        Raises:
            RequestIdReused: The id came with another request.
        """
        key = _key(caller, method, request_id)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        while (running := self._running.get(key)) is not None:
            await asyncio.wait([running])
        # No await between looking and putting the task there: of two callers, one makes it.
        task = asyncio.ensure_future(self._once(key, digest, request_id, work, answer_type))
        self._running[key] = task
        task.add_done_callback(lambda ended: self._ended(key, ended))
        return await asyncio.shield(task)

    async def _once(
        self,
        key: str,
        digest: str,
        request_id: str,
        work: Callable[[], Awaitable[Message]],
        answer_type: Callable[[bytes], Message],
    ) -> Message:
        kept = await self._ledger.find(key)
        if kept is not None:
            if kept.digest != digest:
                raise RequestIdReused(request_id)
            return answer_type(kept.answer)
        answer = await work()
        await self._ledger.keep(key, Kept(digest, answer.SerializeToString()))
        return answer

    def _ended(self, key: str, task: asyncio.Task[Message]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen here, since the caller may have left

    async def drain(self) -> None:
        """Waits for what runs although its caller left."""
        if self._running:
            await asyncio.wait(list(self._running.values()))
