"""Crash-consistent guest disks: file systems written and fsynced, copied while mounted, made qcow2 chains."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from restore_hives import build_hive

MIB = 1 << 20
CLUSTER = 64 << 10


def run(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run([str(c) for c in command], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Guest:
    """A guest's disk as a raw file, its partitions' places, and what was written to it."""

    raw: Path
    partitions: list[tuple[int, int]]

    @contextmanager
    def mounted(self, partition: int, directory: Path, options: str = "noatime") -> Iterator[Path]:
        offset, size = self.partitions[partition]
        directory.mkdir(exist_ok=True)
        device = run("losetup", "--find", "--show", "--offset", str(offset), "--sizelimit", str(size), self.raw).strip()
        try:
            run("mount", "-o", options, device, directory)
            try:
                yield directory
            finally:
                run("umount", directory)
        finally:
            run("losetup", "--detach", device)

    def copy(self, target: Path) -> Path:
        """Copies the disk as it was at one moment, while mounted: a copy into which the kernel wrote is made again."""
        deadline = time.monotonic() + 60
        while True:
            before = self.raw.stat().st_mtime_ns
            run("cp", "--sparse=always", self.raw, target)
            # A write just before the first look may have the same time as one just after it.
            if self.raw.stat().st_mtime_ns == before < time.time_ns() - 100_000_000:
                return target
            assert time.monotonic() < deadline, f"{self.raw} is written to all the time"


def partitioned(raw: Path, size: int, sizes: list[int], label: str = "gpt") -> Guest:
    with raw.open("wb") as file:
        file.truncate(size)
    script = f"label: {label}\n" + "".join(f"size={part // MIB}MiB\n" for part in sizes)
    run("sfdisk", "-q", raw, stdin=script)
    starts = [MIB + sum(sizes[:index]) for index in range(len(sizes))]
    return Guest(raw, list(zip(starts, sizes, strict=True)))


def whole(raw: Path, size: int) -> Guest:
    with raw.open("wb") as file:
        file.truncate(size)
    return Guest(raw, [(0, size)])


def format_partition(guest: Guest, partition: int, command: list[str]) -> None:
    """Runs mkfs on a loop device; `command` is its start, the device comes last."""
    offset, size = guest.partitions[partition]
    place = ("--offset", str(offset), "--sizelimit", str(size))
    device = run("losetup", "--find", "--show", *place, guest.raw).strip()
    try:
        # mkfs.btrfs looks at every mounted loop device of the host; below one of a test that killed its daemon lies a
        # dead FUSE file, until that test has cleaned up.
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run([*command, device], capture_output=True, text=True, check=False)
            if "Transport endpoint is not connected" not in done.stderr or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    finally:
        run("losetup", "--detach", device)


def put(root: Path, name: str | bytes, content: bytes) -> None:
    """Writes a file so that it survives a crash."""
    path = root / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def make_full(raw: Path, layer: Path) -> Path:
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", raw, layer)
    layer.chmod(0o444)
    return layer


def make_increment(before: Path, after: Path, parent: Path, layer: Path) -> Path:
    """Makes a layer that holds only the clusters that differ, zeroes written as zeroes."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", parent.name, "-o", "compat=1.1", layer)
    commands: list[str] = []
    with before.open("rb") as old, after.open("rb") as new:
        offset = 0
        while chunk := new.read(CLUSTER):
            if chunk != old.read(CLUSTER):
                piece = layer.parent / f"piece-{offset}"
                piece.write_bytes(chunk)
                commands += ["-c", f"write -q -s {piece} {offset} {len(chunk)}"]
            offset += len(chunk)
    run("qemu-io", "-f", "qcow2", *commands, layer)
    for piece in layer.parent.glob("piece-*"):
        piece.unlink()
    assert len(commands) > 2
    layer.chmod(0o444)
    return layer


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Point:
    """A restore point for the fake services.

    Attributes:
        layers: The top layer of each disk, by number.
        files: What every mount of it must give: path and content.
        gone: Paths that must not be there.
    """

    backup_id: str
    layers: dict[int, Path]
    files: dict[str, bytes] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    status: str = "completed"
    damaged: bool = False
    suspicion: str = ""


