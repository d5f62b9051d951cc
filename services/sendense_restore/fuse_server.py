"""Shows a tree of files below a directory of the host over FUSE, read-only, one request after the other."""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sendense_restore import fuse_wire as wire
from sendense_restore.fuse_wire import Attributes, Opcode, Request

ROOT = 1
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_PRIVATE = 1, 2, 4, 8, 1 << 18
_FLAGS = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_GONE = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})  # a request that was taken back before it was read
_MOST_PIECES = 512
"""writev(2) takes 1,024."""
_READY = select.POLLIN | select.POLLHUP | select.POLLERR


class FileTree(Protocol):
    """What is shown. Methods raise OSError with the errno that the caller shall see.

    A node is known by its number until it was forgotten as often as `lookup` and `entries` have told of it.
    """

    def attributes(self, node_id: int) -> Attributes:
        """Returns a node's attributes."""

    def lookup(self, parent: int, name: bytes) -> tuple[int, Attributes]:
        """Finds a name in a directory."""

    def forget(self, node_id: int, count: int) -> None:
        """Takes back so many tellings of a node."""

    def read_link(self, node_id: int) -> bytes:
        """Returns where a symbolic link leads."""

    def xattrs(self, node_id: int) -> Mapping[bytes, bytes]:
        """Returns extended attributes."""

    def facts(self, node_id: int) -> Mapping[str, int]:
        """Returns what statvfs(3) tells of the node's volume, by its names without `f_`."""

    def open_file(self, node_id: int) -> int:
        """Opens a file; returns a handle."""

    def read(self, handle: int, offset: int, size: int) -> Sequence[bytes]:
        """Reads up to so many bytes, fewer only at the end, in pieces."""

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """Finds data (`os.SEEK_DATA`) or a hole (`os.SEEK_HOLE`) at or after an offset."""

    def open_directory(self, node_id: int) -> int:
        """Opens a directory; returns a handle."""

    def entries(self, handle: int, start: int) -> Iterator[tuple[bytes, int, int, int, Attributes | None]]:
        """Yields name, kind, inode, node and attributes of the entries from the start-th on.

        Each that is taken with attributes is told of; one without is a name only, and its node is 0.
        """

    def close(self, handle: int) -> None:
        """Closes a handle."""


