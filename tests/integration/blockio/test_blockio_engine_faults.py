"""What can go wrong on either side: a typed error, never zeroes in place of data, and a resume from the batches."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from blockio_disks import content, make_qcow2, read_qcow2, write_sparse
from blockio_servers import NbdServers

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import Batch, CopyOptions, CopyProgress, copy
from sendense_blockio.errors import (
    BlockIOError,
    ConnectError,
    ConnectionLostError,
    CopyCancelledError,
    CopyError,
    ExtentBeyondEndError,
    FlushUnsupportedError,
    OverlappingExtentsError,
    ReadOnlyTargetError,
    SizeMismatchError,
    SourceReadError,
    StallError,
    TargetFlushError,
    TargetWriteError,
    UnalignedExtentError,
)
from sendense_blockio.extents import Extent, subtract, total
from sendense_blockio.journal import Entry, JournalHeader, JournalWriter, covers_exactly, entry_extents, read_journal

KIB = 1024
MIB = 1024 * KIB
SIZE = 8 * MIB
WHOLE = [Extent(0, SIZE)]
SMALL = CopyOptions(chunk_size=64 * KIB, batch_bytes=512 * KIB, source_holes=False)


def discard(batch: Batch) -> None:
    """Takes a batch and forgets it."""


def open_sockets() -> int:
    return sum(entry.is_socket() for entry in Path("/proc/self/fd").iterdir())


def slow_target(servers: NbdServers, milliseconds: int = 20) -> Endpoint:
    endpoint, _ = servers.nbdkit("--filter=delay", "memory", str(SIZE), f"delay-write={milliseconds}ms")
    return endpoint


def test_a_read_error_fails_and_never_stores_zeroes(nbd_servers: NbdServers) -> None:
    """CVE-2022-0485: nbdcopy wrote zeroes for what it could not read."""
    source_data, old_data = content(1, SIZE), content(2, SIZE)
    source_file, target_file = nbd_servers.directory / "src", nbd_servers.directory / "dst"
    source_file.write_bytes(source_data)
    target_file.write_bytes(old_data)
    source, _ = nbd_servers.nbdkit(
        "--filter=error", "file", str(source_file), "error-pread=EIO", "error-pread-rate=10%"
    )
    target, _ = nbd_servers.nbdkit("file", str(target_file))
    batches: list[Batch] = []
    before = open_sockets()
    with pytest.raises(SourceReadError) as caught:
        copy(source, target, WHOLE, SMALL, batches.append)
    assert (caught.value.side, caught.value.errno, caught.value.length) == ("source", 5, 64 * KIB)
    assert not caught.value.retryable
    assert open_sockets() == before, "all connections are closed although the error is still held"
    result = target_file.read_bytes()
    failed = caught.value.offset
    assert failed is not None
    assert result[failed : failed + 64 * KIB] == bytes(old_data[failed : failed + 64 * KIB])
    for start in range(0, SIZE, 64 * KIB):
        block = slice(start, start + 64 * KIB)
        assert result[block] in (bytes(source_data[block]), bytes(old_data[block]))
    for entry in (entry for batch in batches for entry in batch.entries):
        assert result[entry.offset : entry.end] == bytes(source_data[entry.offset : entry.end])


def test_a_source_shorter_than_it_says_fails(nbd_servers: NbdServers) -> None:
    source_file = nbd_servers.directory / "src"
    source_file.write_bytes(content(3, SIZE))
    source, _ = nbd_servers.nbdkit("file", str(source_file))
    target = slow_target(nbd_servers)
    batches: list[Batch] = []

    def on_batch(batch: Batch) -> None:
        if not batches:
            os.truncate(source_file, SIZE - 1000)
        batches.append(batch)

    with pytest.raises((SourceReadError, ConnectionLostError)) as caught:
        copy(source, target, WHOLE, SMALL, on_batch)
    assert caught.value.side == "source"
    assert caught.value.offset == SIZE - 64 * KIB
    assert all(entry.end <= SIZE - 64 * KIB for batch in batches for entry in batch.entries)


@pytest.mark.parametrize(("error", "number"), [("ENOSPC", 28), ("EIO", 5)], ids=["no room", "input/output error"])
def test_a_write_error_names_the_target_and_the_place(nbd_servers: NbdServers, error: str, number: int) -> None:
    source, _ = nbd_servers.nbdkit("pattern", str(SIZE))
    target, _ = nbd_servers.nbdkit(
        "--filter=error", "memory", str(SIZE), f"error-pwrite={error}", "error-pwrite-rate=10%"
    )
    with pytest.raises(TargetWriteError) as caught:
        copy(source, target, WHOLE, SMALL, discard)
    assert (caught.value.side, caught.value.errno, caught.value.length) == ("target", number, 64 * KIB)


def test_a_zeroing_error_is_a_write_error(nbd_servers: NbdServers) -> None:
    source, _ = nbd_servers.nbdkit("memory", str(SIZE))
    target, _ = nbd_servers.nbdkit("--filter=error", "memory", str(SIZE), "error-zero=EIO", "error-zero-rate=100%")
    with pytest.raises(TargetWriteError):
        copy(source, target, WHOLE, SMALL, discard)


def eval_target(servers: NbdServers, **scripts: str) -> Endpoint:
    endpoint, _ = servers.nbdkit(
        "eval", f"get_size=echo {SIZE}", "pread=exit 1", *(f"{name}={script}" for name, script in scripts.items())
    )
    return endpoint


def test_a_flush_error_poisons_and_reports_nothing_more(nbd_servers: NbdServers) -> None:
    source, _ = nbd_servers.nbdkit("pattern", str(SIZE))
    target = eval_target(nbd_servers, pwrite="cat >/dev/null", flush="echo EIO broken >&2; exit 1")
    batches: list[Batch] = []
    with pytest.raises(TargetFlushError) as caught:
        copy(source, target, WHOLE, CopyOptions(), batches.append)
    assert caught.value.poisons
    assert not caught.value.retryable
    assert batches == []


def test_unsuitable_endpoints_are_refused_before_the_first_byte(nbd_servers: NbdServers) -> None:
    good, _ = nbd_servers.nbdkit("memory", str(SIZE))
    short, _ = nbd_servers.nbdkit("memory", str(SIZE - 512))
    read_only, _ = nbd_servers.nbdkit("-r", "memory", str(SIZE))
    no_flush = eval_target(nbd_servers, pwrite="cat >/dev/null", can_flush="exit 3")
    in_blocks, _ = nbd_servers.nbdkit(
        "--filter=blocksize-policy", "memory", str(SIZE), "blocksize-minimum=4096", "blocksize-error-policy=error"
    )
    promised = Endpoint.unix(good.socket_path or Path(), read_only=True)
    cases: list[tuple[type[BlockIOError], Endpoint, Endpoint, list[Extent], int | None]] = [
        (SizeMismatchError, good, short, WHOLE, None),
        (SizeMismatchError, short, good, WHOLE, None),
        (SizeMismatchError, short, good, [Extent(0, 512)], SIZE),
        (ReadOnlyTargetError, good, read_only, WHOLE, None),
        (ReadOnlyTargetError, good, promised, WHOLE, None),
        (FlushUnsupportedError, good, no_flush, WHOLE, None),
        (UnalignedExtentError, good, in_blocks, [Extent(0, 512)], None),
        (UnalignedExtentError, in_blocks, good, [Extent(512, 4096)], None),
        (ConnectError, good, Endpoint.unix(nbd_servers.directory / "none"), WHOLE, None),
        (OverlappingExtentsError, good, good, [Extent(0, 1000), Extent(999, 10)], None),
        (ExtentBeyondEndError, good, good, [Extent(0, SIZE)], SIZE - 1),
    ]
    before = open_sockets()
    for expected, source, target, areas, capacity in cases:
        batches: list[Batch] = []
        with pytest.raises(expected):
            copy(source, target, areas, SMALL, batches.append, capacity=capacity)
        assert batches == []
        assert open_sockets() == before


def test_bad_input_leaves_the_parent_and_the_layer_as_they_were(nbd_servers: NbdServers) -> None:
    """The target is an increment's overlay: whatever is refused, neither it nor what lies below has changed."""
    parent, overlay = nbd_servers.directory / "parent", nbd_servers.directory / "overlay"
    parent_data = content(11, SIZE)
    parent.write_bytes(parent_data)
    make_qcow2(overlay, SIZE, parent)
    layer_data = overlay.read_bytes()
    long_source, _ = nbd_servers.nbdkit("memory", str(SIZE + 512))
    source, _ = nbd_servers.nbdkit("pattern", str(SIZE))
    short_source, _ = nbd_servers.nbdkit("pattern", str(SIZE - 512))
    target = nbd_servers.qemu_nbd(overlay, "qcow2")
    read_only = Endpoint.unix(target.socket_path or Path(), read_only=True)
    cases: list[tuple[type[BlockIOError], Endpoint, Endpoint, list[Extent], int]] = [
        (SizeMismatchError, short_source, target, WHOLE, SIZE),
        (SizeMismatchError, long_source, target, [Extent(0, SIZE + 512)], SIZE + 512),
        (ReadOnlyTargetError, source, read_only, WHOLE, SIZE),
        (ExtentBeyondEndError, source, target, [Extent(SIZE - 512, 1024)], SIZE),
        (OverlappingExtentsError, source, target, [Extent(0, 4096), Extent(4095, 4096)], SIZE),
    ]
    for expected, reader, writer, areas, capacity in cases:
        with pytest.raises(expected):
            copy(reader, writer, areas, SMALL, discard, capacity=capacity)
    nbd_servers.end_all()
    assert parent.read_bytes() == bytes(parent_data)
    assert overlay.read_bytes() == layer_data