@dataclass
class Images:
    """All points that the tests mount, and the layers' digests as they were made."""

    points: dict[str, Point]
    digests: dict[Path, str]

    def assert_unchanged(self) -> None:
        for path, digest in self.digests.items():
            assert sha256(path) == digest, f"{path.name} was changed"


_built: list[Images] = []


def images_of_session(factory: pytest.TempPathFactory) -> Images:
    """Builds the images when they are first asked for."""
    if not _built:
        _built.append(build_images(factory.mktemp("images")))
    return _built[0]


def build_images(directory: Path) -> Images:
    points = _duo(directory) | _btrfs(directory) | _bare(directory) | _windows(directory)
    layers = {layer for path in directory.glob("layers-*/disk-*") for layer in path.iterdir()}
    return Images(points, {layer: sha256(layer) for layer in layers})


def _layers(directory: Path, name: str, disk: int) -> Path:
    path = directory / f"layers-{name}" / f"disk-{disk}"
    path.mkdir(parents=True)
    return path


def _content(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def _duo(directory: Path) -> dict[str, Point]:
    """ext4 root with fstab and swap on one disk, XFS for /data on another; a full and an increment."""
    system = partitioned(directory / "system.raw", 112 * MIB, [80 * MIB, 16 * MIB])
    data = partitioned(directory / "data.raw", 322 * MIB, [320 * MIB], "dos")
    root_uuid = str(uuid.uuid4())
    format_partition(system, 0, ["mkfs.ext4", "-q", "-U", root_uuid, "-L", "system"])
    format_partition(system, 1, ["mkswap", "-q"])
    format_partition(data, 0, ["mkfs.xfs", "-q", "-L", "data"])
    fstab = f"# made by a test\nUUID={root_uuid} / ext4 defaults 0 1\nLABEL=data /srv/my\\040data xfs defaults 0 2\n"
    fstab += "UUID=none none swap sw 0 0\ntmpfs /tmp tmpfs defaults 0 0\nLABEL=data /linked xfs noauto 0 0\n"
    files: dict[str, bytes] = {"/etc/fstab": fstab.encode(), "/etc/os-release": b'PRETTY_NAME="Test Linux 1"\n'}
    files |= {f"/var/www/site{n % 7}/page {n}.html": _content(f"page{n}", n * 97) for n in range(120)}
    files |= {"/big.bin": _content("big", 5 * MIB + 123), "/empty": b""}
    on_data = {f"/srv/my data/db/{n:03}.ibd": _content(f"db{n}", 3000 + n * 31) for n in range(60)}
    full_layers = {0: _layers(directory, "duo", 0), 1: _layers(directory, "duo", 1)}
    with (
        system.mounted(0, directory / "m0") as root,
        data.mounted(0, directory / "m1") as mounted_data,
    ):
        (root / "srv" / "my data").mkdir(parents=True)
        (root / "linked").symlink_to("/../../../tmp")
        for name, content in files.items():
            put(root, name[1:], content)
        for name, content in on_data.items():
            put(mounted_data, name.removeprefix("/srv/my data/"), content)
        make_tricks(root)
        full_raw = [system.copy(directory / "system-full.raw"), data.copy(directory / "data-full.raw")]
        later, gone = dict(files), []
        for n in range(0, 120, 5):
            name = f"/var/www/site{n % 7}/page {n}.html"
            (root / name[1:]).unlink()
            gone.append(name)
            later.pop(name)
        for directory_ in sorted((root / "var" / "www").iterdir()):
            sync_directory(directory_)
        later["/var/www/site1/page 1.html"] = b"changed after the full\n"
        later["/var/www/new.html"] = _content("new", 70_001)
        for name in ("/var/www/site1/page 1.html", "/var/www/new.html"):
            put(root, name[1:], later[name])
        on_data_later = on_data | {"/srv/my data/db/000.ibd": _content("changed", 9000)}
        put(mounted_data, "db/000.ibd", on_data_later["/srv/my data/db/000.ibd"])
        incr_raw = [system.copy(directory / "system-incr.raw"), data.copy(directory / "data-incr.raw")]
    tops: dict[str, dict[int, Path]] = {"full": {}, "incr": {}}
    for disk, folder in full_layers.items():
        tops["full"][disk] = make_full(full_raw[disk], folder / "full-20251004-010203.qcow2")
        incr = folder / "incr-20251005-010203.qcow2"
        tops["incr"][disk] = make_increment(full_raw[disk], incr_raw[disk], tops["full"][disk], incr)
    for raw in (system.raw, data.raw, *full_raw, *incr_raw):
        raw.unlink()
    return {
        "full": Point("backup-duo-20251004010203", tops["full"], files | on_data),
        "incr": Point("backup-duo-20251005010203", tops["incr"], later | on_data_later, gone),
    }


CANARY = Path(f"/tmp/sendense-restore-canary-{os.getpid()}")
"""A file of the host that guests' tricks lead to; each test process has its own."""

NAME_NO_UTF8 = b"caf\xe9 \\ new\nline"


def make_tricks(root: Path) -> None:
    """Everything in a guest that could lead a restore out of the mount, or hold it up."""
    tricks = root / "tricks"
    tricks.mkdir()
    (tricks / "absolute").symlink_to(CANARY)
    (tricks / "climbing").symlink_to("../../../../../../../.." + str(CANARY))
    (tricks / "up").symlink_to("../../../../../..")
    (tricks / "proc").symlink_to("/proc/self/root")
    (tricks / "circle").symlink_to("circle")
    (tricks / "inside").symlink_to("/etc/os-release")
    os.mkfifo(tricks / "fifo")
    os.mknod(tricks / "device", 0o600 | 0o020000, os.makedev(1, 5))
    os.mknod(tricks / "disk", 0o600 | 0o060000, os.makedev(7, 0))
    put(tricks, NAME_NO_UTF8, b"odd name\n")
    (tricks / "setuid").write_bytes(b"#!/bin/sh\n")
    sparse = tricks / "sparse"
    with sparse.open("wb") as file:
        file.write(b"begin")
        file.truncate(40 * MIB)
        file.seek(20 * MIB)
        file.write(b"middle")
        os.fsync(file.fileno())
    os.link(sparse, tricks / "hard")
    os.setxattr(tricks / "setuid", "user.note", b"kept")
    os.chown(tricks / "setuid", 1234, 5678)
    (tricks / "setuid").chmod(0o4755)  # chown takes the bit away
    sync_directory(tricks)
    run("sync", "-f", tricks)


def _btrfs(directory: Path) -> dict[str, Point]:
    """Btrfs over a whole disk with the subvolumes that Ubuntu makes."""
    guest = whole(directory / "btrfs.raw", 128 * MIB)
    identifier = str(uuid.uuid4())
    format_partition(guest, 0, ["mkfs.btrfs", "-q", "-U", identifier])
    fstab = f"UUID={identifier} / btrfs subvol=@ 0 0\nUUID={identifier} /home btrfs subvol=@home 0 0\n"
    with guest.mounted(0, directory / "mb") as root:
        run("btrfs", "subvolume", "create", root / "@")
        run("btrfs", "subvolume", "create", root / "@home")
        (root / "@" / "home").mkdir()
        put(root / "@", "etc/fstab", fstab.encode())
        put(root / "@home", "ann/letter.txt", b"Dear Ann\n")
        raw = guest.copy(directory / "btrfs-copy.raw")
    layer = make_full(raw, _layers(directory, "btrfs", 0) / "full-20251004-010203.qcow2")
    guest.raw.unlink()
    raw.unlink()
    files = {"/etc/fstab": fstab.encode(), "/home/ann/letter.txt": b"Dear Ann\n"}
    return {"btrfs": Point("backup-btrfs-20251004010203", {0: layer}, files)}


def _bare(directory: Path) -> dict[str, Point]:
    """Disks without a root, an empty disk, a disk that pretends to be a qcow2 image, and an NTFS."""
    points: dict[str, Point] = {}
    layers: dict[int, Path] = {}
    for disk in (2, 5):
        guest = whole(directory / f"plain-{disk}.raw", 24 * MIB)
        format_partition(guest, 0, ["mkfs.ext4", "-q", "-O", "^has_journal"])
        with guest.mounted(0, directory / "mp") as root:
            put(root, "note.txt", b"disk %d\n" % disk)
        layers[disk] = make_full(guest.raw, _layers(directory, "bare", disk) / "full-20251004-010203.qcow2")
        guest.raw.unlink()
    files = {"/disk-2/note.txt": b"disk 2\n", "/disk-5/note.txt": b"disk 5\n"}
    points["bare"] = Point("backup-bare-20251004010203", layers, files)
    empty = whole(directory / "empty.raw", 8 * MIB)
    layer = make_full(empty.raw, _layers(directory, "empty", 0) / "full-20251004-010203.qcow2")
    points["empty"] = Point("backup-empty-20251004010203", {0: layer})
    # A guest whose disk begins with the header of a qcow2 image that names a file of the host.
    trap = directory / "trap.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", CANARY, trap, "8M")
    layer = make_full(trap, _layers(directory, "trap", 0) / "full-20251004-010203.qcow2")
    points["trap"] = Point("backup-trap-20251004010203", {0: layer})
    ntfs = partitioned(directory / "ntfs.raw", 24 * MIB, [20 * MIB])
    format_partition(ntfs, 0, ["mkntfs", "-q", "-F", "-L", "windows"])
    with ntfs.mounted(0, directory / "mn") as root:
        put(root, "Users/Ann/letter.txt", b"Dear Ann\r\n")
    layer = make_full(ntfs.raw, _layers(directory, "ntfs", 0) / "full-20251004-010203.qcow2")
    points["ntfs"] = Point("backup-ntfs-20251004010203", {0: layer}, {"/Users/Ann/letter.txt": b"Dear Ann\r\n"})
    return points


