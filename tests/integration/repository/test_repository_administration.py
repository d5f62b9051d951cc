"""Repositories over the wire: added, shown with how they fill, edited, probed, disabled, removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from repository_rig import MIB, Rig, noise, open_rig, tree

from sendense.repository.v1 import layer_pb2, layer_pb2_grpc, repository_pb2, repository_pb2_grpc
from sendense_access.keys import SigningKey
from sendense_blockio.extents import Extent
from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository import documents
from sendense_repository.config import RepositorySettings
from sendense_repository.errors import NoRoom
from sendense_repository.layout import MARKER_NAME
from sendense_repository.main import build
from sendense_repository.options import RepositoryOptions
from sendense_repository.records import Holder, RepositoryRecord
from sendense_repository.store import metadata
from sendense_repository.upkeep import build_upkeep
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import RemoteError
from support import serving


@pytest.fixture
async def peer(sendense_home: Path, tmp_path: Path) -> AsyncIterator[Peer]:
    settings = RepositorySettings()
    database = Database(settings.catalogue_url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()
    async with build(settings) as service, serving(service, settings):
        token = tmp_path / "admin.token"
        token.write_text(SigningKey.load_or_create(sendense_home / "keys").sign("user:test", "admin", 600))
        peer = Peer(f"unix:{settings.socket('repository')}", token)
        yield peer
        await peer.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path / "rig") as opened:
        yield opened


class Admin:
    """Calls as an administrator's gateway would."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.stub = repository_pb2_grpc.RepositoryServiceStub(peer.channel)

    async def create(self, name: str, path: Path, **more: Any) -> repository_pb2.Repository:
        path.mkdir(exist_ok=True)  # noqa: ASYNC240  # a moment
        request = repository_pb2.CreateRepositoryRequest(name=name, repository_type="local", path=str(path), **more)
        return await self.peer.call(self.stub.CreateRepository, request)

    async def update(self, repository_id: str, **more: Any) -> repository_pb2.Repository:
        request = repository_pb2.UpdateRepositoryRequest(repository_id=repository_id, **more)
        return await self.peer.call(self.stub.UpdateRepository, request)

    async def probe(self, name: str) -> repository_pb2.RepositoryProbe:
        return await self.peer.call(
            self.stub.ProbeRepository, repository_pb2.ProbeRepositoryRequest(repository_id=name)
        )

    async def get(self, name: str) -> repository_pb2.Repository:
        return await self.peer.call(self.stub.GetRepository, repository_pb2.GetRepositoryRequest(repository_id=name))

    async def delete(self, name: str, *, forget_points: bool = False) -> None:
        request = repository_pb2.DeleteRepositoryRequest(repository_id=name, forget_points=forget_points)
        await self.peer.call(self.stub.DeleteRepository, request)


