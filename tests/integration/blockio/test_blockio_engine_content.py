"""Whatever the areas, sizes, zeroes and settings: the target is the model, byte for byte, and the journal proves it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from blake3 import blake3
from blockio_disks import content, make_qcow2, read_qcow2, write_sparse
from blockio_servers import NbdServers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import Batch, CopyOptions, CopyProgress, copy
from sendense_blockio.extents import Extent, total
from sendense_blockio.journal import Entry, covers_exactly
from sendense_blockio.pace import BURST_SECONDS, Pace

KIB = 1024
MIB = 1024 * KIB
numbers = itertools.count()


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[Extent]]:
    """A size that is no multiple of anything, zero runs of the source, and areas."""
    size = draw(st.one_of(st.integers(1, 3 * MIB), st.integers(MIB, 3 * MIB)))
    position = st.integers(0, size - 1)
    length = st.one_of(st.integers(1, 20_000), st.integers(64 * KIB, 2 * MIB))
    zero_runs = draw(st.lists(st.tuples(position, length), max_size=4))
    cuts = sorted(draw(st.sets(position, max_size=12)) | {size})
    areas = [Extent(a, b - a) for a, b in itertools.pairwise([0, *cuts]) if b > a and draw(st.integers(0, 3))]
    return size, zero_runs, areas


any_options = st.builds(
    CopyOptions,
    connections=st.integers(1, 3),
    depth=st.integers(1, 5),
    chunk_size=st.sampled_from([4 * KIB, 64 * KIB, 256 * KIB, MIB]),
    batch_bytes=st.sampled_from([100 * KIB, MIB, 64 * MIB]),
    source_holes=st.sampled_from([None, True, False]),
)


def require_proof(batches: list[Batch], areas: list[Extent], source: bytes | bytearray) -> list[Entry]:
    """Checks sequence, coverage and each digest of what was reported."""
    assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1))
    entries = [entry for batch in batches for entry in batch.entries]
    assert covers_exactly(entries, areas)
    assert sum(batch.bytes_covered for batch in batches) == total(areas)
    for entry in entries:
        data = bytes(source[entry.offset : entry.end])
        if entry.digest is None:
            assert not any(data), "an entry without digest says zero"
        else:
            assert blake3(data).digest() == entry.digest
    return entries


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(disk=disks(), options=any_options)
def test_an_increment_is_the_source_where_changed_and_the_parent_elsewhere(
    nbd_servers: NbdServers, disk: tuple[int, list[tuple[int, int]], list[Extent]], options: CopyOptions
) -> None:
    """The parent is full of data, so each zero that is not written would show it."""
    size, zero_runs, areas = disk
    base = nbd_servers.directory / f"{next(numbers)}"
    source_data = content(1, size, zero_runs)
    parent_data = content(2, size)
    source_file, parent, overlay = (base.with_suffix(end) for end in (".src", ".parent", ".qcow2"))
    write_sparse(source_file, source_data)
    parent.write_bytes(parent_data)
    make_qcow2(overlay, -(-size // 512) * 512, parent)
    batches: list[Batch] = []
    progress = CopyProgress()
    source, _ = nbd_servers.nbdkit("file", str(source_file))
    target = nbd_servers.qemu_nbd(overlay, "qcow2")
    result = copy(source, target, areas, options, batches.append, progress)
    nbd_servers.end_all()
    entries = require_proof(batches, areas, source_data)
    assert result.bytes_copied == progress.bytes_done == progress.bytes_committed == total(areas)
    assert result.bytes_zero == sum(entry.length for entry in entries if entry.digest is None)
    model = bytearray(parent_data)
    for area in areas:
        model[area.offset : area.end] = source_data[area.offset : area.end]
    assert read_qcow2(overlay, base.with_suffix(".raw"))[:size] == bytes(model)
    assert parent.read_bytes() == bytes(parent_data), "a parent is never modified"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(disk=disks(), options=any_options)
def test_a_fresh_full_skips_zeroes_and_is_the_source(
    nbd_servers: NbdServers, disk: tuple[int, list[tuple[int, int]], list[Extent]], options: CopyOptions
) -> None:
    size, zero_runs, _ = disk
    base = nbd_servers.directory / f"{next(numbers)}"
    source_data = content(3, size, zero_runs)
    source_file, image = base.with_suffix(".src"), base.with_suffix(".qcow2")
    write_sparse(source_file, source_data)
    make_qcow2(image, -(-size // 512) * 512)
    areas = [Extent(0, size)]
    batches: list[Batch] = []
    skipping = CopyOptions(
        connections=options.connections,
        depth=options.depth,
        chunk_size=options.chunk_size,
        batch_bytes=options.batch_bytes,
        source_holes=options.source_holes,
        zeroes="skip",
    )
    source, _ = nbd_servers.nbdkit("file", str(source_file))
    target = nbd_servers.qemu_nbd(image, "qcow2")
    copy(source, target, areas, skipping, batches.append, capacity=size)
    nbd_servers.end_all()
    require_proof(batches, areas, source_data)
    assert read_qcow2(image, base.with_suffix(".raw"))[:size] == bytes(source_data)


def test_zeroes_reach_a_target_that_cannot_zero(nbd_servers: NbdServers) -> None:
    size = 3 * MIB + 1000
    data = content(4, size, [(MIB, MIB + 500)])
    source_file, target_file = nbd_servers.directory / "src", nbd_servers.directory / "dst"
    write_sparse(source_file, data)
    target_file.write_bytes(content(5, size))
    source, _ = nbd_servers.nbdkit("file", str(source_file))
    target, _ = nbd_servers.nbdkit("--filter=nozero", "file", str(target_file))
    options = CopyOptions(chunk_size=64 * KIB, source_holes=True)
    copy(source, target, [Extent(0, size)], options, lambda batch: None)
    assert target_file.read_bytes() == bytes(data)


def test_a_server_with_small_requests_is_respected(nbd_servers: NbdServers) -> None:
    size = 2 * MIB
    data = content(6, size)
    source_file, target_file = nbd_servers.directory / "src", nbd_servers.directory / "dst"
    source_file.write_bytes(data)
    target_file.write_bytes(bytes(size))
    policy = ("--filter=blocksize-policy", "file")
    limits = (
        "blocksize-minimum=512",
        "blocksize-preferred=4K",
        "blocksize-maximum=64K",
        "blocksize-error-policy=error",
    )
    source, _ = nbd_servers.nbdkit(*policy, str(source_file), *limits)
    target, _ = nbd_servers.nbdkit(*policy, str(target_file), *limits)
    batches: list[Batch] = []
    copy(source, target, [Extent(0, size)], CopyOptions(), batches.append)
    assert max(entry.length for batch in batches for entry in batch.entries) == 64 * KIB
    assert target_file.read_bytes() == bytes(data)


def test_a_copy_over_tcp(nbd_servers: NbdServers, tcp_port: int) -> None:
    source, _ = nbd_servers.nbdkit("pattern", "5M")
    target, _ = nbd_servers.nbdkit("memory", "5M", port=tcp_port)
    assert target == Endpoint.tcp("127.0.0.1", tcp_port)
    batches: list[Batch] = []
    copy(source, target, [Extent(0, 5 * MIB)], CopyOptions(), batches.append)
    # Again, from the copy: what was hashed is what is there.
    again: list[Batch] = []
    other, _ = nbd_servers.nbdkit("memory", "5M")
    copy(target, other, [Extent(0, 5 * MIB)], CopyOptions(), again.append)
    first, second = (sorted(entry for batch in part for entry in batch.entries) for part in (batches, again))
    assert second == first


def test_no_areas_copy_nothing(tmp_path: Path) -> None:
    nowhere = Endpoint.unix(tmp_path / "nothing-listens-here")
    result = copy(nowhere, nowhere, [], CopyOptions(), lambda batch: None, first_sequence=8)
    assert (result.bytes_copied, result.batches, result.last_sequence) == (0, 0, 7)


def test_a_batch_is_reported_only_after_a_flush_on_every_connection(nbd_servers: NbdServers) -> None:
    """The target's own log at the moment of the report: every write answered, then a flush answered, per connection."""
    log = nbd_servers.directory / "log"
    source, _ = nbd_servers.nbdkit("pattern", "8M")
    target, _ = nbd_servers.nbdkit("--filter=log", "memory", "8M", f"logfile={log}")
    seen: list[tuple[Batch, list[str]]] = []

    def on_batch(batch: Batch) -> None:
        seen.append((batch, log.read_text().splitlines()))

    options = CopyOptions(connections=3, chunk_size=64 * KIB, batch_bytes=MIB)
    copy(source, target, [Extent(0, 8 * MIB)], options, on_batch)
    # While one batch is flushed the next one grows, until 1 MiB is begun and not reported: that makes 8 batches.
    assert len(seen) >= 8
    for batch, lines in seen:
        written, flushed = answered(lines)
        last_writes = [written[entry.offset] for entry in batch.entries]
        assert len(flushed) == 3
        for flushes in flushed.values():
            assert any(begin > max(last_writes) for begin in flushes), "flushed after the batch's last write"


