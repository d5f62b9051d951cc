"""Entry point of `sendense-ctl`: the command groups, and one place where errors become messages and exit codes."""

from __future__ import annotations

import sys

import grpc
import typer

from sendense_ctl import admin, backup
from sendense_ctl.connection import NotConfiguredError
from sendense_ctl.failures import ExitCode, LocalError, exit_code_of
from sendense_ctl.output import print_error
from sendense_rpc.errors import SendenseError
from sendense_rpc.status import from_rpc_error

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Back up VMware VMs and get files back.")
app.add_typer(backup.app, name="backup")
app.add_typer(admin.vm, name="vm")
app.add_typer(admin.repository, name="repository")
app.add_typer(admin.agent, name="agent")
app.add_typer(admin.token, name="token")


def main() -> None:
    """Runs the command and exits: 0 when it succeeded, else with a code of `ExitCode`."""
    try:
        app()
    except grpc.RpcError as error:
        _fail(from_rpc_error(error))
    except SendenseError as error:
        _fail(error)
    except (LocalError, NotConfiguredError) as error:
        print_error(str(error), error.help)
        sys.exit(ExitCode.FAILED)
    except BrokenPipeError:
        # The reader of our output left, as `head` does; Python would complain again while closing stdout.
        sys.stdout = None
        sys.exit(ExitCode.FAILED)


def _fail(error: SendenseError) -> None:
    print_error(error.message, error.help, error.reason)
    sys.exit(exit_code_of(error))
