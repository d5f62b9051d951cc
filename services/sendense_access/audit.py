"""The audit log's hash chain: each entry's hash covers its own facts and the hash of the entry before it.

So an entry that is edited, removed from the middle or put in shows at the next link; one that is cut off the end shows
against the head that is kept, signed, beside the database. Only the store appends: this service's own mutations
inside their transaction, those of other services when they report them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from sendense_rpc.identity import current_caller

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
        source: Address that the request came from; of the current call unless said.
        request_id: The request's id in the logs; of the current call unless said.
        token_id: The token that was used; of the current call unless said.
        event_id: The reporter's id of the event; empty for this service's own.
    """

    actor: str
    action: str
    target: str
    result: str = OK
    detail: str = ""
    source: str = field(default_factory=lambda: _of_call("source"))
    request_id: str = field(default_factory=lambda: _of_call("request_id"))
    token_id: str = field(default_factory=lambda: _of_call("token_id"))
    event_id: str = ""


def _of_call(fact: str) -> str:
    caller = current_caller()
    return str(getattr(caller, fact)) if caller else ""


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
        problem: What does not fit there.
    """

    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(f"the audit log is broken at entry {sequence}: {problem}")
        self.sequence = sequence
        self.problem = problem


def chained(sequence: int, at: datetime, event: Event, previous_hash: str) -> Entry:
    """Returns `event` as the entry that follows the one with `previous_hash`."""
    return Entry(sequence, at, event, previous_hash, _hash(sequence, at, event, previous_hash))


def verify_chain(entries: Iterable[Entry]) -> int:
    """Checks entries in order of their position and returns how many there are.

    Raises:
        BrokenChain: An entry was edited, removed or put in.
    """
    walk = ChainWalk()
    for entry in entries:
        walk.step(entry)
    return walk.count


class ChainWalk:
    """Checks entries one by one, in order of their position.

    Attributes:
        count: How many were good.
        last_hash: Hash of the last good one; `GENESIS` before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last_hash = GENESIS

    def step(self, entry: Entry) -> None:
        """Checks the next entry.

        Raises:
            BrokenChain: It was edited, or it is not the one that was here.
        """
        position = self.count + 1
        if entry.sequence != position:
            raise BrokenChain(position, f"entry {entry.sequence} is in its place")
        if entry.previous_hash != self.last_hash:
            raise BrokenChain(position, "it does not follow the entry before it")
        if entry.entry_hash != _hash(entry.sequence, entry.at, entry.event, entry.previous_hash):
            raise BrokenChain(position, "its content does not fit its hash")
        self.count, self.last_hash = position, entry.entry_hash


def _hash(sequence: int, at: datetime, event: Event, previous_hash: str) -> str:
    # A JSON list keeps the fields apart: no two different entries have the same bytes.
    facts = [sequence, at.isoformat(), event.actor, event.action, event.target, event.result, event.detail]
    # Entries from before these columns have none of them, and keep their hash. A longer list is never a shorter one.
    further = [event.source, event.request_id, event.token_id, event.event_id]
    if any(further):
        facts += further
    return hashlib.sha256(json.dumps([*facts, previous_hash]).encode()).hexdigest()
