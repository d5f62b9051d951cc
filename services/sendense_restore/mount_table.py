"""The kernel's mounts, and making and undoing them with mount(8) and umount(8).

Every mount is private (nothing that is bound into a guest's tree may appear elsewhere) and forbids what a restore
never needs: writing, setuid, devices, execution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.programs import ProgramError, run

SAFE_OPTIONS = ("ro", "nosuid", "nodev", "noexec")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of mountinfo, see proc(5).

    Attributes:
        path: Where it is mounted.
        file_system: Its type.
        source: Its device, or what stands for one.
        options: Per-mount options.
    """

    path: Path
    file_system: str
    source: str
    options: frozenset[str]


def read_mounts() -> list[MountEntry]:
    """Returns this process's mounts in the order in which they were made."""
    text = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    return [parse_mount(line) for line in text.splitlines()]


def parse_mount(line: str) -> MountEntry:
    """Reads one line of mountinfo."""
    left, _, right = line.partition(" - ")
    fields, tail = left.split(" "), right.split(" ")
    return MountEntry(Path(_unquote(fields[4])), tail[0], _unquote(tail[1]), frozenset(fields[5].split(",")))


def mounts_below(*directories: Path) -> list[MountEntry]:
    """Returns the mounts at or below directories, the latest first: the order to undo them in."""
    found = [m for m in read_mounts() if any(m.path.is_relative_to(directory) for directory in directories)]
    return found[::-1]


async def mount_device(device: str, path: Path, file_system: str, options: Sequence[str], *, deadline: float) -> None:
    """Mounts a block device read-only; the kernel replays its journal into the device first.

    Raises:
        ProgramError: The kernel or its helper refused.
    """
    joined = ",".join((*SAFE_OPTIONS, *options))
    await run(["mount", "--make-private", "-t", file_system, "-o", joined, "--", device, str(path)], deadline=deadline)


async def find_module(file_system: str) -> None:
    """Looks for a file system that the running kernel could load.

    Raises:
        ProgramError: There is no such module.
    """
    await run(["modprobe", "--dry-run", "--quiet", "--", f"fs-{file_system}"])


async def bind(source: Path, target: Path, *, recursive: bool = False) -> None:
    """Shows a mounted directory at another place too, with the same restrictions.

    Args:
        source: The directory.
        target: An existing directory.
        recursive: Show what is mounted below it too.

    Raises:
        ProgramError: The kernel refused.
    """
    joined = ",".join(("rbind" if recursive else "bind", *SAFE_OPTIONS))
    privately = "--make-rprivate" if recursive else "--make-private"
    await run(["mount", privately, "-o", joined, "--", str(source), str(target)])


async def unmount(path: Path, *, lazy: bool = False) -> None:
    """Undoes the topmost mount at a path; no error when there is none.

    Args:
        path: Where it is mounted.
        lazy: Take it out of the tree at once, even in use.

    Raises:
        ProgramError: It is in use.
    """
    try:
        await run(["umount", *(["--lazy"] if lazy else []), "--", str(path)])
    except ProgramError:
        if any(entry.path == path for entry in read_mounts()):
            raise


def _unquote(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field)
