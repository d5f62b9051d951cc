"""Tables of VM contexts, backup jobs, their disks, operations on restore points, logs and leases.

Columns and status values are the spec's; what several disks and operations need is added. ENUM is checked text, JSON is
text, `ON UPDATE CURRENT_TIMESTAMP` is done by the code that updates. Foreign keys never cascade: services mark rows as
deleted, storage first. Keys into other services' tables are added by the migration.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    literal_column,
    text,
)

from sendense_backup.model import ACTIVE, OPERATION_KINDS
from sendense_db.columns import UtcDateTime, one_of, utc_now
from sendense_db.engine import new_metadata
from sendense_db.requests import requests_table

metadata = new_metadata()

_BACKUP_TYPES = ("full", "incremental", "differential")
_ACTIVE_SQL = f"status IN ({', '.join(repr(each) for each in ACTIVE)})"

contexts = Table(
    "vm_replication_contexts",
    metadata,
    Column("context_id", String(191), primary_key=True),
    Column("vm_name", String(255), nullable=False),
    Column("vm_uuid", String(36), nullable=False),
    Column("vcenter_uuid", String(36), nullable=False),
    Column("agent_id", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("updated_at", UtcDateTime, nullable=False, default=utc_now),
    Column("deleted_at", UtcDateTime),
    UniqueConstraint("vcenter_uuid", "vm_uuid"),
    Index(None, "vm_name"),
)

jobs = Table(
    "backup_jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("vm_context_id", ForeignKey("vm_replication_contexts.context_id", ondelete="RESTRICT"), nullable=False),
    Column("vm_name", String(255), nullable=False),
    Column("backup_type", String(16), nullable=False),
    Column("status", String(16), nullable=False, server_default="pending"),
    Column("repository_type", String(50), nullable=False),
    Column("repository_path", String(512), nullable=False),
    Column("parent_backup_id", ForeignKey("backup_jobs.id", ondelete="RESTRICT")),
    Column("change_id", String(191)),
    Column("bytes_transferred", BigInteger, nullable=False, server_default="0"),
    Column("total_bytes", BigInteger, nullable=False, server_default="0"),
    Column("compression_enabled", Boolean, nullable=False, default=False),
    Column("error_message", Text),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    # Further columns: what the spec's table does not hold.
    Column("requested_type", String(16), nullable=False),
    Column("repository_id", String(64), nullable=False),
    Column("repository_name", String(255), nullable=False),
    Column("agent_id", String(64), nullable=False),
    Column("error_reason", String(64)),
    Column("request_id", String(64), unique=True),
    Column("quiesce", Boolean, nullable=False, default=False),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("attempt", BigInteger, nullable=False, server_default="0"),
    Column("phase", String(32), nullable=False, server_default=""),
    Column("rate_bytes_per_second", BigInteger, nullable=False, server_default="0"),
    Column("snapshot_at", UtcDateTime),
    Column("hardware_json", Text),
    Column("exclude_disks_json", Text, nullable=False, server_default="[]"),
    Column("consistency", String(32), nullable=False, server_default=""),
    Column("consistency_note", Text, nullable=False, server_default=""),
    Column("alert", Text, nullable=False, server_default=""),
    Column("deleted_at", UtcDateTime),
    # Waiting in line: who goes first, since when it may run, and when it was let in.
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("not_before", UtcDateTime),
    Column("admitted_at", UtcDateTime),
    Column("datastores_json", Text, nullable=False, server_default="[]"),
    # Where it comes from: a policy's run, or an earlier try that failed.
    Column("policy_id", String(64)),
    Column("policy_run_id", String(64)),
    Column("retry_of", String(64)),
    one_of("backup_type", *_BACKUP_TYPES),
    one_of("requested_type", *_BACKUP_TYPES),
    one_of("status", "pending", "running", "completed", "failed", "cancelled"),
    # Lists: newest first, of all, of a status, of a VM, of a policy.
    Index(None, "created_at", "id"),
    Index(None, "status", "created_at", "id"),
    Index(None, "vm_name", "created_at"),
    Index(None, "policy_id", "created_at"),
    Index(None, "policy_run_id"),
    # The newest good point of each VM, without reading its other jobs.
    Index(None, "vm_context_id", "status", "created_at"),
)

Index("ix_backup_jobs_id_prefix", jobs.c.id, postgresql_ops={"id": "varchar_pattern_ops"})

_FULL_POINT = text("backup_type = 'full' AND status = 'completed'")
Index(
    "ix_backup_jobs_fulls",
    jobs.c.vm_context_id,
    jobs.c.created_at,
    sqlite_where=_FULL_POINT,
    postgresql_where=_FULL_POINT,
)

Index(
    "uq_backup_jobs_active_vm",
    jobs.c.vm_context_id,
    unique=True,
    sqlite_where=text(_ACTIVE_SQL),
    postgresql_where=text(_ACTIVE_SQL),
)

disks = Table(
    "backup_disks",
    metadata,
    Column("backup_id", ForeignKey("backup_jobs.id", ondelete="RESTRICT"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("device_key", Integer, nullable=False),
    Column("identity", String(191), nullable=False),
    Column("label", String(255), nullable=False),
    Column("disk_id", Integer, nullable=False, server_default="-1"),
    Column("backup_type", String(16), nullable=False, server_default="full"),
    Column("reason", String(191), nullable=False, server_default=""),
    Column("status", String(16), nullable=False, server_default="pending"),
    Column("capacity_bytes", BigInteger, nullable=False),
    Column("change_id", String(191), nullable=False, server_default=""),
    Column("parent_backup_id", String(64), nullable=False, server_default=""),
    Column("parent_layer_id", String(64), nullable=False, server_default=""),
    Column("parent_change_id", String(191), nullable=False, server_default=""),
    Column("layer_id", String(64), nullable=False, server_default=""),
    Column("chain_id", String(64), nullable=False, server_default=""),
    Column("path", String(1024), nullable=False, server_default=""),
    Column("cluster_size_bytes", BigInteger, nullable=False, server_default="0"),
    Column("changed_bytes", BigInteger, nullable=False, server_default="0"),
    Column("total_bytes", BigInteger, nullable=False, server_default="0"),
    Column("bytes_transferred", BigInteger, nullable=False, server_default="0"),
    # The batch that was last sent to the journal, and what the journal covered before it.
    Column("journal_sequence", BigInteger, nullable=False, server_default="0"),
    Column("journal_floor_bytes", BigInteger, nullable=False, server_default="0"),
    Column("phase", String(32), nullable=False, server_default=""),
    Column("rate_bytes_per_second", BigInteger, nullable=False, server_default="0"),
    one_of("backup_type", *_BACKUP_TYPES),
    one_of("status", "pending", "running", "completed", "failed", "skipped"),
    UniqueConstraint("backup_id", "identity"),
    Index(None, "chain_id"),
)

operations = Table(
    "operations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False, server_default="pending"),
    # What it is about; empty where it is about more than one.
    Column("vm_context_id", ForeignKey("vm_replication_contexts.context_id", ondelete="RESTRICT")),
    Column("vm_name", String(255), nullable=False, server_default=""),
    Column("backup_id", ForeignKey("backup_jobs.id", ondelete="RESTRICT")),
    Column("repository_id", String(64), nullable=False, server_default=""),
    Column("policy_id", String(64)),
    Column("arguments_json", Text, nullable=False, server_default="{}"),
    Column("result_json", Text, nullable=False, server_default="{}"),
    Column("error_message", Text),
    Column("error_reason", String(64)),
    Column("request_id", String(64), unique=True),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("attempt", BigInteger, nullable=False, server_default="0"),
    Column("phase", String(32), nullable=False, server_default=""),
    Column("done_bytes", BigInteger, nullable=False, server_default="0"),
    Column("total_bytes", BigInteger, nullable=False, server_default="0"),
    Column("rate_bytes_per_second", BigInteger, nullable=False, server_default="0"),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("not_before", UtcDateTime),
    Column("admitted_at", UtcDateTime),
    Column("retry_of", String(64)),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    one_of("kind", *OPERATION_KINDS),
    one_of("status", "pending", "running", "completed", "failed", "cancelled"),
    Index(None, "created_at", "id"),
    Index(None, "status", "created_at", "id"),
    Index(None, "vm_name", "created_at"),
    Index(None, "policy_id", "created_at"),
    Index(None, "vm_context_id", "created_at"),
    Index(None, "kind", "created_at"),
)

Index("ix_operations_id_prefix", operations.c.id, postgresql_ops={"id": "varchar_pattern_ops"})

Index(
    "uq_operations_active_vm",
    operations.c.vm_context_id,
    unique=True,
    sqlite_where=text(f"{_ACTIVE_SQL} AND vm_context_id IS NOT NULL"),
    postgresql_where=text(f"{_ACTIVE_SQL} AND vm_context_id IS NOT NULL"),
)

log = Table(
    "job_log",
    metadata,
    Column("entry_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    # Of a backup or of an operation: exactly one of the two.
    Column("backup_id", ForeignKey("backup_jobs.id", ondelete="RESTRICT")),
    Column("operation_id", ForeignKey("operations.id", ondelete="RESTRICT")),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("level", String(16), nullable=False),
    Column("step", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Column("data_json", Text, nullable=False, server_default="{}"),
    one_of("level", "info", "warning", "error"),
    CheckConstraint("(backup_id IS NULL) <> (operation_id IS NULL)", name="one_job"),
    Index(None, "backup_id", "entry_id"),
    Index(None, "operation_id", "entry_id"),
)

leases = Table(
    "job_leases",
    metadata,
    Column("lease_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("backup_id", ForeignKey("backup_jobs.id", ondelete="RESTRICT"), nullable=False),
    Column("kind", String(16), nullable=False),
    # What is leased, known before it is made: the VM's uuid, the disk's position, or the export's name.
    Column("resource", String(191), nullable=False),
    # What its owner called it, known after it was made: moref or layer id.
    Column("resource_id", String(191), nullable=False, server_default=""),
    Column("attempt", BigInteger, nullable=False),
    Column("state", String(16), nullable=False, server_default="held"),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("ended_at", UtcDateTime),
    one_of("kind", "snapshot", "layer", "export"),
    one_of("state", "held", "released", "kept"),
    Index(None, "backup_id", "lease_id"),
    Index(None, "kind", "resource"),
    Index(None, "state"),
)

installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("installation_id", String(36), nullable=False),
)

requests = requests_table(metadata, "backup")


def has_status(table: Table, *statuses: str) -> ColumnElement[bool]:
    """Returns the condition that a job has one of these statuses, for the few that have not ended.

    The statuses are part of the statement, not values of it: PostgreSQL plans a prepared statement without its values,
    and would read a million ended jobs to find five, instead of an index that holds only those.
    """
    return table.c.status.in_([literal_column(repr(each)) for each in statuses])


def is_active(table: Table) -> ColumnElement[bool]:
    """Returns the condition that a job has not ended."""
    return has_status(table, *ACTIVE)
