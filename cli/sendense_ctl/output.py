"""How answers look: JSON for programs (the same as REST's), tables for people, control characters for nobody."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import humanize
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)

_LEAST_WIDTH = 20
"""Columns of the terminal that the last column of a table gets at least, when it needs so many."""

NARROW = 60
"""Below so many columns a value of ordinary length does not fit beside its name."""


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
    """Prints rows, or `empty` when there are none; where a table would not fit the terminal, a block of lines each.

    Columns that end in `>` are right-aligned. The last one may be folded; the others stay in one piece, above all the
    first, which is what people copy into the next command.
    """
    if not rows:
        console.print(empty)
        return
    names = [column.rstrip(">") for column in columns]
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(cell_len(text) for text in texts) for texts in zip(names, *shown, strict=True)]
    last = min(widths[-1], _LEAST_WIDTH)
    if sum(widths[:-1]) + last + 2 * (len(widths) - 1) > console.width:
        for row in shown:
            console.print(Text(row[0], style="bold"), soft_wrap=True)
            print_facts(list(zip(names[1:], row[1:], strict=True)), indent=2)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column.endswith(">") else "left"
        table.add_column(names[number], justify=justify, overflow="fold", no_wrap=number < len(columns) - 1)
    for row in shown:
        table.add_row(*map(escape, row))
    console.print(table)


def print_facts(facts: Sequence[tuple[str, str]], indent: int = 0) -> None:
    """Prints a line for each name and value; long values are folded, or stand below their name where it is narrow."""
    shown = [(name.lower(), printable(value)) for name, value in facts]
    label = max(cell_len(name) for name, _ in shown)
    if console.width < NARROW:
        for name, value in shown:
            if indent + label + 2 + cell_len(value) <= console.width:
                console.print(Text(f"{' ' * indent}{name:<{label}}  {value}"), soft_wrap=True)
                continue
            # Words are kept whole, so that a path or an id can still be copied.
            below = textwrap.wrap(value, console.width - indent - 2, break_long_words=False, break_on_hyphens=False)
            for number, line in enumerate([name, *below]):
                console.print(Text(" " * (indent + 2 * bool(number)) + line), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in shown:
        grid.add_row(name, escape(value))
    console.print(Padding(grid, (0, 0, 0, indent)))


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


def age(stamp: Timestamp) -> str:
    """Returns how long ago a moment was: `2 hours ago`."""
    return humanize.naturaltime(datetime.now(UTC) - datetime.fromtimestamp(stamp.seconds, UTC))


def duration(seconds: float) -> str:
    """Returns seconds for people: `1:02:03` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
