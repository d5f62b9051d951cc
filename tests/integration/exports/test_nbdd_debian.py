"""A configuration written for Debian's nbd-server serves the same bytes from nbdd; the real one runs on it first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import nbd
import pytest
from nbdd_process import DEADLINE, listed, loop_device, nbdd_running, noise

from sendense_exports.config import ExportsSettings
from sendense_qemu import img
from sendense_qemu.process import run
from support import free_port

MIB = 1 << 20
ODD = 3 * MIB + 700
"""A size that is no multiple of 512."""

pytestmark = pytest.mark.skipif(
    shutil.which("nbd-server") is None, reason="Debian's nbd-server is missing: apt-get install nbd-server"
)

MAIN = """\
# written for nbd-server(5)
[generic]
\tlistenaddr = 127.0.0.1
\tport = {port}
\tallowlist = true
\tmax_threads = 2
\tincludedir = {folder}/conf.d

[in-the-main-file]
\texportname = {folder}/main.raw
\treadonly = true
"""
CONF_D = {
    "volumes.conf": """\
# two in one file, as a hand would write it
[vol1]
exportname={folder}/vol1.raw
flush=true
fua=true

   # indented comment
[vol2]
exportname = {folder}/vol2.raw
readonly = 1
maxconnections = 4
timeout = 30
""",
    "odd.conf": "[odd]\nexportname = {folder}/odd.raw\nreadonly = true\n",
    "first-part.conf": "[first-part]\nexportname = {folder}/vol2.raw\nfilesize = 1048576\nreadonly = true\n",
    "device.conf": "[migration-vm-a1b2c3d4-disk0]\nexportname = {device}\nreadonly = false\ntrim = false\n",
    "ignored.txt": "not a conf file [\n",
}


@asynccontextmanager
async def nbd_server(conf: Path, port: int) -> AsyncIterator[str]:
    """The real one; yields its address."""
    pid_file = conf.parent / "nbd-server.pid"
    pid_file.unlink(missing_ok=True)
    await run(["nbd-server", "-C", str(conf), "-p", str(pid_file)], img.QUICK)  # it goes to the background
    pid = 0
    try:
        async with asyncio.timeout(DEADLINE):
            while not pid:
                with contextlib.suppress(OSError, ValueError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    pid = int(pid_file.read_text())
                await asyncio.sleep(0.01)
        yield f"nbd://127.0.0.1:{port}"
    finally:
        if pid:
            await asyncio.to_thread(_end, pid)


def _end(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert select.select([pidfd], [], [], DEADLINE)[0], "nbd-server does not end"
    finally:
        os.close(pidfd)


class Client:
    """An NBD connection on which nothing waits for longer than the deadline; `libnbd`'s plain calls wait for ever."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._handle = nbd.NBD()
        self._handle.aio_connect_uri(uri)
        self._wait(lambda: not self._handle.aio_is_connecting(), "connecting")
        assert self._handle.aio_is_ready(), f"{uri} refuses"

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < deadline, f"{self._uri}: no answer in {DEADLINE:g} s: {what}"
            self._handle.poll(1000)

    def _finish(self, cookie: int, what: str) -> None:
        self._wait(lambda: self._handle.aio_command_completed(cookie), what)

    def content(self) -> bytes:
        size: int = self._handle.get_size()
        data = bytearray()
        while len(data) < size:
            buffer = nbd.Buffer(min(MIB, size - len(data)))
            self._finish(self._handle.aio_pread(buffer, len(data)), f"{buffer.size()} bytes at {len(data)}")
            data += buffer.to_bytearray()
        return bytes(data)

    def write(self, data: bytes, offset: int) -> None:
        self._finish(self._handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset), "a write")
        if self._handle.can_flush():
            self._finish(self._handle.aio_flush(), "a flush")

    def close(self) -> None:
        self._handle.aio_disconnect()
        self._wait(lambda: self._handle.aio_is_closed() or self._handle.aio_is_dead(), "a goodbye")


