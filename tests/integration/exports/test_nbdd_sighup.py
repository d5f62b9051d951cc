"""SIGHUP: what is served equals what is configured, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
from nbdd_process import (
    RunningNbdd,
    listed,
    loop_device,
    nbdcopy,
    nbdd_running,
    nbdkit,
    noise,
    overlay,
    start,
)

from sendense_exports.config import ExportsSettings
from sendense_qemu import img
from sendense_qemu.errors import StorageDaemonError
from sendense_qemu.nodes import file_access, qcow2_node
from sendense_qemu.storage_daemon import StorageDaemon

MIB = 1 << 20


@pytest.fixture
def settings(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ExportsSettings:
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    return ExportsSettings()


@pytest.fixture
async def nbdd(settings: ExportsSettings) -> AsyncIterator[RunningNbdd]:
    async with nbdd_running(settings) as running:
        yield running


@pytest.fixture
def images(settings: ExportsSettings) -> Path:
    folder = settings.root / "backups"
    folder.mkdir(exist_ok=True)
    return folder


async def test_200_exports_come_and_go_while_a_copy_to_another_one_runs(nbdd: RunningNbdd, images: Path) -> None:
    """The copy is held back until all are gone, so it really ran meanwhile; then it is let go, and finishes."""
    size, others, step = 64 * MIB, 200, 20
    source = noise(images / "source.raw", size)
    await img.create_qcow2(images / "target.qcow2", size)
    await img.create_qcow2(images / "other-0.qcow2", 1 << 40)  # large, so that their caches would be large as well
    for number in range(1, others):
        shutil.copy(images / "other-0.qcow2", images / f"other-{number}.qcow2")
    nbdd.conf("target", images / "target.qcow2")
    before = await nbdd.reload()
    rate = images / "rate"
    rate.write_text("32M")  # bits a second
    filters = ("--filter=rate", "file", str(source), "rate=32M", f"rate-file={rate}", "burstiness=0.1")
    async with nbdkit(images / "source.sock", *filters) as uri:
        copy = asyncio.create_task(nbdcopy(uri, nbdd.uri("target")))
        for first in range(0, others, step):
            for number in range(first, first + step):
                nbdd.conf(f"other-{number}", images / f"other-{number}.qcow2")
            added = await nbdd.reload()
            assert sum(export.state == "serving" for export in added.exports.values()) == first + step + 1
        assert len(await listed(nbdd)) == others + 1
        for first in range(0, others, step):
            for number in range(first, first + step):
                (nbdd.settings.conf_dir / f"other-{number}.conf").unlink()
            removed = await nbdd.reload()
            assert len(removed.exports) == others - first - step + 1
        assert not copy.done()
        assert set(removed.exports) == await listed(nbdd) == {"target"}
        rate.write_text("0")  # no limit
        await copy
    after = nbdd.status()
    assert (after.daemon_pid, after.daemon_starts) == (before.daemon_pid, 1)
    (nbdd.settings.conf_dir / "target.conf").unlink()
    await nbdd.reload()
    assert (await img.compare(source, "raw", images / "target.qcow2", "qcow2")).identical


async def test_raw_files_and_qcow2_chains_are_served_side_by_side(nbdd: RunningNbdd, images: Path) -> None:
    (images / "disk.raw").write_bytes(os.urandom(2 * MIB))
    incr = await overlay(images, "vm")
    nbdd.conf("raw", images / "disk.raw", "raw", read_only=True)
    nbdd.conf("chain", incr)
    status = await nbdd.reload()
    assert (status.exports["raw"].size_bytes, status.exports["raw"].format) == (2 * MIB, "raw")
    assert (status.exports["chain"].size_bytes, status.exports["chain"].read_only) == (4 * MIB, False)
    assert await listed(nbdd) == {"raw", "chain"}
    await nbdcopy(nbdd.uri("raw"), images / "copy.raw")
    assert (images / "copy.raw").read_bytes() == (images / "disk.raw").read_bytes()

    def use() -> None:
        handle = nbd.NBD()
        handle.set_export_name("chain")
        handle.connect_unix(str(nbdd.settings.nbd_socket))
        assert handle.pread(512, 0) == b"\1" * 512
        handle.pwrite(b"\2" * 512, 0)
        with pytest.raises(nbd.Error):
            handle.trim(65536, 0)
        handle.flush()
        assert handle.pread(1024, 0) == b"\2" * 512 + b"\1" * 512
        handle.shutdown()
        reader = nbd.NBD()
        reader.set_export_name("raw")
        reader.connect_unix(str(nbdd.settings.nbd_socket))
        assert reader.is_read_only()
        reader.shutdown()

    await asyncio.to_thread(use)


async def test_a_broken_file_disables_its_export_only_and_is_shown_with_its_line(
    nbdd: RunningNbdd, images: Path
) -> None:
    incr = await overlay(images, "vm")
    nbdd.conf("good", incr)
    (nbdd.settings.conf_dir / "bad.conf").write_text("[bad]\nreadonly = true\n")
    (nbdd.settings.conf_dir / "worse.conf").write_text("[worse]\nexportname = /x\n[[\n")
    status = await nbdd.reload()
    assert status.exports["good"].state == "serving"
    bad = status.exports["bad"]
    assert (bad.state, bad.line, Path(bad.file).name) == ("error", 1, "bad.conf")
    assert "no exportname" in bad.error
    assert {(Path(p["file"]).name, p["line"]) for p in status.problems} == {("bad.conf", 1), ("worse.conf", 3)}
    assert await listed(nbdd) == {"good"}


async def test_a_served_export_whose_file_breaks_stays_as_last_good(nbdd: RunningNbdd, images: Path) -> None:
    incr = await overlay(images, "vm")
    file = nbdd.conf("disk", incr)
    await nbdd.reload()
    good = file.read_text()
    for broken in ("[disk\n", "[disk]\nexportname = /gone/away.qcow2\nformat = qcow2\n", "[disk]\nformat = qcow2\n"):
        file.write_text(broken)
        status = await nbdd.reload()
        assert status.exports["disk"].state == "serving"
        assert status.exports["disk"].error
        assert await listed(nbdd) == {"disk"}
    file.write_text(good)
    status = await nbdd.reload()
    assert (status.exports["disk"].state, status.exports["disk"].error) == ("serving", "")


async def test_a_broken_main_file_leaves_everything_as_it_is(nbdd: RunningNbdd, images: Path) -> None:
    nbdd.conf("disk", await overlay(images, "vm"))
    before = await nbdd.reload()
    good = nbdd.settings.conf_file.read_text()
    nbdd.settings.conf_file.write_text("[generic\n")
    nbdd.process.send_signal(signal.SIGHUP)
    status = await nbdd.wait(lambda status: bool(status.config_error))
    assert "nbd-server.conf:1" in status.config_error
    assert status.generation == before.generation
    assert await listed(nbdd) == {"disk"}
    nbdd.settings.conf_file.write_text(good)
    assert (await nbdd.reload()).config_error == ""


async def test_an_export_in_use_goes_when_its_client_has_left(nbdd: RunningNbdd, images: Path) -> None:
    file = nbdd.conf("disk", await overlay(images, "vm"))
    await nbdd.reload()
    handle = nbd.NBD()
    handle.set_export_name("disk")
    await asyncio.to_thread(handle.connect_unix, str(nbdd.settings.nbd_socket))
    file.unlink()
    assert (await nbdd.reload()).exports["disk"].state == "draining"
    await asyncio.to_thread(handle.pwrite, b"\5" * 512, 0)
    await asyncio.to_thread(handle.shutdown)
    await nbdd.wait(lambda status: "disk" not in status.exports)
    assert (await img.check(images / "vm-incr.qcow2")).is_sound  # its lock is gone as well


async def test_a_forced_removal_cuts_the_client_off_and_no_other(nbdd: RunningNbdd, images: Path) -> None:
    file = nbdd.conf("disk", await overlay(images, "vm"))
    nbdd.conf("other", await overlay(images, "other"))
    await nbdd.reload()
    handles = []
    for name in ("disk", "other"):
        handle = nbd.NBD()
        handle.set_export_name(name)
        await asyncio.to_thread(handle.connect_unix, str(nbdd.settings.nbd_socket))
        handles.append(handle)
    file.unlink()
    (nbdd.settings.force_dir / "disk").touch()
    assert "disk" not in (await nbdd.reload()).exports
    assert list(nbdd.settings.force_dir.iterdir()) == []
    with pytest.raises(nbd.Error):
        await asyncio.to_thread(handles[0].pread, 512, 0)
    assert await asyncio.to_thread(handles[1].pread, 1, 0) == b"\1"
    await asyncio.to_thread(handles[1].shutdown)


async def test_a_changed_file_replaces_its_export(nbdd: RunningNbdd, images: Path) -> None:
    incr = await overlay(images, "vm")
    nbdd.conf("disk", incr)
    await nbdd.reload()
    nbdd.conf("disk", images / "vm-full.qcow2", read_only=True)
    status = await nbdd.reload()
    assert status.exports["disk"].path == str(images / "vm-full.qcow2")
    assert status.exports["disk"].read_only


BAD_INPUT = {
    "no-exportname": ("readonly = true\n", "[no-exportname] has no exportname"),
    "missing-image": ("exportname = {images}/gone.qcow2\nformat = qcow2\n", "No such file"),
    "a-directory": ("exportname = {images}\n", "neither a file nor a block device"),
    "a-device": ("exportname = /dev/null\n", "neither a file nor a block device"),
    "dots": ("exportname = {images}/../outside.raw\n", "without '..'"),
    "relative": ("exportname = outside.raw\n", "not an absolute path"),
    "elsewhere": ("exportname = /etc/passwd\n", "outside of the folders"),
    "a-link-out": ("exportname = {images}/link.raw\n", "outside of the folders"),
    "no-qcow2": ("exportname = {images}/noise.qcow2\nformat = qcow2\n", "it is no qcow2 image"),
    "backing-outside": ("exportname = {images}/escaping.qcow2\nformat = qcow2\n", "secret.qcow2 is outside"),
    "data-file": ("exportname = {images}/data-file.qcow2\nformat = qcow2\n", "keeps its data in another file"),
    "empty": ("exportname = {images}/empty.raw\n", "is empty"),
    "format": ("exportname = {images}/noise.qcow2\nformat = vmdk\n", "not qcow2 or raw"),
    "too-small": ("exportname = {images}/noise.qcow2\nfilesize = 10485760\n", "less than filesize"),
    "for-each-client": ("exportname = {images}/%s.raw\n", "another file for each client"),
    "copy-on-write": ("exportname = {images}/noise.qcow2\ncopyonwrite = true\n", "copyonwrite is not supported"),
}


async def test_bad_input_is_refused_by_name_and_others_live(nbdd: RunningNbdd, images: Path) -> None:
    outside = noise(images.parent / "outside.raw", MIB)
    (images / "link.raw").symlink_to(outside)
    noise(images / "noise.qcow2", MIB)
    (images / "empty.raw").touch()
    await img.create_qcow2(images.parent / "secret.qcow2", MIB)
    await img.create_qcow2(images / "escaping.qcow2", MIB, backing_name="../secret.qcow2")
    data_file = {"data_file": str(images / "data-file.raw"), "data_file_raw": "on"}
    await img.create_qcow2(images / "data-file.qcow2", MIB, options=data_file)
    incr = await overlay(images, "vm")
    nbdd.conf("good", incr)
    await nbdd.reload()
    handle = nbd.NBD()
    handle.connect_uri(nbdd.uri("good"))
    bad = dict(BAD_INPUT)
    if Path("/dev/loop0").exists():  # noqa: ASYNC240
        bad["device-not-listed"] = ("exportname = /dev/loop0\n", "not on the list of block devices")
    for name, (text, _) in bad.items():
        (nbdd.settings.conf_dir / f"{name}.conf").write_text(f"[{name}]\n" + text.format(images=images))
    (nbdd.settings.conf_dir / "good-again.conf").write_text(f"[good]\nexportname = {outside}\n")  # a name twice
    (nbdd.settings.conf_dir / "unreadable.conf").write_bytes(b"[x]\nexportname = /\xff\n")
    nbdd.conf("late", images / "vm-full.qcow2", read_only=True)
    status = await nbdd.reload()
    for name, (_, problem) in bad.items():
        entry = status.exports[name]
        assert (entry.state, entry.size_bytes) == ("error", 0), name
        assert problem in entry.error, (name, entry.error)
        assert Path(entry.file).name == f"{name}.conf"
    problems = {Path(each["file"]).name: each for each in status.problems}
    assert "good.conf:1 has that name already" in problems["good-again.conf"]["message"]
    assert (problems["unreadable.conf"]["line"], problems["unreadable.conf"]["message"]) == (2, "is no UTF-8")
    assert status.exports["good"].path == str(incr)
    assert (status.exports["good"].state, status.exports["late"].state) == ("serving", "serving")
    assert await listed(nbdd) == {"good", "late"}
    assert await asyncio.to_thread(handle.pread, 512, 0) == b"\1" * 512
    await asyncio.to_thread(handle.shutdown)


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_raw_image_that_ends_within_a_sector_is_served_whole_and_warned_of(
    nbdd: RunningNbdd, images: Path, read_only: bool
) -> None:
    """qemu counts in sectors. nbd-server would serve the odd bytes as they are; the rest must at least be harmless."""
    size = MIB + 700
    odd = noise(images / "odd.raw", size)
    content = odd.read_bytes()
    nbdd.conf("odd", odd, "raw", read_only=read_only)
    entry = (await nbdd.reload()).exports["odd"]
    assert (entry.state, entry.size_bytes) == ("serving", MIB + 1024)
    assert entry.size_warning.startswith(f"{size} bytes are no multiple of 512: {MIB + 1024} are served; the last 324")
    assert ("makes the file longer" in entry.size_warning) == (not read_only)

    def use() -> None:
        handle = nbd.NBD()
        handle.connect_uri(nbdd.uri("odd"))
        assert handle.pread(MIB + 1024, 0) == content + bytes(324)
        if not read_only:
            handle.pwrite(b"\7" * 700, MIB)
            handle.flush()
            assert handle.pread(1024, MIB) == b"\7" * 700 + bytes(324)
        handle.shutdown()

    await asyncio.to_thread(use)
    assert (await nbdd.reload()).exports["odd"].size_warning == entry.size_warning
    (nbdd.settings.conf_dir / "odd.conf").unlink()
    await nbdd.reload()
    expected = content if read_only else content[:MIB] + b"\7" * 700
    assert odd.read_bytes()[:size] == expected


async def test_a_written_image_is_not_mounted_for_restore_and_a_mounted_one_is_not_written(
    nbdd: RunningNbdd, images: Path
) -> None:
    """A mount is another daemon with a throw-away overlay on the layer, as the restore service makes it."""
    incr = await overlay(images, "vm")
    top, full = images / "mount.qcow2", images / "vm-full.qcow2"
    await img.create_qcow2(top, None, backing_name=incr.name)
    nbdd.conf("writer", incr)
    await nbdd.reload()
    mount = await StorageDaemon.start(images / "m.qmp", log_path=images / "m.log", die_with_parent=True)
    try:
        node = qcow2_node("disk", [top, incr, full], file_access(top, mount.aio), read_only=False)
        with pytest.raises(StorageDaemonError) as caught:
            await mount.add_node(node)
        assert caught.value.is_locked
        (nbdd.settings.conf_dir / "writer.conf").unlink()
        await nbdd.reload()
        await mount.add_node(node)
        nbdd.conf("writer", incr)
        nbdd.conf("reader", incr, read_only=True)
        status = await nbdd.reload()
        assert (status.exports["writer"].state, status.exports["writer"].busy) == ("error", True)
        assert f"{incr} is in use by another process" in status.exports["writer"].error
        assert status.exports["reader"].state == "serving"
        (nbdd.settings.conf_dir / "reader.conf").unlink()
        await nbdd.reload()
        await mount.remove_node("disk")
        await nbdd.wait(lambda status: status.exports["writer"].state == "serving")  # tried again by itself
    finally:
        await mount.stop()


async def test_a_second_writer_of_an_image_is_refused_naming_the_first(nbdd: RunningNbdd, images: Path) -> None:
    incr = await overlay(images, "vm")
    nbdd.conf("first", incr)
    await nbdd.reload()
    nbdd.conf("second", incr)
    nbdd.conf("reader", incr, read_only=True)
    status = await nbdd.reload()
    for name in ("second", "reader"):
        assert status.exports[name].state == "error"
        assert "written through the export first" in status.exports[name].error
    (nbdd.settings.conf_dir / "first.conf").unlink()
    (nbdd.settings.conf_dir / "reader.conf").unlink()
    status = await nbdd.reload()
    assert status.exports["second"].state == "serving"


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")
async def test_a_block_device_on_the_list_is_served_beside_files(settings: ExportsSettings, images: Path) -> None:
    backing = noise(images / "device.raw", 2 * MIB)
    with loop_device(backing) as loop:
        async with nbdd_running(settings, SENDENSE_EXPORTS_DEVICE_PATTERN="/dev/loop[0-9]+") as nbdd:
            nbdd.conf("migration-vm-1-disk0", loop, "raw")
            nbdd.conf("backup", await overlay(images, "vm"))
            status = await nbdd.reload()
            assert status.exports["migration-vm-1-disk0"].size_bytes == 2 * MIB
            source = noise(images / "source.raw", 2 * MIB, seed=2)
            await nbdcopy(source, nbdd.uri("migration-vm-1-disk0"))
            await nbdcopy(nbdd.uri("migration-vm-1-disk0"), images / "back.raw")
            assert (images / "back.raw").read_bytes() == source.read_bytes()
            assert status.exports["backup"].state == "serving"


async def test_only_one_nbdd_serves_a_configuration(nbdd: RunningNbdd) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sendense_exports.nbdd")
    assert await asyncio.wait_for(process.wait(), 20) == 1
    assert nbdd.process.returncode is None
    assert nbdd.status().pid == nbdd.process.pid
    assert await listed(nbdd) == set()


async def test_an_nbdd_that_stops_removes_its_sockets_and_ends_the_daemon(settings: ExportsSettings) -> None:
    nbdd = await start(settings)
    daemon = nbdd.status().daemon_pid
    assert await nbdd.stop() == 0
    assert not Path(f"/proc/{daemon}").exists()  # noqa: ASYNC240
    assert list(settings.run_dir.iterdir()) == []
