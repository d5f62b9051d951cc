"""What a caller asks to be served, judged before anything is changed.

What always holds: a path is absolute, has no `..` and is below the roots, links followed, or is a device on the list;
an image's header is admitted before any qemu program opens it; the size is the one that `qemu-img info` says for the
given format, which is never probed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sendense_exports.admission import AdmissionRules, NotAdmittedError, PathNotAdmittedError, admit
from sendense_exports.errors import ImageRefusedError, PathRefusedError
from sendense_exports.exportconf import ExportSpec, ImageFormat, write_export
from sendense_qemu import img
from sendense_qemu.errors import QemuImgError

Kind = Literal["file", "block"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image or device that may be served.

    Attributes:
        spec: How its conf file shall look.
        size_bytes: Its virtual size.
    """

    spec: ExportSpec
    size_bytes: int


async def judge(
    name: str, path: str, fmt: ImageFormat, *, kind: Kind, read_only: bool, conf_file: Path, rules: AdmissionRules
) -> Wanted:
    """Judges what is asked for.

    Args:
        name: NBD export name.
        path: As the caller gave it.
        fmt: The format.
        kind: Whether it must be a regular file or a block device.
        read_only: Whether clients may only read.
        conf_file: Where its conf file shall stand.
        rules: What may be served.

    Raises:
        PathRefusedError: The path may not be served, whatever is there.
        ImageRefusedError: The image is not one that qemu may open with that format.
    """
    given = Path(path)
    if not given.is_absolute() or ".." in given.parts:
        raise PathRefusedError(path, "is not an absolute path without '..'")
    real = await asyncio.to_thread(given.resolve)
    is_device = await asyncio.to_thread(real.is_block_device)
    if is_device != (kind == "block"):
        raise PathRefusedError(path, "is a block device" if is_device else "is not a block device")
    spec = ExportSpec(name, real, fmt, read_only, trim=False, size_bytes=None, file=conf_file, line=1)
    try:
        admitted = await asyncio.to_thread(admit, spec, rules)
        write_export(spec)
    except PathNotAdmittedError as error:
        raise PathRefusedError(path, str(error)) from error
    except NotAdmittedError as error:
        raise ImageRefusedError(path, str(error)) from error
    except ValueError as error:
        raise PathRefusedError(path, str(error)) from error
    if kind == "block":
        return Wanted(spec, admitted.size_bytes)
    try:
        # Shared: the same call may be made again while a writer has the image open.
        info = await img.info(real, fmt, force_share=True)
    except QemuImgError as error:
        raise ImageRefusedError(path, error.stderr) from error
    return Wanted(spec, info.virtual_size)
