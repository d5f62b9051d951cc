"""The commands of `sendense-lab`, each with `--json` for programs and a table for people."""

from __future__ import annotations

import typer

from sendense_lab import diskcli, faultcli, guestcli, snapshotcli, vmcli
from sendense_lab.printing import JSON, client, show, table


def register(app: typer.Typer) -> None:
    """Adds all commands to the application."""
    vmcli.app.add_typer(snapshotcli.app, name="snapshot")
    app.add_typer(vmcli.app, name="vm")
    app.add_typer(guestcli.app, name="guest")
    app.add_typer(diskcli.app, name="disk")
    app.add_typer(faultcli.app, name="fault")
    app.command(name="info")(info)


def info(json_: bool = JSON) -> None:
    """Shows where the simulated vCenter is and what it holds."""
    show(client().info, lambda shown: table(["what", "value"], [[k, v] for k, v in shown.items()]), json_)
