"""The mover, a process of its own, is killed (SIGKILL) again and again: resumed, identical, nothing journaled again.

A hundred kills in CI, `SENDENSE_MOVER_KILLS` for more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.blockio.blockio_disks import content, make_qcow2, read_qcow2, write_sparse
from integration.blockio.blockio_servers import NbdServers, nbd_servers
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.extents import Extent, intersect, merge, subtract, total
from sendense_blockio.journal import JournalHeader, JournalWriter, covers_exactly, entry_extents, read_journal

__all__ = ["nbd_servers"]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

KIB = 1024
SIZE = 4 * 1024 * KIB
WHOLE = [Extent(0, SIZE)]
BATCH_BYTES = 512 * KIB
HEADER = JournalHeader("layer", 1, "52/1", "00" * 32, SIZE)
KILLS = int(os.environ.get("SENDENSE_MOVER_KILLS", "100"))
MOST_KILLS_OF_A_DISK = 10


@contextmanager
def movers() -> Iterator[Callable[[Endpoint, Endpoint, Path, float | None], int]]:
    """Yields a function that runs one mover, kills it after some seconds (or never) and returns its exit status."""
    program = Path(__file__).with_name("mover.py")
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        orders, said = forker.stdin, forker.stdout

        def run(source: Endpoint, target: Endpoint, journal: Path, kill_after: float | None) -> int:
            order = {
                "source": str(source.socket_path),
                "target": str(target.socket_path),
                "export": target.export_name,
                "journal": str(journal),
                "size": SIZE,
                "batch_bytes": BATCH_BYTES,
                "kill_after": kill_after,
            }
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            return int(said.readline())

        yield run
        orders.close()


def told(log: Path, *requests: str) -> list[Extent]:
    """Returns the extents of a target's requests of these kinds."""
    found = []
    for line in log.read_text().splitlines():
        words = line.split()
        if any(request in words for request in requests):
            fields = dict(word.split("=", 1) for word in words if "=" in word)
            found.append(Extent(int(fields["offset"], 0), int(fields["count"], 0)))
    return merge(found)


def slow_source(servers: NbdServers, file: Path) -> tuple[Endpoint, subprocess.Popen[bytes]]:
    """A reader for one life of a mover: nbdkit 1.32 may abort when a client vanishes (`raw_send_socket: sock >= 0`)."""
    return servers.nbdkit("--filter=delay", "file", str(file), "delay-read=4ms")


def test_a_hundred_killed_movers_lose_nothing_and_repeat_nothing(
    nbd_servers: NbdServers, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(9)
    data, old_data = content(1, SIZE, [(KIB * 900, KIB * 300)]), content(2, SIZE)
    source_file, target_file = nbd_servers.directory / "src", nbd_servers.directory / "dst"
    write_sparse(source_file, data)
    landed, disks, copied_twice = 0, 0, []
    with movers() as run:
        while landed < KILLS:
            disks += 1
            target_file.write_bytes(old_data)
            journal, log = tmp_path / f"journal-{disks}", tmp_path / "log"
            JournalWriter.create(journal, HEADER).close()
            for number in range(MOST_KILLS_OF_A_DISK + 1):
                source, reader = slow_source(nbd_servers, source_file)
                target, server = nbd_servers.nbdkit("--filter=log", "file", str(target_file), f"logfile={log}")
                done_before = entry_extents(read_journal(journal, HEADER).entries)
                kill_after = chance.uniform(0.0, 0.05) if number < MOST_KILLS_OF_A_DISK else None
                status = run(source, target, journal, kill_after)
                nbd_servers.end(reader)
                nbd_servers.end(server)
                data_now = told(log, "Write")
                assert not intersect(told(log, "Write", "Zero"), done_before), "nothing journaled is copied again"
                log.unlink()
                if status == 0:
                    break
                assert status == -signal.SIGKILL
                landed += 1
                committed = entry_extents(read_journal(journal, HEADER).entries)
                copied_twice.append(total(subtract(data_now, committed)))
            assert status == 0
            assert covers_exactly(read_journal(journal, HEADER).entries, WHOLE), "each byte is journaled once"
            assert target_file.read_bytes() == bytes(data), "byte for byte"
    assert max(copied_twice) < BATCH_BYTES
    figures = {
        "kills": landed,
        "disks": disks,
        "bytes_copied_twice": sum(copied_twice),
        "most_at_one_kill": max(copied_twice),
        "batch_bytes": BATCH_BYTES,
    }
    sys.stdout.write(f"{figures}\n")
    record_property("figures", figures)


def test_row_06a_a_daemon_killed_with_unflushed_writes_begins_a_new_epoch(
    nbd_servers: NbdServers, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """What the daemon acknowledged and never flushed is gone with it; the sealed image has every byte all the same."""
    chance = random.Random(10)
    source_data, old_data = content(3, SIZE, [(KIB * 640, KIB * 320)]), content(4, SIZE)
    source_file, parent, image = (nbd_servers.directory / name for name in ("src", "parent", "image"))
    write_sparse(source_file, source_data)
    parent.write_bytes(old_data)
    make_qcow2(image, SIZE, parent)
    journal = tmp_path / "journal"
    JournalWriter.create(journal, HEADER).close()
    deaths = 0
    with movers() as run:
        while True:
            source, reader = slow_source(nbd_servers, source_file)
            target, daemon = nbd_servers.storage_daemon(image)
            status = run(source, target, journal, chance.uniform(0.0, 0.05) if deaths < 12 else None)
            nbd_servers.end(reader)
            # The daemon dies with the mover, as on a power cut; only the journal is left.
            daemon.kill()
            daemon.wait(60)
            deaths += 1
            if status == 0:
                break
    assert status == 0
    nbd_servers.end_all()
    assert covers_exactly(read_journal(journal, HEADER).entries, WHOLE)
    checked = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(image)], capture_output=True, check=False)
    assert checked.returncode in (0, 3), "at most leaked clusters, which sealing repairs"
    assert read_qcow2(image, tmp_path / "raw") == bytes(source_data)
    assert parent.read_bytes() == bytes(old_data), "the parent is untouched"
    record_property("figures", {"deaths": deaths})
