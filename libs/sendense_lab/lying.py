"""A change tracking that lies: which of the changed blocks it does not tell."""

from __future__ import annotations

import random

from sendense_lab import areas
from sendense_lab.areas import GRANULARITY, Area
from sendense_lab.faultboard import FaultBoard
from sendense_lab.faults import CbtLie
from sendense_lab.records import Device


class Lies:
    """What is left out depends on the fault's seed and on the whole list only, so all pages of a query agree."""

    def __init__(self, faults: FaultBoard) -> None:
        self._faults = faults

    def told(self, vm: str, device: Device, changed: tuple[Area, ...]) -> tuple[Area, ...]:
        """Returns the areas that the API names of those that changed."""
        fault = self._faults.take(CbtLie, vm=vm, disk=device.uuid, fits=lambda _: bool(changed))
        if fault is None:
            return changed
        hidden = hide(changed, blocks=fault.blocks, seed=fault.seed)
        start, end = hidden
        self._faults.note(fault, f"{device.label} ({device.uuid}): hid {end - start} bytes at {start}")
        return areas.subtract(changed, [hidden])


def hide(changed: tuple[Area, ...], *, blocks: int, seed: int) -> Area:
    """Returns what of the changed areas (at least one) is to be hidden: so many blocks of one of them, 0 for all."""
    rng = random.Random(f"{seed}/{changed}")
    start, end = rng.choice(changed)
    if not blocks:
        return start, end
    first = start + rng.randrange(max(1, -(-(end - start) // GRANULARITY) - blocks + 1)) * GRANULARITY
    return first, min(end, first + blocks * GRANULARITY)
