"""nbdd: keeps one qemu-storage-daemon serving exactly what the configuration says.

At its start and on SIGHUP it reads the generation, then the files, applies the difference and writes the status.
What always holds: one nbdd a configuration (a lock on its pid file); a change never restarts the daemon; the daemon's
death is answered with a new one and all exports, counted, with new epochs; a killed nbdd leaves the daemon serving,
and the next one takes it up; SIGTERM stops everything and removes the sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from sendense_exports.config import ExportsSettings
from sendense_exports.exportconf import Configuration, read_configuration
from sendense_exports.keyfile import KeyFileError
from sendense_exports.layout import ensure_layout, read_generation
from sendense_exports.roots import read_rules
from sendense_exports.serving import Serving
from sendense_exports.status import Status, StatusUnreadableError, read_status, write_status
from sendense_exports.tcp_forwarder import AddressError, TcpForwarder, wanted_address
from sendense_qemu.errors import StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.monitor import MonitorLostError
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_rpc.logs import configure_logs

log = structlog.get_logger()

DRAIN_SECONDS = 0.1
"""How often a removal that waits for clients is tried again."""
RETRY_SECONDS = 2.0
"""How often an export that could not be served is tried again, in the long run."""
FIRST_RETRY_SECONDS = 0.02
"""How soon at first: a killed daemon's io_uring may hold its images' locks for a moment after its end."""
FIRST_PAUSE_SECONDS = 0.01
"""Pause before the second start of a daemon that keeps dying; the first is at once, each further one twice as long."""
HEALTHY_SECONDS = 10.0
"""A daemon that lived so long died by accident, and the next one is started at once."""


class AlreadyRunningError(Exception):
    """Another nbdd serves this configuration."""


class Nbdd:
    """The daemon's supervisor; `run` is its life."""

    def __init__(self, settings: ExportsSettings) -> None:
        self._settings = settings
        self._serving = Serving(read_rules(settings))
        self._forwarder = TcpForwarder(settings.nbd_socket, settings.tcp_connections)
        self._tcp_error = ""
        self._daemon: StorageDaemon | None = None
        self._daemon_since = 0.0
        self._pause = 0.0
        self._starts = 0
        self._generation = -1
        self._config_error = ""
        self._configuration = Configuration({}, [], [])
        self._written: Status | None = None
        self._warned: set[str] = set()
        self._wake = asyncio.Event()
        self._reload = True
        self._retry = FIRST_RETRY_SECONDS
        self._stopping = False

    def request_reload(self) -> None:
        """Makes it read the configuration again."""
        self._reload = True
        self._wake.set()

    def request_stop(self) -> None:
        """Makes `run` stop everything and return."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Serves until it is told to stop.

        Raises:
            StorageDaemonError: The daemon cannot be started at all, the first time.
        """
        await self._begin()
        try:
            while not self._stopping:
                await self._turn()
        finally:
            await asyncio.shield(self._end())

    async def _begin(self) -> None:
        """Takes up a daemon that an earlier nbdd left, or starts one."""
        known: Status | None = None
        with contextlib.suppress(StatusUnreadableError):
            known = await asyncio.to_thread(read_status, self._settings.status_file)
        if known is not None:
            self._starts = known.daemon_starts
            self._generation = known.generation
        await self._read_configuration()
        daemon = await self._attach()
        if daemon is None:
            daemon = await self._start()
        self._adopt(daemon)
        exports = known.exports if known is not None else {}
        same = known is not None and known.daemon_pid == daemon.pid
        await self._serving.take_up(daemon, self._configuration.exports.values(), exports, same_daemon=same)

    async def _turn(self) -> None:
        """One round: repair, read, apply, tell, wait."""
        daemon = self._daemon
        self._wake.clear()
        try:
            if daemon is None or daemon.gone.done():
                daemon = await self._revive(daemon)
            await self._apply(daemon)
        except StorageDaemonGoneError:
            return  # the next round repairs it
        except MonitorLostError as error:
            log.warning("lost the daemon's monitor", error=str(error))
            await self._retake()
            return
        except StorageDaemonError as error:
            log.warning("qemu-storage-daemon does not work", error=str(error))
            self._config_error = str(error)
            self._reload = True
        await self._listen()
        await self._tell()
        await self._sleep()

    async def _apply(self, daemon: StorageDaemon) -> None:
        reload, self._reload = self._reload, False
        if reload:
            self._retry = FIRST_RETRY_SECONDS
        # The generation is read first: what was written after it is in a later one.
        generation = self._generation
        if reload:
            try:
                generation = await asyncio.to_thread(read_generation, self._settings.generation_file)
            except (OSError, ValueError) as error:
                log.warning("generation file is not readable", error=str(error))
            try:
                self._serving.rules = await asyncio.to_thread(read_rules, self._settings)
            except OSError as error:
                log.warning("the repositories' directories are not readable", error=str(error))
            await self._read_configuration()
        force = await asyncio.to_thread(_names_in, self._settings.force_dir)
        try:
            await self._serving.apply(daemon, self._configuration, force)
        except (StorageDaemonGoneError, MonitorLostError):
            self._reload = self._reload or reload
            raise
        if not self._config_error:
            self._generation = generation
        await asyncio.to_thread(_remove_all, self._settings.force_dir, force - self._serving.served.keys())

    async def _read_configuration(self) -> None:
        served_from = {name: served.spec.file for name, served in self._serving.served.items()}
        try:
            self._configuration = await asyncio.to_thread(
                read_configuration,
                self._settings.conf_file,
                served_from,
                listens_as_configured=self._settings.tcp_listen == "config",
            )
        except KeyFileError as error:
            self._config_error = str(error)
            log.warning("configuration is broken; everything stays as it is", error=str(error))
        else:
            self._config_error = ""
            self._warn()

    def _warn(self) -> None:
        """Logs each warning and problem of the files once, for as long as it is there."""
        now = {*self._configuration.warnings}
        now.update(warning for spec in self._configuration.exports.values() for warning in spec.warnings)
        now.update(f"{each.file}:{each.line}: {each.message}" for each in self._configuration.problems)
        for text in sorted(now - self._warned):
            log.warning("in the configuration", found=text)
        self._warned = now

    async def _listen(self) -> None:
        """Makes the TCP address what the setting and the configuration say."""
        wanted = None
        self._tcp_error = ""
        try:
            wanted = wanted_address(
                self._settings.tcp_listen, self._configuration.generic, self._configuration.restricted
            )
        except AddressError as error:
            self._tcp_error = str(error)
        await self._forwarder.listen(wanted)

    async def _attach(self) -> StorageDaemon | None:
        try:
            daemon = await StorageDaemon.attach(self._settings.qmp_socket)
        except StorageDaemonError:
            return None
        if await asyncio.to_thread(_listens, self._settings.nbd_socket):
            log.info("took up a running daemon", daemon_pid=daemon.pid)
            return daemon
        log.warning("the running daemon has no listener; it is replaced", daemon_pid=daemon.pid)
        await daemon.stop()
        return None

    async def _start(self) -> StorageDaemon:
        daemon = await StorageDaemon.start(
            self._settings.qmp_socket,
            log_path=self._settings.daemon_log,
            memory_bytes=self._settings.daemon_memory_mib << 20 or None,
        )
        self._starts += 1
        try:
            await daemon.serve_nbd(self._settings.nbd_socket)
        except BaseException:
            await asyncio.shield(daemon.stop())
            raise
        log.info("started qemu-storage-daemon", daemon_pid=daemon.pid, starts=self._starts)
        return daemon

    def _adopt(self, daemon: StorageDaemon) -> None:
        self._daemon = daemon
        self._daemon_since = asyncio.get_running_loop().time()
        daemon.gone.add_done_callback(lambda _: self._wake.set())

    async def _revive(self, dead: StorageDaemon | None) -> StorageDaemon:
        """Starts a new daemon; one that keeps dying is given pauses, each twice as long as the last."""
        if dead is not None:
            log.error("qemu-storage-daemon died; writable exports begin a new epoch", how=dead.gone.result())
            self._daemon = None
            self._serving.forget_daemon()
            await dead.detach()
            lived = asyncio.get_running_loop().time() - self._daemon_since
            self._pause = 0.0 if lived > HEALTHY_SECONDS else min(self._pause, self._settings.restart_pause_seconds)
            await asyncio.sleep(self._pause)
            self._pause = self._pause * 2 or FIRST_PAUSE_SECONDS
        daemon = await self._start()
        self._adopt(daemon)
        self._retry = FIRST_RETRY_SECONDS
        return daemon

    async def _retake(self) -> None:
        """Asks the daemon anew what it serves, after its connection broke in the middle of a command."""
        daemon = self._daemon
        if daemon is None or daemon.gone.done():
            return
        self._reload = True
        try:
            await self._serving.take_up(
                daemon, self._configuration.exports.values(), self._serving.status(), same_daemon=True
            )
        except StorageDaemonError as error:
            log.warning("the daemon does not answer; it is replaced", error=str(error))
            await daemon.stop()

    async def _tell(self) -> None:
        status = Status(
            generation=self._generation,
            pid=os.getpid(),
            daemon_pid=self._daemon.pid if self._daemon is not None else 0,
            daemon_starts=self._starts,
            socket_path=str(self._settings.nbd_socket),
            exports=self._serving.status(),
            config_error=self._config_error,
            problems=[
                {"file": str(problem.file), "line": problem.line, "message": problem.message}
                for problem in self._configuration.problems
            ],
            warnings=self._configuration.warnings,
            tcp_addresses=self._forwarder.listening,
            tcp_error=self._tcp_error or self._forwarder.error,
        )
        if status != self._written:
            await asyncio.to_thread(write_status, self._settings.status_file, status)
            self._written = status

    async def _sleep(self) -> None:
        timeout: float | None = None
        if self._daemon is None:
            timeout = RETRY_SECONDS
        elif any(served.draining for served in self._serving.served.values()):
            timeout = DRAIN_SECONDS
        elif self._serving.failed or self._forwarder.error:
            timeout = self._retry
            self._retry = min(2 * self._retry, RETRY_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    async def _end(self) -> None:
        await self._forwarder.close()
        if self._daemon is not None:
            await self._daemon.stop()
            self._daemon = None
        self._settings.nbd_socket.unlink(missing_ok=True)
        self._settings.qmp_socket.unlink(missing_ok=True)
        log.info("stopped")


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return frozenset()


def _remove_all(folder: Path, names: frozenset[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def only_one(pid_file: Path) -> Iterator[None]:
    """Holds the lock on the pid file, which holds this process's id.

    Raises:
        AlreadyRunningError: Another process holds it.
    """
    with pid_file.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise AlreadyRunningError(f"nbdd {file.read().strip()} serves this: {pid_file}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # the file stays: removing it would let two of them lock two files


async def serve(settings: ExportsSettings) -> None:
    """Runs nbdd in this process until SIGTERM or SIGINT."""
    await asyncio.to_thread(ensure_layout, settings)
    nbdd = Nbdd(settings)
    loop = asyncio.get_running_loop()
    # before the pid file is written: an unhandled SIGHUP would end this process
    loop.add_signal_handler(signal.SIGHUP, nbdd.request_reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, nbdd.request_stop)
    with only_one(settings.pid_file):
        await nbdd.run()


def main() -> None:
    """Entry point of `sendense-nbdd`."""
    settings = ExportsSettings()
    configure_logs("nbdd", settings.log_format)
    try:
        asyncio.run(serve(settings))
    except (AlreadyRunningError, StorageDaemonError) as error:
        log.critical("nbdd cannot run", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
