"""Layers: what is sealed is what was copied, and whatever is not is refused by name."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, MIB, SIZE, VM, Rig, content, entries_of, noise, open_rig, opened_by_qemu, qemu, tree

from sendense_blockio.extents import Extent
from sendense_blockio.journal import Entry, encode_entries
from sendense_repository.errors import (
    AreasFixed,
    InvalidValue,
    JournalIncomplete,
    JournalRefused,
    LayerBusy,
    LayerDamaged,
    LayerInUse,
    LayerMismatch,
    LayerPoisoned,
    LayerSealed,
    NoRoom,
    RepositoryUnusable,
    SizeChanged,
    StaleAttempt,
    StaleParent,
)
from sendense_repository.layout import MARKER_NAME
from sendense_repository.records import Holder

DISK = noise(MIB, 3) + bytes(MIB) + noise(MIB, 4) + bytes(SIZE - 3 * MIB)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


def forget_cluster(image: Path, virtual_offset: int) -> None:
    """Clears the L2 entry of a cluster: one damaged word, and the bytes below show through."""
    with image.open("r+b") as file:
        header = file.read(72)
        l1_offset = struct.unpack_from(">Q", header, 40)[0]
        index = virtual_offset // CLUSTER
        file.seek(l1_offset + 8 * (index // (CLUSTER // 8)))
        l2_offset = struct.unpack(">Q", file.read(8))[0] & 0x00FFFFFFFFFFFE00
        file.seek(l2_offset + 8 * (index % (CLUSTER // 8)))
        assert file.read(8) != bytes(8)
        file.seek(-8, os.SEEK_CUR)
        file.write(bytes(8))


async def test_full_and_increments_read_back_byte_for_byte_with_plain_qemu(rig: Rig) -> None:
    layers, disks = await rig.chain_of(4)

    assert [rig.content(layer) for layer in layers] == disks
    for layer in layers:
        image = rig.image(layer)
        assert re.fullmatch(r"(full|incr)-\d{8}-\d{6}\.qcow2", image.name)
        assert image.parent == rig.root / VM / "disk-0"
        assert stat.S_IMODE(image.stat().st_mode) == 0o444
        info = json.loads(qemu("qemu-img", "info", "-f", "qcow2", "--output=json", image))
        assert info["format-specific"]["data"]["compat"] == "1.1"
        assert info["format-specific"]["data"]["lazy-refcounts"] is False
        assert info["cluster-size"] == CLUSTER
    info = json.loads(qemu("qemu-img", "info", "-f", "qcow2", "--output=json", rig.image(layers[1])))
    assert info["backing-filename"] == rig.image(layers[0]).name
    assert info["backing-filename-format"] == "qcow2"
    leftovers = [path for path in rig.root.rglob("*") if path.suffix in {".partial", ".areas"} or ".new-" in path.name]
    assert leftovers == []


async def test_no_change_makes_an_empty_increment(rig: Rig) -> None:
    full = await rig.backup("job-0", DISK)
    empty = await rig.backup("job-1", DISK, [], full.layer.layer_id)

    assert rig.content(empty) == DISK
    assert empty.layer.area_count == 0


async def test_sidecar_names_parent_journal_and_digests(rig: Rig) -> None:
    layers, _ = await rig.chain_of(2)
    files = layers[1].layer.files(rig.root)

    sidecar = json.loads(files.sidecar.read_text())

    assert sidecar["format"] == 1
    assert sidecar["parent"] == {
        "layer_id": layers[0].layer.layer_id,
        "name": rig.image(layers[0]).name,
        "digest": json.loads(layers[0].layer.files(rig.root).sidecar.read_text())["digest"],
    }
    assert sidecar["journal"]["name"] == files.journal.name
    assert sidecar["change_id"] == "change of job-1"
    assert sidecar["reason"] == "first backup"
    assert sidecar["disk_identity"] == "disk-a"
    assert sidecar["virtual_size_bytes"] == SIZE


async def test_areas_that_no_batch_covers_refuse_the_seal_and_nothing_is_lost(rig: Rig) -> None:
    placed = await rig.layer("job")
    await rig.parts.layers.set_areas(Holder("job", 1), placed.layer.layer_id, [Extent(0, SIZE)])
    first = entries_of(DISK, [Extent(0, CLUSTER)])
    await rig.parts.layers.append(Holder("job", 1), placed.layer.layer_id, 1, encode_entries(first))
    qemu("qemu-io", "-f", "qcow2", "-c", f"write -q 0 {CLUSTER}", rig.image(placed))

    with pytest.raises(JournalIncomplete) as refused:
        await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")

    assert refused.value.metadata["missing_bytes"] == str(SIZE - CLUSTER)
    assert refused.value.metadata["first_offset"] == str(CLUSTER)
    assert rig.image(placed).name.endswith(".partial")
    assert await rig.parts.layers.remaining(placed.layer.layer_id) == [Extent(CLUSTER, SIZE - CLUSTER)]


async def test_data_that_was_written_but_not_journaled_refuses_the_seal(rig: Rig) -> None:
    full = await rig.backup("job-0", DISK)
    placed = await rig.written("job-1", DISK, [Extent(0, CLUSTER)], parent=full.layer.layer_id)
    qemu("qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 {5 * CLUSTER} {CLUSTER}", rig.image(placed))

    with pytest.raises(LayerDamaged, match=f"no journal entry explains, first at offset {5 * CLUSTER}"):
        await rig.parts.sealer.seal(Holder("job-1", 1), placed.layer.layer_id, "")


async def test_journaled_data_that_the_image_lacks_refuses_the_seal(rig: Rig) -> None:
    placed = await rig.written("job", DISK)
    forget_cluster(rig.image(placed), 3 * CLUSTER)

    with pytest.raises(LayerDamaged, match=f"data that the image does not hold, first at offset {3 * CLUSTER}"):
        await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")


async def test_zeroes_of_an_increment_that_were_only_skipped_refuse_the_seal(rig: Rig) -> None:
    full = await rig.backup("job-0", DISK)
    placed = await rig.layer("job-1", parent=full.layer.layer_id)
    await rig.parts.layers.set_areas(Holder("job-1", 1), placed.layer.layer_id, [Extent(0, CLUSTER)])
    zero = encode_entries([Entry(0, CLUSTER, None)])
    await rig.parts.layers.append(Holder("job-1", 1), placed.layer.layer_id, 1, zero)

    with pytest.raises(LayerDamaged, match="zeroes that the image does not hold"):
        await rig.parts.sealer.seal(Holder("job-1", 1), placed.layer.layer_id, "")


@pytest.mark.parametrize(("stored", "accepted"), [(0, True), (9, False)])
async def test_journaled_zeroes_that_are_stored_as_data_are_read(rig: Rig, stored: int, accepted: bool) -> None:
    disk = bytes(SIZE)
    placed = await rig.written("job", disk)
    qemu("qemu-io", "-f", "qcow2", "-c", f"write -q -P {stored} {MIB} {CLUSTER}", rig.image(placed))

    if accepted:
        sealed = await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")
        assert rig.content(sealed) == disk
    else:
        with pytest.raises(LayerDamaged, match="not zero"):
            await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")


async def test_leaked_clusters_are_repaired_before_the_seal(rig: Rig) -> None:
    placed = await rig.written("job", DISK)
    image = rig.image(placed)
    taken = image.stat().st_blocks
    with image.open("r+b") as file:
        table_offset = struct.unpack_from(">Q", file.read(72), 48)[0]
        file.seek(table_offset)
        block = struct.unpack(">Q", file.read(8))[0]
        unused = -(-image.stat().st_size // CLUSTER)
        file.truncate(unused * CLUSTER)
        file.seek(0, os.SEEK_END)
        file.write(noise(16 * CLUSTER, 5))
        file.seek(block + 2 * unused)
        file.write(b"\0\1" * 16)
    assert image.stat().st_blocks > taken
    with pytest.raises(AssertionError, match="leaked clusters"):
        qemu("qemu-img", "check", "-f", "qcow2", image)

    sealed = await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")

    qemu("qemu-img", "check", "-f", "qcow2", rig.image(sealed))
    assert rig.content(sealed) == DISK
    assert rig.image(sealed).stat().st_blocks <= taken


async def test_a_leak_below_what_is_in_use_takes_no_room(rig: Rig) -> None:
    image = rig.image(await rig.layer("job"))
    qemu("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 2M 1M", image)
    for number in range(16):
        forget_cluster(image, 2 * MIB + number * CLUSTER)
    placed = await rig.written("job", DISK)
    assert image.stat().st_blocks * 512 >= 3 * MIB

    sealed = await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")

    assert rig.content(sealed) == DISK
    assert sealed.layer.stored_bytes <= 2 * MIB + CLUSTER


async def test_a_layer_that_a_writer_has_open_is_not_sealed_and_not_discarded(rig: Rig, short_tmp: Path) -> None:
    placed = await rig.written("job", DISK)
    with opened_by_qemu(rig.image(placed), short_tmp / "n"):
        with pytest.raises(LayerBusy):
            await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")
        with pytest.raises(LayerBusy):
            await rig.parts.layers.discard(Holder("job", 1), placed.layer.layer_id)

    sealed = await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")

    assert rig.content(sealed) == DISK


async def test_a_bit_that_flips_in_a_sealed_layer_refuses_increments_on_it(rig: Rig) -> None:
    full = await rig.backup("job-0", DISK)
    image = rig.image(full)
    image.chmod(0o644)
    forget_cluster(image, 3 * CLUSTER)
    qemu("qemu-img", "check", "-q", "-r", "leaks", "-f", "qcow2", image)

    with pytest.raises(LayerDamaged, match="changed since it was sealed"):
        await rig.layer("job-1", parent=full.layer.layer_id)


async def test_a_foreign_header_is_refused_before_qemu_opens_it(rig: Rig) -> None:
    full = await rig.backup("job-0", DISK)
    secret = rig.scratch / "secret.raw"
    secret.write_bytes(noise(SIZE, 99))
    image = rig.image(full)
    image.chmod(0o644)
    qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, image)

    with pytest.raises(LayerDamaged, match="refused before qemu opens it"):
        await rig.layer("job-1", parent=full.layer.layer_id)


async def test_a_later_attempt_goes_on_where_the_journal_ends_and_the_earlier_one_is_refused(rig: Rig) -> None:
    placed = await rig.layer("job")
    layer_id = placed.layer.layer_id
    areas = [Extent(0, SIZE)]
    entries = entries_of(DISK, areas)
    await rig.parts.layers.set_areas(Holder("job", 1), layer_id, areas)
    await rig.parts.layers.append(Holder("job", 1), layer_id, 1, encode_entries(entries[:20]))
    await rig.restart()

    again = await rig.layer("job", attempt=2)

    assert again.layer.layer_id == layer_id
    assert rig.image(again) == rig.image(placed)
    assert await rig.parts.layers.remaining(layer_id) == [Extent(20 * CLUSTER, SIZE - 20 * CLUSTER)]
    with pytest.raises(StaleAttempt):
        await rig.parts.layers.append(Holder("job", 1), layer_id, 2, encode_entries(entries[20:]))
    with pytest.raises(StaleAttempt):
        await rig.parts.layers.discard(Holder("job", 1), layer_id)
    with pytest.raises(StaleAttempt):
        await rig.layer("job", attempt=1)
    await rig.parts.layers.set_areas(Holder("job", 2), layer_id, areas)
    await rig.parts.layers.append(Holder("job", 2), layer_id, 2, encode_entries(entries[20:]))
    for entry in entries:
        if not entry.is_zero:
            piece = rig.scratch / "piece"
            piece.write_bytes(DISK[entry.offset : entry.end])
            command = f"write -q -s {piece} {entry.offset} {entry.length}"
            qemu("qemu-io", "-f", "qcow2", "-c", command, rig.image(placed))
    sealed = await rig.parts.sealer.seal(Holder("job", 2), layer_id, "")
    assert rig.content(sealed) == DISK


async def test_fixed_areas_stay_fixed(rig: Rig) -> None:
    placed = await rig.layer("job")
    layer_id = placed.layer.layer_id
    fixed = await rig.parts.layers.set_areas(Holder("job", 1), layer_id, [Extent(0, MIB), Extent(MIB, MIB)])

    assert fixed.count == 1
    assert fixed == await rig.parts.layers.set_areas(Holder("job", 1), layer_id, [Extent(0, 2 * MIB)])
    with pytest.raises(AreasFixed):
        await rig.parts.layers.set_areas(Holder("job", 1), layer_id, [Extent(0, MIB)])
    with pytest.raises(InvalidValue):
        await rig.parts.layers.set_areas(Holder("job", 1), layer_id, [Extent(MIB, MIB), Extent(0, 2 * MIB)])
    with pytest.raises(InvalidValue):
        await rig.parts.layers.set_areas(Holder("job", 1), layer_id, [Extent(0, SIZE + 1)])


async def test_batches_are_taken_once_in_order_and_inside_the_areas_only(rig: Rig) -> None:
    placed = await rig.layer("job")
    layer_id = placed.layer.layer_id
    await rig.parts.layers.set_areas(Holder("job", 1), layer_id, [Extent(0, MIB)])
    append = rig.parts.layers.append
    batch = encode_entries([Entry(0, CLUSTER, None)])

    first = await append(Holder("job", 1), layer_id, 1, batch)
    assert first == await append(Holder("job", 1), layer_id, 1, batch)
    for sequence, encoded in (
        (1, encode_entries([Entry(CLUSTER, CLUSTER, None)])),
        (3, encode_entries([Entry(CLUSTER, CLUSTER, None)])),
        (2, encode_entries([Entry(MIB - CLUSTER, 2 * CLUSTER, None)])),
        (2, batch[:-1]),
    ):
        with pytest.raises(JournalRefused) as refused:
            await append(Holder("job", 1), layer_id, sequence, encoded)
        assert refused.value.metadata["last_sequence"] == "1"


async def test_disk_numbers_and_names_are_never_given_twice(rig: Rig) -> None:
    first = await rig.layer("job-1", disk="a")
    second = await rig.layer("job-1", disk="b")
    assert (first.layer.disk_id, second.layer.disk_id) == (0, 1)
    await rig.parts.layers.discard(Holder("job-1", 1), first.layer.layer_id)
    await rig.parts.layers.discard(Holder("job-1", 1), second.layer.layer_id)

    third = await rig.layer("job-2", disk="c")
    again = await rig.layer("job-3", disk="b")
    same_second = [await rig.layer(f"job-{number}", disk="b") for number in range(4, 8)]

    assert (third.layer.disk_id, again.layer.disk_id) == (2, 1)
    names = [second.layer.name, again.layer.name, *(each.layer.name for each in same_second)]
    assert len(set(names)) == len(names)


async def test_a_discarded_job_leaves_chain_and_points_as_they_were(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    before = tree(rig.root)
    placed = await rig.written("failed", disks[-1], [Extent(0, CLUSTER)], parent=layers[-1].layer.layer_id)

    await rig.parts.layers.discard(Holder("failed", 1), placed.layer.layer_id)
    await rig.parts.layers.discard(Holder("failed", 1), placed.layer.layer_id)

    assert tree(rig.root) == before
    latest = await rig.parts.points.latest("local", VM)
    assert latest.point.backup_id == "job-1"
    with pytest.raises(LayerInUse):
        await rig.parts.layers.discard(Holder("job-1", 1), layers[-1].layer.layer_id)


async def test_an_image_that_is_gone_is_not_made_anew_under_its_journal(rig: Rig) -> None:
    placed = await rig.written("job", DISK)
    rig.image(placed).unlink()

    with pytest.raises(LayerDamaged, match="gone"):
        await rig.layer("job", attempt=2)


async def test_the_jobs_layer_is_not_reused_for_something_else(rig: Rig) -> None:
    await rig.layer("job")
    with pytest.raises(LayerMismatch):
        await rig.layer("job", size=2 * SIZE)


async def test_a_resized_disk_gets_no_increment(rig: Rig) -> None:
    full = await rig.backup("job-0", DISK)
    with pytest.raises(SizeChanged):
        await rig.layer("job-1", parent=full.layer.layer_id, size=SIZE + 512)


async def test_a_parent_that_is_not_the_latest_is_refused(rig: Rig) -> None:
    layers, _ = await rig.chain_of(2)
    for parent in (layers[0].layer.layer_id, "no such layer"):
        with pytest.raises(StaleParent):
            await rig.layer("job-9", parent=parent)
    with pytest.raises(StaleParent):
        await rig.layer("job-9", disk="a new disk", parent=layers[1].layer.layer_id)


async def test_an_fsync_that_failed_once_is_never_tried_again_as_success(rig: Rig) -> None:
    placed = await rig.written("job", DISK)
    failures = [OSError(errno.EIO, "Input/output error")]

    def sync(path: Path) -> None:
        if failures:
            raise failures.pop()

    await rig.restart(sync)

    for _ in range(2):
        with pytest.raises(LayerPoisoned, match="Input/output error"):
            await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")
    await rig.restart()
    with pytest.raises(LayerPoisoned):
        await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")
    with pytest.raises(LayerPoisoned):
        await rig.layer("job", attempt=2)
    await rig.parts.layers.discard(Holder("job", 2), placed.layer.layer_id)
    assert list((rig.root / VM / "disk-0").iterdir()) == []


async def test_what_does_not_fit_is_refused_with_what_is_needed_and_free(rig: Rig) -> None:
    free = os.statvfs(rig.root)
    free_bytes = free.f_bavail * free.f_frsize
    await rig.layer("job-1", estimated=free_bytes // 2)

    with pytest.raises(NoRoom) as refused:
        await rig.layer("job-2", estimated=free_bytes * 3 // 4)

    assert refused.value.needed_bytes > refused.value.free_bytes > 0


async def test_a_root_without_our_marker_is_never_written_to(rig: Rig) -> None:
    placed = await rig.written("job", DISK)
    marker = rig.root / MARKER_NAME
    hidden = marker.rename(rig.scratch / "marker")
    before = tree(rig.root)

    for call in (
        rig.layer("job-2"),
        rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, ""),
        rig.parts.layers.discard(Holder("job", 1), placed.layer.layer_id),
        rig.parts.check(),
    ):
        with pytest.raises(RepositoryUnusable, match="mounted"):
            await call
    assert tree(rig.root) == before

    other = json.loads(hidden.read_text()) | {"repository_id": "another"}
    marker.write_text(json.dumps(other))
    with pytest.raises(RepositoryUnusable, match="digest"):
        await rig.layer("job-2")


async def test_a_sealed_layer_takes_nothing_more(rig: Rig) -> None:
    placed = await rig.sealed("job", DISK)
    with pytest.raises(LayerSealed):
        await rig.parts.layers.append(
            Holder("job", 1), placed.layer.layer_id, 3, encode_entries([Entry(0, CLUSTER, None)])
        )
    assert await rig.parts.layers.remaining(placed.layer.layer_id) == []
    assert content(rig.image(placed), rig.scratch) == DISK
