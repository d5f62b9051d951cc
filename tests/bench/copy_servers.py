"""Real servers for the copy benchmarks: an nbdkit source, a stock and a tuned qemu-storage-daemon, all in memory."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from figures import MIB, TUNED

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import CopyOptions, copy
from sendense_blockio.extents import Extent, areas_digest
from sendense_blockio.journal import JournalHeader, JournalWriter

START_SECONDS = 20.0
DAEMON_ACCESS = ",aio=io_uring,cache.direct=on"
"""How nbdd opens files (`sendense_qemu.nodes`)."""


class CopyServers:
    """Servers over one source and two targets, and ways to copy between them.

    Attributes:
        directory: Where everything lies, in memory.
        size: Bytes of the disk.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self._processes: list[subprocess.Popen[bytes]] = []
        self._journals = 0

    @property
    def source(self) -> Endpoint:
        """The disk to be copied."""
        return Endpoint.unix(self.directory / "source.sock")

    def target(self, daemon: str) -> Endpoint:
        """Returns the `stock` or `tuned` daemon's disk."""
        return Endpoint.unix(self.directory / f"{daemon}.sock", "disk")

    def start(self) -> None:
        """Fills the source with incompressible bytes and starts nbdkit and both daemons.

        Both daemons' images lie over one raw file whose pages are resident, below a new qcow2 header each.
        """
        source = self.directory / "source"
        with source.open("wb") as stream:
            # The hole in the first page answers nbdkit's own SEEK_HOLE of each connection at once; in a tmpfs file
            # without a hole it would walk all pages, 10 ms a GiB.
            stream.seek(4096)
            stream.write(random.randbytes(MIB - 4096))
            for _ in range(self.size // MIB - 1):
                stream.write(random.randbytes(MIB))
        self.run(["nbdkit", "-f", "-U", str(self.directory / "source.sock"), "file", str(source)], {})
        for name, environment, access in (("stock", {}, ""), ("tuned", TUNED, DAEMON_ACCESS)):
            image = self.directory / f"{name}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(self.size)], check=True)
            self.run(
                [
                    "qemu-storage-daemon",
                    "--blockdev", f"driver=file,node-name=file,filename={image}{access}",
                    "--blockdev", "driver=qcow2,node-name=disk,file=file",
                    "--nbd-server", f"addr.type=unix,addr.path={self.directory / name}.sock",
                    "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
                ],
                environment,
            )  # fmt: skip
        for name in ("source", "stock", "tuned"):
            self.await_socket(self.directory / f"{name}.sock")

    def await_socket(self, path: Path) -> None:
        """Waits until a server made its socket."""
        deadline = time.monotonic() + START_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at {path}")
            time.sleep(0.01)

    def run(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts a program that is ended with the servers."""
        process = subprocess.Popen(arguments, env={**os.environ, **environment})
        self._processes.append(process)
        return process

    def end(self) -> None:
        """Ends what was started, last first."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(10)

    def cpu_seconds(self) -> float:
        """Returns the processor time so far of the servers, of this process and of the programs that it ran."""
        ticks = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        ours = os.times()
        return ticks / os.sysconf("SC_CLK_TCK") + sum(ours[:4])

    def qemu_img(self) -> None:
        """Copies with `qemu-img convert` into the tuned daemon's existing image."""
        uri = f"nbd+unix:///disk?socket={self.directory}/tuned.sock"
        source = f"nbd+unix:///?socket={self.directory}/source.sock"
        subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri], check=True)

    def nbdcopy(self, daemon: str, *options: str, source: Path | None = None) -> None:
        """Copies with nbdcopy, flushed at the end; from the servers' own source or another socket."""
        subprocess.run(
            [
                "nbdcopy", "--flush", *options,
                f"nbd+unix:///?socket={source or self.directory / 'source.sock'}",
                f"nbd+unix:///disk?socket={self.directory}/{daemon}.sock",
            ],
            check=True,
        )  # fmt: skip

    def engine(
        self, options: CopyOptions, areas: list[Extent], source: Endpoint | None = None, target: Endpoint | None = None
    ) -> None:
        """Copies with the engine into the tuned daemon (or elsewhere), each batch durably into a journal."""
        self._journals += 1
        header = JournalHeader("bench", 1, "", areas_digest(areas, self.size), self.size)
        path = self.directory / f"journal-{self._journals}"
        with JournalWriter.create(path, header) as journal:
            copy(
                source or self.source,
                target or self.target("tuned"),
                areas,
                options,
                lambda batch: journal.append_batch(batch.sequence, batch.entries) and None,
            )
        path.unlink()


@contextmanager
def copy_servers(size: int) -> Iterator[CopyServers]:
    """Runs the servers in memory for the time of the block."""
    directory = Path(tempfile.mkdtemp(prefix="bench-copy-", dir="/dev/shm"))
    servers = CopyServers(directory, size)
    try:
        servers.start()
        yield servers
    finally:
        servers.end()
        shutil.rmtree(directory)
