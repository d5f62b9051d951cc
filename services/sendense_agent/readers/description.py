"""What a disk reader is, as data: a plugin of nbdkit, its parameters, what it needs, how many connections it likes.

A new kind of reader is a new `ReaderKind` and no new code path: parameters are templates over the facts of a disk, and
what differs in kind (a probe over HTTP, say) is a function that the kind names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import Formatter

from sendense_agent.readers.source import DiskSource

LARGEST_REQUEST = 2 << 20
"""Longest request that reaches a plugin, in bytes: VMware's NFC servers refuse longer ones (cbt-facts 13)."""


@dataclass(frozen=True)
class ReaderKind:
    """A kind of reader. In templates `{…}` stands for a fact of `facts`, or for an option of the kind.

    Attributes:
        name: Such as `vddk`; chosen by it, and reported with each capture.
        plugin: nbdkit's plugin, by name or path.
        parameters: Templates of its parameters; one whose facts are empty is left out. Seen by all on the machine.
        secrets: Templates of parameters that are passed as `+FILE`, from a private file that is gone once it was read.
        files: Templates of private files whose path is the parameter.
        filters: nbdkit's filters, outermost first.
        options: Values of templates that an administrator chooses.
        installed: What `nbdkit PLUGIN --dump-plugin` prints when all that the plugin needs is there; None when the
            kind is always there.
        needs: Each raises ReaderUnsuitable when a disk cannot be read this way. They block, and may ask the server.
        for_running_vms: Whether it is the first choice for a running VM where it is installed.
        automatic: Whether it is ever chosen without being asked for.
        connections: NBD connections with which a disk is read best.
        depth: Requests in flight on each of them.
    """

    name: str
    plugin: str
    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    filters: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    installed: str | None = None
    needs: tuple[Callable[[DiskSource], None], ...] = ()
    for_running_vms: bool = False
    automatic: bool = True
    connections: int = 1
    depth: int = 4


@dataclass(frozen=True)
class ReaderDescription:
    """How to serve one snapshot disk: a kind's templates filled in.

    Attributes:
        name: Such as `https`; reported with each capture.
        plugin: nbdkit's plugin.
        parameters: Its parameters; seen by everybody on the machine.
        secrets: Parameters that are passed as `+FILE`: their content is in a private file while the reader starts.
        files: Parameters that are passed as the path of a private file with this content.
        filters: nbdkit's filters, outermost first.
        connections: NBD connections with which it is read best.
        depth: Requests in flight on each of them.
    """

    name: str
    plugin: str
    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    filters: tuple[str, ...] = ()
    connections: int = 1
    depth: int = 4


def describe(kind: ReaderKind, source: DiskSource) -> ReaderDescription:
    """Fills a kind's templates in for a disk."""
    facts = {**source.facts(), **kind.options}

    def filled(templates: Mapping[str, str]) -> dict[str, str]:
        made = {name: Formatter().vformat(template, (), facts) for name, template in templates.items()}
        return {name: value for name, value in made.items() if value or not templates[name]}

    return ReaderDescription(
        name=kind.name,
        plugin=kind.plugin,
        parameters=filled(kind.parameters),
        secrets=filled(kind.secrets),
        files=filled(kind.files),
        filters=kind.filters,
        connections=kind.connections,
        depth=kind.depth,
    )
