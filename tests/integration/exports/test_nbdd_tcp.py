"""The TCP address in front of the daemon's socket: off unless wanted, bounded, and no danger to anything else."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from pathlib import Path

import nbd
import pytest
from nbdd_process import DEADLINE, RunningNbdd, nbdcopy, nbdd_running, noise, overlay

from sendense_exports.config import ExportsSettings
from support import free_port

MIB = 1 << 20


@pytest.fixture
def settings(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ExportsSettings:
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    return ExportsSettings()


def configure(settings: ExportsSettings, keys: str) -> None:
    settings.conf_dir.mkdir(parents=True, exist_ok=True)
    settings.conf_file.write_text(f"[generic]\n{keys}includedir = {settings.conf_dir}\n")


def connect(nbdd: RunningNbdd, name: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.connect_uri(f"nbd://{nbdd.status().tcp_addresses[0]}/{name}")
    return handle


async def test_without_the_setting_nothing_listens_and_the_keys_are_named_in_warnings(
    settings: ExportsSettings,
) -> None:
    port = free_port()
    configure(settings, f"listenaddr = 127.0.0.1\nport = {port}\n")
    async with nbdd_running(settings) as nbdd:
        status = nbdd.status()
        assert (status.tcp_addresses, status.tcp_error) == ([], "")
        for line, key in ((2, "listenaddr"), (3, "port")):
            assert any(f"nbd-server.conf:{line}: {key} has no effect" in text for text in status.warnings)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        listening = _tcp_listeners(nbdd.process.pid) + _tcp_listeners(status.daemon_pid)
        assert listening == 0


def _tcp_listeners(pid: int) -> int:
    """Listening TCP sockets of a process, as the kernel lists them."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(fd.readlink()))
        except FileNotFoundError:
            continue
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            count += fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    return count


@pytest.mark.parametrize(
    ("keys", "conf", "problem"),
    [
        ("force_tls = true\n", "", "force_tls"),
        ("", "authfile = /etc/nbd-server/allow\n", "export disk has an authfile"),
        ("port = nbd\n", "", "'nbd' is no port"),
    ],
)
async def test_it_stays_shut_beside_demands_that_it_cannot_meet(
    settings: ExportsSettings, keys: str, conf: str, problem: str
) -> None:
    configure(settings, keys)
    async with nbdd_running(settings, SENDENSE_EXPORTS_TCP_LISTEN="config") as nbdd:
        nbdd.conf("disk", await overlay(settings.root / "backups", "vm"), more=conf)
        status = await nbdd.reload()
        assert status.exports["disk"].state == "serving", "the Unix socket's owner decides there"
        assert status.tcp_addresses == []
        assert problem in status.tcp_error
        if conf:
            assert any("authfile is not enforced" in text for text in status.exports["disk"].warnings)
            nbdd.conf("disk", settings.root / "backups" / "vm-incr.qcow2")
            status = await nbdd.reload()
            assert len(status.tcp_addresses) == 1


async def test_an_address_in_use_is_shown_and_taken_when_it_is_free(settings: ExportsSettings) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    with other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        async with nbdd_running(settings, SENDENSE_EXPORTS_TCP_LISTEN=address) as nbdd:
            assert "cannot listen on 127.0.0.1 port" in nbdd.status().tcp_error
            other.close()
            await nbdd.wait(lambda status: status.tcp_addresses == [address] and not status.tcp_error)


async def test_another_address_disturbs_no_transfer(settings: ExportsSettings) -> None:
    first, second = free_port(), free_port()
    configure(settings, f"port = {first}\n")
    async with nbdd_running(settings, SENDENSE_EXPORTS_TCP_LISTEN="config") as nbdd:
        images = settings.root / "backups"
        nbdd.conf("disk", noise(images / "disk.raw", MIB), "raw")
        await nbdd.reload()
        handle = await asyncio.to_thread(connect, nbdd, "disk")
        configure(settings, f"port = {second}\n")
        assert (await nbdd.reload()).tcp_addresses == [f"127.0.0.1:{second}"]
        assert await asyncio.to_thread(handle.pread, MIB, 0) == (images / "disk.raw").read_bytes()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", first)) != 0
        await nbdcopy(f"nbd://127.0.0.1:{second}/disk", images / "copy.raw")
        assert (images / "copy.raw").read_bytes() == (images / "disk.raw").read_bytes()
        await asyncio.to_thread(handle.shutdown)


async def test_connections_are_bounded_and_end_with_the_daemon(settings: ExportsSettings) -> None:
    most = 3
    environment = {"SENDENSE_EXPORTS_TCP_LISTEN": "127.0.0.1:0", "SENDENSE_EXPORTS_TCP_CONNECTIONS": str(most)}
    async with nbdd_running(settings, **environment) as nbdd:
        images = settings.root / "backups"
        nbdd.conf("disk", noise(images / "disk.raw", MIB), "raw", read_only=True)
        await nbdd.reload()
        handles = [await asyncio.to_thread(connect, nbdd, "disk") for _ in range(most)]
        with pytest.raises(nbd.Error):
            await asyncio.to_thread(connect, nbdd, "disk")
        await asyncio.to_thread(handles.pop().shutdown)
        async with asyncio.timeout(DEADLINE):
            while len(handles) < most:  # its place is free a moment after
                try:
                    handles.append(await asyncio.to_thread(connect, nbdd, "disk"))
                except nbd.Error:
                    await asyncio.sleep(0.01)
        os.kill(nbdd.status().daemon_pid, signal.SIGKILL)
        for handle in handles:
            with pytest.raises(nbd.Error):
                await asyncio.to_thread(handle.pread, 512, 0)
        await nbdd.wait(lambda status: status.daemon_starts == 2 and status.exports["disk"].state == "serving")
        again = await asyncio.to_thread(connect, nbdd, "disk")
        assert await asyncio.to_thread(again.pread, MIB, 0) == (images / "disk.raw").read_bytes()
        await asyncio.to_thread(again.shutdown)


async def test_a_client_that_was_reset_gives_its_place_back(settings: ExportsSettings) -> None:
    environment = {"SENDENSE_EXPORTS_TCP_LISTEN": "127.0.0.1:0", "SENDENSE_EXPORTS_TCP_CONNECTIONS": "1"}
    async with nbdd_running(settings, **environment) as nbdd:
        nbdd.conf("disk", noise(settings.root / "backups" / "disk.raw", MIB), "raw", read_only=True)
        await nbdd.reload()
        broken = await asyncio.to_thread(connect, nbdd, "disk")
        with socket.socket(fileno=os.dup(broken.aio_get_fd())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        del broken  # closes without a goodbye: with SO_LINGER, a reset
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    handle = await asyncio.to_thread(connect, nbdd, "disk")
                    break
                except nbd.Error:
                    await asyncio.sleep(0.05)
        assert len(await asyncio.to_thread(handle.pread, MIB, 0)) == MIB
        await asyncio.to_thread(handle.shutdown)