def test_an_unknown_export_is_refused(nbd_servers: NbdServers) -> None:
    image = nbd_servers.directory / "image"
    make_qcow2(image, SIZE)
    good, _ = nbd_servers.storage_daemon(image)
    unknown = Endpoint.unix(good.socket_path or Path(), "not-there")
    with pytest.raises(ConnectError, match="not-there"):
        copy(unknown, good, WHOLE, SMALL, discard)


def test_a_listener_that_says_nothing_is_given_up(nbd_servers: NbdServers) -> None:
    source, process = nbd_servers.nbdkit("memory", str(SIZE))
    process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ConnectError):
        copy(source, source, WHOLE, CopyOptions(stall_seconds=0.5), discard)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_stall_is_noticed_on_either_side(nbd_servers: NbdServers, side: str) -> None:
    slow = ("delay-read=20ms", "delay-write=20ms")
    source, source_process = nbd_servers.nbdkit("--filter=delay", "pattern", str(SIZE), *slow)
    target, target_process = nbd_servers.nbdkit("--filter=delay", "memory", str(SIZE), *slow)
    victim = source_process if side == "source" else target_process
    options = CopyOptions(chunk_size=64 * KIB, batch_bytes=256 * KIB, source_holes=False, stall_seconds=0.7)
    batches: list[Batch] = []

    def on_batch(batch: Batch) -> None:
        batches.append(batch)
        victim.send_signal(signal.SIGSTOP)

    started = time.monotonic()
    with pytest.raises(StallError) as caught:
        copy(source, target, WHOLE, options, on_batch)
    assert caught.value.side == side
    assert caught.value.retryable
    assert time.monotonic() - started < 8


