"""Sends a file or a directory of a mount as an HTTP answer that never looks complete when it is not.

A file has Content-Length, ranges and validators; a directory is a chunked archive. Reading happens in threads, one
chunk ahead of sending, and not by sendfile(2) from the event loop: a repository that answers slowly would stop
every other call of the service.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from concurrent.futures import Executor
from pathlib import Path

import structlog
from aiohttp import web

from sendense_restore.archive import FORMS, ArchiveError, Form, archive_stream
from sendense_restore.disk_exports import DiskExport
from sendense_restore.errors import FileUnreadable, NotAFile, UnknownArchive
from sendense_restore.mount import Mount
from sendense_restore.paths import GuestPath, located, reopen
from sendense_restore.ranges import Selection, Validators, attachment, select, validators
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

_CHUNK = 1 << 20
_PLAIN_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"}
_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device", stat.S_IFCHR: "character device"}


class Downloads:
    """Sends what lies in mounts.

    Args:
        readers: Threads that read guests' files.
        stall_seconds: A receiver that takes nothing for so long is cut off.
        temporary: Directory for what archives must keep to their end.
    """

    def __init__(self, readers: Executor, stall_seconds: float, temporary: Path) -> None:
        self._readers = readers
        self._stall_seconds = stall_seconds
        self._temporary = temporary

    async def send(self, request: web.Request, mount: Mount, path: GuestPath, archive: str) -> web.StreamResponse:
        """Answers a request with a file's or a directory's content.

        Args:
            request: The request, with ranges and conditions.
            mount: Where it lies.
            path: The file or directory.
            archive: The form in which a directory is sent; empty means tar.

        Raises:
            UnknownArchive: There is no such form.
            FileMissing: It is not there.
            NotAFile: It is a device, FIFO or socket, which is not opened.
            FileUnreadable: The file system does not give it.
        """
        form = FORMS.get(archive or "tar")
        if form is None:
            raise UnknownArchive(archive, list(FORMS))
        loop = asyncio.get_running_loop()
        fd, status = await loop.run_in_executor(self._readers, _open_content, mount, path)
        started = time.monotonic()
        try:
            if stat.S_ISDIR(status.st_mode):
                response = await self._send_directory(request, fd, path, form)
            else:
                current = validators(mount.backup_id, path.display, status)
                response = await self._send_open_file(request, fd, status.st_size, current, path)
        except SendenseError:
            raise  # nothing was sent yet
        except BaseException:
            _break_off(request)
            raise
        finally:
            os.close(fd)
        seconds = round(time.monotonic() - started, 3)
        log.info("download", mount_id=mount.mount_id, path=path.display, status=response.status, seconds=seconds)
        return response

    async def send_export(
        self, request: web.Request, opened: tuple[DiskExport, int, os.stat_result]
    ) -> web.StreamResponse:
        """Answers a request with a whole disk's file, and closes it.

        Raises:
            FileUnreadable: Its first bytes cannot be read.
        """
        export, fd, status = opened
        path = GuestPath((os.fsencode(export.file.name),))
        try:
            current = validators(export.export_id, path.display, status)
            return await self._send_open_file(request, fd, status.st_size, current, path)
        except SendenseError:
            raise  # nothing was sent yet
        except BaseException:
            _break_off(request)
            raise
        finally:
            os.close(fd)

    async def _send_open_file(
        self, request: web.Request, fd: int, size: int, current: Validators, path: GuestPath
    ) -> web.StreamResponse:
        """Answers a request with so many bytes of an open file, or a range of them.

        Raises:
            FileUnreadable: Its first bytes cannot be read.
        """
        chosen = select(request.headers, size, current)
        response = web.StreamResponse(status=chosen.status, headers=_PLAIN_HEADERS)
        response.headers["ETag"] = current.etag
        response.headers["Last-Modified"] = current.last_modified
        response.headers["Accept-Ranges"] = "bytes"
        if chosen.status in (200, 206):
            response.content_type = "application/octet-stream"
            response.headers["Content-Disposition"] = attachment(_display_name(path))
        if chosen.status == 206:
            last = chosen.start + chosen.length - 1
            response.headers["Content-Range"] = f"bytes {chosen.start}-{last}/{size}"
        elif chosen.status == 416:
            response.headers["Content-Range"] = f"bytes */{size}"
        if chosen.status != 304:
            response.content_length = chosen.length
        ahead = self._read(fd, chosen.start, chosen.length)
        try:
            # The first chunk is read before the head is sent: a file that cannot be read at all gets a proper error.
            first = await asyncio.shield(ahead) if request.method != "HEAD" else b""
            await response.prepare(request)
            if request.method != "HEAD" and chosen.length:
                await self._pump(response, fd, chosen, first)
        except OSError as error:
            if not response.prepared:
                raise FileUnreadable(path.display, error.strerror or str(error)) from error
            log.warning("download broken off", path=path.display, why=str(error))
            _break_off(request)
        finally:
            await asyncio.shield(asyncio.wait([ahead]))
        return response

    async def _pump(self, response: web.StreamResponse, fd: int, chosen: Selection, first: bytes) -> None:
        chunk, position, end = first, chosen.start, chosen.start + chosen.length
        while True:
            position += len(chunk)
            ahead = self._read(fd, position, end - position)
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await response.write(chunk)
                if position >= end:
                    break
                chunk = await asyncio.shield(ahead)
            finally:
                await asyncio.shield(asyncio.wait([ahead]))
        await response.write_eof()

    def _read(self, fd: int, position: int, most: int) -> asyncio.Future[bytes]:
        # Whoever asks waits for the end of it even when cancelled: the descriptor must stay open so long.
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._readers, _read_chunk, fd, position, min(_CHUNK, most))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def _send_directory(self, request: web.Request, fd: int, path: GuestPath, form: Form) -> web.StreamResponse:
        response = web.StreamResponse(headers=_PLAIN_HEADERS)
        response.content_type = form.media_type
        response.headers["Content-Disposition"] = attachment(_display_name(path) + form.suffix)
        response.headers["Accept-Ranges"] = "none"
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        try:
            async with archive_stream(form, fd, self._readers, self._temporary) as chunks:
                async for chunk in chunks:
                    if not response.prepared:
                        response.enable_chunked_encoding()
                        await response.prepare(request)
                    async with asyncio.timeout(self._stall_seconds):
                        await response.write(chunk)
                await response.write_eof()
        except (ArchiveError, OSError) as error:
            if not response.prepared:
                raise FileUnreadable(path.display, str(error)) from error
            log.warning("download broken off", path=path.display, why=str(error))
            _break_off(request)
        return response


def _open_content(mount: Mount, path: GuestPath) -> tuple[int, os.stat_result]:
    with located(mount.root_of(path), path) as (fd, status):
        if stat.S_ISDIR(status.st_mode):
            return reopen(fd, os.O_RDONLY | os.O_DIRECTORY, path), status
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile(path.display, _KINDS.get(stat.S_IFMT(status.st_mode), "special file"))
        return reopen(fd, os.O_RDONLY, path), status


def _read_chunk(fd: int, position: int, size: int) -> bytes:
    """Reads exactly so many bytes; a file that ends before its size is as unreadable as one with a bad block."""
    parts: list[bytes] = []
    while size > 0:
        part = os.pread(fd, size, position)
        if not part:
            raise OSError(errno.EIO, f"the file ends at {position}, before its size")
        parts.append(part)
        position += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _display_name(path: GuestPath) -> str:
    return path.name.decode("utf-8", "replace") or path.volume or "root"


def _break_off(request: web.Request) -> None:
    """Closes the connection at once, so that the receiver sees an answer without an end."""
    if request.transport is not None:
        request.transport.abort()
