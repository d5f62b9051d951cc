"""Guests' disks with what lies between disk and file system: LVM over two disks, LUKS, software RAID; and FAT, NTFS.

No device mapper and no md is needed: the metadata is written by the tools' own offline modes, or by hand, around a file
system that was copied while it was mounted.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from restore_images import MIB, Point, format_partition, make_full, make_tricks, partitioned, run, whole
from restore_trees import Source, fill

PASSPHRASE = "correct horse"
FILES = 2000
"""On each file system."""
BIG = 1025 * MIB
"""Size of a sparse file on each file system that has such."""
FAT_BIG = BIG if os.environ.get("SENDENSE_TEST_BIG") else 0
"""FAT has no sparse files, and NTFS' holes are not told: an emulated micro-VM reads each byte, half a minute long."""
PLAIN, NTFS_BIG = range(5), 4
WITHOUT_UNIX = frozenset({"disk-3-part-1", "disk-4-part-1", "disk-10-part-1"})
"""Volumes without owners, modes, links and any name."""
_EXTENT = MIB
_LVM = 'devices { use_devicesfile=0 filter=[ "a|%s|", "a|%s|", "r|.*|" ] } backup { backup=0 archive=0 }'


@dataclass
class Stack:
    """A point and, for each of its volumes, what must come back."""

    point: Point
    volumes: dict[str, Source]


def build_disks(directory: Path) -> Stack:
    """All of them as one point: disks 0 to 4 open with both back ends, 5 to 10 with guestfs only (FAT too, where the
    host's kernel does not know it). Each was copied while it was written to.
    """
    directory.mkdir()
    layers: dict[int, Path] = {}
    volumes: dict[str, Source] = {}
    kinds = (
        ("ext4", ["mkfs.ext4", "-q"], 160 * MIB, FILES, BIG),
        ("xfs", ["mkfs.xfs", "-q"], 304 * MIB, FILES, BIG),
        ("btrfs", ["mkfs.btrfs", "-q"], 256 * MIB, FILES, BIG),
        ("ntfs", ["mkntfs", "-q", "-F"], 160 * MIB, FILES, 0),
        ("ntfs-big", ["mkntfs", "-q", "-F"], 32 * MIB, 20, BIG),
    )
    for disk, (kind, command, size, count, sparse) in enumerate(kinds):
        guest = partitioned(directory / f"{kind}.raw", size + 2 * MIB, [size])
        format_partition(guest, 0, command)
        unix = not kind.startswith("ntfs")
        with guest.mounted(0, directory / f"m-{kind}") as root:
            volumes[f"disk-{disk}-part-1"] = fill(root, disk, count, unix=unix, links=unix, sparse_bytes=sparse)
            raw = guest.copy(directory / f"{kind}-copy.raw")
        layers[disk] = _seal(directory, disk, raw)
        guest.raw.unlink()
    (root_raw, volumes["lv-vg0-root"]) = _ext4(directory, "root", 120 * _EXTENT, 10, FILES, BIG)
    for number, half in enumerate(_over_two_disks(directory, root_raw), 5):
        layers[number] = _seal(directory, number, half)
    (secret_raw, volumes["luks-disk-7"]) = _ext4(directory, "secret", 16 * MIB, 11, 20)
    layers[7] = _seal(directory, 7, _encrypted(directory, secret_raw))
    (mirrored_raw, volumes["md"]) = _ext4(directory, "mirrored", 16 * MIB, 12, 20)
    for number, half in enumerate(_mirror(directory, mirrored_raw), 8):
        layers[number] = _seal(directory, number, half)
    raw, volumes["disk-10-part-1"] = build_fat(directory / "fat")
    layers[10] = _seal(directory, 10, raw)
    if shutil.which("xorriso"):
        raw, volumes["disk-11"] = build_iso(directory / "iso")
        layers[11] = _seal(directory, 11, raw)
    return Stack(Point("backup-stack-20251004010203", layers), volumes)


