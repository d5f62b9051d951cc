"""Deaths: of qemu-storage-daemon (served again, a new epoch) and of nbdd (the daemon goes on)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import nbd
import pytest
from nbdd_process import listed, nbdd_running, overlay, start

from sendense_exports.config import ExportsSettings

pytestmark = pytest.mark.faults


@pytest.fixture
def settings(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ExportsSettings:
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    return ExportsSettings()


async def test_a_killed_daemon_serves_again_with_a_new_epoch_for_writers(
    settings: ExportsSettings,
) -> None:
    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        nbdd.conf("writer", await overlay(images, "vm"))
        nbdd.conf("reader", images / "vm-full.qcow2", read_only=True)
        (settings.conf_dir / "bad.conf").write_text("[bad]\n")
        before = await nbdd.reload()
        for deaths in range(1, 4):
            os.kill(nbdd.status().daemon_pid, signal.SIGKILL)
            after = await nbdd.wait(lambda s, n=deaths + 1: s.daemon_starts == n)  # type: ignore[misc]
            assert (after.exports["writer"].state, after.exports["writer"].epoch) == ("serving", 1 + deaths)
            assert (after.exports["reader"].state, after.exports["reader"].epoch) == ("serving", 1)
            assert await listed(nbdd) == {"writer", "reader"}
        assert after.generation == before.generation
        assert after.daemon_pid != before.daemon_pid


async def test_a_last_good_export_survives_the_daemons_death(settings: ExportsSettings) -> None:
    async with nbdd_running(settings) as nbdd:
        file = nbdd.conf("disk", await overlay(settings.root / "backups", "vm"))
        await nbdd.reload()
        file.write_text("[disk\n")
        await nbdd.reload()
        os.kill(nbdd.status().daemon_pid, signal.SIGKILL)
        status = await nbdd.wait(lambda s: s.daemon_starts == 2 and "disk" in s.exports)
        assert (status.exports["disk"].state, status.exports["disk"].epoch) == ("serving", 2)
        assert "no [group]" in status.exports["disk"].error


async def test_a_killed_nbdd_leaves_the_daemon_serving_and_the_next_one_takes_it_up(
    settings: ExportsSettings,
) -> None:
    first = await start(settings)
    images = settings.root / "backups"
    kept = first.conf("kept", await overlay(images, "kept"))
    broken = first.conf("broken", await overlay(images, "broken"))
    gone = first.conf("gone", await overlay(images, "gone"))
    before = await first.reload()
    handle = nbd.NBD()
    handle.set_export_name("kept")
    await asyncio.to_thread(handle.connect_unix, str(settings.nbd_socket))
    await first.stop(signal.SIGKILL)
    assert await asyncio.to_thread(handle.pread, 1, 0) == b"\1"
    broken.write_text("[broken\n")
    gone.unlink()
    second = await start(settings)
    try:
        status = await second.wait(lambda s: "gone" not in s.exports)
        assert (status.daemon_pid, status.daemon_starts) == (before.daemon_pid, 1)
        assert {name: (e.state, e.epoch) for name, e in status.exports.items()} == {
            "kept": ("serving", 1),
            "broken": ("serving", 1),
        }
        assert status.exports["kept"].file == str(kept)
        assert "no [group]" in status.exports["broken"].error
        assert await asyncio.to_thread(handle.pread, 1, 0) == b"\1"  # the same connection
        await asyncio.to_thread(handle.shutdown)
    finally:
        assert await second.stop() == 0


async def test_both_killed_the_next_nbdd_serves_again_with_a_new_epoch(settings: ExportsSettings) -> None:
    first = await start(settings)
    first.conf("disk", await overlay(settings.root / "backups", "vm"))
    status = await first.reload()
    await first.stop(signal.SIGKILL)
    os.kill(status.daemon_pid, signal.SIGKILL)
    async with nbdd_running(settings) as second:
        status = await second.wait(lambda s: "disk" in s.exports and s.exports["disk"].state == "serving")
        assert (status.daemon_starts, status.exports["disk"].epoch) == (2, 2)


async def test_an_epoch_is_never_taken_back(settings: ExportsSettings) -> None:
    """Neither by a failure to serve meanwhile, nor by another image, nor by nbdd's own death."""
    first = await start(settings)
    images = settings.root / "backups"
    incr, other = await overlay(images, "vm"), await overlay(images, "other")
    first.conf("disk", incr)
    status = await first.reload()
    incr.rename(images / "away.qcow2")
    os.kill(status.daemon_pid, signal.SIGKILL)
    status = await first.wait(lambda s: s.daemon_starts == 2 and s.exports["disk"].state == "error")
    assert status.exports["disk"].epoch == 2
    os.kill(status.daemon_pid, signal.SIGKILL)
    status = await first.wait(lambda s: s.daemon_starts == 3 and "disk" in s.exports)
    assert status.exports["disk"].epoch >= 2
    await first.stop(signal.SIGKILL)
    async with nbdd_running(settings) as second:
        (images / "away.qcow2").rename(incr)
        status = await second.wait(lambda s: s.exports["disk"].state == "serving")
        epoch = status.exports["disk"].epoch
        assert epoch >= 2
        second.conf("disk", other)
        status = await second.reload()
        assert (status.exports["disk"].path, status.exports["disk"].epoch) == (str(other), epoch)
