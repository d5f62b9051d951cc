"""Names of the steps that change storage; whoever observes them sees each one right after it was done.

The service logs them; fault tests end the process, or raise, at each of them.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger()

StepObserver = Callable[[str], None]

SEAL_STEPS = (
    "writer-closed",
    "header",
    "check",
    "journal",
    "allocation",
    "metadata",
    "sync",
    "read-only",
    "rename",
    "sidecar",
    "record",
    "areas-removed",
)
COMMIT_STEPS = ("point-file", "point-row")
DELETE_STEPS = ("delete-intent", "point-file-removed", "layer-files-removed", "delete-row")
BUILD_STEPS = (
    "merge-target",
    "merge-copied",
    "merge-checked",
    "merge-proved",
    "merge-journal",
    "merge-synced",
    "merge-ready",
)
SWAP_STEPS = ("swap-admitted", "swap-image", "swap-journal", "swap-sidecar", "swap-row")
CONSOLIDATE_STEPS = (*BUILD_STEPS, DELETE_STEPS[0], *SWAP_STEPS, *DELETE_STEPS[1:])
"""A deletion that merges, in its order: before `delete-intent` nothing is changed, from then on it is finished."""


def log_step(step: str) -> None:
    """Notes a step in the log."""
    log.debug("step done", step=step)
