"""What can happen to a VM between two backups, and during one, drawn by hypothesis and done to a lab's VM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError

BLOCK = 64 * 1024
DISKS = ["4M:blank", "4M:blank", "4M:blank@1"]
"""Three disks on two controllers."""
MOST_DISKS = 5
MOST_SNAPSHOTS = 5

Action = tuple[str, int, int]
"""A kind and two numbers, which each kind reads in its own way."""

QUIET = ("write", "write", "scatter", "scatter", "zero")
TROUBLE = (
    *QUIET,
    "grow",
    "grow_reset",
    "reset",
    "add_disk",
    "remove_disk",
    "recreate_disk",
    "move",
    "reorder",
    "snapshot",
    "snapshot",
    "drop",
    "drop",
    "revert",
    "revert",
    "hidden_revert",
    "hidden_revert",
    "forget_events",
    "register_again",
    "power_off",
    "empty_id",
    "areas_fault",
    "leftover",
)
DURING = ("write", "scatter", "zero", "revert", "snapshot")
IN_TURN = (
    *(
        (kind,)
        for kind in dict.fromkeys(TROUBLE)
        if kind not in ("write", "snapshot", "drop", "revert", "hidden_revert")
    ),
    ("snapshot", "drop"),
    ("snapshot", "revert"),
    ("snapshot", "hidden_revert"),
)
"""What is done in turn besides what is drawn, so that no kind is left to chance."""
KINDS = tuple(dict.fromkeys(TROUBLE))
EVENT_LOGS = ("readable", "readable", "readable", "readable", "unreadable", "breaks off")


@dataclass(frozen=True)
class Round:
    """What happens up to the end of one backup.

    Attributes:
        before: Before it.
        during: While its snapshot is open.
        numbers: For what is done in turn before it.
        requested: `full` or `incremental`.
        page_areas: Areas in one answer of the query.
        event_log: Whether the event log can be read.
    """

    before: tuple[Action, ...]
    during: tuple[Action, ...]
    numbers: tuple[int, int]
    requested: str
    page_areas: int
    event_log: str


NUMBERS = st.integers(0, 63)


def actions(kinds: tuple[str, ...], least: int, most: int) -> st.SearchStrategy[tuple[Action, ...]]:
    """Returns a strategy for so many actions."""
    return st.lists(st.tuples(st.sampled_from(kinds), NUMBERS, NUMBERS), min_size=least, max_size=most).map(tuple)


ROUNDS = st.builds(
    Round,
    before=st.one_of(actions(QUIET, 1, 4), actions(TROUBLE, 0, 4)),
    during=actions(DURING, 0, 2),
    numbers=st.tuples(NUMBERS, NUMBERS),
    requested=st.sampled_from(["incremental"] * 9 + ["full"]),
    page_areas=st.one_of(st.sampled_from([1, 1, 1, 2, 3, 7, 50, 2000]), st.integers(1, 2000)),
    event_log=st.sampled_from(EVENT_LOGS),
)


class VmLife:
    """Does what was drawn to one VM; what the VM does not allow just now does not happen.

    Attributes:
        done: How often each kind happened.
    """

    def __init__(self, lab: LabClient, vm: str) -> None:
        self.lab = lab
        self.vm = vm
        self.done: dict[str, int] = {}
        self._seed = 0

    def act(self, action: Action) -> None:
        """Lets one thing happen."""
        kind, one, two = action
        try:
            happened = getattr(self, f"_{kind}")(one, two)
        except LabError:
            return
        if happened is not False:
            self.done[kind] = self.done.get(kind, 0) + 1

    def set_faults(self, drawn: Round) -> None:
        """Sets how vCenter answers in this round."""
        self.lab.set_page_areas(drawn.page_areas)
        if drawn.event_log == "unreadable":
            self.lab.set_fault("api-error", method="CreateCollectorForEvents", error="NoPermission", times=None)
        elif drawn.event_log == "breaks off":
            self.lab.set_fault("api-error", method="ReadNextEvents", error="HostCommunication", times=None, after=1)

    def clear_faults(self) -> None:
        """Takes all faults back."""
        self.lab.clear_faults()
        self.lab.set_page_areas(None)

    def _open(self) -> list[dict[str, Any]]:
        return [each for each in self.lab.snapshots(self.vm) if not each["kept"]]

    def _disks(self) -> list[dict[str, Any]]:
        disks: list[dict[str, Any]] = self.lab.vm(self.vm)["disks"]
        return disks

    def _put(self, disk: int, block: int, blocks: int, *, zero: bool = False) -> None:
        disks = self._disks()
        chosen = disks[disk % len(disks)]
        last = chosen["capacity_bytes"] // BLOCK
        start = block % last
        length = min(blocks, last - start) * BLOCK
        self._seed += 1
        # Not aligned to what change tracking counts in.
        offset = start * BLOCK + (0 if zero else 512)
        self.lab.guest_write(self.vm, chosen["uuid"], offset, seed=self._seed, length=length - 512, zero=zero)

    def _write(self, one: int, two: int) -> None:
        self._put(one, two, 1 + one % 5)

    def _zero(self, one: int, two: int) -> None:
        self._put(one, two, 1 + two % 9, zero=True)

    def _scatter(self, one: int, two: int) -> None:
        for number in range(6):
            self._put(one, two + 9 * number, 1)

    def _grow(self, one: int, two: int, tracking: Any = "keep") -> None:
        del two
        disks = self._disks()
        chosen = disks[one % len(disks)]
        self.lab.resize_disk(self.vm, chosen["uuid"], f"{(chosen['capacity_bytes'] >> 20) + 1}M", tracking=tracking)

    def _grow_reset(self, one: int, two: int) -> None:
        self._grow(one, two, "reset")

    def _reset(self, one: int, two: int) -> None:
        del two
        disks = self._disks()
        self.lab.reset_tracking(self.vm, disks[one % len(disks)]["uuid"])

    def _add_disk(self, one: int, two: int) -> bool | None:
        if len(self._disks()) >= MOST_DISKS:
            return False
        self.lab.add_disk(self.vm, f"{1 + two % 3}M:blank@{one % 2}")
        return None

    def _remove_disk(self, one: int, two: int) -> bool | None:
        del two
        disks = self._disks()
        if len(disks) < 2:  # the last one stays
            return False
        self.lab.remove_disk(self.vm, disks[one % len(disks)]["uuid"])
        return None

    def _recreate_disk(self, one: int, two: int) -> None:
        del two
        disks = self._disks()
        self.lab.recreate_disk(self.vm, disks[one % len(disks)]["uuid"])

    def _move(self, one: int, two: int) -> None:
        disks = self._disks()
        self.lab.move_disk(self.vm, disks[one % len(disks)]["uuid"], to=f"{two % 2}:{two % 6}")

    def _reorder(self, one: int, two: int) -> None:
        disks = self._disks()
        self.lab.move_disk(self.vm, disks[one % len(disks)]["uuid"], position=two % len(disks))

    def _snapshot(self, one: int, two: int) -> bool | None:
        if len(self._open()) >= MOST_SNAPSHOTS:
            return False
        self.lab.create_snapshot(self.vm, f"somebody's {one}-{two}")
        return None

    def _drop(self, one: int, two: int) -> bool | None:
        del two
        found = [each for each in self._open() if not each["name"].startswith("sendense-")]
        if not found:
            return False
        self.lab.remove_snapshot(self.vm, found[one % len(found)]["moref"])
        return None

    def _revert(self, one: int, two: int) -> bool | None:
        del two
        found = self._open()
        if not found:
            return False
        self.lab.revert_snapshot(self.vm, found[one % len(found)]["moref"], power_on=True)
        return None

    def _hidden_revert(self, one: int, two: int) -> bool | None:
        """Reverts, and removes the snapshot: nothing shows it any more but the event log."""
        found = [each for each in self._open() if not each["name"].startswith("sendense-")]
        if not found:
            return False
        chosen = found[one % len(found)]["moref"]
        self.lab.revert_snapshot(self.vm, chosen, power_on=True)
        self.lab.remove_snapshot(self.vm, chosen)
        if two % 2:
            self._write(one, two)
        return None

    def _forget_events(self, one: int, two: int) -> None:
        del one, two
        self.lab.forget_events()

    def _register_again(self, one: int, two: int) -> None:
        del one, two
        self.lab.register_again(self.vm)

    def _power_off(self, one: int, two: int) -> None:
        del one
        self.lab.power_off(self.vm)
        if two % 2:
            self.lab.power_on(self.vm)

    def _empty_id(self, one: int, two: int) -> None:
        del one, two
        self.lab.set_fault("cbt-empty-id")

    def _areas_fault(self, one: int, two: int) -> None:
        errors = ("FileFault", "InvalidArgument")
        self.lab.set_fault(
            "cbt-error", error=errors[one % 2], query=("any", "changed", "allocated")[two % 3], times=1 + two % 2
        )

    def _leftover(self, one: int, two: int) -> None:
        """Our snapshot cannot be removed after this backup: it is left behind."""
        del one, two
        self.lab.set_fault("snapshot-remove", vm=self.vm)
