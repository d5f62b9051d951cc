"""A guest's /etc/fstab: what it says, and which of the found volumes it means.

The text comes from a guest and is treated so: nothing in it is executed or opened, unknown words are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sendense_restore.volume import Volume

MAX_BYTES = 64 << 10
"""A longer fstab is not read."""
_MAX_ENTRIES = 256
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_DEVICE = re.compile(r"/dev/(?:sd|vd|hd|xvd)([a-z]+)(\d*)")
_NVME = re.compile(r"/dev/nvme(\d+)n1(?:p(\d+))?")
_TAGS = {
    "/dev/disk/by-uuid/": "UUID",
    "/dev/disk/by-label/": "LABEL",
    "/dev/disk/by-partuuid/": "PARTUUID",
    "/dev/disk/by-partlabel/": "PARTLABEL",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of fstab.

    Attributes:
        spec: What is mounted, such as `UUID=…`.
        target: Where, as the guest's absolute path.
        subvolume: Btrfs subvolume, from `subvol=`; empty for none.
    """

    spec: str
    target: bytes
    subvolume: bytes


def parse_fstab(text: bytes) -> list[Entry]:
    """Returns the entries with an absolute target, `/` first and each after what it lies in."""
    entries: list[Entry] = []
    for line in text.splitlines()[: _MAX_ENTRIES * 8]:
        fields = line.split()
        if len(fields) < 2 or fields[0].startswith(b"#"):
            continue
        target = _unquote(fields[1])
        if not target.startswith(b"/"):
            continue
        options = fields[3].split(b",") if len(fields) > 3 else []
        subvolume = next((_unquote(o[7:]).strip(b"/") for o in options if o.startswith(b"subvol=")), b"")
        entries.append(Entry(_unquote(fields[0]).decode("utf-8", "replace"), _normal(target), subvolume))
    return sorted(entries[:_MAX_ENTRIES], key=lambda entry: (entry.target.count(b"/"), entry.target != b"/"))


def find_volume(spec: str, volumes: Sequence[Volume]) -> Volume | None:
    """Returns the volume that a spec names, None for none or for several.

    `/dev/sdb1` is taken for the first partition of the second disk, in the order of the disks' numbers.
    """
    tag, _, value = spec.partition("=")
    for prefix, name in _TAGS.items():
        if spec.startswith(prefix):
            tag, value = name, spec.removeprefix(prefix)
    value = value.strip('"')
    match tag:
        case "UUID":
            found = [v for v in volumes if v.uuid and v.uuid.lower() == value.lower()]
        case "LABEL":
            found = [v for v in volumes if v.label and v.label == value]
        case "PARTUUID":
            found = [v for v in volumes if v.part_uuid and v.part_uuid.lower() == value.lower()]
        case "PARTLABEL":
            found = [v for v in volumes if v.part_label and v.part_label == value]
        case _:
            found = _by_device(spec, volumes)
    return found[0] if len(found) == 1 else None


def _by_device(spec: str, volumes: Sequence[Volume]) -> list[Volume]:
    if match := _DEVICE.fullmatch(spec):
        position = 0
        for letter in match.group(1):
            position = position * 26 + ord(letter) - ord("a") + 1
        position -= 1
    elif match := _NVME.fullmatch(spec):
        position = int(match.group(1))
    else:
        return []
    partition = int(match.group(2) or 0)
    disks = sorted({volume.disk_id for volume in volumes})
    if position >= len(disks):
        return []
    return [v for v in volumes if v.disk_id == disks[position] and v.partition == partition]


def _unquote(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), field)


def _normal(path: bytes) -> bytes:
    return b"/" + b"/".join(part for part in path.split(b"/") if part)
