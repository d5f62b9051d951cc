"""Row 9: whatever an NBD client does, other exports stay live in the same daemon, and its own export can be removed.

The client is a socket and bytes: no library refuses anything before it is sent. A neighbour writes and reads through
libnbd all the while, and its bytes are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbd
import pytest

from integration.exports.nbdd_process import RunningNbdd, listed, nbdd_running, overlay
from sendense_exports.config import ExportsSettings
from sendense_qemu import img

MIB = 1 << 20
SIZE = 4 * MIB
SECONDS = 5.0

OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
REPLY_ACK = 1
ERROR = 1 << 31

pytestmark = pytest.mark.faults


class Hostile:
    """A connection that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    def greet(self) -> None:
        assert self.read(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.sock.sendall(struct.pack(">I", 3))

    def option(self, code: int, data: bytes = b"", *, says: int | None = None) -> int:
        """Sends an option and returns the kind of the last reply to it."""
        self.sock.sendall(OPTION.pack(b"IHAVEOPT", code, len(data) if says is None else says) + data)
        while True:
            _, _, kind, length = OPTION_REPLY.unpack(self.read(OPTION_REPLY.size))
            self.read(length)
            if kind == REPLY_ACK or kind & ERROR:
                return int(kind)

    def go(self, name: bytes) -> int:
        return self.option(GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))

    def choose(self, name: bytes = b"target", *, context: bytes = b"") -> None:
        """Gets into the transmission phase."""
        self.greet()
        if context:
            assert self.option(STRUCTURED) == REPLY_ACK
            query = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(context)) + context
            assert self.option(SET_META, query) == REPLY_ACK
        assert self.go(name) == REPLY_ACK

    def request(self, kind: int, offset: int, length: int, *, flags: int = 0, data: bytes = b"") -> None:
        self.sock.sendall(REQUEST.pack(REQUEST_MAGIC, flags, kind, 1, offset & (2**64 - 1), length) + data)

    def is_answered_or_cut_off(self) -> bool:
        try:
            return len(self.sock.recv(1 << 16)) >= 0
        except ConnectionResetError:
            return True


def unknown_exports(client: Hostile) -> None:
    client.greet()
    for name in (b"no-such", b"", b"target\0", b"../target", b"\xff\xfe", b"x" * 4096):
        assert client.go(name) & ERROR
    assert client.go(b"target") == REPLY_ACK


def malformed_options(client: Hostile) -> None:
    client.greet()
    assert client.option(GO, b"\xff\xff\xff\xff") & ERROR  # a name of 4 GiB
    assert client.option(INFO, b"") & ERROR
    assert client.option(SET_META, struct.pack(">I", 6) + b"target" + struct.pack(">I", 1 << 30)) & ERROR
    assert client.option(0x7FFFFFFF, b"?") & ERROR
    assert client.option(STARTTLS) & ERROR
    with contextlib.suppress(ConnectionError):
        client.option(LIST, b"", says=1 << 31)


def endless_options(client: Hostile) -> None:
    client.greet()
    with contextlib.suppress(ConnectionError):
        for _ in range(2000):
            client.option(LIST)


def noise_instead_of_a_greeting(client: Hostile) -> None:
    with contextlib.suppress(ConnectionError):
        client.sock.sendall(random.Random(9).randbytes(1 << 20))


def noise_instead_of_requests(client: Hostile) -> None:
    client.choose()
    with contextlib.suppress(ConnectionError):
        client.sock.sendall(random.Random(9).randbytes(1 << 20))
        assert client.is_answered_or_cut_off()


def huge_block_status(client: Hostile) -> None:
    client.choose(context=b"base:allocation")
    for length in (0xFFFFFFFF, SIZE, 0):
        client.request(STATUS, 0, length)
    for _ in range(50):
        client.request(STATUS, 0, SIZE - 1)
    assert client.is_answered_or_cut_off()


def status_of_everything_without_reading_the_answers(client: Hostile) -> None:
    client.choose(context=b"base:allocation")
    client.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(20_000):
            client.request(STATUS, 0, SIZE)


def requests_out_of_bounds(client: Hostile) -> None:
    client.choose()
    for kind in (READ, ZEROES, TRIM, CACHE):
        for offset, length in ((SIZE, 512), (SIZE - 1, 512), (-512, 1024), (2**63, 0xFFFFFFFF), (0, 0xFFFFFFFF)):
            client.request(kind, offset, length)
    assert client.is_answered_or_cut_off()


def a_write_whose_data_never_comes(client: Hostile) -> None:
    client.choose()
    client.request(WRITE, 0, 32 * MIB)
    client.sock.sendall(bytes(1000))


def a_huge_write(client: Hostile) -> None:
    client.choose()
    with contextlib.suppress(ConnectionError):
        client.request(WRITE, 0, 0xFFFFFFFF, data=bytes(MIB))


def reads_that_are_not_taken(client: Hostile) -> None:
    client.choose()
    client.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(64):
            client.request(READ, 0, SIZE)


def unknown_commands(client: Hostile) -> None:
    client.choose()
    for kind in (8, 99, 0xFFFF):
        client.request(kind, 0, 512)
    client.request(READ, 0, 512, flags=0xFFFF)
    assert client.is_answered_or_cut_off()