def _windows(directory: Path) -> dict[str, Point]:
    """Two NTFS partitions of an MBR disk, whose registry calls the second one C: and the first one E:."""
    guest = partitioned(directory / "windows.raw", 44 * MIB, [20 * MIB, 20 * MIB], "dos")
    signature = int(json.loads(run("sfdisk", "--json", guest.raw))["partitiontable"]["id"], 16)
    letters = {
        f"\\DosDevices\\{letter}:": struct.pack("<IQ", signature, guest.partitions[number][0])
        for letter, number in (("C", 1), ("E", 0))
    }
    product = {"ProductName": "Windows Server 2022 Standard\0".encode("utf-16-le")}
    files: dict[str, bytes] = {}
    for number, letter in ((0, "E"), (1, "C")):
        format_partition(guest, number, ["mkntfs", "-q", "-F"])
        with guest.mounted(number, directory / "mw") as root:
            put(root, "note.txt", letter.encode())
            files[f"/{letter}:/note.txt"] = letter.encode()
            if letter == "C":
                config = "Windows/System32/config"
                put(root, f"{config}/SYSTEM", build_hive({"MountedDevices": letters}))
                software = build_hive({"Microsoft": {"Windows NT": {"CurrentVersion": product}}})
                put(root, f"{config}/SOFTWARE", software)
    layer = make_full(guest.raw, _layers(directory, "windows", 0) / "full-20251004-010203.qcow2")
    guest.raw.unlink()
    return {"windows": Point("backup-windows-20251004010203", {0: layer}, files)}
