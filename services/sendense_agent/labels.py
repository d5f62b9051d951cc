"""How a snapshot of ours is called and described: that makes it ours, and lets it be found again by anyone's agent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from sendense_agent.model import Holder, Mark

NAME_PREFIX = "sendense-"
MAX_NAME = 80
"""vSphere's limit for a snapshot's name."""


def snapshot_name(job_id: str) -> str:
    """Returns the name of a job's snapshot; a long job id is cut, with a hash of the whole."""
    name = NAME_PREFIX + job_id
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 13]}-{hashlib.sha256(job_id.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Label:
    """What the description of a snapshot of ours says.

    Attributes:
        holder: Who made it.
        mark: The VM's newest event right before it was made; None when there was none, or the log could not be read.
    """

    holder: Holder
    mark: Mark | None


def describe(holder: Holder, mark: Mark | None = None) -> str:
    """Returns the description by which a snapshot is known as ours."""
    facts = {"installation": holder.installation_id, "job": holder.job_id, "attempt": holder.attempt}
    return json.dumps(facts | ({"event": str(mark)} if mark else {}), sort_keys=True)


def label_of(description: str | None) -> Label | None:
    """Returns what a description of ours says; None for a foreign one."""
    try:
        facts = json.loads(description or "")
    except json.JSONDecodeError:
        return None
    if not isinstance(facts, dict):
        return None
    installation, job, attempt = facts.get("installation"), facts.get("job"), facts.get("attempt")
    if not isinstance(installation, str) or not isinstance(job, str) or not isinstance(attempt, int):
        return None
    return Label(Holder(job, attempt, installation), Mark.parse(str(facts.get("event", ""))))


def attempt_of(description: str | None, holder: Holder) -> int | None:
    """Returns the attempt that made a snapshot of this installation and job; None when it is not theirs."""
    label = label_of(description)
    if label is None or (label.holder.installation_id, label.holder.job_id) != (holder.installation_id, holder.job_id):
        return None
    return label.holder.attempt
