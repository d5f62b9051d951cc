"""`sendense-lab`: a vCenter to rehearse with. Every command talks to the server, except `serve`, which is it."""

from __future__ import annotations

import asyncio

import typer

from sendense_lab import commands
from sendense_lab.config import LabSettings
from sendense_lab.errors import LabError

app = typer.Typer(no_args_is_help=True, help="A simulated vCenter with real disks.", add_completion=False)
commands.register(app)


@app.command()
def serve(
    keep_snapshots: bool | None = typer.Option(
        None, "--keep-snapshots/--no-keep-snapshots", help="Keep the content of removed snapshots."
    ),
    port: int | None = typer.Option(None, help="TCP port; else that of the last run, or any free one."),
) -> None:
    """Runs the simulated vCenter until SIGTERM or Ctrl-C."""
    # What only the server needs costs every command half a second.

    import structlog

    from sendense_lab.logs import log_to_stderr
    from sendense_lab.serve import serve as run_server

    log_to_stderr()
    settings = LabSettings()
    update = {"keep_snapshots": keep_snapshots, "port": port}
    settings = settings.model_copy(update={name: value for name, value in update.items() if value is not None})
    try:
        asyncio.run(run_server(settings))
    except LabError as err:
        structlog.get_logger(__name__).error("the lab cannot run", reason=err.reason, error=err.message)
        raise typer.Exit(1) from err


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
