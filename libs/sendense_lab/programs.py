"""Running the programs that the lab is made of: argument lists only, output captured, failures typed."""

from __future__ import annotations

import subprocess

from sendense_lab.errors import ProgramError

DEADLINE_SECONDS = 600


def run(*argv: str, stdin: str | None = None, timeout: float = DEADLINE_SECONDS) -> str:
    """Runs a program to its end; Ctrl-C does not reach it, for unmounting must not be cut short.

    Args:
        argv: Program and arguments.
        stdin: Text for its standard input.
        timeout: Seconds after which the program is killed.

    Returns:
        Its standard output.

    Raises:
        ProgramError: It failed, ran out of time, or is not installed.
    """
    try:
        done = subprocess.run(
            argv, input=stdin, start_new_session=True, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError as err:
        raise ProgramError(list(argv), 127, "the program is not installed; run `make setup`") from err
    except subprocess.TimeoutExpired as err:
        raise ProgramError(list(argv), -9, f"no end after {timeout:.0f} s") from err
    if done.returncode != 0:
        raise ProgramError(list(argv), done.returncode, done.stderr or done.stdout)
    return done.stdout
