"""docs/errors.md knows every reason, with the code that it comes with, and no reason that is gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sendense_ctl.failures import ExitCode

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "errors.md").read_text()
REASON = re.compile(r"[A-Z]+(_[A-Z]+)+|INTERNAL|CANCELLED|UNAUTHENTICATED|UPGRADED")


def _documented() -> set[str]:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return {reason for row in rows for reason in re.findall(r"`([A-Z_]+)`", row)}


def _sources() -> dict[Path, str]:
    files = [path for top in ("services", "libs") for path in (ROOT / top).rglob("*.py")]
    foreign = (ROOT / "libs" / "sendense_lab", ROOT / "libs" / "sendense")
    own = [path for path in files if not any(path.is_relative_to(folder) for folder in foreign)]
    return {path: path.read_text() for path in own}


def _raised() -> dict[str, Path]:
    """Every string constant that is passed or assigned as `reason`, and is written like one."""
    found: dict[str, Path] = {}
    for path, text in _sources().items():
        for node in ast.walk(ast.parse(text)):
            value = None
            if (isinstance(node, ast.keyword) and node.arg == "reason") or (
                isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "reason" for t in node.targets)
            ):
                value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and REASON.fullmatch(value.value):
                found[value.value] = path
    return found


def test_there_are_reasons_to_look_at() -> None:
    assert len(_raised()) > 50


@pytest.mark.parametrize("reason", sorted(_raised()))
def test_a_reason_is_documented(reason: str) -> None:
    assert reason in _documented(), f"{reason} of {_raised()[reason]} is not in docs/errors.md"


def test_no_documented_reason_is_gone() -> None:
    text = "\n".join([*_sources().values(), *(p.read_text() for p in (ROOT / "services").rglob("*.lua"))])
    assert sorted(reason for reason in _documented() if reason not in text) == []


def test_the_exit_codes_are_those_of_the_cli() -> None:
    table = PAGE.split("## Exit codes")[1]
    assert {int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {
        int(code) for code in ExitCode
    }
