"""vCenter's events: what happened to VMs, in order, kept in a file that survives a restart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sendense_lab.records import Record, VmRecord

REMEMBERED = 10_000
REVERTED = "com.vmware.vc.vm.VmStateRevertedToSnapshot"
"""vCenter has no event class for a revert: it is an EventEx with this type id."""


class LabEvent(Record):
    """One event.

    `kind` is the name of an event class (`VmReconfiguredEvent`), the description id of a task (with a `.`, as
    `VirtualMachine.createSnapshot`), or the type id of an EventEx (`com.…`).
    """

    key: int
    created: datetime
    kind: str
    vm: str
    """The VM's managed object id at that time."""
    name: str
    message: str


class EventLog:
    """The events of a lab; any thread may use it.

    Args:
        path: One JSON object a line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._events: list[LabEvent] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            if line.endswith("}"):  # a killed server may have left half a line
                self._events.append(LabEvent.model_validate_json(line))
        self._made = self._events[-1].key if self._events else 0
        self._rewrite(self._events[-REMEMBERED:])

    def add(self, kind: str, record: VmRecord, message: str) -> None:
        """Notes that something happened to a VM."""
        with self._lock:
            self._made += 1
            event = LabEvent(
                key=self._made,
                created=datetime.now(UTC),
                kind=kind,
                vm=record.moref,
                name=record.name,
                message=message,
            )
            self._events.append(event)
            with self._path.open("a") as file:
                file.write(event.model_dump_json() + "\n")

    def all(self) -> Sequence[LabEvent]:
        """Returns what is remembered, oldest first."""
        with self._lock:
            return tuple(self._events)

    def forget(self) -> int:
        """Forgets everything so far, as a vCenter does with events that are too old; returns how many."""
        with self._lock:
            count = len(self._events)
            self._rewrite([])
            return count

    def _rewrite(self, events: list[LabEvent]) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(event.model_dump_json() + "\n" for event in events))
        partial.replace(self._path)
        self._events = list(events)
