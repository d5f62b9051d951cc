"""Where a mount's parts lie on the host, and the record that its storage daemon is found by after a crash."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MOUNT_ID = re.compile(r"mount-[0-9a-f-]{36}")


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one mount.

    Attributes:
        mount_id: The mount.
        work: Directory of overlays, exported disks and volumes; made first and removed last.
        root: The `mount_path`: directory that shows the guest's root.
        qmp_socket: The storage daemon's control socket; short, as a socket's address must be.
    """

    mount_id: str
    work: Path
    root: Path
    qmp_socket: Path

    @property
    def volumes(self) -> Path:
        """Directory with one mount per volume."""
        return self.work / "volumes"

    @property
    def appliance(self) -> Path:
        """Directory at which the micro-VM of the guestfs back end shows its volumes."""
        return self.work / "appliance"

    @property
    def daemon_log(self) -> Path:
        """What the storage daemon printed."""
        return self.work / "daemon.log"

    def overlay(self, disk_id: int) -> Path:
        """Returns the throw-away overlay of a disk."""
        return self.work / f"disk-{disk_id}.qcow2"

    def image(self, disk_id: int) -> Path:
        """Returns the file as which a disk is exported."""
        return self.work / f"disk-{disk_id}.raw"

    def make(self) -> None:
        """Makes the directories; only their owner may enter, since guests' files keep their guests' owners."""
        for directory in (self.work, self.volumes, self.root):
            directory.mkdir(mode=0o700)

    def record_process(self, name: str, pid: int) -> None:
        """Notes which process serves the mount as `name`; durable when it returns."""
        record = {"pid": pid, "started": start_time(pid), "boot": boot_id()}
        partial = self.work / f"{name}.json.partial"
        with partial.open("w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.work / f"{name}.json")

    def recorded_process(self, name: str) -> int | None:
        """Returns the pid of a recorded process if that very process still runs."""
        try:
            record = json.loads((self.work / f"{name}.json").read_text())
            pid = int(record["pid"])
            same = record["boot"] == boot_id() and record["started"] == start_time(pid)
        except (OSError, ValueError, KeyError):
            return None
        return pid if same else None


@dataclass(frozen=True, slots=True)
class Places:
    """All mounts of this service.

    Attributes:
        work_root: One subdirectory a mount.
        base: The `mount_path`s lie below it.
        run_dir: Directory of sockets.
    """

    work_root: Path
    base: Path
    run_dir: Path

    def of(self, mount_id: str) -> Place:
        """Returns the place of a mount."""
        short = mount_id.removeprefix("mount-").replace("-", "")[:12]
        return Place(mount_id, self.work_root / mount_id, self.base / mount_id, self.run_dir / f"restore-{short}.qmp")

    def left(self) -> list[Place]:
        """Returns the places of which anything exists."""
        names = {path.name for directory in (self.work_root, self.base) for path in directory.iterdir()}
        return [self.of(name) for name in sorted(names) if _MOUNT_ID.fullmatch(name)]

    @contextmanager
    def owned(self) -> Iterator[Places]:
        """Makes both directories and holds them for this process alone, so that cleaning is safe.

        Yields:
            The same with links resolved.

        Raises:
            OSError: Another restore service has one of them, or it cannot be made.
        """
        held: list[int] = []
        try:
            for directory in (self.work_root, self.base):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                held.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                try:
                    fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise OSError(f"{directory} is in use by another restore service") from error
            yield Places(self.work_root.resolve(), self.base.resolve(), self.run_dir)
        finally:
            for fd in held:
                os.close(fd)


def start_time(pid: int) -> int:
    """Returns when a process began, in clock ticks since boot: with its pid it names it uniquely (proc(5)).

    Raises:
        OSError: There is no such process.
    """
    stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    return int(stat[stat.rindex(")") + 2 :].split()[19])


def boot_id() -> str:
    """Returns what tells this boot of the machine from any other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
