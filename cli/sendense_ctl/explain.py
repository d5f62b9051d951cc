"""`sendense-ctl config explain`: which value each setting has, and which of the four places it came from."""

from __future__ import annotations

from typing import Annotated

import typer

from sendense_ctl import configuration
from sendense_ctl.configuration import OPTIONS, VARIABLES
from sendense_ctl.output import console, print_json, print_table, printable

app = typer.Typer(no_args_is_help=True, help="Which gateway is used, and why.")


@app.callback()
def group() -> None:
    """Which gateway is used, and why."""


@app.command()
def explain(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show each setting, its value and where that came from.

    Looked at in this order: options, environment, the file (TOML: endpoint, ca_file, token_file, home), the node in
    `home`. The token's file is named; the token is not shown.
    """
    settings = configuration.current()
    found = {name: getattr(settings, name) for name in VARIABLES}
    if json_:
        print_json(
            {
                "file": str(settings.file),
                "settings": {name: {"value": each.value, "origin": each.origin} for name, each in found.items()},
            }
        )
        return
    rows = [
        [name, each.value or "–", each.origin or f"nowhere: {OPTIONS.get(name, '')} {VARIABLES[name]}".strip()]
        for name, each in found.items()
    ]
    print_table(["SETTING", "VALUE", "FROM"], rows, "")
    state = "read" if settings.file.is_file() else "not there"
    console.print(f"Configuration file: {printable(str(settings.file))} ({state})", markup=False)
