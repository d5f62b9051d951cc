"""vCenter's tasks: work in a thread, with a state, progress, a result or a fault."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from pyVmomi import vmodl

from sendense_lab.errors import LabError

log = structlog.get_logger(__name__)

WORKERS = 16
"""A few slow removals must not hold up everybody else."""
REMEMBERED = 500


@dataclass
class LabTask:
    """One task; its fields are what vim.TaskInfo shows."""

    moref: str
    name: str
    description_id: str
    entity: str
    entity_name: str
    queued: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: datetime | None = None
    completed: datetime | None = None
    state: Literal["queued", "running", "success", "error"] = "queued"
    progress: int | None = None
    result: Any = None
    error: Any = None


class TaskRunner:
    """Runs tasks in a few threads and remembers the latest."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._tasks: dict[str, LabTask] = {}
        self._made = 0
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="lab-task")

    def get(self, moref: str) -> LabTask | None:
        """Returns a task that is still remembered."""
        return self._tasks.get(moref)

    def all(self) -> list[LabTask]:
        """Returns the remembered tasks, oldest first."""
        with self._lock:
            return list(self._tasks.values())

    def start(self, name: str, description_id: str, entity: str, entity_name: str, work: Callable[[], Any]) -> str:
        """Starts work; returns the task's managed object id.

        Args:
            name: The method, `CreateSnapshot_Task`.
            description_id: As vCenter's, `VirtualMachine.createSnapshot`.
            entity: Managed object id that it is about.
            entity_name: Name of that object.
            work: Returns the task's result; raises a MethodFault or a LabError.
        """
        with self._lock:
            self._made += 1
            task = LabTask(f"task-{self._made}", name, description_id, entity, entity_name)
            self._tasks[task.moref] = task
            for old in list(self._tasks)[:-REMEMBERED]:
                if self._tasks[old].completed:
                    del self._tasks[old]
        self._pool.submit(self._run, task, work)
        return task.moref

    def close(self) -> None:
        """Waits for the tasks under way and takes no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, task: LabTask, work: Callable[[], Any]) -> None:
        task.started, task.progress, task.state = datetime.now(UTC), 0, "running"
        self._notify()
        try:
            task.result = work()
            task.progress, outcome = 100, "success"
        except vmodl.MethodFault as fault:
            task.error, outcome = fault, "error"
        except LabError as err:
            task.error, outcome = vmodl.fault.SystemError(reason=err.message, msg=err.message), "error"
        except Exception as err:
            log.exception("task failed", task=task.moref, name=task.name)
            task.error, outcome = vmodl.fault.SystemError(reason=str(err), msg=str(err)), "error"
        task.completed = datetime.now(UTC)
        task.state = "success" if outcome == "success" else "error"
        self._notify()
