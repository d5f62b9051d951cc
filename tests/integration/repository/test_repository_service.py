"""The service on its real socket: the contract's words, who may call, health that looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from repository_rig import CLUSTER, SIZE, VM, content, entries_of, noise, write_image

from sendense.repository.v1 import (
    layer_pb2,
    layer_pb2_grpc,
    point_pb2,
    point_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)
from sendense_access.keys import SigningKey
from sendense_blockio.extents import Extent, areas_digest
from sendense_blockio.journal import Entry, encode_entries
from sendense_db.engine import Database
from sendense_repository.config import RepositorySettings
from sendense_repository.layout import MARKER_NAME
from sendense_repository.main import build
from sendense_repository.store import metadata
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import RemoteError
from support import serving

HOLDER = layer_pb2.Holder(job_id="backup-web-20261123120000", attempt=1)


def allocated(path: str) -> int:
    """Bytes that a file takes on disk; 0 when it is not there."""
    return Path(path).stat().st_blocks * 512 if Path(path).exists() else 0


@pytest.fixture
async def peer(sendense_home: Path) -> AsyncIterator[Peer]:
    settings = RepositorySettings()
    database = Database(settings.catalogue_url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()
    async with build(settings) as service, serving(service, settings):
        peer = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
        yield peer
        await peer.close()


async def test_a_backup_over_the_wire(peer: Peer, sendense_home: Path, tmp_path: Path) -> None:
    layers = layer_pb2_grpc.LayerServiceStub(peer.channel)
    points = point_pb2_grpc.PointServiceStub(peer.channel)
    disk = noise(SIZE, 1)
    areas = [Extent(0, SIZE)]
    create = layer_pb2.CreateLayerRequest(
        holder=HOLDER, repository_id="local", vm_uuid=VM, disk_identity="disk", virtual_size_bytes=SIZE, change_id="52"
    )

    layer = await peer.call(layers.CreateLayer, create)
    assert layer.path.endswith(".qcow2.partial")
    assert (layer.state, layer.backup_type, layer.cluster_size_bytes) == ("partial", "full", CLUSTER)
    assert await peer.call(layers.CreateLayer, create) == layer

    async def pages(upto: int = SIZE) -> AsyncIterator[layer_pb2.SetAreasRequest]:
        yield layer_pb2.SetAreasRequest(holder=HOLDER, layer_id=layer.layer_id)
        for offset in range(0, SIZE, CLUSTER):
            area = layer_pb2.Area(offset=offset, length=min(CLUSTER, SIZE - offset))
            if offset < upto:
                yield layer_pb2.SetAreasRequest(areas=[area], last=offset + CLUSTER >= SIZE)

    with pytest.raises(RemoteError, match="nothing was fixed"):
        await peer.call(layers.SetAreas, pages(upto=10 * CLUSTER))
    fixed = await peer.call(layers.SetAreas, pages())
    assert (fixed.count, fixed.total_bytes, fixed.digest) == (1, SIZE, areas_digest(areas, SIZE))
    remaining = layer_pb2.ListRemainingAreasRequest(layer_id=layer.layer_id)
    assert [page async for page in peer.stream(layers.ListRemainingAreas, remaining)] == [
        layer_pb2.AreaPage(areas=[layer_pb2.Area(offset=0, length=SIZE)])
    ]
    await asyncio.to_thread(write_image, Path(layer.path), disk, areas, [], tmp_path)
    batch = layer_pb2.AppendJournalRequest(
        holder=HOLDER, layer_id=layer.layer_id, entries=encode_entries(entries_of(disk, areas)), sequence=1
    )
    state = await peer.call(layers.AppendJournal, batch)
    # A job that died before it had the answer learns from here where to go on.
    resumed = await peer.call(layers.CreateLayer, create)
    assert (resumed.journal_sequence, resumed.journaled_bytes) == (state.last_sequence, state.journaled_bytes)
    assert (state.last_sequence, state.journaled_bytes) == (1, SIZE)
    assert [page async for page in peer.stream(layers.ListRemainingAreas, remaining)] == []

    seal = layer_pb2.SealLayerRequest(holder=HOLDER, layer_id=layer.layer_id, reason="first backup")
    sealed = await peer.call(layers.SealLayer, seal)
    assert (sealed.state, sealed.path) == ("sealed", layer.path.removesuffix(".partial"))
    assert sealed.stored_bytes == allocated(sealed.path)
    commit = point_pb2.CommitPointRequest(
        holder=HOLDER,
        repository_id="local",
        vm_uuid=VM,
        vm_name="web",
        vm_context_id="ctx-web",
        layer_ids=[sealed.layer_id],
        snapshot_at=Timestamp(seconds=1_700_000_000),
        hardware_json="{}",
    )
    point = await peer.call(points.CommitPoint, commit)
    latest = point_pb2.GetLatestPointRequest(repository_id="local", vm_uuid=VM)
    assert await peer.call(points.GetLatestPoint, latest) == point
    assert await peer.call(points.GetPoint, point_pb2.GetPointRequest(backup_id=HOLDER.job_id)) == point
    assert point.snapshot_at.seconds == 1_700_000_000
    chains = await peer.call(points.GetChains, point_pb2.GetChainsRequest(vm_context_id="ctx-web"))
    (chain,) = chains.chains
    assert (chain.current, chain.total_backups, chain.total_size_bytes) == (True, 1, sealed.stored_bytes)
    assert content(Path(chain.layers[0].path), tmp_path) == disk

    lease = point_pb2.LeasePointRequest(backup_id=HOLDER.job_id, holder="mount-1", seconds=60)
    assert (await peer.call(points.LeasePoint, lease)).holder == "mount-1"
    delete = point_pb2.DeletePointRequest(holder=layer_pb2.Holder(job_id="delete", attempt=1), backup_id=HOLDER.job_id)
    with pytest.raises(RemoteError) as refused:
        await peer.call(points.DeletePoint, delete)
    assert (refused.value.reason, refused.value.metadata["holders"]) == ("POINT_LEASED", "mount-1")
    await peer.call(points.ReleaseLease, point_pb2.ReleaseLeaseRequest(backup_id=HOLDER.job_id, holder="mount-1"))
    deleted = await peer.call(points.DeletePoint, delete)
    assert list(deleted.backup_ids) == [HOLDER.job_id]
    assert deleted.freed_bytes > SIZE
    assert allocated(sealed.path) == 0
    with pytest.raises(RemoteError) as missing:
        await peer.call(points.GetLatestPoint, latest)
    assert missing.value.reason == "POINT_NOT_FOUND"


async def test_a_layer_can_be_dropped_over_the_wire(peer: Peer) -> None:
    layers = layer_pb2_grpc.LayerServiceStub(peer.channel)
    create = layer_pb2.CreateLayerRequest(
        holder=HOLDER, repository_id="local", vm_uuid=VM, disk_identity="disk", virtual_size_bytes=SIZE
    )
    layer = await peer.call(layers.CreateLayer, create)
    discard = layer_pb2.DiscardLayerRequest(holder=HOLDER, layer_id=layer.layer_id)
    for _ in range(2):
        await peer.call(layers.DiscardLayer, discard)
    assert allocated(layer.path) == 0
    append = layer_pb2.AppendJournalRequest(
        holder=HOLDER, layer_id=layer.layer_id, entries=encode_entries([Entry(0, 512, None)]), sequence=1
    )
    with pytest.raises(RemoteError) as refused:
        await peer.call(layers.AppendJournal, append)
    assert refused.value.reason == "LAYER_NOT_FOUND"


async def test_repositories_are_listed_found_and_made(peer: Peer, sendense_home: Path, tmp_path: Path) -> None:
    stub = repository_pb2_grpc.RepositoryServiceStub(peer.channel)
    directory = tmp_path / "second"
    directory.mkdir()
    create = repository_pb2.CreateRepositoryRequest(name="second", repository_type="local", path=str(directory))

    made = await peer_as(sendense_home, "admin", peer, create)
    listed = await peer.call(stub.ListRepositories, repository_pb2.ListRepositoriesRequest())

    assert [each.name for each in listed.repositories] == ["local", "second"]
    assert listed.repositories[0].path == str(sendense_home / "backups")
    assert all(each.total_size_bytes > each.available_size_bytes > 0 for each in listed.repositories)
    found = await peer.call(stub.GetRepository, repository_pb2.GetRepositoryRequest(repository_id="second"))
    assert found.repository_id == made.repository_id
    assert (directory / MARKER_NAME).exists()
    assert [path.name for path in directory.iterdir()] == [MARKER_NAME]
    with pytest.raises(RemoteError) as refused:
        await peer.call(stub.CreateRepository, create)
    assert refused.value.reason == "ROLE_MISSING"
    with pytest.raises(RemoteError) as refused:
        await peer.call(stub.GetRepository, repository_pb2.GetRepositoryRequest(repository_id="none"))
    assert (refused.value.reason, refused.value.metadata["known"]) == ("REPOSITORY_NOT_FOUND", "local,second")
    full = tmp_path / "full"
    full.mkdir()
    (full / "somebody's file").touch()
    for name, path, reason in (
        ("second", tmp_path / "third", "REPOSITORY_EXISTS"),
        ("fourth", directory, "REPOSITORY_EXISTS"),
        ("fourth", directory / "below", "REPOSITORY_EXISTS"),
        ("fourth", tmp_path / "missing", "REPOSITORY_UNUSABLE"),
        ("fourth", full, "REPOSITORY_UNUSABLE"),
    ):
        with pytest.raises(RemoteError) as refused:
            await peer_as(
                sendense_home,
                "admin",
                peer,
                repository_pb2.CreateRepositoryRequest(name=name, repository_type="local", path=str(path)),
            )
        assert refused.value.reason == reason
    assert [path.name for path in full.iterdir()] == ["somebody's file"]


async def peer_as(
    home: Path, role: str, peer: Peer, request: repository_pb2.CreateRepositoryRequest
) -> repository_pb2.Repository:
    """Calls CreateRepository as a person with a role; workloads may not."""
    token = home / f"{role}.token"
    token.write_text(SigningKey.load_or_create(home / "keys").sign("user:test", role, 600))
    person = Peer(f"unix:{home / 'run' / 'repository.sock'}", token)
    try:
        return await person.call(repository_pb2_grpc.RepositoryServiceStub(person.channel).CreateRepository, request)
    finally:
        await person.close()


async def test_health_says_when_the_default_root_is_not_there(peer: Peer, sendense_home: Path) -> None:
    async with aio.insecure_channel(
        f"unix:{sendense_home / 'run' / 'repository.sock'}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        good = await health.Check(health_pb2.HealthCheckRequest())
        marker = sendense_home / "backups" / MARKER_NAME
        marker.rename(sendense_home / "marker")
        bad = await health.Check(health_pb2.HealthCheckRequest())

    assert good.status == health_pb2.HealthCheckResponse.SERVING
    assert bad.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_start_keeps_the_repository_and_does_not_mark_an_unmounted_root(sendense_home: Path) -> None:
    settings = RepositorySettings()
    database = Database(settings.catalogue_url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()
    async with build(settings):
        marker = sendense_home / "backups" / MARKER_NAME
        before = marker.read_bytes()
    async with build(settings):
        assert marker.read_bytes() == before
    marker.unlink()
    async with build(settings) as service:
        assert not marker.exists()
        with pytest.raises(Exception, match="mounted"):
            await service.check()
