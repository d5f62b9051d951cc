"""Where a path is mounted, from `/proc/self/mountinfo` (proc(5)); nothing on the file system itself is touched."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount.

    Attributes:
        point: Where.
        fs_type: Such as `ext4` or `nfs4`.
        source: What: a device, or `server:/export`.
    """

    point: Path
    fs_type: str
    source: str


def mount_of(path: Path) -> Mount:
    """Returns the mount that a path lies on, symbolic links followed as far as the path exists.

    Raises:
        OSError: The mount table cannot be read.
    """
    real = Path(os.path.realpath(path))
    found: Mount | None = None
    for line in _MOUNTINFO.read_text("utf-8", "surrogateescape").splitlines():
        mount = _parse(line)
        # Of mounts over one another the last one shows.
        if real.is_relative_to(mount.point) and (found is None or len(mount.point.parts) >= len(found.point.parts)):
            found = mount
    if found is None:
        raise OSError(f"{real} lies on no mount")
    return found


def _parse(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    fs_type, source, *_ = after.split(" ")
    return Mount(Path(_plain(before.split(" ")[4])), fs_type, _plain(source))


def _plain(escaped: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), escaped)
