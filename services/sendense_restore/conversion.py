"""Writes a disk of a restore point into one file, with progress: qemu-img under limits, formats always given.

The program dies with the service. Its source is opened read-only through headers that were judged before.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sendense_qemu.header import check_chain
from sendense_restore.programs import ProgramError, end_group

FORMATS: Final = {"raw": (), "qcow2": ("-o", "compat=1.1"), "vmdk": ("-o", "subformat=streamOptimized")}
"""Formats, and how they are written; streamOptimized is what OVF and vSphere import."""
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_ADDRESS_SPACE = 8 << 30
_OPEN_FILES = 4096
_LAST_WORDS = 4096


async def convert(layer: Path, target: Path, fmt: str, on_percent: Callable[[float], None]) -> None:
    """Writes a layer's whole content into a new file.

    Args:
        layer: The sealed layer; those below are found through its header.
        target: The new file.
        fmt: One of `FORMATS`.
        on_percent: Told how far it is, from 0 to 100.

    Raises:
        HeaderError: A layer's header is not one that we let qemu open.
        ProgramError: qemu-img failed.
        OSError: A layer cannot be read.
    """
    source = await asyncio.to_thread(layer.resolve)
    await asyncio.to_thread(check_chain, source, [source.parent])
    command = ["setpriv", "--pdeathsig=KILL", "--", "prlimit", f"--as={_ADDRESS_SPACE}", "--core=0"]
    command += [f"--nofile={_OPEN_FILES}", "--", "qemu-img", "convert", "-p", "-m", "8", "-f", "qcow2", "-O", fmt]
    command += [*FORMATS[fmt], str(source), str(target)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError("qemu-img", None, f"cannot be started: {error}") from error
    try:
        _, said = await asyncio.gather(_follow(process, on_percent), _last_words(process))
        status = await process.wait()
    finally:
        if process.returncode is None:
            await asyncio.shield(end_group(process))
    if status != 0:
        raise ProgramError("qemu-img", status, said.decode("utf-8", "replace").strip())


async def _follow(process: asyncio.subprocess.Process, on_percent: Callable[[float], None]) -> None:
    while process.stdout is not None and (part := await process.stdout.read(_LAST_WORDS)):
        if found := _PERCENT.findall(part):
            on_percent(float(found[-1]))


async def _last_words(process: asyncio.subprocess.Process) -> bytes:
    said = b""
    while process.stderr is not None and (part := await process.stderr.read(_LAST_WORDS)):
        said = (said + part)[-_LAST_WORDS:]
    return said
