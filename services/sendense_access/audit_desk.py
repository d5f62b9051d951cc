"""The use cases of the audit log: append what is reported, show it, prove that it is whole.

After each append the head (position and hash of the newest entry) is written, signed, to a file beside the keys.
Whoever can only write to the database can neither cut entries off the end nor put a new chain in the old one's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jwt
import structlog

from sendense_access.audit import GENESIS, BrokenChain, ChainWalk, Entry, Event
from sendense_access.errors import InvalidRequest
from sendense_access.keys import SigningKey, write_private
from sendense_access.paging import page_limit
from sendense_access.store import AuditFilter, AuditStore
from sendense_rpc.audit import AuditEvent

log = structlog.get_logger()

_REFUSED_AT_THE_DOOR = ("ROLE_MISSING", "TOKEN_LIMITED")
"""What the door alone knows of; everything else this service records itself, in the mutation's transaction."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a verification.

    Attributes:
        entries: How many were good.
        broken_sequence: The first position that does not fit; 0 when all do.
        problem: What does not fit there.
        head_hash: Hash of the newest good entry.
    """

    entries: int
    broken_sequence: int
    problem: str
    head_hash: str


class AuditDesk:
    """The audit log.

    Args:
        store: Its rows.
        key: Signs the head.
        head_file: Where the head is kept.
    """

    def __init__(self, store: AuditStore, key: SigningKey, head_file: Path) -> None:
        self._store = store
        self._key = key
        self._head_file = head_file
        self._lock = asyncio.Lock()

    async def append(self, events: Sequence[Event]) -> None:
        """Appends what other services report; an event that is there already is not appended again."""
        await self._store.append(events)
        await self.keep_head()

    async def record(self, event: AuditEvent) -> None:
        """Takes what this service's own door saw (`sendense_rpc.audit.AuditLog`)."""
        if event.result in _REFUSED_AT_THE_DOOR:
            refused = Event(
                actor=event.actor,
                action=event.action,
                target=event.target,
                result=event.result,
                source=event.source,
                request_id=event.request_id,
                token_id=event.token_id,
                event_id=event.event_id,
            )
            await self._store.append([refused])
        await self.keep_head()

    async def keep_head(self) -> None:
        """Writes the signed head. A crash before it leaves an older head, which the longer chain still contains.

        A log that does not contain the kept head was tampered with: that head stays, so `verify` goes on telling.
        """
        async with self._lock:
            try:
                kept = await asyncio.to_thread(self._kept_head)
            except BrokenChain as error:
                log.error("the audit log's head was tampered with", why=error.problem)  # noqa: TRY400
                return
            if kept[0] and await self._store.hash_at(kept[0]) != kept[1]:
                log.error("the audit log was tampered with", entry=kept[0], help="Run `sendense-ctl audit verify`.")
                return
            sequence, entry_hash = await self._store.head()
            signed = self._key.seal({"sequence": sequence, "entry_hash": entry_hash})
            await asyncio.to_thread(write_private, self._head_file, signed.encode())

    async def list(self, page_size: int, page_token: str, chosen: AuditFilter) -> tuple[list[Entry], str]:
        """Returns a page, newest first, and the next page's token (empty on the last page).

        Raises:
            InvalidRequest: The page token was not made here, or the size is negative.
        """
        limit = page_limit(page_size)
        if page_token and not (page_token.isascii() and page_token.isdecimal() and len(page_token) < 19):
            raise InvalidRequest("page_token", "is not one that a list returned", reason="INVALID_PAGE_TOKEN")
        found = await self._store.entries(limit + 1, int(page_token) if page_token else None, chosen)
        page = found[:limit]
        return page, str(page[-1].sequence) if len(found) > limit else ""

    async def verify(self) -> Verdict:
        """Walks the whole chain and compares it with the kept head."""
        walk = ChainWalk()
        try:
            head = await asyncio.to_thread(self._kept_head)
            async for entry in self._store.all():
                walk.step(entry)
                _compare(walk, head)
            if walk.count < head[0]:
                return Verdict(
                    walk.count, walk.count + 1, f"the log once had {head[0]} entries, its end is gone", walk.last_hash
                )
        except BrokenChain as error:
            return Verdict(walk.count, error.sequence, error.problem, walk.last_hash)
        return Verdict(walk.count, 0, "", walk.last_hash)

    def _kept_head(self) -> tuple[int, str]:
        try:
            head = self._key.unseal(self._head_file.read_text().strip())
            return int(head["sequence"]), str(head["entry_hash"])
        except FileNotFoundError:
            return 0, GENESIS
        except (jwt.PyJWTError, KeyError, ValueError) as error:
            raise BrokenChain(1, f"the signed head {self._head_file} is not ours") from error


def _compare(walk: ChainWalk, head: tuple[int, str]) -> None:
    sequence, kept_hash = head
    if walk.count == sequence and walk.last_hash != kept_hash:
        raise BrokenChain(sequence, "it is not the entry that was here when the head was signed")
