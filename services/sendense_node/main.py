"""`sendense-node up` runs a whole node in the foreground; `down` stops it from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sendense_node.config import NodeSettings
from sendense_node.lab import introduce
from sendense_node.machines import MachineNotReady, machine_environment, make_machine
from sendense_node.processes import LogFiles, Processes, commands_of, environment_for
from sendense_node.ready import NotReadyError, wait_until_ready
from sendense_node.state import prepare

STORAGE = "repository exports nbdd tunnel restore"
"""What runs beside the disks."""
DOWN_SECONDS = 60.0
"""How long `down` waits for a node to stop."""

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def up() -> None:
    """Runs all processes until Ctrl-C; says when they are ready, or which one failed and why."""
    settings = NodeSettings()
    started = time.monotonic()
    with _only_one(settings):
        try:
            prepare(settings)
        except MachineNotReady as error:
            typer.echo(f"Sendense cannot start on this machine: {error}", err=True)
            sys.exit(1)
        settings.endpoint_file.unlink(missing_ok=True)
        logs = LogFiles(settings.log_dir)
        lab_port = introduce(settings.root) if settings.runs("lab") else None
        environment = environment_for(settings.root, Path(sys.executable).parent, lab_port)
        environment |= machine_environment(settings)
        outcome: list[str] = []
        watcher = threading.Thread(target=lambda: _watch(settings, processes, started, outcome), daemon=True)
        commands = commands_of(settings.procfile, settings.runs)
        processes = Processes(commands, environment, logs, on_started=watcher.start)
        typer.echo(f"Sendense is starting; state and logs are in {settings.root}")
        try:
            processes.loop()
        finally:
            settings.endpoint_file.unlink(missing_ok=True)
            logs.close()
        sys.exit(_report(settings, processes, outcome))


@app.command()
def machine(
    names: Annotated[list[str], typer.Argument(help="Addresses and host names of the new machine.")],
    out: Annotated[Path, typer.Option(help="Directory to be copied into its SENDENSE_HOME.")],
    services: Annotated[str, typer.Option(help="Its processes, separated by blanks.")] = STORAGE,
) -> None:
    """Makes what a further machine of this node is given: its certificate and its processes' identities."""
    try:
        make_machine(NodeSettings(), names, services.split(), out)
    except MachineNotReady as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    typer.echo(f"Copy what is in {out} into SENDENSE_HOME on {names[0]}; nobody else may read it.")


@app.command()
def down() -> None:
    """Stops the node that runs on this state directory and waits until all its processes have ended."""
    settings = NodeSettings()
    pid = _running_pid(settings)
    if pid is None:
        typer.echo("Sendense is not running.")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while _running_pid(settings) is not None:
        if time.monotonic() > deadline:
            typer.echo(
                f"The node (pid {pid}) did not stop within {DOWN_SECONDS:.0f} s; see {settings.log_dir}",
                file=sys.stderr,
            )
            sys.exit(1)
        time.sleep(0.1)
    typer.echo("Sendense has stopped.")


def _watch(settings: NodeSettings, processes: Processes, started: float, outcome: list[str]) -> None:
    try:
        endpoint = asyncio.run(wait_until_ready(settings))
    except NotReadyError as error:
        outcome.append(str(error))
        processes.terminate()
        return
    seconds = time.monotonic() - started
    where = f" at {endpoint}" if endpoint else ""
    typer.echo(f"Sendense is ready{where} ({len(processes.pids)} processes, {seconds:.1f} s).")
    if settings.runs("access"):
        typer.echo(f"Administrator's token: {settings.admin_token_file}. Ctrl-C stops everything.")


def _report(settings: NodeSettings, processes: Processes, outcome: list[str]) -> int:
    """Says why the node stopped, when nobody asked it to; returns the exit status."""
    failure = processes.first_failure
    if failure is not None:
        name, status = failure
        typer.echo(
            f"\n{name} ended with status {status}; its last lines, from {settings.log_dir / name}.log:", file=sys.stderr
        )
        for line in processes.logs.tail(name):
            typer.echo(f"  {line}", err=True)
        return 1
    if outcome:
        typer.echo(f"\nSendense did not become ready: {outcome[0]}. Logs: {settings.log_dir}", err=True)
        return 1
    typer.echo("Sendense has stopped.")
    return 0


@contextlib.contextmanager
def _only_one(settings: NodeSettings) -> Iterator[None]:
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with settings.pid_file.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            typer.echo(f"Sendense already runs on {settings.root}; `make down` stops it.", err=True)
            sys.exit(1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


def _running_pid(settings: NodeSettings) -> int | None:
    """Returns the pid of the node that holds the lock, or None."""
    if not settings.pid_file.exists():
        return None
    with settings.pid_file.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0) or None
    return None


def main() -> None:
    """Entry point of `sendense-node`."""
    app()


if __name__ == "__main__":
    main()
