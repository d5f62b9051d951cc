"""The access service's rows."""

from sendense_access.store.access import AccessStore, Agent, Token, TokenFilter
from sendense_access.store.audit import AuditFilter, AuditStore
from sendense_access.store.enrollment import EnrollmentStore
from sendense_access.store.tables import metadata

__all__ = ["AccessStore", "Agent", "AuditFilter", "AuditStore", "EnrollmentStore", "Token", "TokenFilter", "metadata"]
