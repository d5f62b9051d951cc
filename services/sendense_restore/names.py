r"""File names between a guest's bytes and our text: `\xNN` for bytes that are no UTF-8, `\\` for a backslash.

A guest's name is any bytes without NUL and slash; JSON and protobuf want UTF-8. The two functions here are each
other's inverse for every name, so that what a listing shows can be asked for.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"\\(\\|x[0-9a-fA-F]{2})?")


def escape(name: bytes) -> str:
    """Returns the text that stands for a name's (or a path's) bytes."""
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def unescape(text: str) -> bytes:
    """Returns the bytes that a text stands for.

    Raises:
        ValueError: A backslash begins nothing known, or the text holds no Unicode.
    """

    def replace(match: re.Match[bytes]) -> bytes:
        code = match.group(1)
        if code is None:
            raise ValueError(r"a backslash is followed by neither a backslash nor xNN")
        return b"\\" if code == b"\\" else bytes([int(code[1:], 16)])

    return _ESCAPE.sub(replace, text.encode("utf-8"))
