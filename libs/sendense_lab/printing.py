"""How the command line asks the server and shows its answers: a table or a line for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import humanize
import typer
from rich.console import Console
from rich.table import Table

from sendense_lab.client import LabClient
from sendense_lab.config import LabSettings
from sendense_lab.errors import LabError

JSON = typer.Option(False, "--json", help="Print JSON for programs.")
DISK = typer.Option("0", help="Index, device key or uuid of the disk.")
Shown = dict[str, Any]


def client() -> LabClient:
    """Returns the client of the lab in SENDENSE_HOME."""
    return LabClient(LabSettings().home)


def fail(err: LabError, *, as_json: bool) -> NoReturn:
    """Prints an error and ends with status 1."""
    if as_json:
        error = {"reason": err.reason, "message": err.message, "help": err.help}
        typer.echo(json.dumps({"error": error}), err=True)
    else:
        typer.echo(f"{err.message}\n{err.help}".strip(), err=True)
    raise typer.Exit(1)


def show(ask: Callable[[], Shown], human: Callable[[Shown], object], as_json: bool) -> None:
    """Asks, and prints the answer or the error."""
    try:
        answer = ask()
    except LabError as err:
        fail(err, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(answer, indent=1))
        return
    shown = human(answer)
    if isinstance(shown, Table):
        Console().print(shown)
    else:
        typer.echo(shown)


def size(count: int) -> str:
    """Returns bytes for people."""
    return humanize.naturalsize(count, binary=True)


def table(columns: list[str], rows: list[list[object]]) -> Table:
    """Returns a table."""
    made = Table(*columns)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made
