"""What this service asks of others: which backup is meant, what its restore point is, and to keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sendense_restore.backend import Disk
from sendense_rpc.errors import SendenseError
from sendense_rpc.identity import current_limits


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A committed restore point.

    Attributes:
        backup_id: The backup that made it.
        disks: Its disks in the order of their numbers.
        damage: What the last verification found wrong; empty when it found nothing, or there was none yet.
        suspicion: Why an audit doubts that it equals the guest's disks as they were; empty when none does.
    """

    backup_id: str
    disks: tuple[Disk, ...]
    damage: str = ""
    suspicion: str = ""


class Points(Protocol):
    """The port to the backup and repository services; `clients` is its adapter."""

    async def resolve(self, backup_id: str) -> str:
        """Returns the whole id of a completed backup, given it or a unique prefix.

        Raises:
            SendenseError: BACKUP_NOT_FOUND, AMBIGUOUS_BACKUP_ID, BACKUP_NOT_COMPLETED, SERVICE_UNAVAILABLE.
        """

    async def lease(self, backup_id: str, holder: str, seconds: int) -> None:
        """Keeps a point from being merged or deleted for so long from now; renews the holder's lease.

        Raises:
            SendenseError: POINT_NOT_FOUND, SERVICE_UNAVAILABLE.
        """

    async def release(self, backup_id: str, holder: str) -> None:
        """Ends a lease; no error when there is none.

        Raises:
            SendenseError: SERVICE_UNAVAILABLE.
        """

    async def get(self, backup_id: str) -> RestorePoint:
        """Returns a restore point.

        Raises:
            SendenseError: POINT_NOT_FOUND, SERVICE_UNAVAILABLE.
        """


async def is_admitted(points: Points, backup_id: str) -> bool:
    """Tells whether the caller's token admits a restore point.

    The question carries the limits, and the backup service knows which VM and repository it is.
    """
    if not current_limits():
        return True
    try:
        await points.resolve(backup_id)
    except SendenseError:
        return False
    return True
