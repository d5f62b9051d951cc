"""Reads the key files of Debian's nbd-server (GLib's key file syntax), remembering each line's number.

What always holds: a file is understood whole or refused with the line that is wrong; a group or key that is given
twice is refused, since GLib silently takes the last and the reader of a file the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 1 << 20
_GROUP = re.compile(r"\[([^\[\]\x00-\x1f\x7f]+)\]")
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})


class KeyFileError(Exception):
    """A file, or a value in it, is wrong; it is used for nothing.

    Attributes:
        file: The file.
        line: The line, counted from 1; 0 for the file as a whole.
        problem: What is wrong, in one clause.
    """

    def __init__(self, file: Path, line: int, problem: str) -> None:
        self.file = file
        self.line = line
        self.problem = problem
        super().__init__(f"{file}:{line}: {problem}" if line else f"{file}: {problem}")


@dataclass(frozen=True, slots=True)
class Value:
    """What stands behind a key, and in which line."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Group:
    """One `[name]` with its keys.

    Attributes:
        file: Where it stands.
        name: Between the brackets.
        line: The line of the brackets.
        values: Its keys.
    """

    file: Path
    name: str
    line: int
    values: Mapping[str, Value]

    def text(self, key: str) -> str | None:
        """Returns a key's text, None when it is not there."""
        value = self.values.get(key)
        return None if value is None else value.text

    def flag(self, key: str) -> bool:
        """Returns a key's truth value, False when it is not there.

        Raises:
            KeyFileError: It is neither `true`, `false`, `1` nor `0`.
        """
        value = self.values.get(key)
        if value is None or value.text in _FALSE:
            return False
        if value.text in _TRUE:
            return True
        raise KeyFileError(self.file, value.line, f"{key} is {value.text!r}, not true or false")

    def number(self, key: str) -> int | None:
        """Returns a key's number, None when it is not there.

        Raises:
            KeyFileError: It is no number, or below zero.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if not (value.text.isascii() and value.text.isdigit()):
            raise KeyFileError(self.file, value.line, f"{key} is {value.text!r}, not a number")
        return int(value.text)

    def line_of(self, key: str) -> int:
        """Returns a key's line, the group's when it is not there."""
        value = self.values.get(key)
        return self.line if value is None else value.line


def read_key_file(file: Path) -> dict[str, Group]:
    """Reads a file of groups.

    Returns:
        The groups by name, in the file's order.

    Raises:
        KeyFileError: It cannot be read, is too large, is no UTF-8, or has a line that means nothing.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(file, 0, f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(file, 0, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise KeyFileError(file, line, "is no UTF-8") from error
    return parse_key_file(file, text)


def parse_key_file(file: Path, text: str) -> dict[str, Group]:
    """Reads groups from text.

    Args:
        file: Named in errors.
        text: The content.

    Raises:
        KeyFileError: A line means nothing, or a group or key is given twice.
    """
    groups: dict[str, Group] = {}
    values: dict[str, Value] | None = None
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            matched = _GROUP.fullmatch(line)
            if matched is None:
                raise KeyFileError(file, number, "is no [group]")
            name = matched[1]
            if name in groups:
                raise KeyFileError(file, number, f"[{name}] is given twice")
            values = {}
            groups[name] = Group(file, name, number, values)
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or _KEY.fullmatch(key) is None:
            raise KeyFileError(file, number, "is neither a [group] nor a key = value")
        if values is None:
            raise KeyFileError(file, number, f"{key} stands before the first [group]")
        if key in values:
            raise KeyFileError(file, number, f"{key} is given twice")
        if "\0" in value:
            raise KeyFileError(file, number, f"{key} holds a NUL")
        values[key] = Value(value, number)
    return groups