class FuseServer:
    """One mounted directory and what it shows.

    Args:
        tree: What is shown.
        directory: An existing directory to cover.

    Raises:
        OSError: The kernel has no FUSE, or refuses.
    """

    def __init__(self, tree: FileTree, directory: Path) -> None:
        self._tree = tree
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            options = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
            _mount(b"guestfs", directory, b"fuse.sendense", _FLAGS, options.encode())
            _mount(b"none", directory, None, _MS_PRIVATE, None)
        except BaseException:
            os.close(self._fd)
            raise
        self._answers: dict[int, Callable[[Request], Sequence[bytes]]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: lambda request: (wire.attributes_answer(tree.attributes(request.node_id)),),
            Opcode.READLINK: lambda request: (tree.read_link(request.node_id),),
            Opcode.OPEN: lambda request: (wire.open_answer(tree.open_file(request.node_id), wire.KEEP_CACHE),),
            Opcode.READ: self._read,
            Opcode.STATFS: lambda request: (wire.statfs_answer(tree.facts(request.node_id)),),
            Opcode.RELEASE: self._release,
            Opcode.GETXATTR: self._get_xattr,
            Opcode.LISTXATTR: self._list_xattrs,
            Opcode.FLUSH: lambda _: (),
            Opcode.INIT: self._init,
            Opcode.OPENDIR: self._open_directory,
            Opcode.RELEASEDIR: self._release,
            Opcode.DESTROY: lambda _: (),
            Opcode.READDIRPLUS: self._read_directory,
            Opcode.LSEEK: self._seek,
        }

    def serve(self, end: int) -> None:
        """Answers until the directory is unmounted, or a descriptor is ready for reading.

        Args:
            end: The descriptor, such as a pidfd of the process without which nothing can be answered.

        Raises:
            OSError: The kernel ended the conversation otherwise.
        """
        poll = select.poll()
        poll.register(self._fd, _READY)
        poll.register(end, _READY)
        while True:
            if any(fd == end for fd, _ in poll.poll()):
                return
            try:
                message = os.read(self._fd, wire.REQUEST_BYTES)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno == errno.ENODEV:
                    return
                raise
            self._handle(wire.parse_request(message))

    def close(self) -> None:
        """Ends the conversation: whoever still uses the directory gets ENOTCONN."""
        os.close(self._fd)

    def _handle(self, request: Request) -> None:
        if request.opcode == Opcode.FORGET:
            self._tree.forget(request.node_id, wire.handle_field(request.body))
        elif request.opcode == Opcode.BATCH_FORGET:
            for node_id, count in wire.forgotten(request.body):
                self._tree.forget(node_id, count)
        elif request.opcode != Opcode.INTERRUPT:  # what runs cannot be interrupted; it is answered when it is done
            self._send(request)

    def _send(self, request: Request) -> None:
        try:
            parts = self._answers.get(request.opcode, _unknown)(request)
            body = parts if len(parts) < _MOST_PIECES else [b"".join(parts)]
            message = [wire.answer_head(request.unique, sum(map(len, parts))), *body]
        except OSError as error:
            message = [wire.refusal(request.unique, error.errno or errno.EIO)]
        try:
            os.writev(self._fd, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # who asked has gone, or all have
                raise

    def _init(self, request: Request) -> Sequence[bytes]:
        answer = wire.init_answer(request.body)
        if answer is None:
            raise OSError(errno.EPROTO, "the kernel's FUSE is too old")
        return (answer,)

    def _lookup(self, request: Request) -> Sequence[bytes]:
        node_id, attributes = self._tree.lookup(request.node_id, wire.name_field(request.body))
        return (wire.entry(node_id, attributes),)

    def _read(self, request: Request) -> Sequence[bytes]:
        return self._tree.read(*wire.read_fields(request.body))

    def _seek(self, request: Request) -> Sequence[bytes]:
        return (wire.number_answer(self._tree.seek(*wire.seek_fields(request.body))),)

    def _release(self, request: Request) -> Sequence[bytes]:
        self._tree.close(wire.handle_field(request.body))
        return ()

    def _get_xattr(self, request: Request) -> Sequence[bytes]:
        room, name = wire.attribute_fields(request.body)
        value = self._tree.xattrs(request.node_id).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return (_fitting(value, room),)

    def _list_xattrs(self, request: Request) -> Sequence[bytes]:
        room, _ = wire.attribute_fields(request.body)
        return (_fitting(b"".join(name + b"\0" for name in self._tree.xattrs(request.node_id)), room),)

    def _open_directory(self, request: Request) -> Sequence[bytes]:
        handle = self._tree.open_directory(request.node_id)
        return (wire.open_answer(handle, wire.KEEP_CACHE | wire.CACHE_DIR),)

    def _read_directory(self, request: Request) -> Sequence[bytes]:
        handle, start, room = wire.read_fields(request.body)
        parts: list[bytes] = []
        entries = self._tree.entries(handle, start)
        for offset, (name, kind, inode, node_id, attributes) in enumerate(entries, start + 1):
            raw = wire.entry(node_id, attributes) + wire.directory_entry(inode, offset, kind, name)
            if len(raw) > room:
                if attributes is not None:
                    self._tree.forget(node_id, 1)
                break
            parts.append(raw)
            room -= len(raw)
        return (b"".join(parts),)


def _unknown(request: Request) -> Sequence[bytes]:
    raise OSError(errno.ENOSYS, f"request {request.opcode} is not for a read-only file system")


def _fitting(value: bytes, room: int) -> bytes:
    answer = wire.attribute_answer(value, room)
    if answer is None:
        raise OSError(errno.ERANGE, "too little room")
    return answer


def _mount(source: bytes, directory: Path, kind: bytes | None, flags: int, options: bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, os.fsencode(directory), kind, ctypes.c_ulong(flags), options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(directory))
