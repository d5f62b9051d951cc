"""Full or increment, per disk, and why. Pure: the same facts always give the same answer and the same words.

An increment is only taken where nothing speaks against it; each doubt makes the disk a full, with a reason from a
closed list (cbt-facts 2, 3, 7). What only the query for changed areas shows is in `TURNS_FULL`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sendense_backup.model import FULL, INCREMENTAL, Disk, Layer, Point


class FullReason(enum.Enum):
    """Why a disk is read fully: the words that job, log and sidecar show."""

    REQUESTED = "requested"
    FIRST_BACKUP = "first backup"
    DISK_ADDED = "disk added"
    CAPACITY_CHANGED = "capacity changed"
    NO_CHANGE_ID = "no change id"
    CHANGE_TRACKING_RESET = "change tracking reset"
    AREAS_QUERY_FAILED = "areas query failed"


TURNS_FULL = {
    "CBT_RESET": FullReason.CHANGE_TRACKING_RESET,
    "AREAS_QUERY_FAILED": FullReason.AREAS_QUERY_FAILED,
}
"""Reasons of the agent's errors that make an increment a full, loudly, and never a silent skip."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How a disk is read.

    Attributes:
        backup_type: `full` or `incremental`.
        reason: Why, in words.
        parent: The layer that the increment builds on; None for a full.
    """

    backup_type: str
    reason: str
    parent: Layer | None = None


def decide(disk: Disk, requested_type: str, latest: Point | None) -> Decision:
    """Decides how a disk is read.

    Args:
        disk: The disk as it is in the job's snapshot.
        requested_type: `full` or `incremental`.
        latest: The VM's latest committed restore point in the repository; the parent can only be in it.
    """
    if latest is None:
        return full(FullReason.FIRST_BACKUP)
    if requested_type == FULL:
        return full(FullReason.REQUESTED)
    parent = next((layer for layer in latest.layers if layer.disk_identity == disk.identity), None)
    if parent is None:
        return full(FullReason.DISK_ADDED)
    if parent.virtual_size_bytes != disk.capacity_bytes:
        return full(FullReason.CAPACITY_CHANGED)
    if not parent.change_id or not disk.change_id:
        return full(FullReason.NO_CHANGE_ID)
    if _epoch(parent.change_id) != _epoch(disk.change_id):
        return full(FullReason.CHANGE_TRACKING_RESET)
    return Decision(INCREMENTAL, f"changed since {latest.backup_id}", parent)


def full(reason: FullReason) -> Decision:
    """Returns the decision for a full."""
    return Decision(FULL, reason.value)


def job_type(disk_types: list[str]) -> str:
    """Returns the type of a job: full only if every disk is."""
    return FULL if all(each == FULL for each in disk_types) else INCREMENTAL


def _epoch(change_id: str) -> str:
    """Returns the uuid part of a change id (`uuid/sequence`); another one means that tracking was reset."""
    return change_id.partition("/")[0]
