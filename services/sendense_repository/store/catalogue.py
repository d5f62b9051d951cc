"""The catalogue as the service's use cases see it: one object, its subjects in one module each."""

from __future__ import annotations

from sendense_db.engine import Database
from sendense_repository.store.clock import Clock
from sendense_repository.store.fences import Fences
from sendense_repository.store.integrity import IntegrityChecks, Verifications
from sendense_repository.store.layers import Layers
from sendense_repository.store.leases import Leases
from sendense_repository.store.points import Points
from sendense_repository.store.repositories import Repositories
from sendense_repository.store.retention import RetentionRuns
from sendense_repository.store.suspicions import Suspicions
from sendense_repository.store.usage import Usage


class Catalogue:
    """All tables of the service, over one database."""

    def __init__(self, database: Database) -> None:
        self.repositories = Repositories(database)
        self.layers = Layers(database)
        self.points = Points(database)
        self.leases = Leases(database)
        self.fences = Fences(database)
        self.checks = IntegrityChecks(database)
        self.verifications = Verifications(database)
        self.retention = RetentionRuns(database)
        self.clock = Clock(database)
        self.usage = Usage(database)
        self.suspicions = Suspicions(database)
        self._database = database

    async def check(self) -> None:
        """Raises OSError when the database does not answer."""
        await self._database.check()
