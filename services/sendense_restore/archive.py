"""A directory as a tar stream, by GNU tar: owners, times, links, sparse files, xattrs and ACLs kept, memory bounded.

tar works on a descriptor of the directory that was resolved inside the mount; it never follows a symbolic link
and does not open what is neither file nor directory. Names in the stream begin with `./`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sendense_restore.programs import end_group

_CHUNK = 512 << 10
_MOST_COMPLAINTS = 4096
_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}


class ArchiveError(Exception):
    """tar could not read all of the directory: what was sent is not the whole of it.

    Attributes:
        complaints: What it said.
    """

    def __init__(self, complaints: str) -> None:
        self.complaints = complaints
        super().__init__(complaints)


@asynccontextmanager
async def tar_stream(directory: int) -> AsyncIterator[AsyncIterator[bytes]]:
    """Archives a directory.

    Args:
        directory: Descriptor of the directory, opened for reading.

    Yields:
        The stream's chunks; its iteration raises `ArchiveError` at the end when something is missing. tar is gone
        when the block is left, however it is left.

    Raises:
        ArchiveError: tar cannot be started.
    """
    command = ["setpriv", "--pdeathsig=KILL", "--", "tar", "--create", "--file=-", "--format=posix"]
    command += ["--sparse", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]
    command += [f"--directory=/proc/self/fd/{directory}", "--", "."]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
            pass_fds=(directory,),
            start_new_session=True,
            limit=_CHUNK,
        )
    except OSError as error:
        raise ArchiveError(f"tar cannot be started: {error}") from error
    complaints = asyncio.create_task(_last_words(process))
    try:
        yield _chunks(process, complaints)
    finally:
        await asyncio.shield(_end(process, complaints))


async def _end(process: asyncio.subprocess.Process, complaints: asyncio.Task[str]) -> None:
    complaints.cancel()
    await asyncio.wait([complaints])
    await end_group(process)


async def _chunks(process: asyncio.subprocess.Process, complaints: asyncio.Task[str]) -> AsyncIterator[bytes]:
    if process.stdout is None:
        raise ArchiveError("tar was started without a pipe")
    while chunk := await process.stdout.read(_CHUNK):
        yield chunk
    said = await complaints
    status = await process.wait()
    if status != 0:
        raise ArchiveError(said or f"tar ended with status {status}")


async def _last_words(process: asyncio.subprocess.Process) -> str:
    said = b""
    while process.stderr is not None and (part := await process.stderr.read(_MOST_COMPLAINTS)):
        said = (said + part)[-_MOST_COMPLAINTS:]
    return said.decode("utf-8", "replace").strip()
