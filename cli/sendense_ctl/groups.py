"""Command groups whose modules are imported when one of their commands is wanted.

`--help` and completion need names and one line of help only; with gRPC and the messages of all services they would take
several times as long.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup
from typer.main import get_group

if TYPE_CHECKING:
    from typer._click.core import Command, Context


class LazyGroup(TyperGroup):
    """A group that is a `typer.Typer` in another module.

    Args:
        name: What is typed.
        help: One line.
        where: `package.module:variable` of the Typer.
    """

    def __init__(self, *, name: str, help: str, where: str) -> None:  # noqa: A002  # the library's own word
        super().__init__(name=name, help=help, no_args_is_help=True)
        self._where = where
        self._loaded: TyperGroup | None = None

    def list_commands(self, ctx: Context) -> list[str]:
        """Names the commands, which imports their module."""
        return self._load().list_commands(ctx)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Finds a command, which imports its module."""
        return self._load().get_command(ctx, cmd_name)

    def _load(self) -> TyperGroup:
        if self._loaded is None:
            module, variable = self._where.split(":")
            self._loaded = get_group(getattr(importlib.import_module(module), variable))
        return self._loaded


GROUPS = (
    ("backup", "Start backups, look at them, get files back.", "sendense_ctl.backup:app"),
    ("job", "Jobs of all kinds: backups, deletions, verifications and more.", "sendense_ctl.job:app"),
    ("policy", "Which VMs are backed up when, how, and what is kept.", "sendense_ctl.policy:app"),
    ("file", "Files across restore points.", "sendense_ctl.restore:file"),
    ("vm", "The VMs that agents know.", "sendense_ctl.admin:vm"),
    ("repository", "Where backups are kept.", "sendense_ctl.repository:app"),
    ("agent", "Capture agents.", "sendense_ctl.agent:app"),
    ("token", "Access tokens.", "sendense_ctl.admin:token"),
    ("auth", "Why calls are let in or refused.", "sendense_ctl.access:auth"),
    ("audit", "Who did what.", "sendense_ctl.access:audit"),
    ("config", "Which gateway is used, and why.", "sendense_ctl.explain:app"),
)
"""Name, one line of help, and where the commands are, in the order of `--help`."""


class Root(TyperGroup):
    """The program's own group: all of `GROUPS` and what is registered with it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, line, where in GROUPS:
            self.commands[name] = LazyGroup(name=name, help=line, where=where)
