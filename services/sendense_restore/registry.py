"""A Windows guest's registry, as far as drive letters need it: keys and values of one hive, read and bounded.

The format is that of libhivex and of "The Windows NT registry file format" (regf 1.3 to 1.5): after a base block of
4 KiB lie cells, each named by its offset. All of it comes from the guest: every offset is checked, depth and counts are
limited, and anything odd ends the search with `HiveError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BYTES = 256 << 20
"""A larger hive is not read."""
_BASE = 4096
_ROOT_OFFSET = 36
_MOST = 4096
_SMALL_DATA = 1 << 31
_COMPRESSED_NAME = {b"nk": 0x20, b"vk": 0x01}


class HiveError(Exception):
    """The hive is damaged, or is none."""


@dataclass(frozen=True, slots=True)
class Hive:
    """A registry hive.

    Attributes:
        content: The file's bytes.
    """

    content: bytes

    def values(self, path: str) -> dict[str, bytes]:
        """Returns a key's values: names and raw data.

        Args:
            path: The key below the root, with backslashes; letters match in either case.

        Raises:
            HiveError: There is no such key, or the hive is damaged.
        """
        if self.content[:4] != b"regf":
            raise HiveError("it is no registry hive")
        cell = self._number(_ROOT_OFFSET, "<I")
        for name in path.split("\\"):
            cell = self._child(cell, name)
        node = self._cell(cell, b"nk")
        count, table = struct.unpack_from("<II", node, 36)
        found: dict[str, bytes] = {}
        for number in range(min(count, _MOST)):
            value = self._cell(self._number(_BASE + table + 4 + 4 * number, "<I"), b"vk")
            name_length, size, data, _, flags = struct.unpack_from("<HIIIH", value, 2)
            name = _name(value[20 : 20 + name_length], compressed=bool(flags & _COMPRESSED_NAME[b"vk"]))
            if size >= _SMALL_DATA:
                found[name] = struct.pack("<I", data)[: size - _SMALL_DATA]
            else:
                found[name] = self._cell(data, b"")[:size]
        return found

    def _child(self, cell: int, name: str) -> int:
        node = self._cell(cell, b"nk")
        count, _, table = struct.unpack_from("<III", node, 20)
        if count:
            for child in self._children(table, depth=0):
                key = self._cell(child, b"nk")
                flags, length = struct.unpack_from("<H", key, 2)[0], struct.unpack_from("<H", key, 72)[0]
                found = _name(key[76 : 76 + length], compressed=bool(flags & _COMPRESSED_NAME[b"nk"]))
                if found.lower() == name.lower():
                    return child
        raise HiveError(f"there is no key {name}")

    def _children(self, table: int, depth: int) -> Iterator[int]:
        index = self._cell(table, b"")
        kind, count = index[:2], struct.unpack_from("<H", index, 2)[0]
        step = {b"lf": 8, b"lh": 8, b"li": 4, b"ri": 4}.get(kind)
        if step is None or depth > 1:
            raise HiveError("a list of keys is damaged")
        for number in range(min(count, _MOST)):
            (offset,) = struct.unpack_from("<I", index, 4 + step * number)
            if kind == b"ri":
                yield from self._children(offset, depth + 1)
            else:
                yield offset

    def _cell(self, offset: int, signature: bytes) -> bytes:
        start = _BASE + offset
        size = -self._number(start, "<i")
        if size < 8 or start + size > len(self.content):
            raise HiveError(f"the cell at {offset:#x} is damaged")
        cell = self.content[start + 4 : start + size]
        if not cell.startswith(signature):
            raise HiveError(f"the cell at {offset:#x} is no {signature.decode()}")
        return cell

    def _number(self, offset: int, shape: str) -> int:
        try:
            (number,) = struct.unpack_from(shape, self.content, offset)
        except struct.error as error:
            raise HiveError(f"it ends before {offset:#x}") from error
        return int(number)


def _name(raw: bytes, *, compressed: bool) -> str:
    return raw.decode("latin-1" if compressed else "utf-16-le", "replace")