async def refused(awaitable: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return caught.value.reason


async def test_the_life_of_a_repository(peer: Peer, tmp_path: Path) -> None:
    admin = Admin(peer)
    made = await admin.create("big", tmp_path / "big", reserve_bytes=5 * MIB, lock_seconds=60)
    assert (made.reserve_bytes, made.lock_seconds, made.enabled, made.problem) == (5 * MIB, 60, True, "")

    changed = await admin.update("big", name="huge", enabled=False, reserve_bytes=6 * MIB, lock_seconds=3600)
    assert (changed.repository_id, changed.name, changed.enabled) == (made.repository_id, "huge", False)
    assert (changed.reserve_bytes, changed.lock_seconds) == (6 * MIB, 3600)
    assert '"locks"' in changed.config_json
    unchanged = await admin.update("huge")
    assert (unchanged.name, unchanged.enabled, unchanged.reserve_bytes) == ("huge", False, 6 * MIB)
    assert (await admin.update("huge", reserve_bytes=0)).reserve_bytes == 0

    before = tree(tmp_path / "big")
    probed = await admin.probe("huge")
    assert probed.usable
    assert [result.name for result in probed.results] == ["marker", "space", "fsync", "rename", "lock", "clock"]
    assert all(result.finding for result in probed.results)
    assert tree(tmp_path / "big") == before

    await admin.delete("huge")
    assert await refused(admin.get("huge")) == "REPOSITORY_NOT_FOUND"
    assert tree(tmp_path / "big") == before
    again = await admin.create("big", tmp_path / "big")
    assert again.repository_id == made.repository_id


async def test_what_an_administrator_cannot_do(peer: Peer, tmp_path: Path) -> None:
    admin = Admin(peer)
    await admin.create("big", tmp_path / "big")
    assert await refused(admin.update("big", name="local")) == "REPOSITORY_EXISTS"
    assert await refused(admin.update("nowhere", enabled=True)) == "REPOSITORY_NOT_FOUND"
    assert await refused(admin.update("big", name="../etc")) == "INVALID_FIELD"
    assert await refused(admin.update("big", reserve_bytes=-1)) == "INVALID_FIELD"
    assert await refused(admin.update("big", lock_seconds=-1)) == "INVALID_FIELD"
    assert await refused(admin.create("inside", tmp_path / "big" / "inside")) == "REPOSITORY_EXISTS"
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("somebody's")
    assert await refused(admin.create("used", tmp_path / "used")) == "REPOSITORY_UNUSABLE"


async def test_a_repository_with_a_running_backup_is_not_forgotten(peer: Peer) -> None:
    admin = Admin(peer)
    settings = RepositorySettings()
    service = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
    layers = layer_pb2_grpc.LayerServiceStub(service.channel)
    request = layer_pb2.CreateLayerRequest(
        holder=layer_pb2.Holder(job_id="job-1", attempt=1),
        repository_id="local",
        vm_uuid="564d8a2c-1111-2222-3333-0123456789ab",
        disk_identity="disk-a",
        virtual_size_bytes=MIB,
    )
    await service.call(layers.CreateLayer, request)
    await service.close()
    assert await refused(admin.delete("local", forget_points=True)) == "REPOSITORY_NOT_EMPTY"


@pytest.mark.parametrize("spoil", ["gone", "not mounted", "another's", "cut", "newer"])
async def test_a_bad_root_is_reported_by_name_and_siblings_go_on(peer: Peer, tmp_path: Path, spoil: str) -> None:
    admin = Admin(peer)
    root = tmp_path / "big"
    await admin.create("big", root)
    marker = root / MARKER_NAME
    content = marker.read_bytes()
    if spoil == "gone":
        shutil.rmtree(root)
    else:
        marker.unlink()
    if spoil == "another's":
        marker.write_bytes(documents.encode("repository", {"repository_id": "other", "name": "other"})[0])
    elif spoil == "cut":
        marker.write_bytes(content[:-20])
    elif spoil == "newer":
        marker.write_bytes(content.replace(b'"format": 1', b'"format": 2'))
    before = tree(tmp_path)

    shown = await admin.get("big")
    probed = await admin.probe("big")

    assert shown.problem
    assert not probed.usable
    assert [result.name for result in probed.results] == ["marker"]
    assert tree(tmp_path) == before, "nothing is written into a root that is not ours"
    assert (await admin.get("local")).problem == ""
    assert (await admin.probe("local")).usable


async def test_a_root_that_nothing_can_be_written_to_says_so(peer: Peer, tmp_path: Path) -> None:
    admin = Admin(peer)
    # A read-only mount, without mounting: /proc has directories that even root cannot write to.
    request = repository_pb2.CreateRepositoryRequest(name="big", repository_type="local", path="/proc/self")
    with pytest.raises(RemoteError) as caught:
        await admin.peer.call(admin.stub.CreateRepository, request)
    assert caught.value.reason == "REPOSITORY_UNUSABLE"
    assert "/proc/self" in caught.value.message


async def test_room_is_checked_against_each_repositorys_own_reserve_when_areas_are_fixed(rig: Rig) -> None:
    placed = await rig.layer("job-1")
    record = await rig.parts.registry.get("local")
    administration = build_upkeep(rig.parts).administration
    await rig.parts.registry.keep(_with_reserve(record, 1 << 59))

    with pytest.raises(NoRoom) as refused_areas:
        await rig.parts.layers.set_areas(Holder("job-1", 1), placed.layer.layer_id, [Extent(0, 4 * MIB)])

    assert refused_areas.value.needed_bytes > refused_areas.value.free_bytes
    outlook = await administration.outlook(await rig.parts.registry.get("local"))
    assert "is full" in outlook.warning
    await rig.parts.registry.keep(_with_reserve(record, 0))
    fixed = await rig.parts.layers.set_areas(Holder("job-1", 1), placed.layer.layer_id, [Extent(0, 4 * MIB)])
    assert fixed.total_bytes == 4 * MIB


def _with_reserve(record: RepositoryRecord, reserve: int) -> RepositoryRecord:
    return replace(record, options=RepositoryOptions(reserve_bytes=reserve))


async def test_the_day_on_which_a_repository_is_full_is_told(rig: Rig) -> None:
    await rig.backup("job-0", noise(4 * MIB + 512 * 3, 1))
    administration = build_upkeep(rig.parts).administration
    record = await rig.parts.registry.get("local")
    usage = rig.parts.catalogue.usage
    now = utc_now()
    daily = record.available_size_bytes // 7
    for day in range(10):
        await usage.sample(record.repository_id, daily * day, now - timedelta(days=9 - day))

    outlook = await administration.outlook(record)

    assert outlook.point_count == 1
    assert outlook.stored_bytes > 4 * MIB
    assert abs(outlook.forecast.bytes_per_day - daily) < daily // 100
    assert outlook.forecast.full_at is not None
    assert timedelta(days=6) < outlook.forecast.full_at - now < timedelta(days=8)
    assert f"{outlook.forecast.full_at:%Y-%m-%d}" in outlook.warning
    await administration.sample()
    assert len(await usage.samples(record.repository_id, now - timedelta(days=30))) == 10


_AS_NOBODY = """
import os, sys
from pathlib import Path
from sendense_repository import root as roots
from sendense_repository.errors import RepositoryUnusable

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    roots.probe(Path(sys.argv[1]), 0)
except RepositoryUnusable as error:
    print(error.finding)
else:
    print("usable")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("owner", "mode"), [(0, 0o755), (65534, 0o555)])
def test_a_root_of_another_owner_or_read_only_is_refused_by_name(short_tmp: Path, owner: int, mode: int) -> None:
    """Run as an unprivileged user: root could write everywhere."""
    root = short_tmp / "backups"
    root.mkdir()
    os.chown(root, owner, owner)
    root.chmod(mode)
    short_tmp.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(root)], capture_output=True, text=True, check=False, timeout=60
    )

    assert "Permission denied" in done.stdout, done.stderr
    assert list(root.iterdir()) == []
