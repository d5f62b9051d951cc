"""A directory as a stream: tar or tar.zst by GNU tar, which keeps owners, times, links, holes, xattrs and ACLs; or ZIP.

Memory is bounded however much is archived. tar works on a descriptor of the directory that was resolved inside the
mount; it never follows a symbolic link and does not open what is neither file nor directory. Names in its stream
begin with `./`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.programs import end_group
from sendense_restore.zip_stream import ZipError, ZipStream

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


@dataclass(frozen=True, slots=True)
class Form:
    """A form of archive: the word in requests, the media type, and the suffix of a file's name."""

    word: str
    media_type: str
    suffix: str
    tar_option: str = ""


FORMS = {
    "tar": Form("tar", "application/x-tar", ".tar"),
    "tar.zst": Form("tar.zst", "application/zstd", ".tar.zst", "--zstd"),
    "zip": Form("zip", "application/zip", ".zip"),
}


def archive_stream(
    form: Form, directory: int, readers: Executor, temporary: Path
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """Archives a directory; yields the stream's chunks.

    The iteration raises `ArchiveError` at the end when something is missing. Nothing is left running when the block
    is left, however it is left.

    Args:
        form: The form.
        directory: Descriptor of the directory, opened for reading.
        readers: Threads that read the guest's files.
        temporary: Directory for what a ZIP must keep to its end.

    Raises:
        ArchiveError: It cannot be started.
    """
    if form.word == "zip":
        return _zip_stream(directory, readers, temporary)
    return _tar_stream(directory, form.tar_option)


@asynccontextmanager
async def _zip_stream(directory: int, readers: Executor, temporary: Path) -> AsyncIterator[AsyncIterator[bytes]]:
    chunks = ZipStream(directory, temporary).chunks()
    ahead: set[asyncio.Future[bytes | None]] = set()
    loop = asyncio.get_running_loop()

    async def iterate() -> AsyncIterator[bytes]:
        while True:
            future = loop.run_in_executor(readers, next, chunks, None)
            ahead.add(future)
            try:
                chunk = await asyncio.shield(future)
            except ZipError as error:
                raise ArchiveError(str(error)) from error
            ahead.discard(future)
            if chunk is None:
                return
            if chunk:
                yield chunk

    try:
        yield iterate()
    finally:
        if ahead:  # a thread still reads through the descriptor
            await asyncio.shield(asyncio.wait(ahead))
            for future in ahead:
                future.exception()
        await loop.run_in_executor(readers, chunks.close)


@asynccontextmanager
async def _tar_stream(directory: int, option: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """Archives a directory with tar.

    Args:
        directory: Descriptor of the directory, opened for reading.
        option: Further option of tar, such as for compression.

    Yields:
        The stream's chunks; its iteration raises `ArchiveError` at the end when something is missing. tar is gone
        when the block is left, however it is left.

    Raises:
        ArchiveError: tar cannot be started.
    """
    command = ["setpriv", "--pdeathsig=KILL", "--", "tar", "--create", "--file=-", "--format=posix"]
    command += ["--sparse", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]
    command += [option] if option else []
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
