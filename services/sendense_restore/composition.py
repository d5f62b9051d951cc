"""One tree out of a guest's volumes, as its own /etc/fstab says: `/var/www` is found whichever partition holds it.

Everything read here comes from the guest: files are found inside their volume only, must be regular, and are read
up to a limit. A volume is bound only at a directory that exists in the tree.
"""

from __future__ import annotations

import asyncio
import shlex
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sendense_restore import fstab, mount_table
from sendense_restore.errors import FileMissing, FileUnreadable
from sendense_restore.names import escape
from sendense_restore.paths import GuestPath, located, read_file
from sendense_restore.programs import ProgramError
from sendense_restore.volume import Volume
from sendense_restore.windows import drive_letters

log = structlog.get_logger()

_OS_RELEASE = (b"etc/os-release", b"usr/lib/os-release")
_MAX_OS_RELEASE = 16 << 10
_BTRFS_ROOTS = (b"", b"@", b"root", b"@rootfs")
"""Where distributions put `/` in a Btrfs volume: at its top, or in a subvolume of such a name."""


@dataclass(frozen=True, slots=True)
class _Root:
    volume: Volume
    subvolume: bytes
    entries: list[fstab.Entry]


async def compose(root: Path, volumes: Sequence[Volume], roots: Mapping[str, Path]) -> list[Volume]:
    """Binds the mounted volumes below `root` and returns all volumes with their places in the guest's tree.

    Args:
        root: Existing, empty directory.
        volumes: All volumes.
        roots: For each mounted volume's name, the directory at which it is mounted.

    Raises:
        ProgramError: The kernel refused to bind.
        OSError: A directory cannot be made.
    """
    mounted = [volume for volume in volumes if volume.name in roots]
    letters = await asyncio.to_thread(drive_letters, volumes, roots)
    chosen = None if letters else await asyncio.to_thread(_choose_root, mounted, roots)
    if chosen is None:
        # Nothing says how they belong together, or Windows does by letters: a directory for each volume, in one that
        # nobody can write to.
        names = {volume.name: letters.get(volume.name, volume.name) for volume in mounted}
        for name in names.values():
            (root / name).mkdir(mode=0o700)
        await mount_table.bind(root, root)
        for volume in mounted:
            await mount_table.bind(roots[volume.name], root / names[volume.name])
        return [replace(v, guest_path=f"/{letters[v.name]}" if v.name in letters else "") for v in volumes]
    await mount_table.bind(_directory(roots[chosen.volume.name], chosen.subvolume), root)
    places = {chosen.volume.name: "/"}
    for entry in chosen.entries:
        # A subvolume of the root's own volume may have a place of its own.
        found = fstab.find_volume(entry.spec, volumes)
        if entry.target == b"/" or found is None or found.name not in roots:
            continue
        if found.name in places and not entry.subvolume:
            continue
        target_path = GuestPath(tuple(entry.target.strip(b"/").split(b"/")))
        try:
            source = await asyncio.to_thread(_directory, roots[found.name], entry.subvolume)
            target = await asyncio.to_thread(_directory, root, entry.target)
            await mount_table.bind(source, target)
        except (FileMissing, FileUnreadable, ProgramError) as error:
            log.warning(
                "a volume has no place in the tree", volume=found.name, path=target_path.display, why=str(error)
            )
            continue
        places.setdefault(found.name, "/" + escape(entry.target.lstrip(b"/")))
    return [replace(volume, guest_path=places.get(volume.name, "")) for volume in volumes]


def read_operating_system(root: Path) -> str:
    """Returns the guest's name for its operating system, empty when it has none; blocks."""
    for name in _OS_RELEASE:
        text = read_file(root, GuestPath(tuple(name.split(b"/"))), _MAX_OS_RELEASE)
        for line in text.decode("utf-8", "replace").splitlines() if text else ():
            key, _, value = line.partition("=")
            if key.strip() == "PRETTY_NAME":
                try:
                    words = shlex.split(value)
                except ValueError:
                    return ""
                return "".join(c for c in " ".join(words) if c.isprintable())[:200]
    return ""


def _choose_root(mounted: Sequence[Volume], roots: Mapping[str, Path]) -> _Root | None:
    """The volume whose fstab says that `/` is itself, else the only one with an fstab, else the only one."""
    candidates: list[_Root] = []
    for volume in mounted:
        for subvolume in _BTRFS_ROOTS if volume.file_system == "btrfs" else (b"",):
            path = subvolume + b"/etc/fstab" if subvolume else b"etc/fstab"
            text = read_file(roots[volume.name], GuestPath(tuple(path.split(b"/"))), fstab.MAX_BYTES)
            if text is not None:
                candidates.append(_Root(volume, subvolume, fstab.parse_fstab(text)))
                break
    for candidate in candidates:
        for entry in candidate.entries:
            if entry.target == b"/" and fstab.find_volume(entry.spec, mounted) == candidate.volume:
                return candidate
    if len(candidates) == 1:
        return candidates[0]
    if not candidates and len(mounted) == 1:
        return _Root(mounted[0], b"", [])
    return None


def _directory(root: Path, relative: bytes) -> Path:
    """Resolves a guest's directory inside `root` to the host's path, free of symbolic links.

    The tree is read-only, so what the path means cannot change before it is used.

    Raises:
        FileMissing: It is not there, or is no directory.
        FileUnreadable: The file system does not give it.
    """
    path = GuestPath(tuple(part for part in relative.split(b"/") if part))
    with located(root, path) as (fd, status):
        if not stat.S_ISDIR(status.st_mode):
            raise FileMissing(path.display)
        real = Path(f"/proc/self/fd/{fd}").readlink()
    if not real.is_relative_to(root):
        raise FileUnreadable(path.display, "it lies outside of the mount")
    return real
