"""Entry point of `sendense-ctl`: the command groups, and one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sendense_ctl import configuration
from sendense_ctl.configuration import ConfigurationError
from sendense_ctl.failures import ExitCode, LocalError, exit_code_of
from sendense_ctl.groups import Root
from sendense_rpc.errors import SendenseError

app = typer.Typer(cls=Root, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root(
    endpoint: Annotated[str, typer.Option("--endpoint", help="Address of the gateway, https://host:port.")] = "",
    ca: Annotated[Path | None, typer.Option("--ca", help="Certificate (PEM) that the gateway's descends from.")] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that holds your token.")] = None,
) -> None:
    """Back up VMware VMs and get files back."""
    options = {"endpoint": endpoint, "ca_file": str(ca or ""), "token_file": str(token_file or "")}
    configuration.given.set({name: value for name, value in options.items() if value})


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for what is wrong here and at the server; say its cause, its risk and what to run."""
    from sendense_ctl.doctor import examine

    examine(as_json=json_)


def main() -> None:
    """Runs the command and exits: 0 when it succeeded, else with a code of `ExitCode`."""
    from sendense_ctl.output import print_error

    try:
        app()
    except SendenseError as error:
        print_error(error.message, error.help, error.reason)
        sys.exit(exit_code_of(error))
    except (LocalError, ConfigurationError) as error:
        print_error(str(error), error.help)
        sys.exit(ExitCode.FAILED)
    except KeyboardInterrupt:
        print_error("interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left, as `head` does. Python would fail again while it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        translated = _of_grpc(error)
        if translated is None:
            raise
        print_error(translated.message, translated.help, translated.reason)
        sys.exit(exit_code_of(translated))


def _of_grpc(error: Exception) -> SendenseError | None:
    """Returns what a service reported, without importing gRPC where no call was made."""
    grpc = sys.modules.get("grpc")
    if grpc is None or not isinstance(error, grpc.RpcError):
        return None
    from sendense_rpc.status import from_rpc_error

    return from_rpc_error(error)
