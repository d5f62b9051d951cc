"""One qemu-storage-daemon process, driven over QMP.

What always holds: the daemon is started with a large mmap threshold (else each request costs page faults: reads
3 times, writes 1.6 times as slow) and without an iothread (qemu 7.2 aborts at a client's disconnect with one);
its death is noticed at once through a pidfd, whoever started it; every command has a deadline.

A daemon that dies loses what it acknowledged and did not flush, and no check shows it (DESIGN 4): whoever
learns of `gone` begins a new epoch.

Over 400 lines, since start, attach, commands and end share the one state of the process.

Over 400 lines: one class, with a short method for each command of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from sendense_qemu.errors import StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.monitor import Monitor, MonitorLostError, check_socket_path, listener_pid
from sendense_qemu.nodes import Aio

START_SECONDS = 15.0
STOP_SECONDS = 10.0

MEMORY_BYTES = 4 << 30
"""A client may have 16 requests of 32 MiB in flight on each connection: without a limit a few clients could take all
memory of the machine. Twenty of our own copies have 160 MiB in flight (2 connections, 4 requests of 1 MiB each)."""

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}
_RETRY_SECONDS = 0.01
_FIRST_GREETING_SECONDS = 0.25
"""How long a first client waits for its greeting; each further attempt waits twice as long."""
_LOG_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BlockExport:
    """An export that the daemon has.

    Attributes:
        id: As given when it was added.
        type: `nbd` or `fuse`.
        node_name: The node that it serves.
        shutting_down: It is being removed; clients may still hang on it.
    """

    id: str
    type: str
    node_name: str
    shutting_down: bool


class StorageDaemon:
    """A running daemon; made by `start` or `attach`, not by its constructor.

    Attributes:
        pid: Its process id.
        qmp_socket: Where it takes commands.
        aio: The fastest file interface that works in it here.
        gone: Done when the process has ended; its result says how.
    """

    def __init__(self, pid: int, monitor: Monitor) -> None:
        self.pid = pid
        self.qmp_socket = monitor.socket_path
        self.aio: Aio = "threads"
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._monitor = monitor
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        qmp_socket: Path,
        *,
        log_path: Path,
        die_with_parent: bool = False,
        memory_bytes: int | None = MEMORY_BYTES,
    ) -> Self:
        """Starts a daemon with nothing to serve yet.

        Args:
            qmp_socket: Where it shall take commands; a socket that was left there is removed.
            log_path: Receives what it prints; overwritten.
            die_with_parent: Kill it when the calling thread ends. Otherwise it outlives its parent and can be
                taken up with `attach`.
            memory_bytes: The most memory that it may use for data (RLIMIT_DATA: heap and buffers, no page cache);
                None for no limit. A request for which there is no room fails; where qemu cannot do that, it ends.

        Raises:
            StorageDaemonError: It could not be started within 15 s; carries the end of its log.
        """
        check_socket_path(qmp_socket)
        ready_file = qmp_socket.with_name(qmp_socket.name + ".pid")
        for left in (qmp_socket, ready_file):
            _forget(left)
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        most_files = "unlimited" if files == resource.RLIM_INFINITY else str(files)
        command = ["prlimit", f"--nofile={most_files}:{most_files}", "--core=0"]
        if memory_bytes is not None:
            command.append(f"--data={memory_bytes}")
        command.append("--")
        if die_with_parent:
            command += ["setpriv", "--pdeathsig", "KILL", "--"]
        command += [
            "qemu-storage-daemon",
            "--chardev",
            f"socket,id=qmp,path={str(qmp_socket).replace(',', ',,')},server=on,wait=off",
            "--monitor",
            "chardev=qmp,mode=control",
            "--pidfile",
            str(ready_file),
        ]
        try:
            with log_path.open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **_ENVIRONMENT},
                    start_new_session=True,  # Ctrl-C is for its parent, which stops it in order
                )
        except OSError as error:
            raise StorageDaemonError("start", str(error)) from error
        try:
            daemon = cls(process.pid, await _connect(qmp_socket, ready_file, process))
            daemon._process = process
            daemon._watcher = asyncio.create_task(daemon._watch_child(process))
            await daemon._probe_aio()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
            _forget(qmp_socket)
            _forget(ready_file)
            if isinstance(error, StorageDaemonError | OSError):
                raise StorageDaemonError("start", f"{error}; its log ends: {_tail(log_path)}") from error
            raise
        return daemon

    @classmethod
    async def attach(cls, qmp_socket: Path) -> Self:
        """Takes up a daemon that another process started.

        Raises:
            StorageDaemonError: Nobody answers on that socket.
        """
        try:
            pid = await asyncio.to_thread(listener_pid, qmp_socket)
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise StorageDaemonError("attach", f"{qmp_socket}: {error}") from error
        monitor = Monitor(qmp_socket)
        try:
            await monitor.connect()
        except BaseException:
            os.close(pidfd)
            raise
        daemon = cls(pid, monitor)
        daemon._watcher = asyncio.create_task(daemon._watch_stranger(pidfd))
        await daemon._probe_aio()
        return daemon

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Runs one QMP command.

        Returns:
            What the daemon answers.

        Raises:
            StorageDaemonGoneError: It has ended.
            StorageDaemonError: It refused, or did not answer within 30 s.
        """
        if self.gone.done():
            raise StorageDaemonGoneError(command, self.gone.result())
        try:
            return await self._monitor.execute(command, arguments)
        except MonitorLostError as error:
            # the process's end shows a moment after its socket's
            if await self._ended_within(1.0):
                raise StorageDaemonGoneError(command, self.gone.result()) from error
            raise

    async def serve_nbd(self, socket_path: Path, *, max_connections: int = 512) -> None:
        """Starts the daemon's one NBD listener, on a Unix socket; a socket that was left there is removed.

        Raises:
            StorageDaemonError: It listens already, or the socket cannot be made.
        """
        check_socket_path(socket_path)
        _forget(socket_path)
        address = {"type": "unix", "data": {"path": str(socket_path)}}
        await self.execute("nbd-server-start", {"addr": address, "max-connections": max_connections})

    async def add_node(self, node: Mapping[str, Any]) -> None:
        """Opens an image as `sendense_qemu.nodes` describes it.

        Raises:
            StorageDaemonError: It cannot be opened, or is locked (`is_locked`).
        """
        await self.execute("blockdev-add", node)

    async def remove_node(self, node_name: str) -> None:
        """Flushes and closes an image, its lock with it.

        Raises:
            StorageDaemonError: An export uses it, or there is none.
        """
        await self.execute("blockdev-del", {"node-name": node_name})

    async def node_size(self, node_name: str) -> int:
        """Returns an image's virtual size in bytes.

        Raises:
            StorageDaemonError: There is no such node.
        """
        nodes = await self.execute("query-named-block-nodes", {"flat": True})
        for node in nodes:
            if node["node-name"] == node_name:
                return int(node["image"]["virtual-size"])
        raise StorageDaemonError("query-named-block-nodes", f"no node {node_name}")

    async def node_names(self) -> frozenset[str]:
        """Returns the names of all nodes, qemu's own (`#block…`) included."""
        nodes = await self.execute("query-named-block-nodes", {"flat": True})
        return frozenset(node["node-name"] for node in nodes)

    async def add_nbd_export(self, export_id: str, node_name: str, name: str, *, writable: bool) -> None:
        """Offers a node over NBD.

        Args:
            export_id: For `remove_export`; letters, digits, `-._`, starting with a letter.
            node_name: The node.
            name: What clients ask for.
            writable: Whether they may write.

        Raises:
            StorageDaemonError: The name or id is taken, or the node is read-only.
        """
        await self.execute(
            "block-export-add",
            {"type": "nbd", "id": export_id, "node-name": node_name, "name": name, "writable": writable},
        )

    async def add_fuse_export(self, export_id: str, node_name: str, mountpoint: Path, *, writable: bool) -> None:
        """Offers a node as a raw file.

        Args:
            export_id: For `remove_export`.
            node_name: The node.
            mountpoint: Absolute path of an existing regular file, which the export covers.
            writable: Whether it may be written.

        Raises:
            StorageDaemonError: FUSE is missing or refused, or the mount point is no file.
        """
        await self.execute(
            "block-export-add",
            {
                "type": "fuse",
                "id": export_id,
                "node-name": node_name,
                "mountpoint": str(mountpoint),
                "writable": writable,
                "growable": False,
                "allow-other": "off",
            },
        )

    async def remove_export(self, export_id: str, *, mode: Literal["safe", "hard"] = "safe") -> None:
        """Asks for an export's end; it is over when `list_exports` no longer has it.

        Args:
            export_id: As given when it was added.
            mode: `safe` refuses while clients are connected, `hard` cuts them off.

        Raises:
            StorageDaemonError: It is in use, or there is none.
        """
        await self.execute("block-export-del", {"id": export_id, "mode": mode})

    async def list_exports(self) -> list[BlockExport]:
        """Returns the exports that the daemon has now."""
        return [
            BlockExport(said["id"], said["type"], said["node-name"], said["shutting-down"])
            for said in await self.execute("query-block-exports")
        ]

    async def stop(self) -> None:
        """Ends the daemon in order (exports closed, images flushed) and waits; kills it after 10 s.

        Raises:
            StorageDaemonError: It could not even be killed.
        """
        with contextlib.suppress(ProcessLookupError):
            if not self.gone.done():
                self._signal(signal.SIGTERM)
        if not await self._ended_within(STOP_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                self._signal(signal.SIGKILL)
            if not await self._ended_within(STOP_SECONDS):
                raise StorageDaemonError("stop", f"process {self.pid} does not end")
        await self.detach()
        _forget(self.qmp_socket)

    async def detach(self) -> None:
        """Lets go of the daemon, which goes on."""
        if self._watcher is not None:
            if not self.gone.done():  # else it is closing the connection, which must not be cut short
                self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._monitor.close()

    def _signal(self, number: signal.Signals) -> None:
        # A child that is not yet reaped keeps its pid; a stranger's may be another process by now only after `gone`.
        if self._process is not None:
            self._process.send_signal(number)
        else:
            os.kill(self.pid, number)

    async def _ended_within(self, seconds: float) -> bool:
        await asyncio.wait([self.gone], timeout=seconds)
        return self.gone.done()

    async def _watch_child(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        await self._note_gone(f"ended with status {status}")

    async def _watch_stranger(self, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        await self._note_gone("ended")

    async def _note_gone(self, how: str) -> None:
        if not self.gone.done():
            self.gone.set_result(f"process {self.pid} {how}")
        await self._monitor.close()

    async def _probe_aio(self) -> None:
        """Finds the fastest file interface by opening a small file with each."""
        choices: tuple[Aio, ...] = ("io_uring", "native")
        with tempfile.NamedTemporaryFile(dir=self.qmp_socket.parent, prefix=".aio-") as probe:
            probe.truncate(4096)
            for aio in choices:
                node = {
                    "driver": "file",
                    "node-name": "aio-probe",
                    "filename": probe.name,
                    "aio": aio,
                    "cache": {"direct": aio == "native"},
                    "read-only": True,
                }
                try:
                    await self.add_node(node)
                except StorageDaemonGoneError:
                    raise
                except StorageDaemonError:
                    continue
                await self.remove_node("aio-probe")
                self.aio = aio
                return


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _connect(qmp_socket: Path, ready_file: Path, process: asyncio.subprocess.Process) -> Monitor:
    """Waits until the daemon is ready, and connects.

    Its pid file is the sign: the socket is there before. A client that connects while the monitor is being moved to its
    thread (qemu 7.2) makes GLib complain of destroyed sources, and about once in a thousand starts gets no greeting.
    """
    monitor = Monitor(qmp_socket)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS
    patience = _FIRST_GREETING_SECONDS
    while True:
        if ready_file.exists():  # noqa: ASYNC240  # a stat
            try:
                await monitor.connect(patience)
            except MonitorLostError:
                patience *= 2
            else:
                _forget(ready_file)
                return monitor
        if process.returncode is not None:
            raise StorageDaemonError("start", f"ended with status {process.returncode}")
        if loop.time() > deadline:
            raise StorageDaemonError("start", f"not ready within {START_SECONDS:g} s")
        await asyncio.sleep(_RETRY_SECONDS)


def _tail(log_path: Path) -> str:
    try:
        text = log_path.read_bytes()[-_LOG_TAIL_BYTES:]
    except OSError as error:
        return f"(unreadable: {error})"
    return text.decode("utf-8", "replace").strip() or "(empty)"
