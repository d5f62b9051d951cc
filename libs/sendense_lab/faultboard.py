"""The faults in force: who meets an occasion asks here whether it is to be spoiled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from sendense_lab.faults import AnyFault, Fault, OfRead
from sendense_lab.labrecord import ActiveFault

FaultKind = TypeVar("FaultKind", bound=Fault)


class FaultBoard:
    """All faults that were set and not yet cleared, the spent ones too.

    Args:
        active: As loaded.
        made: How many were ever made.
        save: Saves both whenever they have changed.
    """

    def __init__(
        self, active: tuple[ActiveFault, ...], made: int, save: Callable[[tuple[ActiveFault, ...], int], None]
    ) -> None:
        self._active = active
        self._made = made
        self._save = save
        self._lock = threading.Lock()

    def all(self) -> tuple[ActiveFault, ...]:
        """Returns all, oldest first."""
        return self._active

    def set(self, fault: AnyFault) -> ActiveFault:
        """Puts a fault in force."""
        with self._lock:
            self._made += 1
            active = ActiveFault(id=self._made, fault=fault)
            self._replace((*self._active, active))
            return active

    def clear(self, which: int | str | None) -> tuple[ActiveFault, ...]:
        """Takes faults back: one by its id, those of a kind, or all; returns them."""
        with self._lock:
            gone = tuple(active for active in self._active if which in (None, active.id, active.fault.kind))
            self._replace(tuple(active for active in self._active if active not in gone))
            return gone

    def take(
        self,
        kind: type[FaultKind],
        *,
        vm: str | None = None,
        disk: str | None = None,
        fits: Callable[[FaultKind], bool] = lambda _: True,
    ) -> FaultKind | None:
        """Counts an occasion of this kind and returns the fault that spoils it, if there is one.

        Args:
            kind: What could happen.
            vm: Instance uuid of the VM that it would happen to.
            disk: uuid of the disk.
            fits: Whether a fault is about this occasion at all; if not, it is not counted.
        """
        if not self._active:  # the usual case costs nothing
            return None
        with self._lock:
            for active in self._active:
                fault = active.fault
                if not isinstance(fault, kind) or active.spent or not _about(fault, vm, disk) or not fits(fault):
                    continue
                if isinstance(fault, OfRead) and active.sent < fault.after_bytes:
                    continue
                due = active.seen >= fault.after
                self._update(active, seen=active.seen + 1, spoiled=active.spoiled + due)
                if due:
                    return fault
        return None

    def count_bytes(self, vm: str, disk: str, length: int) -> None:
        """Notes that bytes of a disk were read, for the faults that wait for it."""
        if not self._active:
            return
        with self._lock:
            for active in self._active:
                fault = active.fault
                if isinstance(fault, OfRead) and fault.after_bytes and _about(fault, vm, disk):
                    self._update(active, sent=active.sent + length)

    def note(self, fault: Fault, text: str) -> None:
        """Says what a fault did, for `fault list`."""
        with self._lock:
            for active in self._active:
                if active.fault is fault:
                    self._update(active, last=text)

    def _update(self, active: ActiveFault, **update: object) -> None:
        changed = active.model_copy(update=update)
        faults = tuple(changed if other is active else other for other in self._active)
        if active.fault.times is None and not active.fault.after:
            self._active = faults  # nobody counts, and reads come by the thousand
        else:
            self._replace(faults)

    def _replace(self, active: tuple[ActiveFault, ...]) -> None:
        self._active = active
        self._save(active, self._made)


def _about(fault: Fault, vm: str | None, disk: str | None) -> bool:
    return fault.vm in (None, vm) and fault.disk in (None, disk)