def test_a_trickle_fails_within_the_deadline_of_a_request(nbd_servers: NbdServers) -> None:
    source, _ = nbd_servers.nbdkit("--filter=rate", "pattern", str(SIZE), "rate=800K")
    target, _ = nbd_servers.nbdkit("memory", str(SIZE))
    options = CopyOptions(stall_seconds=60, request_seconds=1)
    with pytest.raises(StallError) as caught:
        copy(source, target, WHOLE, options, discard)
    assert caught.value.side == "source"


def test_cancel_ends_the_copy_at_a_chunk(nbd_servers: NbdServers) -> None:
    source, _ = nbd_servers.nbdkit("pattern", str(SIZE))
    target = slow_target(nbd_servers)
    cancel = threading.Event()
    progress = CopyProgress()
    before = open_sockets()
    set_at: list[float] = []

    def on_batch(batch: Batch) -> None:
        cancel.set()
        set_at.append(time.monotonic())

    with pytest.raises(CopyCancelledError):
        copy(source, target, WHOLE, SMALL, on_batch, progress, cancel)
    assert time.monotonic() - set_at[0] < 1.0
    assert len(set_at) == 1, "nothing is reported after a cancel"
    assert 0 < progress.bytes_done < SIZE
    assert open_sockets() == before


def test_what_the_taker_of_batches_raises_ends_the_copy(nbd_servers: NbdServers) -> None:
    source, _ = nbd_servers.nbdkit("pattern", str(SIZE))
    target = slow_target(nbd_servers, 1)

    def on_batch(batch: Batch) -> None:
        raise LookupError("the repository is gone")

    before = threading.active_count()
    with pytest.raises(LookupError, match="the repository is gone"):
        copy(source, target, WHOLE, SMALL, on_batch)
    assert threading.active_count() == before


