"""What a user asks for when a disk is made: `64M:ext4@1:0,independent`; and the slots of SCSI controllers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sendense_lab.disknames import DISK_HELP, FIRST_KEY
from sendense_lab.errors import InvalidRequestError
from sendense_lab.records import Device, DiskMode, Filesystem, RawMapping

KINDS: dict[str, Filesystem | None] = {"ext4": "ext4", "xfs": "xfs", "blank": None}
SMALLEST: dict[Filesystem | None, int] = {"ext4": 16 * 1024**2, "xfs": 304 * 1024**2, None: 64 * 1024}
"""Smallest disk for each file system, bytes; mkfs.xfs wants 300 MiB for itself."""
LARGEST = 62 * 1024**4
"""As in vSphere."""
BUSES = 4
UNITS_OF_BUS = 16
RESERVED_UNIT = 7
"""The controller's own SCSI unit."""
SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True)
class Slot:
    """A place on a SCSI controller: 0 … 3 and 0 … 15 without 7."""

    bus: int
    unit: int

    @property
    def key(self) -> int:
        """The device key that vSphere gives to a disk there."""
        return FIRST_KEY + self.bus * UNITS_OF_BUS + self.unit


@dataclass(frozen=True)
class DiskSpec:
    """A disk that is wanted.

    Attributes:
        size: Bytes.
        filesystem: None for a blank disk.
        bus: Its controller.
        unit: Its unit; None takes the first that is free.
        mode: Independent ones are left out of snapshots.
        mapping: Raw device mapping.
        multi_writer: Shared by several VMs.
        datastore: Name; empty for that of the VM.
    """

    size: int
    filesystem: Filesystem | None
    bus: int = 0
    unit: int | None = None
    mode: DiskMode = "persistent"
    mapping: RawMapping | None = None
    multi_writer: bool = False
    datastore: str = ""


def parse_size(text: str) -> int:
    """Reads `64M` into bytes.

    Raises:
        InvalidRequestError: It is no size, or not in whole KiB.
    """
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", text)
    size = int(match[1]) * SIZES[match[2]] if match else 0
    if size <= 0 or size % 1024 or size > LARGEST:
        raise InvalidRequestError(f"{text!r} is not a size", help="Write whole KiB, as 64M or 2G.")
    return size


def parse_slot(text: str) -> Slot:
    """Reads `1:3` into a slot.

    Raises:
        InvalidRequestError: There is no such slot.
    """
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    if match is None:
        raise InvalidRequestError(f"{text!r} is not a slot", help="Write controller and unit, as 1:0.")
    slot = Slot(int(match[1]), int(match[2]))
    if slot.bus >= BUSES or slot.unit >= UNITS_OF_BUS or slot.unit == RESERVED_UNIT:
        raise InvalidRequestError(
            f"There is no slot {text}", help="Controllers are 0 to 3, units 0 to 15; 7 is the controller's own."
        )
    return slot


def parse_disk(text: str) -> DiskSpec:
    """Reads `2G:ext4@1:0,independent`.

    Raises:
        InvalidRequestError: It is not of that form, or too small for its file system.
    """
    head, *options = text.split(",")
    match = re.fullmatch(r"(\w+)(?::(ext4|xfs|blank))?(?:@(\d+)(?::(\d+))?)?", head)
    if match is None:
        raise InvalidRequestError(f"{text!r} is not a disk", help=DISK_HELP)
    filesystem = KINDS[match[2] or "ext4"]
    size = parse_size(match[1])
    whole = 1024**2 if filesystem else 1024
    if size < SMALLEST[filesystem] or size % whole:
        raise InvalidRequestError(
            f"A disk of {size} bytes cannot be {filesystem or 'made'}",
            help=f"Give whole {'MiB' if filesystem else 'KiB'}, at least {SMALLEST[filesystem] // 1024}K.",
        )
    slot = parse_slot(f"{match[3] or 0}:{match[4] or 0}")
    spec = DiskSpec(size, filesystem, slot.bus, slot.unit if match[4] else None)
    for option in options:
        spec = _with_option(spec, text, option)
    return spec


def _with_option(spec: DiskSpec, text: str, option: str) -> DiskSpec:
    match option.split("="):
        case ["independent"]:
            return replace(spec, mode="independent_persistent")
        case ["nonpersistent"]:
            return replace(spec, mode="independent_nonpersistent")
        case ["rdm"]:
            return replace(spec, mapping="physicalMode")
        case ["rdm-virtual"]:
            return replace(spec, mapping="virtualMode")
        case ["multi-writer"]:
            return replace(spec, multi_writer=True)
        case ["datastore", name] if re.fullmatch(r"[\w.-]{1,42}", name):
            return replace(spec, datastore=name)
        case _:
            raise InvalidRequestError(f"{text!r}: there is no option {option!r}", help=DISK_HELP)


def take_slot(spec: DiskSpec, taken: Iterable[Device]) -> Slot:
    """Returns where a disk goes: the slot asked for, or the first that is free on its controller.

    Raises:
        InvalidRequestError: That slot is taken, or the controller is full.
    """
    used = {Slot(disk.bus, disk.unit) for disk in taken}
    if spec.unit is not None:
        wanted = Slot(spec.bus, spec.unit)
        if wanted in used:
            raise InvalidRequestError(f"The slot {wanted.bus}:{wanted.unit} is taken")
        return wanted
    for unit in range(UNITS_OF_BUS):
        slot = Slot(spec.bus, unit)
        if unit != RESERVED_UNIT and slot not in used:
            return slot
    raise InvalidRequestError(f"The controller {spec.bus} is full", help="Add the disk to another one, as 64M@1.")
