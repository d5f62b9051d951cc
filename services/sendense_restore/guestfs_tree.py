"""The micro-VM's volumes as the tree that `fuse_server` shows: a directory for each volume, below it what is in it.

libguestfs answers a call in about a millisecond, so files are looked at by the directory, not one by one. Inode numbers
are the guest's own, made different for each volume (and Btrfs subvolume), so hard links are seen as such.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sendense_restore.fuse_server import ROOT
from sendense_restore.fuse_wire import Attributes
from sendense_restore.guestfs_blocks import BlockMaps, Layout, Segment
from sendense_restore.guestfs_calls import MOST_BYTES, FileFacts, GuestCalls, Listing, NameListing

_BATCH = 500
_MOST_LOOKED_AT = 50_000
"""So many entries of one directory are looked at while it is listed; the rest, when somebody asks for them."""
_MAP_BYTES = 4 << 20
"""To ask where a file lies takes as long as reading some megabytes."""
_SMALL = 1 << 20
"""Holes of smaller files are sooner read than asked for."""
_INODE_BITS = 48
_KINDS = {b"b": 6, b"c": 2, b"d": 4, b"f": 1, b"l": 10, b"r": 8, b"s": 12}


@dataclass(frozen=True, slots=True)
class ShownVolume:
    """A mounted volume.

    Attributes:
        name: Its directory's name here and in the micro-VM.
        segments: Where it lies on the disks; none when that is not known or of no use.
        tells_holes: Whether its file system tells where files have holes.
    """

    name: str
    segments: Sequence[Segment] = ()
    tells_holes: bool = False


@dataclass(slots=True)
class _Batch:
    """Files of one directory that were looked at together; their xattrs are fetched together, when one is wanted."""

    directory: bytes
    names: list[bytes]
    xattrs: dict[bytes, dict[bytes, bytes]] | None = None


@dataclass(slots=True)
class _Node:
    number: int
    parent: int
    name: bytes
    path: bytes
    volume: ShownVolume
    attributes: Attributes
    batch: _Batch
    told: int = 0
    layout: Layout | None = None
    has_asked: bool = False


@dataclass(slots=True)
class _OpenFile:
    node: _Node
    start: int = 0
    content: bytes = b""
    next_offset: int = 0


@dataclass(slots=True)
class _OpenDirectory:
    node: _Node
    listing: Listing | NameListing
    first: int = 0
    batch: _Batch = field(default_factory=lambda: _Batch(b"", []))
    looks: list[FileFacts | None] = field(default_factory=list)


class GuestTree:
    """The tree, see `fuse_server.FileTree`.

    Args:
        calls: Asks the micro-VM.
        maps: Finds where files lie.
        volumes: What is shown.
    """

    def __init__(self, calls: GuestCalls, maps: BlockMaps, volumes: Sequence[ShownVolume]) -> None:
        self._calls = calls
        self._maps = maps
        self._volumes = {os.fsencode(volume.name): volume for volume in volumes}
        self._numbers = itertools.count(ROOT + 1)
        self._nodes: dict[int, _Node] = {}
        self._named: dict[tuple[int, bytes], _Node] = {}
        self._files: dict[int, _OpenFile] = {}
        self._directories: dict[int, _OpenDirectory] = {}
        self._handles = itertools.count(1)
        self._devices: dict[tuple[str, int], int] = {}
        self._odd_inodes: dict[tuple[int, int], int] = {}
        top = FileFacts(0, 1, stat.S_IFDIR | 0o500, 2 + len(volumes), 0, 0, 0, 0, 0, 0, 0, 0)
        nowhere = ShownVolume("")
        self._nodes[ROOT] = _Node(ROOT, 0, b"", b"", nowhere, self._attributes(nowhere, top), _Batch(b"/", []), 1)

    def attributes(self, node_id: int) -> Attributes:
        """Returns a node's attributes."""
        return self._node(node_id).attributes

    def lookup(self, parent: int, name: bytes) -> tuple[int, Attributes]:
        """Finds a name in a directory."""
        node = self._named.get((parent, name))
        if node is None:
            directory = self._node(parent)
            if parent == ROOT and name not in self._volumes:
                raise OSError(errno.ENOENT, "no such volume")
            facts = self._calls.look(directory.path + b"/" + name)
            node = self._remember(directory, name, facts, _Batch(directory.path, [name]))
        node.told += 1
        return node.number, node.attributes

    def forget(self, node_id: int, count: int) -> None:
        """Takes back so many tellings of a node."""
        node = self._nodes.get(node_id)
        if node is not None and node_id != ROOT:
            node.told -= count
            if node.told <= 0:
                del self._nodes[node_id]
                del self._named[node.parent, node.name]

    def read_link(self, node_id: int) -> bytes:
        """Returns where a symbolic link leads."""
        return self._calls.read_link(self._node(node_id).path)

    def xattrs(self, node_id: int) -> Mapping[bytes, bytes]:
        """Returns extended attributes."""
        node = self._node(node_id)
        if node_id == ROOT:
            return {}
        batch = node.batch
        if batch.xattrs is None:
            try:
                found = self._calls.xattrs_of_all(batch.directory or b"/", batch.names)
                batch.xattrs = dict(zip(batch.names, found, strict=True))
            except OSError:  # too much for one answer, or one of them is damaged
                batch.xattrs = {}
        if node.name not in batch.xattrs:
            batch.xattrs[node.name] = self._calls.xattrs(node.path)
        return batch.xattrs[node.name]

    def facts(self, node_id: int) -> Mapping[str, int]:
        """Returns what statvfs(3) tells of the node's volume."""
        return self._calls.volume_facts("/" + self._node(node_id).volume.name)

    def open_file(self, node_id: int) -> int:
        """Opens a file."""
        handle = next(self._handles)
        self._files[handle] = _OpenFile(self._node(node_id))
        return handle

    def read(self, handle: int, offset: int, size: int) -> Sequence[bytes]:
        """Reads from the disks where the file's place is known, else through the micro-VM, ahead when in order."""
        opened = self._files[handle]
        node = opened.node
        end = min(offset + size, node.attributes.size)
        if end <= offset:
            return ()
        layout = self._layout(node) if node.attributes.size >= _MAP_BYTES else None
        if layout is not None and layout.is_readable:
            return layout.read(offset, end)
        if layout is None:
            return self._read_through(opened, offset, end)
        parts: list[bytes] = []
        for start, stop, extent in layout.pieces(offset, end):
            parts += self._read_through(opened, start, stop) if extent is not None else [bytes(stop - start)]
        return parts

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """Finds data or a hole."""
        node = self._files[handle].node
        if offset >= node.attributes.size:
            raise OSError(errno.ENXIO, "after the end")
        if not node.attributes.may_have_holes:
            return offset if whence == os.SEEK_DATA else node.attributes.size
        layout = self._layout(node) if node.attributes.size >= _SMALL else None
        if layout is None:
            raise OSError(errno.EOPNOTSUPP, "nobody tells; zeroes must be looked for")
        found = layout.seek(offset, whence)
        if found is None:
            raise OSError(errno.ENXIO, "no data after it")
        return found

    def open_directory(self, node_id: int) -> int:
        """Lists a directory."""
        node = self._node(node_id)
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(node, self._calls.entries(node.path or b"/"))
        return handle

    def entries(self, handle: int, start: int) -> Iterator[tuple[bytes, int, int, int, Attributes | None]]:
        """Yields the entries from the start-th on, looked at by the batch."""
        opened = self._directories[handle]
        for index in range(start, opened.listing.count):
            name, letter, inode = opened.listing.at(index)
            facts = None
            if name not in (b".", b"..") and index < _MOST_LOOKED_AT:
                facts = self._look_ahead(opened, index)
            if facts is None:
                yield name, _KINDS.get(letter, 0), inode or 1, 0, None
                continue
            node = self._named.get((opened.node.number, name))
            if node is None:
                node = self._remember(opened.node, name, facts, opened.batch)
            node.told += 1
            yield name, facts.mode >> 12, node.attributes.inode, node.number, node.attributes

    def close(self, handle: int) -> None:
        """Closes a handle."""
        self._files.pop(handle, None)
        directory = self._directories.pop(handle, None)
        if directory is not None:
            directory.listing.close()

    def _look_ahead(self, opened: _OpenDirectory, index: int) -> FileFacts | None:
        if not opened.first <= index < opened.first + len(opened.looks):
            stop = min(index + _BATCH, opened.listing.count)
            names = [opened.listing.at(number)[0] for number in range(index, stop)]
            path = opened.node.path
            opened.first, opened.batch = index, _Batch(path, names)
            if opened.node.number == ROOT:
                looks = [self._calls.look(b"/" + name) if name in self._volumes else None for name in names]
            else:
                looks = self._calls.look_at_all(path, names)
            opened.looks = looks
        return opened.looks[index - opened.first]

    def _remember(self, parent: _Node, name: bytes, facts: FileFacts, batch: _Batch) -> _Node:
        volume = self._volumes[name] if parent.number == ROOT else parent.volume
        path = parent.path + b"/" + name
        number = next(self._numbers)
        node = _Node(number, parent.number, name, path, volume, self._attributes(volume, facts), batch)
        self._nodes[number] = self._named[parent.number, name] = node
        return node

    def _attributes(self, volume: ShownVolume, facts: FileFacts) -> Attributes:
        space = self._devices.setdefault((volume.name, facts.device), len(self._devices))
        inode = facts.inode
        if inode >> _INODE_BITS:  # of no file system that is known; but no two files may ever look like one
            inode = self._odd_inodes.setdefault((space, inode), len(self._odd_inodes)) + (1 << (_INODE_BITS - 1))
        times = (facts.accessed_ns, facts.modified_ns, facts.changed_ns)
        return Attributes(
            (space << _INODE_BITS) + inode,
            facts.mode, facts.size, facts.blocks, facts.links, facts.uid, facts.gid, facts.special, times,
        )  # fmt: skip

    def _node(self, number: int) -> _Node:
        node = self._nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "a node that was forgotten")
        return node

    def _layout(self, node: _Node) -> Layout | None:
        if not node.has_asked and node.volume.tells_holes:
            node.layout = self._maps.layout(node.path, node.attributes.size, node.volume.segments)
        node.has_asked = True
        return node.layout

    def _read_through(self, opened: _OpenFile, offset: int, end: int) -> list[bytes]:
        parts: list[bytes] = []
        while offset < end:
            inside = offset - opened.start
            if not 0 <= inside < len(opened.content):
                size = opened.node.attributes.size
                in_order = offset == opened.next_offset or size <= MOST_BYTES
                wanted = min(MOST_BYTES if in_order else end - offset, size - offset)
                opened.content, opened.start = self._calls.read(opened.node.path, offset, wanted), offset
                inside = 0
                if not opened.content:
                    raise OSError(errno.EIO, "the file ends before its size")
            part = opened.content[inside : inside + end - offset]
            parts.append(part)
            offset += len(part)
        opened.next_offset = offset
        return parts
