"""The guestfs back end: libguestfs in a child process opens the volumes in a micro-VM and shows them over FUSE.

The host's kernel never parses the guest's file systems here. The child runs under limits, in a session of its own,
and dies with the service; its end, and the micro-VM's, show in `Opened.lost`. KVM is used where it works, which only
an attempt can tell; where it does not, the micro-VM is emulated and the caller is told that this is slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import structlog

from sendense_qemu.fuse import clear_mountpoint
from sendense_restore import mount_table
from sendense_restore.backend import BackendError, Opened
from sendense_restore.places import Place
from sendense_restore.programs import ProgramError
from sendense_restore.teardown import settles
from sendense_restore.volume import Volume

log = structlog.get_logger()

Acceleration = Literal["auto", "kvm", "emulate"]
EMULATED = "the micro-VM is emulated, since KVM does not work on this machine: this mount is slow (20 MB/s or more)"

_RECORD = "guestfs"
_ADDRESS_SPACE = 16 << 30
"""RLIMIT_AS of child and micro-VM; an emulated one was seen with 3 GiB."""
_ANSWER_BYTES = 4 << 20
_CLEAN_SECONDS = 10.0
_KILL_SECONDS = 10.0
_SOCKETS_NOTE = "sockets"  # written by guestfs_child, whose module would import libguestfs
_SOCKET_DIRECTORY = re.compile(rb"path=(/tmp/libguestfs[A-Za-z0-9]{6})/")


@dataclass(frozen=True, slots=True)
class _Answer:
    mounted: frozenset[str]
    errors: dict[str, str]
    made: list[dict[str, Any]]


class GuestfsBackend:
    """Mounts with libguestfs.

    Args:
        timeout: Seconds for the micro-VM to start and all volumes to be mounted.
        acceleration: Whether the micro-VM runs on KVM; `auto` tries it once.
    """

    def __init__(self, timeout: float, acceleration: Acceleration) -> None:
        self._timeout = timeout
        self._emulate: bool | None = None if acceleration == "auto" else acceleration == "emulate"
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._ends: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """`guestfs`."""
        return "guestfs"

    async def open(self, volumes: Sequence[Volume], place: Place, passphrases: Sequence[str]) -> Opened:
        """Mounts all volumes that libguestfs can open, see `backend.Backend`."""
        if problem := guestfs_missing():
            raise BackendError(problem, "Install libguestfs-tools, python3-guestfs and a kernel below /boot.")
        if self._emulate is None and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self._emulate = True
        answer = None
        if not self._emulate:
            try:
                answer = await self._start(volumes, place, passphrases, emulate=False)
                self._emulate = False
            except BackendError as error:
                if self._emulate is False:
                    raise
                log.warning("the micro-VM does not start on KVM; emulating it", why=error.problem)
                await self.close(place)
        if answer is None:
            answer = await self._start(volumes, place, passphrases, emulate=True)
            self._emulate = True
        return self._opened(volumes, place, answer)

    def _opened(self, volumes: Sequence[Volume], place: Place, answer: _Answer) -> Opened:
        found = [replace(volume, error=volume.error or answer.errors.get(volume.name, "")) for volume in volumes]
        disk_id = min((volume.disk_id for volume in volumes), default=0)
        found += [
            Volume(
                disk_id=disk_id,
                partition=0,
                offset_bytes=0,
                size_bytes=made["size_bytes"],
                file_system=made["file_system"],
                usage="filesystem",
                label=made["label"],
                uuid=made["uuid"],
                own_name=made["name"],
                device=made["device"],
                error=answer.errors.get(made["name"], ""),
            )
            for made in answer.made
        ]
        roots = {volume.name: place.appliance / volume.name for volume in found if volume.name in answer.mounted}
        child = self._children[place.mount_id]
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_tell_end(child, lost))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        return Opened(tuple(found), roots, (EMULATED,) if self._emulate else (), lost)

    async def _start(
        self, volumes: Sequence[Volume], place: Place, passphrases: Sequence[str], *, emulate: bool
    ) -> _Answer:
        await asyncio.to_thread(place.appliance.mkdir, mode=0o700)
        request = {
            "images": [
                {"disk_id": disk_id, "path": str(place.image(disk_id))}
                for disk_id in sorted({volume.disk_id for volume in volumes})
            ],
            "volumes": [
                {
                    "name": volume.name,
                    "disk_id": volume.disk_id,
                    "partition": volume.partition,
                    "offset_bytes": volume.offset_bytes,
                    "size_bytes": volume.size_bytes,
                    "file_system": volume.file_system,
                    "error": volume.error,
                }
                for volume in volumes
            ],
            "passphrases": list(passphrases),
            "directory": str(place.appliance),
            "temporary": str(place.work),
            "emulate": emulate,
        }
        started = time.monotonic()
        child = await _spawn(place)
        self._children[place.mount_id] = child
        await asyncio.to_thread(place.record_process, _RECORD, child.pid)
        answer = await self._talk(child, json.dumps(request).encode())
        seconds = round(time.monotonic() - started, 3)
        log.info("the micro-VM is up", mount_id=place.mount_id, emulated=emulate, seconds=seconds)
        return answer

    async def _talk(self, child: asyncio.subprocess.Process, request: bytes) -> _Answer:
        if child.stdin is None or child.stdout is None:
            raise BackendError("the guestfs child was started without pipes")
        try:
            async with asyncio.timeout(self._timeout):
                child.stdin.write(request)
                child.stdin.write_eof()
                line = await child.stdout.readline()
            answer: dict[str, Any] = json.loads(line) if line else {"failed": "it ended without a word"}
        except TimeoutError as error:
            raise BackendError(f"the micro-VM was not ready within {self._timeout:g} s") from error
        except (ValueError, OSError) as error:
            raise BackendError(f"the guestfs child does not answer: {error}") from error
        if "failed" in answer:
            raise BackendError(f"libguestfs: {answer['failed']}", "The restore service's log says more.")
        return _Answer(frozenset(answer["mounted"]), answer["errors"], answer["made"])

    async def close(self, place: Place) -> None:
        """Takes the FUSE directory away and ends child and micro-VM, see `backend.Backend`."""
        is_serving = any(entry.path == place.appliance for entry in await asyncio.to_thread(mount_table.read_mounts))
        await clear_mountpoint(place.appliance)
        child = self._children.get(place.mount_id)
        leader = child.pid if child is not None else await asyncio.to_thread(_recorded_leader, place)
        if leader is not None:
            await self._end_session(place, child if is_serving else None, leader)
            if child is not None:
                await child.wait()
        self._children.pop(place.mount_id, None)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(place.appliance.rmdir)

    async def _end_session(self, place: Place, ending: asyncio.subprocess.Process | None, leader: int) -> None:
        """Lets a child that ends by itself do so, taking its temporary files along, then kills what is left."""
        sockets = await asyncio.to_thread(_socket_directories, place, leader)
        if ending is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLEAN_SECONDS):
                    await ending.wait()
        for pid in await asyncio.to_thread(_session_of, place, leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not await settles(lambda: not _session_of(place, leader), _KILL_SECONDS):
            raise ProgramError("guestfs", None, f"the processes of session {leader} do not end")
        for directory in sockets:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def guestfs_missing() -> str:
    """Says what libguestfs lacks on this machine; empty when it can be tried."""
    if importlib.util.find_spec("guestfs") is None:
        return "libguestfs' Python module is not installed"
    if not any(Path("/boot").glob("vmlinuz*")) and "LIBGUESTFS_PATH" not in os.environ:
        return "there is no kernel below /boot that libguestfs could start"
    return ""


async def _spawn(place: Place) -> asyncio.subprocess.Process:
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "--no-new-privs",
        "--",
        "prlimit",
        "--core=0",
        f"--as={_ADDRESS_SPACE}",
        "--",
    ]
    command += [sys.executable, "-m", "sendense_restore.guestfs_child", str(place.work)]
    log_file = os.open(place.work / "guestfs.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    kept = ("PATH", "PYTHONPATH", "LIBGUESTFS_PATH", "LIBGUESTFS_CACHEDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log_file,
            env=environment | {"LC_ALL": "C.UTF-8"},
            start_new_session=True,
            limit=_ANSWER_BYTES,
        )
    except OSError as error:
        raise BackendError(f"the guestfs child cannot be started: {error}") from error
    finally:
        os.close(log_file)


async def _tell_end(child: asyncio.subprocess.Process, lost: asyncio.Future[str]) -> None:
    status = await child.wait()
    if not lost.done():
        lost.set_result(f"the guestfs child ended with status {status}")


def _recorded_leader(place: Place) -> int | None:
    """The session of an earlier run's child, which may itself be gone while its micro-VM still runs."""
    try:
        record = json.loads((place.work / f"{_RECORD}.json").read_text())
        return int(record["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _session_of(place: Place, leader: int) -> list[int]:
    """The processes of a child's session that name this mount in their command line: child, watcher and micro-VM."""
    wanted, found = os.fsencode(place.work), []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            stat = (process / "stat").read_text("utf-8", "replace")
            fields = stat[stat.rindex(")") + 2 :].split()
            if fields[0] != "Z" and int(fields[3]) == leader and wanted in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _socket_directories(place: Place, leader: int) -> set[Path]:
    """Where libguestfs keeps this micro-VM's sockets: as the child noted, and as a micro-VM that still runs tells."""
    found: set[Path] = set()
    with contextlib.suppress(OSError):
        noted = (place.work / _SOCKETS_NOTE).read_bytes()
        found |= {Path(os.fsdecode(name)) for name in _SOCKET_DIRECTORY.findall(b"path=" + noted + b"/")}
    for pid in _session_of(place, leader):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found |= {Path(os.fsdecode(name)) for name in _SOCKET_DIRECTORY.findall(command)}
    return found
