"""Builds registry hives for tests: keys, values, and lists of keys in the forms that Windows writes."""

from __future__ import annotations

import struct
from collections.abc import Mapping

Key = Mapping[str, "Key | bytes"]


def build_hive(root: Key, kind: bytes = b"lh") -> bytes:
    """Returns a hive with these keys (mappings) and values (bytes); `kind` is that of the lists of keys."""
    cells = bytearray(32)  # the bin's own header; offsets are from its start

    def cell(content: bytes) -> int:
        offset = len(cells)
        size = -(-(len(content) + 4) // 8) * 8
        cells.extend(struct.pack("<i", -size) + content.ljust(size - 4, b"\0"))
        return offset

    def key(name: str, content: Key) -> int:
        values = []
        for value_name, data in content.items():
            if isinstance(data, bytes):
                raw = value_name.encode("latin-1")
                where = cell(data)
                values.append(cell(b"vk" + struct.pack("<HIIIHH", len(raw), len(data), where, 3, 1, 0) + raw))
        children = [key(child, below) for child, below in content.items() if not isinstance(below, bytes)]
        step = b"".join(struct.pack("<I", child) + (b"name" if kind != b"li" else b"") for child in children)
        subkeys = cell(kind + struct.pack("<H", len(children)) + step) if children else 0xFFFFFFFF
        value_list = cell(b"".join(struct.pack("<I", value) for value in values)) if values else 0xFFFFFFFF
        raw_name = name.encode("utf-16-le")
        node = b"nk" + struct.pack(
            "<HQIIIIIIII", 0, 0, 0, 0, len(children), 0, subkeys, 0xFFFFFFFF, len(values), value_list
        )
        node = node.ljust(72, b"\0") + struct.pack("<HH", len(raw_name), 0) + raw_name
        return cell(node)

    top = key("ROOT", root)
    base = b"regf".ljust(36, b"\0") + struct.pack("<I", top)
    return base.ljust(4096, b"\0") + b"hbin" + bytes(cells[4:])
