"""`sendense-ctl doctor`: asks every check in turn and prints what they found.

The checks are generators of findings; they never raise for what they look for. One that is itself broken by something
unexpected becomes a finding, so that the rest is still looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import typer
from rich.markup import escape

from sendense_ctl import configuration
from sendense_ctl.configuration import ConfigurationError
from sendense_ctl.connection import open_gateway
from sendense_ctl.doctor_machine import check_node, check_token_file
from sendense_ctl.doctor_server import check_gateway, check_inventory
from sendense_ctl.failures import ExitCode
from sendense_ctl.findings import Finding
from sendense_ctl.output import console, print_json, printable

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[bold red]error[/]"}


def examine(*, as_json: bool) -> None:
    """Runs all checks and prints them; exits with 1 when there is an error among them."""
    found = []
    for finding in _all():
        found.append(finding)
        if not as_json:
            _show(finding)
    errors = sum(each.level == "error" for each in found)
    warnings = sum(each.level == "warning" for each in found)
    if as_json:
        print_json({"findings": [asdict(each) for each in found], "errors": errors, "warnings": warnings})
    else:
        console.print(f"{len(found)} checks: {errors} errors, {warnings} warnings")
    if errors:
        raise typer.Exit(ExitCode.FAILED)


def _all() -> Iterator[Finding]:
    try:
        settings = configuration.current()
    except ConfigurationError as error:
        yield Finding("configuration", "error", str(error), risk="No command works.", command=error.help)
        return
    yield from check_token_file(settings)
    yield from check_node(settings)
    try:
        gateway = open_gateway()
    except ConfigurationError as error:
        yield Finding(
            "configuration",
            "error",
            str(error),
            cause="nothing says which gateway to use, or who you are",
            risk="no command that asks the server works",
            command="sendense-ctl config explain",
        )
        return
    reachable = True
    for finding in check_gateway(gateway):
        reachable = reachable and finding.level != "error"
        yield finding
    if reachable:
        yield from check_inventory(gateway)


def _show(finding: Finding) -> None:
    console.print(f"{_MARKS[finding.level]} {escape(printable(finding.subject))}: {escape(printable(finding.found))}")
    for name in ("cause", "risk"):
        if text := getattr(finding, name):
            console.print(f"    {name}: {escape(printable(text))}")
    if finding.command:
        console.print(f"    run: [bold]{escape(printable(finding.command))}[/]")