def silence(client: Hostile) -> None:
    """Nothing at all: not even an answer to the greeting."""


ATTACKS: list[Callable[[Hostile], None]] = [
    unknown_exports,
    malformed_options,
    endless_options,
    noise_instead_of_a_greeting,
    noise_instead_of_requests,
    huge_block_status,
    status_of_everything_without_reading_the_answers,
    requests_out_of_bounds,
    a_write_whose_data_never_comes,
    a_huge_write,
    reads_that_are_not_taken,
    unknown_commands,
    silence,
]


@dataclass
class Site:
    """An nbdd with an export to attack and a neighbour that must not notice."""

    nbdd: RunningNbdd
    images: Path

    @property
    def socket(self) -> Path:
        return self.nbdd.settings.nbd_socket


@pytest.fixture
async def site(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    settings = ExportsSettings()
    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        nbdd.conf("target", await overlay(images, "target", SIZE // MIB))
        nbdd.conf("neighbour", await overlay(images, "neighbour", SIZE // MIB))
        await nbdd.reload()
        yield Site(nbdd, images)


@contextlib.contextmanager
def neighbour(site: Site) -> Iterator[Callable[[], None]]:
    """A client of the other export; what it yields writes, flushes and reads back at a random place."""
    handle = nbd.NBD()
    handle.set_export_name("neighbour")
    handle.connect_unix(str(site.socket))
    dice = random.Random(11)

    def works() -> None:
        offset = dice.randrange(0, SIZE - 65536)
        data = dice.randbytes(65536)
        handle.pwrite(data, offset)
        handle.flush()
        assert handle.pread(65536, offset) == data

    works()
    yield works
    handle.shutdown()


async def test_no_attack_disturbs_another_export_and_the_attacked_one_can_be_removed(site: Site) -> None:
    before = site.nbdd.status()
    with neighbour(site) as works, contextlib.ExitStack() as held:
        for attack in ATTACKS:
            client = Hostile(site.socket)
            held.enter_context(client.sock)  # stays open to the end, whatever became of it
            await asyncio.to_thread(attack, client)
            await asyncio.to_thread(works)
            assert await listed(site.nbdd) == {"target", "neighbour"}, attack.__name__
        # all those sockets are held open through the removal
        (site.nbdd.settings.conf_dir / "target.conf").unlink()
        assert (await site.nbdd.reload()).exports["target"].state == "draining"
        await asyncio.to_thread(works)
        (site.nbdd.settings.force_dir / "target").touch()
        await site.nbdd.reload()
        after = await site.nbdd.wait(lambda status: "target" not in status.exports)
        assert await listed(site.nbdd) == {"neighbour"}
        await asyncio.to_thread(works)
    assert (after.daemon_pid, after.daemon_starts) == (before.daemon_pid, 1)
    assert after.exports["neighbour"].state == "serving"
    assert (await img.check(site.images / "target-incr.qcow2")).is_sound, "and nobody holds its lock"


async def test_sixty_silent_sockets_keep_nobody_out(site: Site) -> None:
    with neighbour(site) as works, contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(Hostile(site.socket).sock)
        await asyncio.to_thread(works)
        assert await listed(site.nbdd) == {"target", "neighbour"}


async def test_a_client_that_asks_for_all_memory_ends_at_the_daemons_limit(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen reads of 32 MiB on each of forty connections, and no answer is taken: 20 GiB if nobody stopped it."""
    limit = 256
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    monkeypatch.setenv("SENDENSE_EXPORTS_DAEMON_MEMORY_MIB", str(limit))
    settings = ExportsSettings()
    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        with (images / "large.raw").open("wb") as file:
            file.truncate(64 * MIB)
        nbdd.conf("target", images / "large.raw", "raw")
        await nbdd.reload()
        largest = 0
        with contextlib.ExitStack() as held:
            for _ in range(40):
                with contextlib.suppress(OSError):  # the daemon may have ended meanwhile
                    client = Hostile(settings.nbd_socket)
                    held.enter_context(client.sock)
                    await asyncio.to_thread(client.greet)
                    # A daemon that was just started anew does not serve the export yet.
                    if await asyncio.to_thread(client.go, b"target") == REPLY_ACK:
                        for _ in range(16):
                            await asyncio.to_thread(client.request, READ, 0, 32 * MIB)
                largest = max(largest, _data_bytes(nbdd.status().daemon_pid))
            await asyncio.sleep(0.2)
            largest = max(largest, _data_bytes(nbdd.status().daemon_pid))
        assert 0 < largest <= limit * MIB
        await nbdd.wait(lambda status: status.exports["target"].state == "serving")
        assert await listed(nbdd) == {"target"}
        print(f"data at most {largest // MIB} MiB, {nbdd.status().daemon_starts} starts")  # noqa: T201


def _data_bytes(pid: int) -> int:
    """What a process uses of RLIMIT_DATA; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)


async def test_the_daemon_runs_under_its_limit(site: Site) -> None:
    limits = Path(f"/proc/{site.nbdd.status().daemon_pid}/limits").read_text()  # noqa: ASYNC240
    (line,) = (line for line in limits.splitlines() if line.startswith("Max data size"))
    assert line.split()[3:5] == [str(site.nbdd.settings.daemon_memory_mib << 20)] * 2
    assert os.getpid() != site.nbdd.status().daemon_pid
