"""docs/lab.md tells the truth: its commands run as they stand, and it names every fault and every command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sendense_lab.client import LabClient
from sendense_lab.faults import KINDS
from sendense_lab.main import app

PAGE = Path(__file__).parents[3] / "docs" / "lab.md"


def commands_of(page: str) -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the names of all commands: ("vm", "snapshot", "create")."""
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))
    if not hasattr(command, "commands"):
        yield path


def test_every_line_works_as_it_stands(lab: LabClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_HOME", str(lab.home))
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    ran: set[tuple[str, ...]] = set()
    known = set(leaves(typer.main.get_command(app)))
    for words in commands_of(PAGE.read_text()):
        if words[0] == "echo":
            Path(words[3]).write_text(words[1] + "\n")
        if words[0] != "sendense-lab":
            continue
        for extra in ([], ["--json"]) if words[2:3] in (["list"], ["kinds"], ["events"]) else ([],):
            done = runner.invoke(app, words[1:] + extra)
            assert done.exit_code == 0, f"{shlex.join(words)}: {done.output}"
        if "cat" in words:
            assert done.stdout == "hello\n"
        ran |= {path for path in known if words[1 : 1 + len(path)] == list(path)}
    assert known - ran == {("serve",)}


def test_every_fault_is_named() -> None:
    page = PAGE.read_text()
    assert [kind for kind in KINDS if f"`{kind}" not in page] == []
