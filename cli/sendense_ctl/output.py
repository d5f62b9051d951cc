"""How answers look: JSON for programs (the same as REST's), tables for people, control characters for nobody."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import humanize
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)


def as_json(message: Message) -> dict[str, Any]:
    """Returns a message as REST shows it: snake_case names, all fields, 64-bit numbers as strings."""
    answer: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return answer


def print_json(message: Message | dict[str, Any]) -> None:
    """Prints one JSON document to standard output."""
    document = as_json(message) if isinstance(message, Message) else message
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Prints rows that fit the terminal, or `empty` when there are none. Columns that end in `>` are right-aligned."""
    if not rows:
        console.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # The first column is what people copy into the next command: it stays in one piece.
        justify: Literal["left", "right"] = "right" if column.endswith(">") else "left"
        table.add_column(column.rstrip(">"), justify=justify, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console.print(table)


def print_error(message: str, help_: str = "", reason: str = "") -> None:
    """Prints what went wrong and what to do next to standard error."""
    suffix = f" [{reason}]" if reason else ""
    error_console.print(f"[bold red]error:[/] {escape(printable(message) + suffix)}")
    if help_:
        error_console.print(escape(printable(help_)))


def printable(text: str) -> str:
    """Returns text with control characters made visible, so that a VM's name cannot drive the terminal."""
    return "".join(c if c.isprintable() or c == " " else f"\\x{ord(c):02x}" for c in text)


def size(number: int) -> str:
    """Returns bytes for people: `1.5 GiB`."""
    return humanize.naturalsize(number, binary=True)


def moment(stamp: Timestamp) -> str:
    """Returns a moment in the local zone, or a dash when it is not set."""
    if not stamp.seconds:
        return "–"
    return datetime.fromtimestamp(stamp.seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Returns seconds for people: `1:02:03` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
