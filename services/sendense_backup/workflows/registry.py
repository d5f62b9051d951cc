"""All workflows of this service. Tests kill and fail at each step of each: a new one is covered by being here."""

from __future__ import annotations

from sendense_backup.workflows import backup, consolidate, delete, release, retention, sweep, verify
from sendense_backup.workflows.durable import Workflow

WORKFLOWS: dict[str, Workflow] = {
    each.WORKFLOW.name: each.WORKFLOW for each in (backup, release, delete, consolidate, retention, verify, sweep)
}
"""By name; the names of operations are their kinds."""
