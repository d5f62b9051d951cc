"""Real clients through file and block exports, over the Unix socket and over TCP: the bytes are the image's."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import nbd
import pytest
from nbdd_process import RunningNbdd, loop_device, nbdcopy, nbdd_running, noise, overlay

from sendense_exports.config import ExportsSettings
from sendense_qemu import img
from sendense_qemu.errors import QemuImgError
from sendense_qemu.process import run

MIB = 1 << 20
SIZE = 4 * MIB


@dataclass(frozen=True)
class Served:
    """An export with what is behind it."""

    nbdd: RunningNbdd
    name: str
    path: Path
    format: img.Format

    @property
    def unix_uri(self) -> str:
        return self.nbdd.uri(self.name)

    @property
    def tcp_uri(self) -> str:
        return f"nbd://{self.nbdd.status().tcp_addresses[0]}/{self.name}"

    async def take_away(self) -> None:
        (self.nbdd.settings.conf_dir / f"{self.name}.conf").unlink()
        await self.nbdd.reload()
        assert self.name not in self.nbdd.exports()

    async def holds(self, content: Path) -> bool:
        """Whether the image, no longer served, has that content; a device is read directly."""
        fmt = self.format
        return (await img.compare(content, "raw", self.path, fmt)).identical


@pytest.fixture(params=["qcow2 chain", "raw file", "block device"])
async def served(
    request: pytest.FixtureRequest, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    monkeypatch.setenv("SENDENSE_EXPORTS_DEVICE_PATTERN", "/dev/loop[0-9]+")
    monkeypatch.setenv("SENDENSE_EXPORTS_TCP_LISTEN", "127.0.0.1:0")
    settings = ExportsSettings()
    images = settings.root / "backups"
    images.mkdir()
    fmt: img.Format = "raw"
    with ExitStack() as devices:
        if request.param == "qcow2 chain":
            path, fmt = await overlay(images, "vm", SIZE // MIB), "qcow2"
        else:
            path = images / "disk.raw"
            path.write_bytes(b"\1" * SIZE)
            if request.param == "block device":
                if os.geteuid() != 0 or not Path("/dev/loop-control").exists():  # noqa: ASYNC240
                    pytest.skip("a loop device needs root and /dev/loop-control")
                path = Path(devices.enter_context(loop_device(path)))
        async with nbdd_running(settings) as nbdd:
            nbdd.conf("disk", path, fmt)
            nbdd.conf("neighbour", await overlay(images, "other"), read_only=True)
            await nbdd.reload()
            yield Served(nbdd, "disk", path, fmt)
            neighbour = nbdd.exports()["neighbour"]
            assert (neighbour.state, nbdd.status().daemon_starts) == ("serving", 1)


async def test_nbdcopy_and_qemu_img_write_and_read_the_same_bytes(served: Served) -> None:
    first = noise(served.nbdd.settings.root / "first.raw", SIZE)
    second = noise(served.nbdd.settings.root / "second.raw", SIZE, seed=2)
    back = served.nbdd.settings.root / "back.raw"
    for source, uri, other_uri in ((first, served.unix_uri, served.tcp_uri), (second, served.tcp_uri, served.unix_uri)):
        await nbdcopy(source, uri)
        await nbdcopy(other_uri, back)
        assert back.read_bytes() == source.read_bytes()
        compared = await run(["qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), uri], img.QUICK)
        assert b"identical" in compared.stdout
    # qemu-img writes as well
    await run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(first), served.unix_uri], img.QUICK)
    await nbdcopy(served.unix_uri, back)
    assert back.read_bytes() == first.read_bytes()
    await served.take_away()
    assert await served.holds(first)


async def test_nbdinfo_and_qemu_img_tell_size_and_abilities(served: Served) -> None:
    for uri in (served.unix_uri, served.tcp_uri):
        said = json.loads((await run(["nbdinfo", "--json", uri], img.QUICK)).stdout)
        (export,) = said["exports"]
        assert (export["export-name"], export["export-size"], export["is_read_only"]) == ("disk", SIZE, False)
        assert export["can_flush"]
        assert export["can_zero"]
        info = json.loads((await run(["qemu-img", "info", "--output=json", "-f", "raw", uri], img.QUICK)).stdout)
        assert info["virtual-size"] == SIZE
    neighbour = json.loads((await run(["nbdinfo", "--json", served.nbdd.uri("neighbour")], img.QUICK)).stdout)
    assert neighbour["exports"][0]["is_read_only"]


async def test_libnbd_reads_and_writes_at_any_place(served: Served) -> None:
    """Against a byte array: reads, writes and zeroes of odd sizes at odd places, flushed, seen by another client."""
    model = bytearray(b"\1" * SIZE)
    dice = random.Random(7)

    def work() -> None:
        writer, reader = nbd.NBD(), nbd.NBD()
        for handle, uri in ((writer, served.unix_uri), (reader, served.tcp_uri)):
            handle.connect_uri(uri)
        for _ in range(200):
            length = dice.choice([1, 511, 512, 4096, 65536, 100_001])
            offset = dice.randrange(SIZE - length)
            action = dice.choice(["read", "write", "zero"])
            if action == "write":
                data = dice.randbytes(length)
                writer.pwrite(data, offset)
                model[offset : offset + length] = data
            elif action == "zero":
                writer.zero(length, offset)
                model[offset : offset + length] = bytes(length)
            else:
                writer.flush()
                assert reader.pread(length, offset) == model[offset : offset + length]
        with pytest.raises(nbd.Error):
            writer.pread(512, SIZE - 256)
        with pytest.raises(nbd.Error):
            writer.pwrite(bytes(512), SIZE)
        writer.flush()
        for handle in (writer, reader):
            handle.shutdown()
        refused = nbd.NBD()
        refused.connect_uri(served.nbdd.uri("neighbour"))
        with pytest.raises(nbd.Error):
            refused.pwrite(bytes(512), 0)
        refused.shutdown()

    await asyncio.to_thread(work)
    await served.take_away()
    expected = served.nbdd.settings.root / "expected.raw"
    expected.write_bytes(model)
    assert await served.holds(expected)


@pytest.mark.skipif(shutil.which("nbd-client") is None, reason="nbd-client is missing: apt-get install nbd-client")
async def test_nbd_client_negotiates(served: Served) -> None:
    """The list, over either socket; and the export itself, whose size it prints before it asks the kernel for nbd."""
    host, _, port = served.nbdd.status().tcp_addresses[0].rpartition(":")
    for place in (["-unix", str(served.nbdd.settings.nbd_socket)], [host, port]):
        finished = await run(["nbd-client", "-l", *place], img.QUICK)
        assert set(finished.stdout.decode().split("\n")) >= {"disk", "neighbour"}
    if Path("/dev/nbd0").exists():  # noqa: ASYNC240  # the next test does it for real
        return
    with pytest.raises(QemuImgError) as caught:
        await run(["nbd-client", "-N", "disk", host, port, "/dev/nbd0"], img.QUICK)
    assert "nbd module" in caught.value.stderr or "nbd driver" in caught.value.stderr


@pytest.mark.skipif(not Path("/dev/nbd0").exists(), reason="the kernel has no nbd: no /dev/nbd0 (modprobe nbd)")
async def test_the_kernels_nbd_reads_and_writes(served: Served) -> None:
    device = _free_device()
    socket = str(served.nbdd.settings.nbd_socket)
    source = noise(served.nbdd.settings.root / "source.raw", SIZE)
    await run(["nbd-client", "-N", "disk", "-unix", socket, device], img.QUICK)
    try:
        await run(["dd", f"if={source}", f"of={device}", "bs=1M", "conv=fsync", "status=none"], img.QUICK)
    finally:
        await run(["nbd-client", "-d", device], img.QUICK)
    async with asyncio.timeout(20):
        await served.take_away()
    assert await served.holds(source)


def _free_device() -> str:
    for number in range(16):
        if Path(f"/sys/block/nbd{number}").exists() and not Path(f"/sys/block/nbd{number}/pid").exists():
            return f"/dev/nbd{number}"
    pytest.skip("all of the kernel's nbd devices are in use")
