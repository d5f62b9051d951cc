"""qemu-img through our wrappers: real images, explicit formats, errors that say what happened."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from sendense_qemu import img
from sendense_qemu.errors import HeaderError, QemuImgError
from sendense_qemu.header import check_chain, check_header, read_header
from sendense_qemu.process import Limits, run

MIB = 1 << 20


async def chain_of_two(folder: Path) -> tuple[Path, Path, bytes]:
    """A full with 4 MiB of data and an increment that changes its second MiB; returns the expected content too."""
    content = bytearray(os.urandom(4 * MIB))
    raw, full, incr = folder / "disk.raw", folder / "full.qcow2", folder / "incr.qcow2"
    raw.write_bytes(content)
    await img.convert(raw, "raw", full, "qcow2")
    await img.create_qcow2(incr, None, backing_name="full.qcow2")
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 {MIB} {MIB}", str(incr)], img.QUICK)
    content[MIB : 2 * MIB] = b"\7" * MIB
    return full, incr, bytes(content)


async def test_info_tells_what_create_was_given(tmp_path: Path) -> None:
    full = tmp_path / "full,with=comma and space.qcow2"
    await img.create_qcow2(full, 3 * MIB, cluster_size=131072)
    said = await img.info(full, "qcow2")
    assert (said.virtual_size, said.cluster_size, said.compat, said.backing_name) == (3 * MIB, 131072, "1.1", None)
    child = tmp_path / "incr.qcow2"
    await img.create_qcow2(child, 5 * MIB, backing_name=full.name)
    said = await img.info(child, "qcow2")
    assert (said.virtual_size, said.backing_name, said.backing_format) == (5 * MIB, full.name, "qcow2")


@pytest.mark.parametrize("cluster_size", [512, 65536, 2 * MIB])
@pytest.mark.parametrize("virtual_size", [512, 100 * MIB, 1 << 36])
async def test_every_image_that_we_create_passes_our_header_check(
    tmp_path: Path, cluster_size: int, virtual_size: int
) -> None:
    path = tmp_path / "full.qcow2"
    await img.create_qcow2(path, virtual_size, cluster_size=cluster_size)
    assert check_header(path, backing_name=None).virtual_size == virtual_size


async def test_a_written_chain_passes_our_header_check_and_compares_equal(tmp_path: Path) -> None:
    full, incr, content = await chain_of_two(tmp_path)
    assert [header.path for header in check_chain(incr, [tmp_path])] == [incr, full]
    expected = tmp_path / "expected.raw"
    expected.write_bytes(content)
    assert (await img.compare(incr, "qcow2", expected, "raw")).identical
    different = await img.compare(full, "qcow2", expected, "raw")
    assert not different.identical
    assert str(MIB) in different.detail


@pytest.mark.parametrize("options", [{"compat": "0.10"}, {"encrypt.format": ""}, {"extended_l2": "on"}])
async def test_images_with_other_features_are_refused_by_our_header_check(
    tmp_path: Path, options: dict[str, str]
) -> None:
    path = tmp_path / "other.qcow2"
    if "encrypt.format" in options:
        await img.create_qcow2(path, MIB)
        await run(["qemu-img", "snapshot", "-c", "inside", str(path)], img.QUICK)
    else:
        await img.create_qcow2(path, MIB, options=options)
    with pytest.raises(HeaderError):
        read_header(path)


async def test_map_tells_which_layer_gives_each_run(tmp_path: Path) -> None:
    _, incr, _ = await chain_of_two(tmp_path)
    extents = await img.map_depths(incr, "qcow2")
    assert [(e.start, e.length, e.depth, e.data) for e in extents] == [
        (0, MIB, 1, True),
        (MIB, MIB, 0, True),
        (2 * MIB, 2 * MIB, 1, True),
    ]
    assert sum(extent.length for extent in extents) == 4 * MIB


async def test_check_tells_leaks_from_corruption_and_repairs_leaks_only(tmp_path: Path) -> None:
    full, _, _ = await chain_of_two(tmp_path)
    assert (await img.check(full)).is_sound
    with full.open("r+b") as file:  # the refcount block's last entries: clusters that nothing uses become "used"
        file.seek(2 * 65536 + 65536 - 8)
        file.write(b"\0\1\0\1")
        file.truncate(max(full.stat().st_size, 40000 * 65536))
    found = await img.check(full)
    assert found.is_sound
    assert found.leaks == 2
    repaired = await img.check(full, repair_leaks=True)
    assert (repaired.leaks_fixed, (await img.check(full)).leaks) == (2, 0)


async def test_check_reports_corruption_as_a_result(tmp_path: Path) -> None:
    full, _, _ = await chain_of_two(tmp_path)
    with full.open("r+b") as file:  # refcounts of clusters in use become 0
        file.seek(2 * 65536)
        file.write(bytes(32))
    assert not (await img.check(full)).is_sound


async def test_commit_and_rebase_keep_content(tmp_path: Path) -> None:
    full, incr, content = await chain_of_two(tmp_path)
    expected = tmp_path / "expected.raw"
    expected.write_bytes(content)
    await img.rebase(incr, None)
    assert (await img.info(incr, "qcow2")).backing_name is None
    assert (await img.compare(incr, "qcow2", expected, "raw")).identical
    await img.create_qcow2(tmp_path / "next.qcow2", None, backing_name="incr.qcow2")
    await img.rebase(tmp_path / "next.qcow2", "full.qcow2", header_only=True)
    assert check_header(tmp_path / "next.qcow2", backing_name="full.qcow2").virtual_size == 4 * MIB
    await run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 65536", str(tmp_path / "next.qcow2")], img.QUICK)
    await img.commit(tmp_path / "next.qcow2")
    await run(["qemu-io", "-f", "qcow2", "-c", "read -q -P 9 0 65536", str(full)], img.QUICK)


async def test_guest_bytes_that_look_like_qcow2_stay_guest_bytes(tmp_path: Path) -> None:
    """Row 25: a raw disk that begins with a qcow2 header naming a host file is still read as raw."""
    secret, raw, out = tmp_path / "secret.qcow2", tmp_path / "disk.raw", tmp_path / "out.qcow2"
    await img.create_qcow2(secret, MIB)
    await img.create_qcow2(raw, MIB, backing_name="secret.qcow2")
    os.truncate(raw, MIB)
    await img.convert(raw, "raw", out, "qcow2")
    assert (await img.compare(raw, "raw", out, "qcow2")).identical
    assert (await img.info(raw, "raw")).backing_name is None


async def test_an_error_carries_command_status_and_message(tmp_path: Path) -> None:
    with pytest.raises(QemuImgError) as caught:
        await img.info(tmp_path / "missing.qcow2", "qcow2")
    assert caught.value.status == 1
    assert "missing.qcow2" in caught.value.stderr
    assert caught.value.command[:2] == ("qemu-img", "info")


@pytest.mark.parametrize("name", ["/etc/passwd", "json:{}", "nbd://x/y", "", "-x"])
async def test_a_backing_name_is_a_relative_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="relative file name"):
        await img.create_qcow2(tmp_path / "x.qcow2", MIB, backing_name=name)


async def test_a_program_that_overstays_is_killed(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(QemuImgError) as caught:
        await run(["sleep", "30"], Limits(timeout_seconds=0.2))
    assert caught.value.timed_out
    assert time.monotonic() - started < 10


async def test_a_cancelled_program_is_killed_and_reaped(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 30"], img.QUICK))
    for _ in range(500):
        if pid_file.exists() and pid_file.read_text().strip():
            break
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()  # noqa: ASYNC240


async def test_memory_and_output_are_bounded() -> None:
    with pytest.raises(QemuImgError):
        await run(["python3", "-c", "b'x' * (1 << 30)"], Limits(address_space_bytes=256 * MIB))
    with pytest.raises(QemuImgError, match="more than"):
        await run(["yes"], Limits(output_bytes=1000))
