"""Row 6: a link that is cut, goes silent or becomes a trickle at any byte: resumed from the journal, no gap.

A hundred faults in CI, `SENDENSE_LINK_FAULTS` for more. The disk is small, so that a fault strikes every few hundred
kilobytes; what the engine promises does not depend on sizes.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.bad_link import BadLink, Fault
from integration.blockio.blockio_disks import content, write_sparse
from integration.blockio.blockio_servers import NbdServers, nbd_servers
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import Batch, CopyOptions, CopyProgress, copy
from sendense_blockio.errors import ConnectError, ConnectionLostError, StallError
from sendense_blockio.extents import Extent, subtract
from sendense_blockio.journal import JournalHeader, JournalWriter, covers_exactly, entry_extents, read_journal

__all__ = ["nbd_servers"]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

KIB = 1024
SIZE = 3 * 1024 * KIB + 1000
WHOLE = [Extent(0, SIZE)]
BATCH_BYTES = 512 * KIB
PATIENT = CopyOptions(chunk_size=64 * KIB, batch_bytes=BATCH_BYTES, source_holes=False)
IMPATIENT = replace(PATIENT, stall_seconds=0.5, request_seconds=1.0)
SHARES = (3, 1, 1)
"""Cuts are found at once, the others after a deadline."""
FAULTS = int(os.environ.get("SENDENSE_LINK_FAULTS", "100"))
MOST_FAULTS_OF_A_DISK = 8
PASSING = (ConnectionLostError, ConnectError, StallError)
HEADER = JournalHeader("layer", 1, "52/1", "00" * 32, SIZE)


class _Run:
    """Copies one disk over a link that fails, until everything is there."""

    def __init__(self, source: Endpoint, link: BadLink, target: Endpoint, journal: Path, chance: random.Random) -> None:
        self._source = source
        self._link = link
        self._target = target
        self._journal = journal
        self._chance = chance
        self.struck: dict[Fault, int] = dict.fromkeys(Fault, 0)
        self.copied_twice: list[int] = []

    def until_complete(self) -> None:
        """A link that failed too often is left alone, so the copy ends; every failure on the way is a passing one."""
        for number in range(MOST_FAULTS_OF_A_DISK + 30):
            fault = None
            if number < MOST_FAULTS_OF_A_DISK:
                (fault,) = self._chance.choices(list(Fault), SHARES)
            self._link.arm(fault, self._chance.randrange(1, SIZE))
            if self._attempt(PATIENT if fault is None else IMPATIENT):
                return
            if fault is not None and self._link.struck:
                self.struck[fault] += 1
        raise AssertionError("never complete, although the link was repaired")

    def _attempt(self, options: CopyOptions) -> bool:
        covered = entry_extents(read_journal(self._journal, HEADER).entries)
        journaled = 0

        def on_batch(batch: Batch) -> None:
            nonlocal journaled
            journal.append_batch(batch.sequence, batch.entries)
            journaled += sum(entry.length for entry in batch.entries if not entry.is_zero)

        progress = CopyProgress()
        with JournalWriter.open(self._journal, HEADER) as journal:
            try:
                copy(
                    self._source,
                    self._target,
                    subtract(WHOLE, covered),
                    options,
                    on_batch,
                    progress,
                    first_sequence=journal.next_sequence,
                )
            except PASSING:
                again = progress.bytes_done - progress.bytes_zero - journaled
                self.copied_twice.append(again)
                return False
        return True


def test_a_hundred_bad_links_lose_nothing(
    nbd_servers: NbdServers, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(6)
    old_data, data = content(1, SIZE), content(2, SIZE, [(KIB * 700, KIB * 300)])
    source_file, target_file = nbd_servers.directory / "src", nbd_servers.directory / "dst"
    write_sparse(source_file, data)
    target_file.write_bytes(old_data)
    source, _ = nbd_servers.nbdkit("file", str(source_file))
    # No nbdkit here: 1.32 may abort (`raw_send_socket: sock >= 0`) when a client vanishes.
    server = nbd_servers.qemu_nbd(target_file, "raw")
    path = nbd_servers.directory / "link.sock"
    assert server.socket_path is not None
    link = BadLink(path, server.socket_path)
    struck = dict.fromkeys(Fault, 0)
    copied_twice: list[int] = []
    disks = 0
    try:
        while sum(struck.values()) < FAULTS:
            disks += 1
            target_file.write_bytes(old_data)
            journal = tmp_path / f"journal-{disks}"
            JournalWriter.create(journal, HEADER).close()
            run = _Run(source, link, Endpoint.unix(path), journal, chance)
            run.until_complete()
            for fault, count in run.struck.items():
                struck[fault] += count
            copied_twice += run.copied_twice
            assert covers_exactly(read_journal(journal, HEADER).entries, WHOLE), "each byte is journaled once"
            assert target_file.read_bytes() == bytes(data), "byte for byte"
    finally:
        link.close()
    assert max(copied_twice) < BATCH_BYTES
    assert all(each.retryable and not each.poisons for each in PASSING)
    figures = {
        "disks": disks,
        **{fault.value: count for fault, count in struck.items()},
        "bytes_copied_twice": sum(copied_twice),
        "most_at_one_fault": max(copied_twice),
        "batch_bytes": BATCH_BYTES,
    }
    sys.stdout.write(f"{figures}\n")
    record_property("figures", figures)