def build_iso(directory: Path) -> tuple[Path, Source]:
    """A CD's image with random files; Rock Ridge keeps any name, modes, owners and links."""
    tree = directory / "tree"
    tree.mkdir(parents=True)
    source = fill(tree, 21, 200)
    source.xattrs.clear()  # it has none
    source.hard.clear()  # copies in it
    source.modes.clear()  # xorriso takes setuid away, and makes all readable
    raw = directory / "disk.iso"
    run("xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "INSTALL", "-o", raw, tree)
    return raw, source


def _seal(directory: Path, disk: int, raw: Path) -> Path:
    folder = directory / f"layers-{disk}"
    folder.mkdir()
    layer = make_full(raw, folder / "full-20251004-010203.qcow2")
    raw.unlink()
    return layer


def _ext4(directory: Path, name: str, size: int, seed: int, count: int, big: int = 0) -> tuple[Path, Source]:
    guest = whole(directory / f"{name}.raw", size)
    format_partition(guest, 0, ["mkfs.ext4", "-q", "-L", name])
    with guest.mounted(0, directory / f"m-{name}") as root:
        if name == "root":
            (root / "etc").mkdir()
            (root / "secret").mkdir()
            fstab = "/dev/mapper/vg0-root / ext4 defaults 0 1\nLABEL=secret /secret ext4 defaults 0 2\n"
            (root / "etc" / "fstab").write_text(fstab)
        source = fill(root, seed, count, sparse_bytes=big)
        if name == "root":
            make_tricks(root)
        raw = guest.copy(directory / f"{name}-copy.raw")
    guest.raw.unlink()
    if name == "root":
        source.files[b"etc/fstab"] = (sha256(fstab.encode()).hexdigest(), len(fstab))
    return raw, source


def _over_two_disks(directory: Path, content: Path) -> tuple[Path, Path]:
    """One logical volume of 120 MiB over two physical volumes of 79 extents each."""
    raws = [directory / "pv0.raw", directory / "pv1.raw"]
    devices: list[str] = []
    try:
        for raw in raws:
            raw.touch()
            os.truncate(raw, 80 * MIB)
            devices.append(run("losetup", "--find", "--show", raw).strip())
        config = ("--driverloaded", "n", "--config", _LVM % tuple(devices))
        run("pvcreate", "-qq", "-y", *config, *devices)
        run("vgcreate", "-qq", "-s", "1M", *config, "vg0", *devices)
        run("lvcreate", "-qq", "-an", "-Zn", "-Wn", "-l", "120", "-n", "root", *config, "vg0")
    finally:
        for device in devices:
            run("losetup", "--detach", device)
    data = content.read_bytes()
    content.unlink()
    split = 79 * _EXTENT
    for raw, part in zip(raws, (data[:split], data[split:]), strict=True):
        with raw.open("r+b") as file:
            file.seek(_EXTENT)
            file.write(part)
    return raws[0], raws[1]


def _encrypted(directory: Path, content: Path) -> Path:
    target = directory / "luks.raw"
    options = "key-secret=s,iter-time=10,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "luks", "--object", f"secret,id=s,data={PASSPHRASE}"]
    for _ in range(20):
        done = subprocess.run([*command, "-o", options, content, target], capture_output=True, text=True, check=False)
        # qemu measures how many rounds it can do in that time, and gives up when the machine is too busy to tell.
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    content.unlink()
    return target


def _mirror(directory: Path, content: Path) -> tuple[Path, Path]:
    """RAID 1 of two members with superblocks of version 1.2, as `mdadm --create` writes them (md(4))."""
    data = content.read_bytes()
    content.unlink()
    array, members = uuid.uuid4().bytes, []
    for number in range(2):
        fixed = struct.pack("<IIII16s32s", 0xA92B4EFC, 1, 0, 0, array, b"host:0")
        fixed += struct.pack("<QIIQIII", 0, 1, 0, len(data) // 512, 0, 2, 0)
        fixed += struct.pack("<IQIIII", 0, 0, 0, 0, 0, 0)
        fixed += struct.pack("<QQQQ", 2048, len(data) // 512, 8, 0)
        fixed += struct.pack("<II16sBBHI", number, 0, uuid.uuid4().bytes, 0, 9, 0, 0)
        tail = struct.pack("<QQQ", 0, 10, (1 << 64) - 1)
        roles = struct.pack("<HH", 0, 1)
        without = fixed + tail + struct.pack("<II32x", 0, 2) + roles
        assert len(without) == 256 + 4
        total = sum(struct.unpack(f"<{len(without) // 4}I", without))
        checksum = (total + (total >> 32)) & 0xFFFFFFFF
        block = fixed + tail + struct.pack("<II32x", checksum, 2) + roles
        member = directory / f"md{number}.raw"
        with member.open("wb") as file:
            file.truncate(MIB + len(data))
            file.seek(4096)
            file.write(block)
            file.seek(MIB)
            file.write(data)
        members.append(member)
    return members[0], members[1]


def build_fat(directory: Path) -> tuple[Path, Source]:
    """A FAT file system in a partition, filled with mtools: many kernels have no FAT."""
    tree = directory / "fat-tree"
    tree.mkdir(parents=True)
    size = 128 * MIB + FAT_BIG // MIB * MIB
    guest = partitioned(directory / "fat.raw", size + 3 * MIB, [size])
    raw, (offset, size) = guest.raw, guest.partitions[0]
    source = fill(tree, 13, FILES, unix=False, links=False, sparse_bytes=FAT_BIG)
    image = directory / "fat.img"
    image.touch()
    os.truncate(image, size)
    run("mkfs.vfat", "-F", "32", "-n", "EFI", image)
    run("mcopy", "-s", "-i", image, *sorted(tree.iterdir()), "::/")
    with raw.open("r+b") as file:
        file.seek(offset)
        file.write(image.read_bytes())
    return raw, source
