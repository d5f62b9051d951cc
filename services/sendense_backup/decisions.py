"""Full or increment, per disk, and why. Pure: the same facts always give the same answer and the same words.

An increment is only taken where nothing speaks against it; each doubt makes the disk a full, with a reason from a
closed list (cbt-facts 2, 3, 7). What only the query for changed areas shows is in `TURNS_FULL`.

A revert does not show in that query at all (cbt-facts 10a): it answers, and leaves out what the revert undid. A revert
to the parent's own snapshot or a later one would still be answered rightly; one to an older snapshot is the trap, and
it takes a snapshot that the VM had when the parent was made. So an increment needs one of two proofs: the parent's
snapshot was the VM's only one, or vCenter's event log since then is complete and shows no revert. A revert that the log
does show makes a full in either case.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass

from sendense_backup.model import FULL, INCREMENTAL, Disk, Layer, Point, RevertLook, SnapshotFacts


class FullReason(enum.Enum):
    """Why a disk is read fully: the words that job, log and sidecar show."""

    REQUESTED = "requested"
    FIRST_BACKUP = "first backup"
    DISK_ADDED = "disk added"
    CAPACITY_CHANGED = "capacity changed"
    PARENT_DAMAGED = "parent layer damaged"
    CHANGE_TRACKING_WRONG = "change tracking wrong"
    NO_CHANGE_ID = "no change id"
    CHANGE_TRACKING_RESET = "change tracking reset"
    AREAS_QUERY_FAILED = "areas query failed"
    REVERTED = "reverted to a snapshot"
    REVERT_POSSIBLE = "revert not ruled out"
    ANOTHER_VCENTER = "another vCenter"


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
    if parent.damage:
        return full(FullReason.PARENT_DAMAGED)
    if parent.suspicion:
        return full(FullReason.CHANGE_TRACKING_WRONG)
    if not parent.change_id or not disk.change_id:
        return full(FullReason.NO_CHANGE_ID)
    if _epoch(parent.change_id) != _epoch(disk.change_id):
        return full(FullReason.CHANGE_TRACKING_RESET)
    return Decision(INCREMENTAL, f"changed since {latest.backup_id}", parent)


NO_REVERT = "no revert"
REVERTED = "reverted"

_SNAPSHOT = "snapshot"
"""Member of the hardware's JSON that holds what is known of the snapshot: it goes into the sidecars with it."""


def of_one_vcenter(decision: Decision, parent: SnapshotFacts, vcenter_uuid: str) -> Decision:
    """Decides anew about an increment, knowing where the parent was made.

    A VM that was replicated to another site has the same uuids there, and its disks the same tracking epoch; from then
    on the two count by themselves, and a change id of one means nothing to the other (cbt-facts 18).

    Args:
        decision: For an increment.
        parent: What is known of the parent's snapshot.
        vcenter_uuid: The vCenter that has the VM now.
    """
    if parent.vcenter_uuid and parent.vcenter_uuid != vcenter_uuid:
        return full(FullReason.ANOTHER_VCENTER)
    return decision


def after_look(decision: Decision, parent: SnapshotFacts, look: RevertLook) -> Decision:
    """Decides anew about an increment, knowing what the event log says since the parent.

    Args:
        decision: For an increment.
        parent: What is known of the parent's snapshot.
        look: What the event log says.
    """
    if look.finding == REVERTED:
        return full(FullReason.REVERTED)
    if parent.alone or look.finding == NO_REVERT:
        return decision
    return full(FullReason.REVERT_POSSIBLE)


def with_snapshot_facts(hardware_json: str, facts: SnapshotFacts) -> str:
    """Returns the hardware's JSON with what is known of the snapshot."""
    known = json.loads(hardware_json or "{}")
    known[_SNAPSHOT] = dataclasses.asdict(facts)
    return json.dumps(known, sort_keys=True)


def snapshot_facts(hardware_json: str) -> SnapshotFacts:
    """Returns what is known of a point's snapshot; of a point without such facts nothing is, and that is a doubt."""
    known = json.loads(hardware_json or "{}")
    facts = known.get(_SNAPSHOT) if isinstance(known, dict) else None
    if not isinstance(facts, dict):
        return SnapshotFacts()
    return SnapshotFacts(
        facts.get("alone") is True, str(facts.get("event_mark", "")), str(facts.get("vcenter_uuid", ""))
    )


def full(reason: FullReason) -> Decision:
    """Returns the decision for a full."""
    return Decision(FULL, reason.value)


def job_type(disk_types: list[str]) -> str:
    """Returns the type of a job: full only if every disk is."""
    return FULL if all(each == FULL for each in disk_types) else INCREMENTAL


def _epoch(change_id: str) -> str:
    """Returns the uuid part of a change id (`uuid/sequence`); another one means that tracking was reset."""
    return change_id.partition("/")[0]
