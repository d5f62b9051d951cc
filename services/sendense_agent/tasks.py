"""Waits for vCenter's tasks: informed by the property collector, in steps, so that whoever waits can be cancelled."""

from __future__ import annotations

import time
from typing import Any

from pyVmomi import vim, vmodl

from sendense_agent.errors import VCenterFault
from sendense_agent.vcenter import VCenter
from sendense_rpc.errors import Kind, SendenseError

STEP_SECONDS = 5
"""How long one request waits for news; a cancelled wait holds a thread for at most this long."""

_collector = vmodl.query.PropertyCollector
_ENDED = (vim.TaskInfo.State.success, vim.TaskInfo.State.error)


class TaskTooSlow(SendenseError):
    """A task did not end in time; it goes on at the vCenter."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            f"vCenter did not {what} within {seconds:g} s",
            kind=Kind.DEADLINE_EXCEEDED,
            reason="VCENTER_TASK_TIMEOUT",
            help="Look at the task in vCenter.",
            retryable=True,
        )


class TaskFailed(VCenterFault):
    """A task ended with a fault.

    Attributes:
        fault: The fault.
    """

    def __init__(self, vcenter: str, what: str, fault: Any) -> None:
        super().__init__(vcenter, what, type(fault).__name__, fault.msg or "no message")
        self.fault = fault


async def wait_for_task(vcenter: VCenter, moref: str, what: str, seconds: float) -> Any:
    """Waits until a task ends and returns its result; may be called again for the same task.

    Args:
        vcenter: Where it runs.
        moref: The task's managed object id.
        what: What it does, for errors: `make a snapshot`.
        seconds: Deadline.

    Raises:
        TaskFailed: It ended with a fault.
        TaskTooSlow: It runs still.
    """
    deadline = time.monotonic() + seconds
    while True:
        info = await vcenter.read(what, lambda service: _news(service, moref))
        if info.state == vim.TaskInfo.State.success:
            return info.result
        if info.state == vim.TaskInfo.State.error:
            raise TaskFailed(vcenter.account.name, what, info.error)
        if time.monotonic() > deadline:
            raise TaskTooSlow(what, seconds)


def _news(service: Any, moref: str) -> Any:
    """Returns a task's info once it has ended, or as it is after a step."""
    task = vim.Task(moref, service._stub)  # noqa: SLF001  # how pyVmomi objects are made from an id
    info = task.info
    if info.state in _ENDED:
        return info
    # A collector of its own: all waits of a session would share filters and versions of the session's, and fail with
    # InvalidCollectorVersion as soon as two tasks are waited for.
    collector = service.content.propertyCollector.CreatePropertyCollector()
    spec = _collector.FilterSpec(
        objectSet=[_collector.ObjectSpec(obj=task)],
        propSet=[_collector.PropertySpec(type=vim.Task, pathSet=["info.state"], all=False)],
    )
    try:
        collector.CreateFilter(spec, True)  # noqa: FBT003  # partial updates
        version, until = "", time.monotonic() + STEP_SECONDS
        while info.state not in _ENDED and time.monotonic() < until:
            news = collector.WaitForUpdatesEx(version, _collector.WaitOptions(maxWaitSeconds=STEP_SECONDS))
            version = news.version if news is not None else version
            info = task.info
        return info
    finally:
        collector.Destroy()
