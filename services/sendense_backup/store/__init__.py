"""The backup service's share of the catalogue. Only this package knows SQLAlchemy.

What always holds: a VM has at most one job that is pending or running (a partial unique index); a job with a final
status never changes it; whatever a workflow writes names its attempt, so an execution that was taken over changes
nothing; rows of jobs are never deleted, `deleted_at` is set.
"""

from __future__ import annotations

from sendense_backup.store import policy_tables
from sendense_backup.store.catalogue import Catalogue
from sendense_backup.store.tables import metadata

__all__ = ["Catalogue", "metadata", "policy_tables"]
