"""Row 17: a network file system is unmounted: its empty mount point is never written to; mounted again, all is well."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, VM, Rig, content, noise, open_rig, tree

from sendense_repository.creation import NewLayer
from sendense_repository.errors import RepositoryUnusable
from sendense_repository.mounts import mount_of
from sendense_repository.records import Holder, PlacedLayer
from sendense_repository.repositories import Repositories
from sendense_repository.root import MARKER_NAME

pytestmark = pytest.mark.faults


class Share:
    """A directory that is bound to a mount point; stands for a server's export."""

    def __init__(self, folder: Path) -> None:
        self.storage, self.point = folder / "server", folder / "mnt"
        self.storage.mkdir(parents=True)
        self.point.mkdir()
        self._is_mounted = False

    def mount(self) -> None:
        subprocess.run(["mount", "--bind", str(self.storage), str(self.point)], check=True)
        self._is_mounted = True

    def unmount(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", str(self.point)], check=True)
        self._is_mounted = False


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    share = Share(tmp_path / "share")
    share.mount()
    yield share
    share.unmount()


@pytest.fixture
async def rig(tmp_path: Path, share: Share) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        await opened.parts.registry.create("nas", "nfs", share.point)
        yield opened


async def layer(rig: Rig, job: str, parent: str = "") -> PlacedLayer:
    repository = await Repositories(rig.parts).open("nas")
    return await repository.create_layer(Holder(job, 1), NewLayer("nas", VM, "disk-a", SIZE, parent, "", 0))


@pytest.mark.parametrize("marker_below", [False, True])
async def test_an_empty_mount_point_is_never_written_to(rig: Rig, share: Share, marker_below: bool) -> None:
    placed = await layer(rig, "job-0")
    marker = (share.point / MARKER_NAME).read_bytes()
    image = content(placed.layer.files(share.point).partial, rig.scratch)
    stored = tree(share.storage)
    share.unmount()
    if marker_below:  # somebody registered the directory while nothing was mounted, once
        (share.point / MARKER_NAME).write_bytes(marker)
    before = tree(share.point)

    layer_id = placed.layer.layer_id
    for attempt in (
        layer(rig, "job-1"),
        rig.parts.layers.set_areas(Holder("job-0", 1), layer_id, []),
        rig.parts.sealer.seal(Holder("job-0", 1), layer_id, ""),
        rig.parts.layers.discard(Holder("job-0", 1), layer_id),
    ):
        with pytest.raises(RepositoryUnusable, match="mounted") as refused:
            await attempt
        assert str(share.point) in str(refused.value)
    await rig.restart()  # the service starts without it
    assert tree(share.point) == before
    assert sorted(path.name for path in share.point.iterdir()) == sorted(before)
    # The default repository goes on.
    await rig.backup("job-2", noise(CLUSTER, 1) + bytes(SIZE - CLUSTER))

    share.mount()
    assert tree(share.point) == stored
    assert content(placed.layer.files(share.point).partial, rig.scratch) == image
    await layer(rig, "job-0")


async def test_a_directory_on_the_machines_own_disk_becomes_no_network_repository(tmp_path: Path) -> None:
    place = Path("/var/tmp") / f"sendense-row17-{os.getpid()}"
    place.mkdir()
    try:
        if mount_of(place).point != Path("/"):
            pytest.skip("/var/tmp is a mount of its own here")
        async with open_rig(tmp_path) as rig:
            with pytest.raises(RepositoryUnusable, match="nothing is mounted there"):
                await rig.parts.registry.create("nas", "nfs", place)
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)
