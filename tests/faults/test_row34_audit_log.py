"""Row 34: an audit log that was edited, cut, reordered or replaced is found, and the first wrong position is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense.access.v1 import access_pb2, access_pb2_grpc, audit_pb2, audit_pb2_grpc
from sendense_access.audit import GENESIS, Entry, Event, chained
from sendense_access.config import AccessSettings
from sendense_access.main import build
from sendense_access.store import AuditStore, metadata
from sendense_db.engine import Database
from sendense_rpc.channel import Peer, unix_peer
from support import serving

pytestmark = pytest.mark.faults

ENTRIES = 6


@pytest.fixture
def settings(sendense_home: Path) -> AccessSettings:
    return AccessSettings()


@asynccontextmanager
async def access(settings: AccessSettings) -> AsyncIterator[Peer]:
    database = Database(settings.catalogue_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()
    async with build(settings) as service, serving(service, settings):
        peer = unix_peer(settings.socket("access"), settings.admin_token_file)
        yield peer
        await peer.close()


async def make_entries(settings: AccessSettings) -> None:
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        for number in range(ENTRIES - 1):  # the first entry is the administrator's token
            await peer.call(stub.CreateToken, access_pb2.CreateTokenRequest(subject=f"p{number}", role="viewer"))


async def verdict(settings: AccessSettings) -> audit_pb2.VerifyAuditResponse:
    async with access(settings) as peer:
        stub = audit_pb2_grpc.AuditServiceStub(peer.channel)
        return await peer.call(stub.VerifyAudit, audit_pb2.VerifyAuditRequest())


async def tamper(settings: AccessSettings, *statements: str) -> None:
    database = Database(settings.catalogue_url)
    async with database.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await database.close()


async def test_an_untouched_log_is_intact_after_restarts(settings: AccessSettings) -> None:
    await make_entries(settings)
    for _ in range(2):
        found = await verdict(settings)
        assert (found.intact, found.entries, found.broken_sequence, found.problem) == (True, ENTRIES, 0, "")
        assert len(found.head_hash) == 64


@pytest.mark.parametrize(
    "column", ["actor", "action", "target", "result", "detail", "source", "request_id", "token_id", "event_id"]
)
async def test_each_edited_fact_is_found_at_its_position(settings: AccessSettings, column: str) -> None:
    await make_entries(settings)
    await tamper(settings, f"UPDATE audit_log SET {column} = 'mallory' WHERE sequence = 4")  # noqa: S608
    found = await verdict(settings)
    assert (found.intact, found.broken_sequence) == (False, 4)
    assert found.problem


@pytest.mark.parametrize(
    ("statements", "position"),
    [
        (["UPDATE audit_log SET at = '2001-01-01 00:00:00.000000' WHERE sequence = 2"], 2),
        (["DELETE FROM audit_log WHERE sequence = 3"], 3),
        (["DELETE FROM audit_log WHERE sequence = 1"], 1),
        (["DELETE FROM audit_log WHERE sequence = 6"], 6),
        (["DELETE FROM audit_log WHERE sequence > 4"], 5),
        (["DELETE FROM audit_log"], 1),
        (
            [
                "UPDATE audit_log SET sequence = 99 WHERE sequence = 2",
                "UPDATE audit_log SET sequence = 2 WHERE sequence = 3",
                "UPDATE audit_log SET sequence = 3 WHERE sequence = 99",
            ],
            2,
        ),
        (
            [
                "DELETE FROM audit_log WHERE sequence = 3",
                "UPDATE audit_log SET sequence = sequence - 1 WHERE sequence > 3",
            ],
            3,
        ),
    ],
    ids=["time", "one gone", "first gone", "last gone", "end gone", "all gone", "swapped", "closed up"],
)
async def test_removed_and_moved_entries_are_found(
    settings: AccessSettings, statements: list[str], position: int
) -> None:
    await make_entries(settings)
    await tamper(settings, *statements)
    found = await verdict(settings)
    assert (found.intact, found.broken_sequence) == (False, position), found.problem


async def test_a_whole_new_chain_in_the_old_ones_place_is_found(settings: AccessSettings) -> None:
    """Whoever writes to the database can compute hashes too; the signed head is what they cannot make."""
    await make_entries(settings)
    database = Database(settings.catalogue_url)
    entries = [entry async for entry in AuditStore(database).all()]
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM audit_log"))
        previous = GENESIS
        for entry in entries:
            forged = chained(entry.sequence, entry.at, Event("mallory", "x", "y", source=""), previous)
            await _insert(connection, forged)
            previous = forged.entry_hash
    await database.close()
    found = await verdict(settings)
    assert (found.intact, found.broken_sequence) == (False, ENTRIES)
    assert "signed" in found.problem


async def _insert(connection: AsyncConnection, entry: Entry) -> None:
    await connection.execute(
        text(
            "INSERT INTO audit_log (sequence, at, actor, action, target, result, detail, previous_hash, entry_hash,"
            " source, request_id, token_id, event_id) VALUES (:sequence, :at, :actor, :action, :target, :result,"
            " :detail, :previous, :hash, '', '', '', '')"
        ),
        {
            "sequence": entry.sequence,
            "at": entry.at.strftime("%Y-%m-%d %H:%M:%S.%f"),
            "actor": entry.event.actor,
            "action": entry.event.action,
            "target": entry.event.target,
            "result": entry.event.result,
            "detail": entry.event.detail,
            "previous": entry.previous_hash,
            "hash": entry.entry_hash,
        },
    )


async def test_a_forged_head_is_no_head(settings: AccessSettings) -> None:
    await make_entries(settings)
    async with access(settings) as peer:
        settings.audit_head_file.write_text("e30.e30.x")
        stub = audit_pb2_grpc.AuditServiceStub(peer.channel)
        found = await peer.call(stub.VerifyAudit, audit_pb2.VerifyAuditRequest())
    assert not found.intact


async def test_a_start_does_not_sign_a_log_that_was_cut(settings: AccessSettings) -> None:
    await make_entries(settings)
    await tamper(settings, "DELETE FROM audit_log WHERE sequence > 4")
    for _ in range(2):
        found = await verdict(settings)
        assert (found.intact, found.broken_sequence) == (False, 5), found.problem


async def test_entries_that_follow_a_cut_do_not_hide_it(settings: AccessSettings) -> None:
    await make_entries(settings)
    await tamper(settings, "DELETE FROM audit_log WHERE sequence > 4")
    await make_entries(settings)
    found = await verdict(settings)
    assert (found.intact, found.broken_sequence) == (False, ENTRIES), found.problem


async def test_the_log_is_not_written_by_others_over_the_gateway_or_with_a_persons_token(
    settings: AccessSettings,
) -> None:
    event = audit_pb2.AuditEvent(event_id="e1", action="x", result="ok", actor="mallory")
    async with access(settings) as peer:
        stub = audit_pb2_grpc.AuditServiceStub(peer.channel)
        with pytest.raises(Exception, match="internal"):
            await peer.call(stub.RecordAuditEvents, audit_pb2.RecordAuditEventsRequest(events=[event]))
        workload = unix_peer(settings.socket("access"), settings.identity_file("backup"))
        inside = audit_pb2_grpc.AuditServiceStub(workload.channel)
        for _ in range(3):
            await workload.call(inside.RecordAuditEvents, audit_pb2.RecordAuditEventsRequest(events=[event, event]))
        await workload.close()
        listed = await peer.call(stub.ListAuditEntries, audit_pb2.ListAuditEntriesRequest(actor="mallory"))
        assert [entry.action for entry in listed.entries] == ["x"]
        assert (await peer.call(stub.VerifyAudit, audit_pb2.VerifyAuditRequest())).intact
