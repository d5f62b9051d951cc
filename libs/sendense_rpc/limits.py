"""What a token is limited to: some VMs, some repositories, or both. An empty limit admits everything of its kind.

Services ask `current_limits()` wherever they look a thing up, so that what is outside is as if it were not there. When
a service calls another one for a person, the person's limits travel with the call (`HEADER`); they are believed only
from a workload identity, and the gateway strips them from what clients send.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sendense_rpc.errors import Kind, SendenseError

HEADER = "x-sendense-limits"
MOST = 50
"""Entries of each kind that a token may carry: it must fit into a header."""


class OutsideLimits(SendenseError):
    """The token is limited, and this is not among what it admits."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"this token is limited, and does not admit the {kind} '{name}'",
            kind=Kind.PERMISSION_DENIED,
            reason="OUTSIDE_TOKEN_LIMITS",
            help="See what it admits with `sendense-ctl auth explain`, or ask an administrator for another token.",
            metadata={kind: name},
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a token admits.

    Attributes:
        vms: Names or instance uuids of VMs; empty for all. A uuid outlives a renaming.
        repositories: Names or ids of repositories; empty for all.
    """

    vms: frozenset[str] = frozenset()
    repositories: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.vms or self.repositories)

    def admits_vm(self, name: str, uuid: str) -> bool:
        """Tells whether a VM is admitted, by its name or its instance uuid."""
        return not self.vms or name in self.vms or uuid.lower() in {each.lower() for each in self.vms}

    def admits_repository(self, name: str, identifier: str) -> bool:
        """Tells whether a repository is admitted, by its name or its id."""
        return not self.repositories or not self.repositories.isdisjoint((name, identifier))

    def require_vm(self, name: str, uuid: str) -> None:
        """Raises `OutsideLimits` unless the VM is admitted."""
        if not self.admits_vm(name, uuid):
            raise OutsideLimits("vm", name or uuid)

    def require_repository(self, name: str, identifier: str) -> None:
        """Raises `OutsideLimits` unless the repository is admitted."""
        if not self.admits_repository(name, identifier):
            raise OutsideLimits("repository", name or identifier)

    def to_header(self) -> str:
        """Returns the limits as the value of `HEADER`."""
        return json.dumps({"vms": sorted(self.vms), "repositories": sorted(self.repositories)})

    @classmethod
    def of(cls, vms: object, repositories: object) -> Limits:
        """Returns limits from what a token or a header says.

        Raises:
            ValueError: It is not two lists of strings. What is not understood must never count as no limit.
        """
        return cls(_names(vms), _names(repositories))

    @classmethod
    def from_header(cls, value: str) -> Limits:
        """Returns the limits that a header's value says; ValueError when it is malformed."""
        said = json.loads(value)
        if not isinstance(said, dict) or set(said) != {"vms", "repositories"}:
            raise ValueError("limits are not two lists")
        return cls.of(said["vms"], said["repositories"])


def _names(said: object) -> frozenset[str]:
    if said is None:
        return frozenset()
    if not isinstance(said, Iterable) or isinstance(said, str):
        raise ValueError("a limit is not a list")  # noqa: TRY004  # a token's content, not a programming error
    names = frozenset(said)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("a limit has an entry that is no name")
    return names
