"""`sendense-lab vm snapshot …`: snapshots as a user makes them, beside those of a backup."""

from __future__ import annotations

import typer

from sendense_lab.printing import JSON, Shown, client, show

app = typer.Typer(no_args_is_help=True, help="Snapshots made and removed by hand.")


@app.command("create")
def snapshot_create(
    name: str,
    snapshot: str,
    description: str = typer.Option("", help="As shown beside its name."),
    count: int = typer.Option(1, min=1, help="So many, one on the other."),
    json_: bool = JSON,
) -> None:
    """Makes a snapshot; the guest's writes go to new files from here on."""

    def ask() -> Shown:
        numbered = [snapshot] if count == 1 else [f"{snapshot}-{number}" for number in range(1, count + 1)]
        made = [client().create_snapshot(name, each, description=description) for each in numbered]
        return {"snapshots": made}

    show(ask, lambda shown: "\n".join(f"{each['moref']} {each['name']}" for each in shown["snapshots"]), json_)


@app.command("remove")
def snapshot_remove(
    name: str,
    snapshot: str = typer.Argument("", help="Id or name; all, if not given."),
    children: bool = typer.Option(False, help="Also those made on it."),
    json_: bool = JSON,
) -> None:
    """Removes a snapshot and merges its files."""
    show(
        lambda: client().remove_snapshot(name, snapshot or None, children=children),
        lambda shown: f"{shown['left']} snapshots left",
        json_,
    )


@app.command("revert")
def snapshot_revert(
    name: str,
    snapshot: str,
    power_on: bool = typer.Option(False, "--power-on", help="Switch the VM on again; it is off after a revert."),
    json_: bool = JSON,
) -> None:
    """Takes a VM back to a snapshot, with its hardware and its disks' content."""
    show(
        lambda: client().revert_snapshot(name, snapshot, power_on=power_on),
        lambda shown: f"back at {shown['name']}, {shown['power_state']}",
        json_,
    )
