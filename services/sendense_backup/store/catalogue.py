"""The catalogue as one value: what use cases and workflows are given."""

from __future__ import annotations

import uuid

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from sendense_backup.store.admission import Admission
from sendense_backup.store.all_jobs import AllJobs
from sendense_backup.store.contexts import Contexts
from sendense_backup.store.history import History
from sendense_backup.store.imports import Imports
from sendense_backup.store.job_log import JobLog
from sendense_backup.store.jobs import Jobs
from sendense_backup.store.leases import Leases
from sendense_backup.store.line import Line
from sendense_backup.store.measures import Measures
from sendense_backup.store.operations import Operations
from sendense_backup.store.policies import Policies
from sendense_backup.store.running import Running
from sendense_backup.store.schedules import Schedules
from sendense_backup.store.tables import installation, log
from sendense_db.engine import Database


class Catalogue:
    """The tables of this service, by subject.

    Attributes:
        admission: Takes new jobs.
        contexts: VMs that were backed up.
        jobs: Reads and lists jobs, marks cancel and deletion.
        running: What a workflow writes about its job.
        leases: What jobs have acquired.
        log: The job logs of backups.
        operations: What is done to restore points.
        operation_log: The job logs of operations.
        line: Who of the waiting may run.
        all_jobs: Backups and operations together.
        policies: Policies and their runs.
        schedules: When the service's own work is due.
        history: VMs' earlier backups.
        measures: Sums and ages for metrics.
        imports: Backups that only storage knew.
    """

    def __init__(self, url: str) -> None:
        """Opens the catalogue.

        Args:
            url: SQLAlchemy URL with an async driver.
        """
        self.database = database = Database(url)
        self.admission = Admission(database)
        self.contexts = Contexts(database)
        self.jobs = Jobs(database)
        self.running = Running(database)
        self.leases = Leases(database)
        self.log = JobLog(database)
        self.operations = Operations(database)
        self.operation_log = JobLog(database, log.c.operation_id)
        self.line = Line(database)
        self.all_jobs = AllJobs(database)
        self.policies = Policies(database)
        self.schedules = Schedules(database)
        self.history = History(database)
        self.measures = Measures(database)
        self.imports = Imports(database)

    async def close(self) -> None:
        """Closes all connections."""
        await self.database.close()

    async def installation_id(self) -> str:
        """Returns this installation's id, made up once: only its own snapshots are ever removed."""
        found = await self._installation_id()
        if found is None:
            try:
                async with self.database.begin() as connection:
                    await connection.execute(insert(installation).values(id=1, installation_id=str(uuid.uuid4())))
            except IntegrityError:
                pass  # another replica was faster: its id counts
            found = await self._installation_id()
        if found is None:
            raise OSError("the catalogue lost the installation's id")
        return found

    async def _installation_id(self) -> str | None:
        async with self.database.read() as connection:
            found: str | None = await connection.scalar(select(installation.c.installation_id))
        return found
