"""The life of mounts between fakes of our own ports: leases, request ids, callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from sendense_db.engine import Database
from sendense_restore.backend import Disk, Tree
from sendense_restore.errors import MountFailed, ServiceStopping, UnmountFailed
from sendense_restore.mount import Lifetime
from sendense_restore.mounts import Limits, Mounts
from sendense_restore.places import Place, Places
from sendense_restore.points import RestorePoint
from sendense_restore.store import MountRow, MountStore, metadata
from sendense_restore.teardown import TeardownError
from sendense_rpc.errors import Kind, SendenseError


class FakePoints:
    """Knows every backup; can be made unreachable."""

    def __init__(self) -> None:
        self.leases: dict[str, int] = {}
        self.reachable = True

    def _reach(self) -> None:
        if not self.reachable:
            raise SendenseError("away", kind=Kind.UNAVAILABLE, reason="SERVICE_UNAVAILABLE", retryable=True)

    async def resolve(self, backup_id: str) -> str:
        return backup_id + "-whole"

    async def lease(self, backup_id: str, holder: str, seconds: int) -> None:
        self._reach()
        self.leases[holder] = self.leases.get(holder, 0) + 1

    async def release(self, backup_id: str, holder: str) -> None:
        self._reach()
        self.leases.pop(holder, None)

    async def get(self, backup_id: str) -> RestorePoint:
        return RestorePoint(backup_id, ())


class FakeBackend:
    """Mounts in memory; each step can be held up or made to fail."""

    name = "kernel"

    def __init__(self) -> None:
        self.open: dict[str, Tree] = {}
        self.go = asyncio.Event()
        self.go.set()
        self.fails = ""
        self.stuck = False

    async def mount(self, backup_id: str, disks: Sequence[Disk], place: Place) -> Tree:
        await self.go.wait()
        if self.fails:
            raise MountFailed(backup_id, self.fails)
        tree = Tree(place.root, (), {}, "", asyncio.get_running_loop().create_future())
        self.open[place.mount_id] = tree
        return tree

    async def users(self, place: Place) -> list[str]:
        return []

    async def unmount(self, place: Place) -> None:
        if self.stuck:
            raise TeardownError(place.mount_id, "stuck")
        self.open.pop(place.mount_id, None)


class Bench:
    def __init__(self, mounts: Mounts, points: FakePoints, backend: FakeBackend, store: MountStore) -> None:
        self.mounts, self.points, self.backend, self.store = mounts, points, backend, store


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'c.sqlite'}")
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    store, points, backend = MountStore(database), FakePoints(), FakeBackend()
    limits = Limits(most_mounts=3, lifetime=Lifetime(60, 600), drain_seconds=0.1, lease_seconds=1)
    with Places(tmp_path / "restore", tmp_path / "mnt", tmp_path / "run").owned() as places:
        mounts = Mounts(backend, points, store, places, limits)
        yield Bench(mounts, points, backend, store)
        await mounts.close()
    await database.close()


async def soon(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_the_lease_is_renewed_while_mounted_and_ends_with_it(bench: Bench) -> None:
    mount = await bench.mounts.mount("b", "")
    await soon(lambda: bench.points.leases[mount.mount_id] >= 3)
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert bench.points.leases == {}
    assert await bench.store.all() == []


async def test_a_lease_that_cannot_be_given_back_is_given_back_later(bench: Bench) -> None:
    mount = await bench.mounts.mount("b", "")
    bench.points.reachable = False
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert [row.state for row in await bench.store.all()] == ["unmounting"]
    bench.points.reachable = True
    await soon(lambda: not bench.points.leases)


async def test_leases_of_an_earlier_run_are_given_back_at_the_start(bench: Bench) -> None:
    from sendense_db.columns import utc_now

    bench.points.leases["mount-old"] = 1
    await bench.store.add(MountRow("mount-old", "b", "", "mounted", "kernel", "/x", utc_now()))
    await bench.mounts.recover()
    await soon(lambda: not bench.points.leases)


async def test_a_caller_that_goes_away_does_not_end_another_ones_mount(bench: Bench) -> None:
    bench.backend.go.clear()
    first = asyncio.create_task(bench.mounts.mount("b", "r"))
    second = asyncio.create_task(bench.mounts.mount("b", "r"))
    await soon(lambda: bool(bench.points.leases))
    first.cancel()
    await asyncio.wait([first])
    bench.backend.go.set()
    assert (await second).state == "mounted"
    assert len(bench.backend.open) == 1


async def test_a_failed_mount_gives_the_lease_back_and_can_be_tried_again(bench: Bench) -> None:
    bench.backend.fails = "bad layer"
    with pytest.raises(MountFailed):
        await bench.mounts.mount("b", "r")
    assert bench.points.leases == {}
    assert bench.mounts.all() == []
    bench.backend.fails = ""
    assert (await bench.mounts.mount("b", "r")).backup_id == "b-whole"


async def test_a_mount_in_the_making_ends_by_force(bench: Bench) -> None:
    bench.backend.go.clear()
    waiting = asyncio.create_task(bench.mounts.mount("b", ""))
    await soon(lambda: bool(bench.points.leases))
    await bench.mounts.unmount(bench.mounts.all()[0].mount_id, force=True)
    with pytest.raises(SendenseError, match="is unmounted"):
        await waiting
    assert bench.points.leases == {}


async def test_what_could_not_be_unmounted_stays_visible_and_can_be_tried_again(bench: Bench) -> None:
    mount = await bench.mounts.mount("b", "")
    bench.backend.stuck = True
    with pytest.raises(UnmountFailed):
        await bench.mounts.unmount(mount.mount_id, force=True)
    assert mount.state == "failed"
    assert mount.mount_id in bench.points.leases
    bench.backend.stuck = False
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert bench.points.leases == {}


async def test_lost_storage_fails_the_mount_and_undoes_it(bench: Bench) -> None:
    mount = await bench.mounts.mount("b", "")
    bench.backend.open[mount.mount_id].lost.set_result("killed")
    await soon(lambda: mount.state == "failed" and not bench.points.leases)
    assert bench.backend.open == {}
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert bench.mounts.all() == []


async def test_nothing_is_mounted_after_the_end(bench: Bench) -> None:
    await bench.mounts.mount("b", "")
    await bench.mounts.close()
    assert bench.backend.open == {}
    with pytest.raises(ServiceStopping):
        await bench.mounts.mount("b", "")
