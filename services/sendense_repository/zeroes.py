"""Proves that ranges of an image read as zeroes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from sendense_blockio.extents import Extent, split
from sendense_qemu.errors import QemuImgError
from sendense_qemu.process import BULK, run

_RANGES_PER_RUN = 256
_MAX_READ = 64 << 20
_PATTERN_DIFFERS = "Pattern verification failed"


async def first_not_zero(path: Path, extents: Iterable[Extent]) -> str:
    """Reads ranges of a qcow2 image (an absolute path); returns what is not zero in qemu-io's words, empty when all is.

    Raises:
        QemuImgError: The image cannot be read.
    """
    pieces = split(extents, _MAX_READ)
    while some := list(itertools.islice(pieces, _RANGES_PER_RUN)):
        reads = [argument for piece in some for argument in ("-c", f"read -q -P 0 {piece.offset} {piece.length}")]
        command = ["qemu-io", "-r", "-f", "qcow2", *reads, str(path)]
        finished = await run(command, BULK, ok=frozenset({0, 1}))
        said = (finished.stdout + finished.stderr).decode("utf-8", "replace").strip()
        if finished.status and _PATTERN_DIFFERS in said:
            return said.splitlines()[0]
        if finished.status:
            raise QemuImgError(command, finished.status, said)
    return ""
