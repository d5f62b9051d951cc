"""A request that is asked for twice is done once, whoever goes away in between; every mutation takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sendense.backup.v1 import backup_pb2
from sendense_access.public_api import all_methods
from sendense_rpc.methods import Method
from sendense_rpc.repeats import Kept, Repeats, RequestIdReused

MUTATIONS = [method for method in all_methods() if method.mutation]


class Memory:
    """A ledger of this test."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}

    async def find(self, key: str) -> Kept | None:
        return self.kept.get(key)

    async def keep(self, key: str, kept: Kept) -> None:
        self.kept.setdefault(key, kept)


class Deed:
    """Counts how often it is done; waits for `go`."""

    def __init__(self) -> None:
        self.done = 0
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None

    async def __call__(self) -> backup_pb2.Backup:
        await self.go.wait()
        if self.failure:
            raise self.failure
        self.done += 1
        return backup_pb2.Backup(backup_id=f"b{self.done}")


def _ask(
    repeats: Repeats, deed: Callable[[], Awaitable[backup_pb2.Backup]], **fields: str
) -> Awaitable[backup_pb2.Backup]:
    request = backup_pb2.CancelBackupRequest(**{"backup_id": "x", "request_id": "r", **fields})
    return repeats.once("ann", "Cancel", request, request.request_id, deed, backup_pb2.Backup.FromString)  # type: ignore[return-value]


@pytest.mark.parametrize("method", MUTATIONS, ids=lambda method: method.action)
def test_every_public_mutation_has_a_request_id(method: Method) -> None:
    assert method.has_request_id, f"{method.path} changes something: give its request a `request_id`"


async def test_the_second_gets_the_answer_of_the_first() -> None:
    repeats, deed = Repeats(Memory()), Deed()
    first, second = await _ask(repeats, deed), await _ask(repeats, deed)
    assert (first.backup_id, second.backup_id, deed.done) == ("b1", "b1", 1)


async def test_the_second_waits_for_the_first_that_still_runs() -> None:
    repeats, deed = Repeats(Memory()), Deed()
    deed.go.clear()
    asked = [asyncio.ensure_future(_ask(repeats, deed)) for _ in range(5)]
    await asyncio.sleep(0)
    deed.go.set()
    assert {answer.backup_id for answer in await asyncio.gather(*asked)} == {"b1"}
    assert deed.done == 1


async def test_a_caller_that_goes_away_ends_nothing_and_may_ask_again() -> None:
    repeats, deed = Repeats(Memory()), Deed()
    deed.go.clear()
    gone = asyncio.ensure_future(_ask(repeats, deed))
    await asyncio.sleep(0)
    gone.cancel()
    deed.go.set()
    await repeats.drain()
    assert deed.done == 1
    assert (await _ask(repeats, deed)).backup_id == "b1"


async def test_a_failure_is_not_kept() -> None:
    repeats, deed = Repeats(Memory()), Deed()
    deed.failure = OSError("no")
    with pytest.raises(OSError, match="no"):
        await _ask(repeats, deed)
    deed.failure = None
    assert (await _ask(repeats, deed)).backup_id == "b1"


async def test_another_request_with_the_same_id_is_refused_and_another_id_or_caller_is_another_request() -> None:
    repeats, deed = Repeats(Memory()), Deed()
    await _ask(repeats, deed)
    with pytest.raises(RequestIdReused):
        await _ask(repeats, deed, backup_id="y")
    assert (await _ask(repeats, deed, request_id="r2")).backup_id == "b2"
    request = backup_pb2.CancelBackupRequest(backup_id="x", request_id="r")
    other = await repeats.once("bob", "Cancel", request, "r", deed, backup_pb2.Backup.FromString)
    assert isinstance(other, backup_pb2.Backup)
    assert other.backup_id == "b3"