def test_a_slow_taker_of_batches_makes_the_copy_wait(nbd_servers: NbdServers) -> None:
    """What a crash costs stays bounded: never is more than `batch_bytes` ahead of the journal."""
    source, _ = nbd_servers.nbdkit("pattern", str(SIZE))
    target, _ = nbd_servers.nbdkit("memory", str(SIZE))
    progress = CopyProgress()
    ahead: list[int] = []

    def on_batch(batch: Batch) -> None:
        time.sleep(0.1)
        ahead.append(progress.bytes_done - progress.bytes_committed)

    copy(source, target, WHOLE, SMALL, on_batch, progress)
    assert max(ahead) <= SMALL.batch_bytes
    assert progress.bytes_committed == SIZE


def test_a_killed_target_is_resumed_from_the_journal(nbd_servers: NbdServers, tmp_path: Path) -> None:
    """Killed again and again at random moments: identical in the end, nothing journaled is copied again."""
    moments = random.Random(7)
    source_data, old_data = content(8, SIZE, [(MIB, MIB)]), content(9, SIZE)
    source_file, parent, image = (nbd_servers.directory / name for name in ("src", "parent", "image"))
    write_sparse(source_file, source_data)
    parent.write_bytes(old_data)
    make_qcow2(image, SIZE, parent)
    source, _ = nbd_servers.nbdkit("--filter=delay", "file", str(source_file), "delay-read=20ms")
    header = JournalHeader("layer", 1, "52/1", "00" * 32, SIZE)
    JournalWriter.create(tmp_path / "journal", header).close()
    copied_twice = 0
    errors: list[ConnectionLostError | ConnectError] = []
    for attempt in range(30):
        target, daemon = nbd_servers.storage_daemon(image)
        remaining = subtract(WHOLE, entry_extents(read_journal(tmp_path / "journal", header).entries))
        timer = threading.Timer(moments.uniform(0.03, 0.3) if attempt < 12 else 60, daemon.kill)
        timer.start()
        progress = CopyProgress()
        try:
            with JournalWriter.open(tmp_path / "journal", header) as journal:
                copy(
                    source,
                    target,
                    remaining,
                    SMALL,
                    lambda batch, journal=journal: journal.append_batch(batch.sequence, batch.entries),  # type: ignore[misc]
                    progress,
                    first_sequence=journal.next_sequence,
                )
        except (ConnectionLostError, ConnectError) as error:
            errors.append(error)
            copied_twice += progress.bytes_done - progress.bytes_committed
            assert progress.bytes_total == total(remaining)
        else:
            break
        finally:
            timer.cancel()
            nbd_servers.end(daemon)
    nbd_servers.end_all()
    journal_read = read_journal(tmp_path / "journal", header)
    assert len(errors) >= 2, "the copy was too quick to be killed"
    assert all(error.retryable and error.side == "target" for error in errors)
    assert copied_twice <= len(errors) * SMALL.batch_bytes
    assert covers_exactly(journal_read.entries, WHOLE)
    assert read_qcow2(image, tmp_path / "raw") == bytes(source_data)
    check = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(image)], capture_output=True, check=False)
    assert check.returncode in (0, 3), "at most leaked clusters"


def test_a_killed_source_is_its_own_side(nbd_servers: NbdServers) -> None:
    source, process = nbd_servers.nbdkit("pattern", str(SIZE))
    target = slow_target(nbd_servers, 5)
    batches: list[Batch] = []

    def on_batch(batch: Batch) -> None:
        batches.append(batch)
        process.kill()

    with pytest.raises(CopyError) as caught:
        copy(source, target, WHOLE, SMALL, on_batch)
    assert isinstance(caught.value, ConnectionLostError)
    assert caught.value.side == "source"


def test_batches_flushed_before_a_failure_are_still_reported(nbd_servers: NbdServers) -> None:
    """The taker is slow, the source dies meanwhile: what was flushed is reported before the error is raised."""
    source, process = nbd_servers.nbdkit("pattern", str(SIZE))
    target, _ = nbd_servers.nbdkit("memory", str(SIZE))
    entries: list[Entry] = []

    def on_batch(batch: Batch) -> None:
        if not entries:
            time.sleep(0.3)
            process.kill()
            process.wait()
            time.sleep(0.6)
        entries.extend(batch.entries)

    with pytest.raises(ConnectionLostError):
        copy(source, target, WHOLE, SMALL, on_batch)
    assert sum(entry.length for entry in entries) >= SMALL.batch_bytes // 2
