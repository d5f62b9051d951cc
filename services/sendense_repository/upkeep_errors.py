"""What verification, retention, rebuilding and administration refuse."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sendense_rpc.errors import Kind, SendenseError


class VerificationNotFound(SendenseError):
    """No verification has that id."""

    def __init__(self, verification_id: str) -> None:
        super().__init__(
            f"there is no verification '{verification_id}'",
            kind=Kind.NOT_FOUND,
            reason="VERIFICATION_NOT_FOUND",
            help="Start it.",
            metadata={"verification_id": verification_id},
        )


class VerificationExists(SendenseError):
    """The id was used for another restore point."""

    def __init__(self, verification_id: str, backup_id: str) -> None:
        super().__init__(
            f"verification '{verification_id}' is of restore point {backup_id}",
            kind=Kind.ALREADY_EXISTS,
            reason="VERIFICATION_EXISTS",
            help="Use another id.",
            metadata={"verification_id": verification_id, "backup_id": backup_id},
        )


class RetentionNotFound(SendenseError):
    """No retention run has that id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"there is no retention run '{run_id}'",
            kind=Kind.NOT_FOUND,
            reason="RETENTION_NOT_FOUND",
            help="Start it with a plan.",
            metadata={"run_id": run_id},
        )


class PlanChanged(SendenseError):
    """What a plan would remove is not what it said; nothing was removed."""

    def __init__(self, planned: str, found: str) -> None:
        super().__init__(
            "restore points, locks or readers changed since the plan was made; nothing was removed",
            kind=Kind.ABORTED,
            reason="PLAN_CHANGED",
            help="Plan again, look at it, and apply the new plan.",
            metadata={"planned_digest": planned, "found_digest": found},
        )


class ClockInDoubt(SendenseError):
    """The clock is further than time can have passed: nothing that depends on ages is removed."""

    def __init__(self, now: datetime, trusted: datetime) -> None:
        super().__init__(
            f"the clock says {now:%Y-%m-%d %H:%M:%S} UTC, but no more than {trusted:%Y-%m-%d %H:%M:%S} can have come",
            kind=Kind.FAILED_PRECONDITION,
            reason="CLOCK_IN_DOUBT",
            help="Set the clock right. If it is right, the machine was off or paused: each restart makes up two days.",
            metadata={"now": now.isoformat(), "trusted": trusted.isoformat()},
        )


class PointLocked(SendenseError):
    """The restore point cannot be deleted yet, by nobody."""

    def __init__(self, backup_ids: Sequence[str], until: datetime) -> None:
        super().__init__(
            f"restore point {', '.join(backup_ids)} is locked until {until:%Y-%m-%d %H:%M:%S} UTC",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_LOCKED",
            help="Wait until the lock has run out; it cannot be shortened.",
            metadata={"backup_ids": ",".join(backup_ids), "locked_until": until.isoformat()},
        )
        self.until = until


class RepositoryNotEmpty(SendenseError):
    """The catalogue has restore points or running backups in the repository."""

    def __init__(self, name: str, points: int, running: Sequence[str]) -> None:
        what = f"{points} restore points" + (f" and running backups ({', '.join(running)})" if running else "")
        super().__init__(
            f"repository '{name}' has {what}",
            kind=Kind.FAILED_PRECONDITION,
            reason="REPOSITORY_NOT_EMPTY",
            help="Delete them, or say `forget_points`: storage stays as it is. Running backups must end first.",
            metadata={"repository": name, "points": str(points), "running": ",".join(running)},
        )