def answered(lines: list[str]) -> tuple[dict[int, int], dict[str, list[int]]]:
    """Reads nbdkit's log: line numbers of each write's answer, and of each answered flush's beginning."""
    open_writes: dict[tuple[str, str], int] = {}
    open_flushes: dict[tuple[str, str], int] = {}
    written: dict[int, int] = {}
    flushed: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        words = line.split()
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        connection = fields.get("connection", "")
        identity = (connection, fields.get("id", ""))
        if "...Write" in words and fields.get("return") == "0":
            written[open_writes.pop(identity)] = number
        elif "Write" in words:
            open_writes[identity] = int(fields["offset"], 0)
        elif "...Flush" in words and fields.get("return") == "0":
            flushed.setdefault(connection, []).append(open_flushes.pop(identity))
        elif "Flush" in words:
            open_flushes[identity] = number
    return written, flushed


@pytest.mark.parametrize("tebibytes", [1])
def test_memory_does_not_grow_with_the_disk(nbd_servers: NbdServers, tebibytes: int) -> None:
    size = tebibytes << 40
    source, _ = nbd_servers.nbdkit("memory", str(size))
    target, _ = nbd_servers.nbdkit("memory", str(size))
    before = resident_bytes()
    result = copy(source, target, [Extent(0, size)], CopyOptions(zeroes="skip"), lambda batch: None)
    assert result.bytes_zero == size
    assert resident_bytes() - before < 32 * MIB


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_copies_that_share_a_pace_keep_it_and_lose_nothing(nbd_servers: NbdServers) -> None:
    size = 2 * MIB
    pace = Pace(8 * MIB)
    options = CopyOptions(chunk_size=64 * KIB, pace=pace)
    first, _ = nbd_servers.nbdkit("pattern", str(size))
    started = time.monotonic()
    batches: list[Batch] = []
    for _ in range(2):
        target, _ = nbd_servers.nbdkit("memory", str(size))
        copy(first, target, [Extent(0, size)], options, batches.append)
    # 4 MiB at 8 MiB/s, less one burst: sooner is impossible, however fast the machine is.
    assert time.monotonic() - started > 0.5 - BURST_SECONDS - 64 * KIB / (8 * MIB)
    assert sum(batch.bytes_covered for batch in batches) == 2 * size
