"""Which images and devices may be served at all, decided before qemu sees them.

What always holds: a file lies below a configured root, links followed; a block device is one that the allow-list
pattern names; a qcow2 image and every layer below it have a header that `sendense_qemu.header` admits.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sendense_exports.exportconf import ExportSpec
from sendense_qemu.errors import HeaderError
from sendense_qemu.header import check_chain

_SECTOR = 512


class NotAdmittedError(Exception):
    """An image or device may not be served; says which and why."""


class PathNotAdmittedError(NotAdmittedError):
    """The path itself may not be served, whatever is there."""


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """What may be served.

    Attributes:
        roots: Folders that images lie below.
        device_pattern: Regular expression that the whole path of a block device must match; empty admits none.
    """

    roots: tuple[Path, ...]
    device_pattern: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """An image that may be served.

    Attributes:
        id: Names this export of this very file (name, options, inode): equal ids serve the same.
        chain: The image, then the layers below it; one path for raw.
        size_bytes: What clients see.
        size_warning: How that differs from the file's own size; empty when it does not.
    """

    id: str
    chain: tuple[Path, ...]
    size_bytes: int
    size_warning: str = ""


def identify(spec: ExportSpec) -> str:
    """Returns the id of an export without judging its image.

    Raises:
        NotAdmittedError: The image is missing.
    """
    return _identity(spec, _look(spec.path))


def admit(spec: ExportSpec, rules: AdmissionRules) -> Admitted:
    """Judges an export's image; blocks while it reads headers.

    Raises:
        NotAdmittedError: It may not be served.
    """
    status = _look(spec.path)
    if stat.S_ISBLK(status.st_mode):
        chain: tuple[Path, ...] = (_admit_device(spec, rules.device_pattern),)
        size = _device_size(spec.path)
    elif stat.S_ISREG(status.st_mode):
        real = _admit_file(spec.path, rules.roots)
        chain, size = (real,), status.st_size
        if spec.format == "qcow2":
            try:
                headers = check_chain(real, rules.roots)
            except (HeaderError, OSError) as error:
                raise NotAdmittedError(str(error)) from error
            chain, size = tuple(header.path for header in headers), headers[0].virtual_size
    else:
        raise PathNotAdmittedError(f"{spec.path} is neither a file nor a block device")
    if spec.size_bytes is not None:
        if spec.size_bytes > size:
            raise NotAdmittedError(f"{spec.path} has {size} bytes, less than filesize = {spec.size_bytes}")
        size = spec.size_bytes
    if size == 0:
        raise NotAdmittedError(f"{spec.path} is empty")
    return Admitted(_identity(spec, status), chain, *_whole_sectors(spec, size))


def _whole_sectors(spec: ExportSpec, size: int) -> tuple[int, str]:
    """Returns the size as qemu serves it, and a warning when it is another one.

    qemu counts in sectors, and no driver or option of it does not; nbd-server would serve the size as it is.
    """
    served = -(-size // _SECTOR) * _SECTOR
    if served == size:
        return size, ""
    effect = "read as zeroes" + ("" if spec.read_only else ", and writing to them makes the file longer")
    warning = f"{size} bytes are no multiple of {_SECTOR}: {served} are served; the last {served - size} {effect}"
    return served, warning


def _look(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise PathNotAdmittedError(f"{path}: {error.strerror}") from error


def _identity(spec: ExportSpec, status: os.stat_result) -> str:
    said = (
        spec.name,
        str(spec.path),
        spec.format,
        str(spec.read_only),
        str(spec.trim),
        str(spec.size_bytes),
        f"{status.st_dev}:{status.st_ino}:{status.st_rdev}",
    )
    return "e" + hashlib.blake2b("\0".join(said).encode(), digest_size=10).hexdigest()


def _admit_device(spec: ExportSpec, pattern: str) -> Path:
    if spec.format != "raw":
        raise NotAdmittedError(f"{spec.path} is a block device, which is served as raw only")
    real = spec.path.resolve()
    if not pattern or re.fullmatch(pattern, str(real)) is None:
        raise PathNotAdmittedError(f"{real} is not on the list of block devices that may be served")
    return real


def _device_size(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotAdmittedError(f"{path}: {error.strerror}") from error
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _admit_file(path: Path, roots: Sequence[Path]) -> Path:
    real = path.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise PathNotAdmittedError(f"{real} is outside of the folders that images may lie in")
    return real
