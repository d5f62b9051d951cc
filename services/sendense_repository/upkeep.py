"""Puts together what keeps repositories in order: verification, retention, rebuilding, administration."""

from __future__ import annotations

from dataclasses import dataclass

from sendense_repository.integrity_view import IntegrityView
from sendense_repository.retention_desk import RetentionDesk
from sendense_repository.verification import VerificationDesk
from sendense_repository.wiring import Parts


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What the servicers of upkeep call."""

    integrity: IntegrityView
    verification: VerificationDesk
    retention: RetentionDesk

    async def start(self) -> None:
        """Notes what the last process left unfinished; called after `Parts.start`."""
        await self.verification.recover()
        await self.retention.recover()

    async def stop(self) -> None:
        """Stops what runs; each part goes on when it is started again."""
        await self.verification.close()
        await self.retention.close()


def build_upkeep(parts: Parts) -> Upkeep:
    """Builds the parts of upkeep over the service's other parts."""
    integrity = IntegrityView(parts.catalogue)
    return Upkeep(
        integrity=integrity,
        verification=VerificationDesk(parts.catalogue, parts.points, integrity),
        retention=RetentionDesk(parts.catalogue, parts.registry, integrity, parts.deleter),
    )
