"""Tables of policies, their runs, and durable schedules."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, String, Table, Text, text, true

from sendense_backup.store.tables import metadata
from sendense_db.columns import UtcDateTime, one_of, utc_now

policies = Table(
    "policies",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=true()),
    Column("cron", String(191), nullable=False),
    Column("time_zone", String(63), nullable=False),
    # Everything that only the policy's own rules read: VMs, type rule, retention, window, retries.
    Column("rules_json", Text, nullable=False),
    Column("next_run_at", UtcDateTime),
    # The clock when the scheduler last looked: a clock that was set back shows in it.
    Column("looked_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("updated_at", UtcDateTime, nullable=False, default=utc_now),
    Column("deleted_at", UtcDateTime),
    Index(None, "next_run_at"),
    Index(
        "uq_policies_living_name",
        "name",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

runs = Table(
    "policy_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("policy_id", ForeignKey("policies.id", ondelete="RESTRICT"), nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("caused_by", String(16), nullable=False),
    # Runs that were due while nothing ran and that this one stands for.
    Column("missed", Integer, nullable=False, server_default="0"),
    Column("status", String(16), nullable=False, server_default="pending"),
    Column("vms_found", Integer, nullable=False, server_default="0"),
    Column("summary_json", Text, nullable=False, server_default="{}"),
    Column("message", Text, nullable=False, server_default=""),
    Column("created_at", UtcDateTime, nullable=False, default=utc_now),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    one_of("caused_by", "schedule", "person"),
    one_of("status", "pending", "running", "completed", "failed"),
    Index(None, "policy_id", "created_at"),
    Index(None, "status"),
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("next_run_at", UtcDateTime, nullable=False),
    Column("looked_at", UtcDateTime, nullable=False),
)
