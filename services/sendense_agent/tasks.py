"""Waits for vCenter's tasks: informed by the property collector, not asking again and again."""

from __future__ import annotations

import time
from typing import Any

from pyVmomi import vim, vmodl

from sendense_rpc.errors import Kind, SendenseError

WAIT_SECONDS = 10
"""Longest time that one request waits for news."""

_collector = vmodl.query.PropertyCollector


class TaskTooSlow(SendenseError):
    """A task did not end in time; it goes on at the vCenter."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            f"{what} did not end within {seconds:g} s",
            kind=Kind.DEADLINE_EXCEEDED,
            reason="VCENTER_TASK_TIMEOUT",
            help="Look at the task in vCenter.",
            retryable=True,
        )


def wait_for_task(service: Any, task: Any, what: str, seconds: float) -> Any:
    """Waits until a task ends and returns its result; safe to be called again for the same task.

    Args:
        service: pyVmomi's service instance.
        task: The task.
        what: What it does, for errors.
        seconds: Deadline.

    Raises:
        vmodl.MethodFault: What the task failed with.
        TaskTooSlow: It runs still.
    """
    deadline = time.monotonic() + seconds
    collector = service.content.propertyCollector
    spec = _collector.FilterSpec(
        objectSet=[_collector.ObjectSpec(obj=task)],
        propSet=[_collector.PropertySpec(type=vim.Task, pathSet=["info.state"], all=False)],
    )
    watch = collector.CreateFilter(spec, True)  # noqa: FBT003  # partial updates
    try:
        version = ""
        while True:
            info = task.info
            if info.state == vim.TaskInfo.State.success:
                return info.result
            if info.state == vim.TaskInfo.State.error:
                raise info.error
            if time.monotonic() > deadline:
                raise TaskTooSlow(what, seconds)
            news = collector.WaitForUpdatesEx(version, _collector.WaitOptions(maxWaitSeconds=WAIT_SECONDS))
            version = news.version if news is not None else version
    finally:
        watch.Destroy()