def content(uri: str) -> bytes:
    with contextlib.closing(Client(uri)) as client:
        return client.content()


def write(uri: str, data: bytes, offset: int) -> None:
    with contextlib.closing(Client(uri)) as client:
        client.write(data, offset)


def is_refused(uri: str) -> bool:
    with contextlib.closing(Client(uri)) as client:
        try:
            client.write(bytes(512), 0)
        except nbd.Error:
            return True
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")
async def test_a_directory_written_for_debians_nbd_server_serves_the_same_bytes_unchanged(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = short_tmp / "nbd-server"
    (folder / "conf.d").mkdir(parents=True)
    for seed, (name, size) in enumerate(
        {"main.raw": MIB, "vol1.raw": 2 * MIB, "vol2.raw": 4 * MIB, "odd.raw": ODD, "device.raw": 2 * MIB}.items()
    ):
        noise(folder / name, size, seed)
    with ExitStack() as devices:
        device = devices.enter_context(loop_device(folder / "device.raw"))
        port = free_port()
        conf = folder / "nbd-server.conf"
        conf.write_text(MAIN.format(folder=folder, port=port))
        for file, text in CONF_D.items():
            (folder / "conf.d" / file).write_text(text.format(folder=folder, device=device))
        files = {path: path.read_text() for path in (conf, *sorted((folder / "conf.d").iterdir()))}
        writable = ("vol1", "migration-vm-a1b2c3d4-disk0")
        names = {"in-the-main-file", "vol1", "vol2", "odd", "first-part", "migration-vm-a1b2c3d4-disk0"}

        async with nbd_server(conf, port) as theirs:
            for name in writable:
                await asyncio.to_thread(write, f"{theirs}/{name}", b"written through nbd-server", 12345)
            expected = {name: await asyncio.to_thread(content, f"{theirs}/{name}") for name in names}
        assert (len(expected["odd"]), len(expected["first-part"])) == (ODD, MIB)

        monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
        monkeypatch.setenv("SENDENSE_EXPORTS_CONFIG_FILE", str(conf))
        monkeypatch.setenv("SENDENSE_EXPORTS_ROOTS", str(folder))
        monkeypatch.setenv("SENDENSE_EXPORTS_DEVICE_PATTERN", "/dev/loop[0-9]+")
        monkeypatch.setenv("SENDENSE_EXPORTS_TCP_LISTEN", "config")  # listens where nbd-server did
        async with nbdd_running(ExportsSettings()) as nbdd:
            status = nbdd.status()
            assert status.tcp_addresses == [f"127.0.0.1:{port}"]
            assert {name: entry.state for name, entry in status.exports.items()} == dict.fromkeys(names, "serving")
            assert (status.problems, status.warnings) == ([], [])
            assert await listed(nbdd) == names
            served = {name: await asyncio.to_thread(content, f"{theirs}/{name}") for name in names}
            # qemu counts in sectors: the odd one has its bytes, then zeroes, and a warning says so
            odd = served.pop("odd")
            assert odd == expected.pop("odd") + bytes(-ODD % 512)
            assert f"{ODD} bytes are no multiple of 512" in status.exports["odd"].size_warning
            assert served == expected
            for name in names:
                assert await asyncio.to_thread(is_refused, nbdd.uri(name)) == (name not in writable)
            for name in writable:
                await asyncio.to_thread(write, f"{theirs}/{name}", b"written through nbdd", 700_001)
            warned = " ".join(status.exports["vol2"].warnings)
            assert "maxconnections has no effect" in warned
            assert "timeout has no effect" in warned
        assert {path: path.read_text() for path in files} == files

        async with nbd_server(conf, port) as theirs:  # and back again
            for name in writable:
                data = await asyncio.to_thread(content, f"{theirs}/{name}")
                assert data[700_001:].startswith(b"written through nbdd")
                assert data[12345:].startswith(b"written through nbd-server")
