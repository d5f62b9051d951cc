"""The life of mounts between fakes of our own ports: leases, request ids, callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from sendense_db.engine import Database
from sendense_restore.backend import Disk
from sendense_restore.errors import DiskMissing, MountFailed, PointDamaged, PointSuspect, ServiceStopping, UnmountFailed
from sendense_restore.leases import Leases
from sendense_restore.mount import Lifetime, Mount
from sendense_restore.mounts import Limits, Mounts
from sendense_restore.places import Place, Places
from sendense_restore.points import RestorePoint
from sendense_restore.store import MountRow, MountStore, metadata
from sendense_restore.teardown import TeardownError
from sendense_restore.tree import Tree, Wish
from sendense_rpc.errors import Kind, SendenseError


class FakePoints:
    """Knows every backup; can be made unreachable."""

    def __init__(self) -> None:
        self.leases: dict[str, int] = {}
        self.reachable = True
        self.damage = ""
        self.suspicion = ""

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
        disks = (Disk(0, Path("/layer-0"), 1), Disk(1, Path("/layer-1"), 1))
        return RestorePoint(backup_id, disks, self.damage, self.suspicion)


class FakeMounter:
    """Mounts in memory; each step can be held up or made to fail."""

    def __init__(self) -> None:
        self.open: dict[str, Tree] = {}
        self.shown: set[str] = set()
        self.go = asyncio.Event()
        self.go.set()
        self.fails = ""
        self.stuck = False
        self.wishes: list[Wish] = []

    async def mount(self, backup_id: str, disks: Sequence[Disk], place: Place, wish: Wish) -> Tree:
        self.wishes.append(wish)
        await self.go.wait()
        if self.fails:
            raise MountFailed(backup_id, self.fails)
        tree = Tree(place.root, (), {}, "", asyncio.get_running_loop().create_future())
        self.open[place.mount_id] = tree
        self.shown.add(place.mount_id)
        return tree

    async def share(self, tree: Tree, place: Place) -> None:
        self.shown.add(place.mount_id)

    async def unshare(self, place: Place) -> None:
        if self.stuck:
            raise TeardownError(place.mount_id, "stuck")
        self.shown.discard(place.mount_id)

    async def users(self, place: Place) -> list[str]:
        return []

    async def unmount(self, place: Place) -> None:
        if self.stuck:
            raise TeardownError(place.mount_id, "stuck")
        self.open.pop(place.mount_id, None)
        self.shown.discard(place.mount_id)


class Bench:
    """What a test needs."""

    def __init__(
        self, mounts: Mounts, points: FakePoints, backend: FakeMounter, store: MountStore, leases: Leases
    ) -> None:
        self.mounts, self.points, self.backend, self.store, self.leases = mounts, points, backend, store, leases

    async def mount(self, backup_id: str, request_id: str, wish: Wish = Wish(), wait: float = 60) -> Mount:  # noqa: B008
        return await self.mounts.mount(backup_id, request_id, wish, wait)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'c.sqlite'}")
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    store, points, backend = MountStore(database), FakePoints(), FakeMounter()
    limits = Limits(most_mounts=3, lifetime=Lifetime(60, 600), drain_seconds=0.1)
    leases = Leases(points, store, seconds=1)
    with Places(tmp_path / "restore", tmp_path / "mnt", tmp_path / "run").owned() as places:
        mounts = Mounts(backend, points, leases, places, limits)
        yield Bench(mounts, points, backend, store, leases)
        await mounts.close()
        await leases.close()
    await database.close()


async def soon(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_the_lease_is_renewed_while_mounted_and_ends_with_it(bench: Bench) -> None:
    mount = await bench.mount("b", "")
    await soon(lambda: bench.points.leases[mount.mount_id] >= 3)
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert bench.points.leases == {}
    assert await bench.store.all() == []


async def test_a_lease_that_cannot_be_given_back_is_given_back_later(bench: Bench) -> None:
    mount = await bench.mount("b", "")
    bench.points.reachable = False
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert [row.state for row in await bench.store.all()] == ["unmounting"]
    bench.points.reachable = True
    await soon(lambda: not bench.points.leases)


async def test_leases_of_an_earlier_run_are_given_back_at_the_start(bench: Bench) -> None:
    from sendense_db.columns import utc_now

    bench.points.leases["mount-old"] = 1
    await bench.store.add(MountRow("mount-old", "b", "", "mounted", "kernel", "/x", utc_now()))
    asked: list[str] = []

    async def before(holder: str) -> None:
        assert "mount-old" in bench.points.leases
        asked.append(holder)

    await bench.leases.recover(before)
    await soon(lambda: not bench.points.leases)
    assert asked == ["mount-old"]


async def test_a_caller_that_goes_away_does_not_end_another_ones_mount(bench: Bench) -> None:
    bench.backend.go.clear()
    first = asyncio.create_task(bench.mount("b", "r"))
    second = asyncio.create_task(bench.mount("b", "r"))
    await soon(lambda: bool(bench.points.leases))
    first.cancel()
    await asyncio.wait([first])
    bench.backend.go.set()
    assert (await second).state == "mounted"
    assert len(bench.backend.open) == 1


async def test_a_failed_mount_gives_the_lease_back_and_can_be_tried_again(bench: Bench) -> None:
    bench.backend.fails = "bad layer"
    with pytest.raises(MountFailed):
        await bench.mount("b", "r")
    assert bench.points.leases == {}
    assert bench.mounts.all() == []
    bench.backend.fails = ""
    assert (await bench.mount("b", "r")).backup_id == "b-whole"


async def test_a_mount_in_the_making_ends_by_force(bench: Bench) -> None:
    bench.backend.go.clear()
    waiting = asyncio.create_task(bench.mount("b", ""))
    await soon(lambda: bool(bench.points.leases))
    await bench.mounts.unmount(bench.mounts.all()[0].mount_id, force=True)
    with pytest.raises(SendenseError, match="is unmounted"):
        await waiting
    assert bench.points.leases == {}


async def test_what_could_not_be_unmounted_stays_visible_and_can_be_tried_again(bench: Bench) -> None:
    mount = await bench.mount("b", "")
    bench.backend.stuck = True
    with pytest.raises(UnmountFailed):
        await bench.mounts.unmount(mount.mount_id, force=True)
    assert mount.state == "failed"
    assert mount.mount_id in bench.points.leases
    bench.backend.stuck = False
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert bench.points.leases == {}


async def test_lost_storage_fails_the_mount_and_undoes_it(bench: Bench) -> None:
    mount = await bench.mount("b", "")
    bench.backend.open[mount.mount_id].lost.set_result("killed")
    await soon(lambda: mount.state == "failed" and not bench.points.leases)
    assert bench.backend.open == {}
    await bench.mounts.unmount(mount.mount_id, force=False)
    assert bench.mounts.all() == []


async def test_nothing_is_mounted_after_the_end(bench: Bench) -> None:
    await bench.mount("b", "")
    await bench.mounts.close()
    assert bench.backend.open == {}
    with pytest.raises(ServiceStopping):
        await bench.mount("b", "")


async def test_the_same_point_twice_is_opened_once_and_undone_with_the_last(bench: Bench) -> None:
    first, second, third = [await bench.mount("b", "") for _ in range(3)]
    assert list(bench.backend.open) == [first.mount_id]
    assert bench.backend.shown == {first.mount_id, second.mount_id, third.mount_id}
    await bench.mounts.unmount(first.mount_id, force=False)  # the one that the others stand on
    assert bench.backend.shown == {second.mount_id, third.mount_id}
    assert list(bench.backend.open) == [first.mount_id]
    await bench.mounts.unmount(third.mount_id, force=False)
    await bench.mounts.unmount(second.mount_id, force=False)
    assert (bench.backend.open, bench.backend.shown, bench.points.leases) == ({}, set(), {})


async def test_two_that_leave_at_once_leave_nothing(bench: Bench) -> None:
    first, second = [await bench.mount("b", "") for _ in range(2)]
    await asyncio.gather(*(bench.mounts.unmount(m.mount_id, force=False) for m in (first, second)))
    assert (bench.backend.open, bench.backend.shown, bench.points.leases) == ({}, set(), {})


async def test_joining_a_point_that_is_being_opened_shares_its_failure_and_its_success(bench: Bench) -> None:
    bench.backend.go.clear()
    waiting = [asyncio.create_task(bench.mount("b", "")) for _ in range(2)]
    await soon(lambda: len(bench.points.leases) == 2)
    bench.backend.fails = "bad layer"
    bench.backend.go.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, MountFailed) for result in results)
    assert len(bench.backend.wishes) == 1
    bench.backend.fails = ""
    assert (await bench.mount("b", "")).state == "mounted"


async def test_one_of_two_that_wait_may_leave(bench: Bench) -> None:
    bench.backend.go.clear()
    waiting = [asyncio.create_task(bench.mount("b", "")) for _ in range(2)]
    await soon(lambda: len(bench.points.leases) == 2)
    first, second = bench.mounts.all()
    await bench.mounts.unmount(first.mount_id, force=True)
    bench.backend.go.set()
    await asyncio.wait(waiting)
    assert second.state == "mounted"
    await bench.mounts.unmount(second.mount_id, force=False)
    assert (bench.backend.open, bench.backend.shown, bench.points.leases) == ({}, set(), {})


async def test_what_was_unlocked_is_shared_with_nobody_and_forgets_the_passphrase(bench: Bench) -> None:
    unlocked = await bench.mount("b", "", Wish(passphrases=("secret",)))
    plain = await bench.mount("b", "")
    again = await bench.mount("b", "", Wish(passphrases=("secret",)))
    assert set(bench.backend.open) == {unlocked.mount_id, plain.mount_id, again.mount_id}
    assert unlocked.wish.passphrases == ()
    assert "secret" not in repr(bench.backend.wishes)


async def test_a_point_whose_storage_was_lost_is_not_joined(bench: Bench) -> None:
    first = await bench.mount("b", "")
    bench.backend.open[first.mount_id].lost.set_result("killed")
    second = await bench.mount("b", "")
    assert second.mount_id in bench.backend.open


async def test_a_slow_mount_is_answered_as_mounting_and_its_failure_stays_visible(bench: Bench) -> None:
    bench.backend.go.clear()
    slow = await bench.mount("b", "", wait=0.01)
    assert slow.state == "mounting"
    bench.backend.fails = "bad layer"
    bench.backend.go.set()
    await soon(lambda: slow.state == "failed")
    assert slow.error is not None
    assert slow.error.reason == "MOUNT_FAILED"
    assert bench.mounts.get(slow.mount_id) is slow
    assert bench.points.leases == {}
    await bench.mounts.unmount(slow.mount_id, force=False)
    assert bench.mounts.all() == []


async def test_a_damaged_point_is_refused_unless_forced(bench: Bench) -> None:
    bench.points.damage = "disk 0: data differs"
    with pytest.raises(PointDamaged, match="data differs"):
        await bench.mount("b", "")
    assert (bench.points.leases, bench.mounts.all()) == ({}, [])
    assert (await bench.mount("b", "", Wish(force=True))).state == "mounted"


async def test_a_doubted_point_is_refused_unless_forced(bench: Bench) -> None:
    bench.points.suspicion = "3 blocks had changed unseen"
    with pytest.raises(PointSuspect, match="changed unseen") as caught:
        await bench.mount("b", "")
    assert "force" in caught.value.help
    assert (bench.points.leases, bench.mounts.all()) == ({}, [])
    assert (await bench.mount("b", "", Wish(force=True))).state == "mounted"


async def test_disks_are_chosen_by_number_and_an_unknown_one_is_refused(bench: Bench) -> None:
    with pytest.raises(DiskMissing, match="its disks are 0, 1"):
        await bench.mount("b", "", Wish(disk_ids=(7,)))
    await bench.mount("b", "", Wish(disk_ids=(1,)))
    await bench.mount("b", "", Wish(disk_ids=(0,)))
    assert len(bench.backend.open) == 2
