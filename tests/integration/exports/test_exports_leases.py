"""Leases: an export goes when nothing of its holder or its clients is seen for a while, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
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


async def test_whoever_gives_a_sign_of_life_keeps_its_export_and_loses_it_afterwards(node: Node) -> None:
    """A client that is there, one that comes back to write, a holder that asks again: all at once, on one node."""
    async with asyncio.TaskGroup() as group:
        for number, read_only in enumerate((False, True)):
            group.create_task(_an_open_client_notices_nothing(node, f"vm-{number}", read_only=read_only))
        group.create_task(_writes_count_also_between_connections(node))
        group.create_task(_asking_again_counts(node))


async def _an_open_client_notices_nothing(node: Node, name: str, *, read_only: bool) -> None:
    await node.create(name, await overlay(node.images, name), read_only=read_only)
    handle = await asyncio.to_thread(client, node, name)
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.5 * LEASE  # swept many times meanwhile, without a write
    while loop.time() < end:
        assert await asyncio.to_thread(handle.pread, 512, 0) == b"\1" * 512
        await asyncio.sleep(SWEEP)
    assert (await node.get(name)).state == "serving"
    async with catalogue(node.settings) as database, database.read() as connection:
        wanted = select(nbd_exports).where(nbd_exports.c.export_name == name)
        row = (await connection.execute(wanted)).mappings().one()
    assert (row["lease_until"] - row["created_at"]).total_seconds() > 2 * LEASE, "it was tried, and given more time"
    await asyncio.to_thread(handle.shutdown)
    await swept(node, name)


async def _writes_count_also_between_connections(node: Node) -> None:
    image = await overlay(node.images, "written")

    async def write(name: str, *, first: bool) -> None:
        if first:
            await node.create(name, image)
        await asyncio.to_thread(_write_and_leave, node, name)

    await swept(node, await _kept_alive("written", write))


def _write_and_leave(node: Node, name: str) -> None:
    handle = client(node, name)
    handle.pwrite(b"\5" * 65536, 0)
    handle.flush()
    handle.shutdown()


async def _asking_again_counts(node: Node) -> None:
    image = await overlay(node.images, "mount")

    async def ask(name: str, *, first: bool) -> None:
        del first
        assert (await node.create(name, image, read_only=True)).state == "serving"

    await swept(node, await _kept_alive("mount", ask))


async def _kept_alive(stem: str, sign: Callable[..., Awaitable[None]]) -> str:
    """Gives signs of life for longer than two leases; returns the export's name.

    A machine that stands still for a whole lease proves nothing: then another export begins anew.
    """
    loop = asyncio.get_running_loop()
    for attempt in range(20):
        name = f"{stem}-{attempt}"
        await sign(name, first=True)
        last = loop.time()
        end = last + 2.5 * LEASE
        try:
            while loop.time() < end:
                await asyncio.sleep(LEASE / 4)
                await sign(name, first=False)
                last = loop.time()
        except (RemoteError, nbd.Error):
            if loop.time() - last < LEASE:
                raise
        else:
            return name
    raise AssertionError("the machine stood still for a lease again and again")


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
