"""Changed block tracking as VMware does it: change ids, sequences, and when tracking starts to be true.

Tracking asked for on a running VM begins at its next stun (creation or removal of a snapshot); the snapshot
created by that very stun has no change id yet. A powered-off VM is tracked at once.
"""

from __future__ import annotations

import uuid

from sendense_lab.areas import Area, merge, round_out
from sendense_lab.errors import LabError
from sendense_lab.records import DiskRecord, Tracking


class ChangeIdError(LabError):
    """A change id is malformed.

    vCenter answers InvalidArgument.
    """

    def __init__(self, change_id: str) -> None:
        super().__init__(f"{change_id!r} is not a change id (uuid/sequence)", reason="INVALID_CHANGE_ID")


class TrackingResetError(LabError):
    """A change id cannot be answered: tracking is off, began anew, or has not reached it.

    vCenter answers FileFault.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="TRACKING_RESET")


def reset(disk: DiskRecord) -> DiskRecord:
    """Returns the disk with its tracking begun anew under another uuid, as after a crash of the host."""
    return disk if disk.tracking is None else follow_setting(disk.model_copy(update={"tracking": None}), enabled=True)


def change_id(tracking: Tracking | None) -> str | None:
    """Returns the disk's present change id, None while it is not tracked."""
    return f"{tracking.uuid}/{tracking.sequence}" if tracking else None


def follow_setting(disk: DiskRecord, *, enabled: bool) -> DiskRecord:
    """Returns the disk with tracking begun or ended, as the VM's configuration asks (at a stun)."""
    if enabled and disk.tracking is None:
        return disk.model_copy(update={"tracking": Tracking(uuid=new_tracking_uuid(), sequence=1)})
    if not enabled and disk.tracking is not None:
        return disk.model_copy(update={"tracking": None})
    return disk


def next_sequence(disk: DiskRecord) -> DiskRecord:
    """Returns the disk with its sequence raised, as every snapshot does."""
    if disk.tracking is None:
        return disk
    raised = disk.tracking.model_copy(update={"sequence": disk.tracking.sequence + 1})
    return disk.model_copy(update={"tracking": raised})


def record_changes(disk: DiskRecord, areas: tuple[Area, ...]) -> DiskRecord:
    """Returns the disk with what the guest just wrote added to the log of the current sequence."""
    tracking = disk.tracking
    if tracking is None:
        return disk
    before = tracking.log.get(tracking.sequence, ())
    log = tracking.log | {tracking.sequence: merge((*before, *round_out(areas, disk.capacity)))}
    return disk.model_copy(update={"tracking": tracking.model_copy(update={"log": log})})


def changes_since(disk: DiskRecord, since: str, until: str | None) -> tuple[Area, ...]:
    """Returns what was written from one change id up to another.

    Args:
        disk: The disk.
        since: Change id of an earlier snapshot.
        until: Change id of the later snapshot; None stands for now.

    Returns:
        Sorted areas, 64 KiB granular.

    Raises:
        ChangeIdError: `since` is malformed.
        TrackingResetError: The disk's tracking cannot tell.
    """
    uuid_since, sequence_since = parse_change_id(since)
    tracking = disk.tracking
    if tracking is None:
        raise TrackingResetError(f"{disk.label}: change tracking is not enabled")
    last = tracking.sequence
    if until is not None:
        uuid_until, sequence_until = parse_change_id(until)
        if uuid_until != tracking.uuid:
            raise TrackingResetError(f"{disk.label}: change tracking was reset after the snapshot")
        last = sequence_until - 1
    if uuid_since != tracking.uuid:
        raise TrackingResetError(f"{disk.label}: change tracking was reset since {since}")
    if sequence_since > last + 1:
        raise TrackingResetError(f"{disk.label}: {since} is newer than the snapshot")
    return merge(
        area for sequence, areas in tracking.log.items() if sequence_since <= sequence <= last for area in areas
    )


def new_tracking_uuid() -> str:
    """Returns an id in VMware's way of writing it: `52 3f … 8a-91 c0 … 7e`."""
    raw = uuid.uuid4().bytes
    return f"{raw[:8].hex(' ')}-{raw[8:].hex(' ')}"


def parse_change_id(text: str) -> tuple[str, int]:
    """Reads `uuid/sequence`.

    Raises:
        ChangeIdError: It is not of that form.
    """
    identity, slash, sequence = text.rpartition("/")
    if not slash or not identity or not sequence.isascii() or not sequence.isdigit():
        raise ChangeIdError(text)
    return identity, int(sequence)
