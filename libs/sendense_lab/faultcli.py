"""`sendense-lab fault …`: misbehaviour on demand."""

from __future__ import annotations

import typer
from rich.table import Table

from sendense_lab.printing import JSON, Shown, client, show, table

PARAMETERS = typer.Argument(None, metavar="[NAME=VALUE]…", help="Parameters of the kind, as `fault kinds` shows them.")
app = typer.Typer(no_args_is_help=True, help="Misbehaviour on demand.")


@app.command("kinds")
def fault_kinds(json_: bool = JSON) -> None:
    """Lists all kinds of faults with their parameters."""

    def human(shown: Shown) -> Table:
        return table(
            ["kind", "what happens", "times", "parameters"],
            [
                [
                    kind["kind"],
                    kind["about"],
                    kind["times"] or "until cleared",
                    "\n".join(
                        f"{name}={'…' if value is None else value}" for name, value in kind["parameters"].items()
                    ),
                ]
                for kind in shown["kinds"]
            ],
        )

    show(lambda: {"kinds": client().fault_kinds()}, human, json_)


@app.command("set")
def fault_set(
    kind: str,
    parameters: list[str] = PARAMETERS,
    vm: str | None = typer.Option(None, help="Only this VM."),
    disk: str | None = typer.Option(None, help="Only this disk of it: index, device key or uuid."),
    after: int = typer.Option(0, help="So many occasions pass unharmed first."),
    times: int | None = typer.Option(None, help="How often it happens; else as `fault kinds` says."),
    forever: bool = typer.Option(False, "--forever", help="It happens until it is cleared."),
    json_: bool = JSON,
) -> None:
    """Puts a fault in force."""
    chosen: dict[str, object] = {"vm": vm, "disk": disk, "after": after}
    for parameter in parameters or []:
        name, equals, value = parameter.partition("=")
        if not equals:
            raise typer.BadParameter(f"{parameter!r} is not NAME=VALUE")
        chosen[name.replace("-", "_")] = value
    if times is not None or forever:
        chosen["times"] = times
    show(lambda: client().set_fault(kind, **chosen), lambda fault: f"fault {fault['id']}: {fault['kind']}", json_)


@app.command("list")
def fault_list(json_: bool = JSON) -> None:
    """Lists the faults that are set, and how often they happened."""

    def human(shown: Shown) -> Table:
        return table(
            ["id", "kind", "vm", "parameters", "occasions", "happened", "last"],
            [
                [
                    fault["id"],
                    fault["kind"],
                    fault["vm"] or "all",
                    ", ".join(f"{name}={value}" for name, value in fault["parameters"].items() if value is not None),
                    fault["seen"],
                    f"{fault['spoiled']} of {fault['times'] or 'any'}",
                    fault["last"],
                ]
                for fault in shown["faults"]
            ],
        )

    show(lambda: {"faults": client().faults()}, human, json_)


@app.command("clear")
def fault_clear(
    which: str | None = typer.Argument(None, help="Id or kind; all, if not given."), json_: bool = JSON
) -> None:
    """Takes faults back."""
    show(
        lambda: {"cleared": client().clear_faults(which)},
        lambda shown: f"{len(shown['cleared'])} faults cleared",
        json_,
    )


@app.command("calls")
def fault_calls(
    reset: bool = typer.Option(False, help="Forget them then."),
    json_: bool = JSON,
) -> None:
    """Lists the latest calls of the API, to choose one for a fault."""
    show(
        lambda: {"calls": client().calls(reset=reset)},
        lambda shown: table(["method", "object"], [[call["method"], call["object"]] for call in shown["calls"]]),
        json_,
    )


@app.command("change-certificate")
def fault_change_certificate(json_: bool = JSON) -> None:
    """Shows another certificate to new connections."""
    show(client().change_certificate, lambda shown: f"SHA-256 {shown['sha256']}", json_)


@app.command("forget-events")
def fault_forget_events(json_: bool = JSON) -> None:
    """Empties vCenter's event log, as time does."""
    show(client().forget_events, lambda shown: f"{shown['events']} events forgotten", json_)


@app.command("page-areas")
def fault_page_areas(
    areas: int | None = typer.Argument(None, help="Areas in one answer; none for the default."),
    json_: bool = JSON,
) -> None:
    """Sets the page size of QueryChangedDiskAreas."""
    show(
        lambda: client().set_page_areas(areas),
        lambda shown: f"{shown['page_areas']} areas in one answer",
        json_,
    )


@app.command("lose-sessions")
def fault_lose_sessions(json_: bool = JSON) -> None:
    """Ends all sessions at once."""
    show(client().lose_sessions, lambda shown: f"{shown['sessions']} sessions ended", json_)
