"""vCenter's event log of a VM: was the VM reverted to a snapshot since a mark, and does the log tell at all?

Since vSphere 6.5 the query for changed areas goes on to answer after a revert and leaves out what the revert undid
(cbt-facts 10a). Only the event log shows it, and only when it is complete: it must still hold the mark, an event that
was noted when the parent's snapshot was made, and must have caught up with the job's own snapshot. Order is taken from
the events' keys, which vCenter counts up, never from a clock; a clock of vCenter may have been set back by up to
`CLOCK_SLACK` meanwhile. Whatever is unclear is `INCOMPLETE`, never "no revert".
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from pyVmomi import vim

from sendense_agent.errors import VCenterFault
from sendense_agent.inventory import find_vm
from sendense_agent.model import Mark, VmRef
from sendense_agent.vcenter import VCenter

log = structlog.get_logger()

CLOCK_SLACK = dt.timedelta(days=1)
PAGE_EVENTS = 1000
MOST_EVENTS = 100_000
"""A VM with more events than this since its last backup is not looked at any further."""
SETTLE_SECONDS = 20.0
"""How long the log may take to show the job's own snapshot."""
_PAUSE_SECONDS = 0.25

CREATED_SNAPSHOT = "createsnapshot"
_OUT_OF_SIGHT = (
    "VmDisconnectedEvent",
    "VmOrphanedEvent",
    "VmRemovedEvent",
    "VmRegisteredEvent",
    "VmDiscoveredEvent",
)
"""While a VM is not connected, or not registered, what happens to it leaves no event here."""


class Finding(enum.Enum):
    """What the log tells."""

    NO_REVERT = "no revert"
    REVERTED = "reverted"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class LoggedEvent:
    """An event.

    Attributes:
        mark: Where it is.
        kind: Class, type id (of an EventEx) or description id (of a task).
        message: For people.
    """

    mark: Mark
    kind: str
    message: str = ""

    @property
    def is_revert(self) -> bool:
        """Whether it says that the VM goes, or went, back to a snapshot: as a task, or as what the host reports."""
        return "revert" in self.kind.casefold()

    @property
    def made_snapshot(self) -> bool:
        """Whether it says that somebody asked for a snapshot."""
        return CREATED_SNAPSHOT in self.kind.casefold()


@dataclass(frozen=True)
class Look:
    """What a look into the log found.

    Attributes:
        finding: The result.
        detail: For people: which revert, or what is missing.
    """

    finding: Finding
    detail: str = ""


def judge(events: Sequence[LoggedEvent], since: Mark, own: Mark) -> Look | None:
    """Judges a VM's events; None when the log has not caught up with the job's own snapshot yet.

    Args:
        events: From before `since`, in any order.
        since: Noted right before (or when) the parent's snapshot was made.
        own: Noted right before (or when) the job's own snapshot was made.
    """
    if not any(event.mark == since for event in events):
        return Look(Finding.INCOMPLETE, f"the event log does not reach back to event {since}")
    later = sorted((event for event in events if event.mark.key > since.key), key=lambda event: event.mark.key)
    for event in later:
        if event.is_revert:
            return Look(Finding.REVERTED, event.message or event.kind)
    for event in later:
        if event.kind in _OUT_OF_SIGHT:
            return Look(Finding.INCOMPLETE, f"vCenter lost sight of the VM: {event.message or event.kind}")
    caught_up = any(event.made_snapshot and event.mark.key >= own.key for event in events)
    return Look(Finding.NO_REVERT) if caught_up else None


async def newest_mark(vcenter: VCenter, ref: VmRef) -> Mark | None:
    """Returns the VM's newest event of the last day, or None: there is none, or the log cannot be read."""
    try:
        events = await vcenter.read("read the event log", lambda service: _recent(service, ref))
    except VCenterFault as error:
        log.warning("the event log cannot be read", vm=ref.vm_uuid, error=str(error))
        return None
    return max((event.mark for event in events), key=lambda mark: mark.key, default=None)


async def first_snapshot_mark(vcenter: VCenter, ref: VmRef) -> Mark | None:
    """Returns the VM's oldest event of the last day if it is the making of a snapshot.

    For a VM that had no event for a day before its snapshot was made: whatever happened since then comes later.
    """
    try:
        events = await vcenter.read("read the event log", lambda service: _recent(service, ref))
    except VCenterFault:
        return None
    oldest = min(events, key=lambda event: event.mark.key, default=None)
    return oldest.mark if oldest is not None and oldest.made_snapshot else None


async def look_for_revert(vcenter: VCenter, ref: VmRef, since: Mark, own: Mark) -> Look:
    """Looks whether a VM was reverted since a mark; waits a while until the log shows the job's own snapshot.

    Args:
        vcenter: Where.
        ref: The VM.
        since: The parent's mark.
        own: The mark of the job's own snapshot.

    Raises:
        VCenterUnavailable: No connection.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    begin = since.created - CLOCK_SLACK
    while True:
        try:
            events = await vcenter.read("read the event log", lambda service: read_events(service, ref, begin))
        except VCenterFault as error:
            return Look(Finding.INCOMPLETE, str(error))
        if events is None:
            return Look(Finding.INCOMPLETE, f"the VM has more than {MOST_EVENTS} events since {begin.isoformat()}")
        look = judge(events, since, own)
        if look is not None:
            return look
        if time.monotonic() > deadline:
            return Look(Finding.INCOMPLETE, "the event log does not show the job's own snapshot")
        await asyncio.sleep(_PAUSE_SECONDS)


def read_events(service: Any, ref: VmRef, begin: dt.datetime) -> list[LoggedEvent] | None:
    """Returns a VM's events since a moment of vCenter's clock, page by page; None when there are too many."""
    by_entity = vim.event.EventFilterSpec.ByEntity(entity=find_vm(service, ref), recursion="self")
    by_time = vim.event.EventFilterSpec.ByTime(beginTime=begin)
    spec = vim.event.EventFilterSpec(entity=by_entity, time=by_time)
    collector = service.content.eventManager.CreateCollectorForEvents(spec)
    try:
        found: list[LoggedEvent] = []
        while page := collector.ReadNextEvents(PAGE_EVENTS):
            found += [_logged(event) for event in page]
            if len(found) > MOST_EVENTS:
                return None
        return found
    finally:
        collector.DestroyCollector()


def _recent(service: Any, ref: VmRef) -> list[LoggedEvent]:
    return read_events(service, ref, service.CurrentTime() - CLOCK_SLACK) or []


def _logged(event: Any) -> LoggedEvent:
    if isinstance(event, vim.event.EventEx | vim.event.ExtendedEvent):
        kind = str(event.eventTypeId)
    elif isinstance(event, vim.event.TaskEvent):
        kind = str(event.info.descriptionId)
    else:
        kind = type(event).__name__.rpartition(".")[2]
    return LoggedEvent(Mark(int(event.key), event.createdTime), kind, str(event.fullFormattedMessage or ""))
