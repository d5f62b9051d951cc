"""The audit log's hash chain: each entry's hash covers its own facts and the hash of the entry before it.

So an entry that is edited, removed from the middle or put in shows at the next link. Only `store.append_audit` writes,
inside the transaction of the mutation that it records: there is no mutation without its entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

GENESIS = "0" * 64
"""What the first entry names as the hash before it."""

OK = "ok"
"""The result of a mutation that was made; a refused one has its reason instead."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened.

    Attributes:
        actor: Subject of the token that asked, or `service:access` for what the service does by itself.
        action: What was asked for, such as `token.create`.
        target: What it was done to, such as a token's id.
        result: `ok` or the reason of the refusal.
        detail: Further facts; never a secret.
    """

    actor: str
    action: str
    target: str
    result: str = OK
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in its place in the chain.

    Attributes:
        sequence: Position, from 1, without gaps.
        at: When, in UTC.
        event: What happened.
        previous_hash: Hash of the entry before; `GENESIS` for the first.
        entry_hash: Hash of all of the above.
    """

    sequence: int
    at: datetime
    event: Event
    previous_hash: str
    entry_hash: str


class BrokenChain(Exception):
    """The log was tampered with.

    Attributes:
        sequence: The first position that does not fit.
    """

    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(f"the audit log is broken at entry {sequence}: {problem}")
        self.sequence = sequence


def chained(sequence: int, at: datetime, event: Event, previous_hash: str) -> Entry:
    """Returns `event` as the entry that follows the one with `previous_hash`."""
    return Entry(sequence, at, event, previous_hash, _hash(sequence, at, event, previous_hash))


def verify_chain(entries: Iterable[Entry]) -> int:
    """Checks entries in order of their position and returns how many there are.

    Raises:
        BrokenChain: An entry was edited, removed or put in.
    """
    previous, count = GENESIS, 0
    for entry in entries:
        count += 1
        if entry.sequence != count:
            raise BrokenChain(count, f"entry {entry.sequence} is in its place")
        if entry.previous_hash != previous:
            raise BrokenChain(count, "it does not follow the entry before it")
        if entry.entry_hash != _hash(entry.sequence, entry.at, entry.event, entry.previous_hash):
            raise BrokenChain(count, "its content does not fit its hash")
        previous = entry.entry_hash
    return count


def _hash(sequence: int, at: datetime, event: Event, previous_hash: str) -> str:
    # A JSON list keeps the fields apart: no two different entries have the same bytes.
    facts = [sequence, at.isoformat(), event.actor, event.action, event.target, event.result, event.detail]
    return hashlib.sha256(json.dumps([*facts, previous_hash]).encode()).hexdigest()
