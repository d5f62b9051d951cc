"""Verification: what is read back counts, damage is named and spreads to what builds on it, and nothing is blocked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, Rig, noise, open_rig

from sendense_blockio.extents import Extent
from sendense_repository.errors import LayerDamaged, PointNotFound
from sendense_repository.records import PlacedLayer
from sendense_repository.store.integrity import VerificationRecord
from sendense_repository.upkeep import Upkeep, build_upkeep
from sendense_repository.upkeep_errors import VerificationExists, VerificationNotFound


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
async def upkeep(rig: Rig) -> AsyncIterator[Upkeep]:
    built = build_upkeep(rig.parts)
    await built.start()
    yield built
    await built.stop()


async def verified(upkeep: Upkeep, backup_id: str, verification_id: str = "", **more: int) -> VerificationRecord:
    """Verifies a point to the end."""
    name = verification_id or f"verify {backup_id}"
    options = {"bytes_per_second": 0, "max_age_seconds": 0, **more}
    await upkeep.verification.start(name, backup_id, **options)
    async with asyncio.timeout(120):
        async for record in upkeep.verification.watch(name):
            last = record
    return last


async def state_of(rig: Rig, upkeep: Upkeep, backup_id: str) -> str:
    point = await rig.parts.points.get(backup_id)
    return (await upkeep.integrity.of_point(point.point)).state


def flip(path: Path, offset: int) -> None:
    mode = path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 4]))
    path.chmod(mode)


def spoil_data(rig: Rig, layer: PlacedLayer) -> None:
    """Flips a bit in the last cluster of an image's file, which holds data."""
    image = rig.image(layer)
    flip(image, image.stat().st_size - CLUSTER // 2)


async def test_a_point_is_unverified_until_all_of_its_layers_were_read_back(rig: Rig, upkeep: Upkeep) -> None:
    await rig.chain_of(3)
    assert await state_of(rig, upkeep, "job-1") == "unverified"

    record = await verified(upkeep, "job-1")

    assert (record.state, record.done_bytes, record.error_message) == ("done", record.total_bytes, "")
    assert record.total_bytes > SIZE
    assert [await state_of(rig, upkeep, f"job-{number}") for number in range(3)] == [
        "unverified",  # its own points file was not read
        "verified",
        "unverified",
    ]
    assert await upkeep.verification.due("local-is-no-id", None, 10) == []
    repository = await rig.parts.registry.get("local")
    assert await upkeep.verification.due(repository.repository_id, None, 10) == ["job-2", "job-0", "job-1"]


async def test_a_damaged_layer_marks_every_point_that_builds_on_it(rig: Rig, upkeep: Upkeep) -> None:
    layers, _ = await rig.chain_of(4)
    spoil_data(rig, layers[1])

    for number in range(4):
        assert (await verified(upkeep, f"job-{number}")).state == "done"

    assert [await state_of(rig, upkeep, f"job-{number}") for number in range(4)] == [
        "verified",
        "corrupt",
        "corrupt",
        "corrupt",
    ]
    point = await rig.parts.points.get("job-3")
    (damage,) = (await upkeep.integrity.of_point(point.point)).damages
    assert (damage.backup_id, damage.part, damage.length) == ("job-1", "data", CLUSTER)
    assert damage.offset % CLUSTER == 0
    told = await upkeep.integrity.damage_of([layer.layer for layer in layers])
    assert set(told) == {layer.layer.layer_id for layer in layers[1:]}


async def test_no_increment_is_made_on_a_layer_that_is_known_damaged(rig: Rig, upkeep: Upkeep) -> None:
    layers, disks = await rig.chain_of(3)
    spoil_data(rig, layers[0])
    await verified(upkeep, "job-2")

    with pytest.raises(LayerDamaged, match="BLAKE3"):
        await rig.layer("job-3", parent=layers[2].layer.layer_id)
    full = await rig.backup("job-4", disks[2])

    assert rig.content(full) == disks[2]
    assert (await verified(upkeep, "job-4")).state == "done"
    assert await state_of(rig, upkeep, "job-4") == "verified"


@pytest.mark.parametrize("part", ["image", "sidecar", "journal"])
async def test_a_file_that_was_deleted_by_hand_is_named(rig: Rig, upkeep: Upkeep, part: str) -> None:
    layers, disks = await rig.chain_of(2)
    files = layers[1].layer.files(rig.root)
    {"image": files.sealed, "sidecar": files.sidecar, "journal": files.journal}[part].unlink()

    await verified(upkeep, "job-1")

    point = await rig.parts.points.get("job-1")
    (damage,) = (await upkeep.integrity.of_point(point.point)).damages
    assert (damage.part, damage.finding) == (part, "it is gone")
    assert files.sealed.name in damage.file
    await verified(upkeep, "job-0")
    assert await state_of(rig, upkeep, "job-0") == "verified"
    assert rig.content(layers[0]) == disks[0]


async def test_a_truncated_image_and_a_cut_sidecar_are_damage_with_ranges(rig: Rig, upkeep: Upkeep) -> None:
    layers, _ = await rig.chain_of(2)
    first, second = (layer.layer.files(rig.root) for layer in layers)
    for path in (first.sealed, second.sidecar):
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size // 2)

    await verified(upkeep, "job-1")

    point = await rig.parts.points.get("job-1")
    damages = (await upkeep.integrity.of_point(point.point)).damages
    assert {damage.part for damage in damages} >= {"sidecar"}
    assert any(damage.backup_id == "job-0" and damage.length for damage in damages)


async def test_a_parent_that_the_next_increment_finds_damaged_is_remembered(rig: Rig, upkeep: Upkeep) -> None:
    layers, _ = await rig.chain_of(2)
    flip(rig.image(layers[1]), 4 * CLUSTER + 9)  # its L2 table

    with pytest.raises(LayerDamaged):
        await rig.layer("job-2", parent=layers[1].layer.layer_id)

    assert await state_of(rig, upkeep, "job-1") == "corrupt"
    assert await state_of(rig, upkeep, "job-0") == "unverified"


async def test_the_same_id_joins_and_another_point_is_refused(rig: Rig, upkeep: Upkeep) -> None:
    await rig.chain_of(2)
    first = await verified(upkeep, "job-0", "nightly")
    again = await upkeep.verification.start("nightly", "job-0", bytes_per_second=0, max_age_seconds=0)

    assert again == await upkeep.verification.get("nightly")
    assert again.ended_at == first.ended_at
    with pytest.raises(VerificationExists):
        await upkeep.verification.start("nightly", "job-1", bytes_per_second=0, max_age_seconds=0)
    with pytest.raises(VerificationNotFound):
        await upkeep.verification.get("other")
    with pytest.raises(PointNotFound):
        await upkeep.verification.start("other", "job-9", bytes_per_second=0, max_age_seconds=0)


async def test_a_layer_found_sound_a_moment_ago_need_not_be_read_again(rig: Rig, upkeep: Upkeep) -> None:
    layers, _ = await rig.chain_of(2)
    await verified(upkeep, "job-1")
    spoil_data(rig, layers[0])

    await verified(upkeep, "job-1", "young", max_age_seconds=3600)
    assert await state_of(rig, upkeep, "job-1") == "verified"
    await verified(upkeep, "job-1", "all")
    assert await state_of(rig, upkeep, "job-1") == "corrupt"


async def test_a_slow_verification_holds_the_point_and_stops_when_cancelled(rig: Rig) -> None:
    await rig.backup("job-0", noise(SIZE, 1))
    upkeep = build_upkeep(rig.parts, 16 << 10)
    begun = await upkeep.verification.start("slow", "job-0", bytes_per_second=0, max_age_seconds=0)
    assert begun.bytes_per_second == 16 << 10, "who names no rate gets the usual one"
    leases = rig.parts.catalogue.leases
    async with asyncio.timeout(60):
        async for record in upkeep.verification.watch("slow"):
            if record.done_bytes:
                break
    held = [lease.holder for lease in await leases.living(["job-0"], record.started_at)]

    ended = await upkeep.verification.cancel("slow")

    assert held == ["verification slow"]
    assert ended.state == "cancelled"
    assert 0 < ended.done_bytes < ended.total_bytes
    assert await leases.living(["job-0"], record.started_at) == []
    assert await state_of(rig, upkeep, "job-0") == "unverified"


async def test_an_interrupted_verification_goes_on_when_it_is_started_again(rig: Rig, upkeep: Upkeep) -> None:
    await rig.chain_of(2)
    await upkeep.verification.start("nightly", "job-1", bytes_per_second=16 << 10, max_age_seconds=0)
    await upkeep.stop()
    later = build_upkeep(rig.parts)
    await later.start()
    assert (await later.verification.get("nightly")).error_reason == "VERIFICATION_INTERRUPTED"

    record = await verified(later, "job-1", "nightly")

    assert record.state == "done"
    assert await state_of(rig, later, "job-1") == "verified"


async def test_bytes_beside_unaligned_areas_are_compared_with_the_layer_below(rig: Rig, upkeep: Upkeep) -> None:
    disk = bytearray(noise(SIZE, 1))
    full = await rig.backup("job-0", bytes(disk))
    area = Extent(2 * CLUSTER + 512, 1024)
    disk[area.offset : area.end] = noise(area.length, 2)
    increment = await rig.backup("job-1", bytes(disk), [area], full.layer.layer_id)
    await verified(upkeep, "job-1")
    assert await state_of(rig, upkeep, "job-1") == "verified"

    flip(rig.image(increment), rig.image(increment).stat().st_size - 7)  # in its one cluster, behind the area
    await verified(upkeep, "job-1", "again")

    assert await state_of(rig, upkeep, "job-1") == "corrupt"
