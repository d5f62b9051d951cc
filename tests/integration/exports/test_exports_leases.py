"""Leases: an export goes when nothing of its holder or its clients is seen for a while, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
from exports_node import Node, catalogue, node_running, prepared, service_running
from nbdd_process import listed, nbdd_running, overlay
from sqlalchemy import select

from sendense_exports.store import nbd_exports
from sendense_qemu import img
from sendense_rpc.errors import Kind, RemoteError

MIB = 1 << 20
LEASE = 3.0
SWEEP = 0.2
DEADLINE = 60.0


@pytest.fixture
async def node(sendense_home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setenv("SENDENSE_EXPORTS_LEASE_SECONDS", str(LEASE))
    monkeypatch.setenv("SENDENSE_EXPORTS_SWEEP_SECONDS", str(SWEEP))
    async with node_running(await prepared()) as running:
        yield running


async def swept(node: Node, name: str) -> None:
    """Returns when an export is gone from the catalogue and from nbdd."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await node.get(name)
            except RemoteError as error:
                assert error.kind is Kind.NOT_FOUND  # noqa: PT017
                return
            await asyncio.sleep(SWEEP)


def client(node: Node, name: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix(str(node.nbdd.settings.nbd_socket))
    return handle


async def test_an_export_whose_holder_is_gone_is_removed_and_its_image_is_free(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    await node.create("backup-1", incr)
    by_hand = node.nbdd.conf("by-hand", node.images / "vm-full.qcow2", read_only=True)
    await swept(node, "backup-1")
    await node.nbdd.reload()
    assert await listed(node.nbdd) == {"by-hand"}, "what people configured has no lease"
    assert by_hand.exists()
    assert (await img.check(incr)).is_sound, "nobody holds its lock"
    await node.delete("backup-1")  # the holder comes back after all: no error
    with pytest.raises(RemoteError) as caught:
        await node.create("backup-1", incr)
    assert caught.value.reason == "EXPORT_EXISTS"
    async with catalogue(node.settings) as database, database.read() as connection:
        row = (await connection.execute(select(nbd_exports))).mappings().one()
    assert row["deleted_at"] >= row["lease_until"]


@pytest.mark.parametrize("read_only", [False, True])
async def test_an_export_with_a_client_is_never_swept_and_the_client_notices_nothing(
    node: Node, read_only: bool
) -> None:
    await node.create("backup-1", await overlay(node.images, "vm"), read_only=read_only)
    handle = await asyncio.to_thread(client, node, "backup-1")
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.5 * LEASE  # swept many times meanwhile, without a write
    while loop.time() < end:
        assert await asyncio.to_thread(handle.pread, 512, 0) == b"\1" * 512
        await asyncio.sleep(0.01)
    assert (await node.get("backup-1")).state == "serving"
    async with catalogue(node.settings) as database, database.read() as connection:
        row = (await connection.execute(select(nbd_exports))).mappings().one()
    assert (row["lease_until"] - row["created_at"]).total_seconds() > 2 * LEASE, "it was tried, and given more time"
    await asyncio.to_thread(handle.shutdown)
    left = loop.time()
    await swept(node, "backup-1")
    assert loop.time() - left < LEASE + DEADLINE / 2


async def test_writes_are_a_sign_of_life_also_between_connections(node: Node) -> None:
    await node.create("backup-1", await overlay(node.images, "vm"))
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.5 * LEASE

    def write() -> None:
        handle = client(node, "backup-1")
        handle.pwrite(b"\5" * 65536, 0)
        handle.flush()
        handle.shutdown()

    while loop.time() < end:
        await asyncio.to_thread(write)
        await asyncio.sleep(LEASE / 4)
    assert (await node.get("backup-1")).state == "serving"
    await swept(node, "backup-1")


async def test_asking_again_renews_the_lease(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.5 * LEASE
    while loop.time() < end:
        assert (await node.create("mount-1", incr, read_only=True)).state == "serving"
        await asyncio.sleep(LEASE / 4)
    assert await listed(node.nbdd) == {"mount-1"}
    await swept(node, "mount-1")


async def test_leases_do_not_run_while_nobody_can_renew_them(
    sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_EXPORTS_LEASE_SECONDS", str(LEASE))
    monkeypatch.setenv("SENDENSE_EXPORTS_SWEEP_SECONDS", str(SWEEP))
    settings = await prepared()
    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        incr = await overlay(images, "vm")
        async with service_running(settings) as peer:
            await Node(settings, nbdd, peer, images).create("mount-1", incr, read_only=True)
        await asyncio.sleep(LEASE)
        async with service_running(settings) as peer:
            node = Node(settings, nbdd, peer, images)
            assert (await node.create("mount-1", incr, read_only=True)).state == "serving"
            await swept(node, "mount-1")


async def test_files_that_people_wrote_are_neither_replaced_nor_removed(sendense_home: Path) -> None:
    settings = await prepared()
    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        incr = await overlay(images, "vm")
        full = images / "vm-full.qcow2"
        async with service_running(settings) as peer:
            node = Node(settings, nbdd, peer, images)
            await node.create("used-once", incr)
            await node.delete("used-once")
            own_name = nbdd.conf("own-name", full, read_only=True)
            other_name = nbdd.conf("other-name", full, read_only=True).rename(settings.conf_dir / "people.conf")
            await nbdd.reload()
            before = own_name.read_text(), other_name.read_text()
            for name, file in (("own-name", own_name), ("other-name", other_name)):
                with pytest.raises(RemoteError) as caught:
                    await node.create(name, incr)
                assert caught.value.reason == "EXPORT_EXISTS"
                assert str(file) in caught.value.message
                await node.delete(name, force=True)  # not the catalogue's: nothing happens
            assert (own_name.read_text(), other_name.read_text()) == before
            assert await listed(nbdd) == {"own-name", "other-name"}
        later = nbdd.conf("used-once", full, read_only=True)
        async with service_running(settings):  # a start makes files agree with the catalogue
            assert later.exists()
            await nbdd.reload()
            assert await listed(nbdd) == {"own-name", "other-name", "used-once"}
