"""What a disk reader is: a plugin of nbdkit with parameters. A new kind of reader is a new description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReaderDescription:
    """How to serve one snapshot disk.

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
