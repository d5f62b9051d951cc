"""Tables of verification and retention; they hang on the same metadata as `tables`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from sendense_db.columns import UtcDateTime, one_of
from sendense_repository.store.tables import metadata

integrity_checks = Table(
    "integrity_checks",
    metadata,
    # A layer's id, or a backup's for its points file.
    Column("subject_id", String(191), primary_key=True),
    Column("repository_id", ForeignKey("backup_repositories.id", ondelete="RESTRICT"), nullable=False),
    # What was read: the check counts only while the layer or points file has this digest.
    Column("digest", String(64), nullable=False),
    Column("checked_at", UtcDateTime, nullable=False),
    Column("damages_json", Text, nullable=False),
    Index(None, "repository_id"),
)

verifications = Table(
    "verifications",
    metadata,
    Column("verification_id", String(191), primary_key=True),
    Column("backup_id", ForeignKey("restore_points.backup_id", ondelete="RESTRICT"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("bytes_per_second", BigInteger, nullable=False),
    Column("max_age_seconds", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("done_bytes", BigInteger, nullable=False),
    Column("error_reason", String(64), nullable=False),
    Column("error_message", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    one_of("state", "running", "done", "cancelled", "failed"),
    Index(None, "backup_id"),
    Index(None, "state"),
)

# Layers whose content may be wrong although their bytes are as they were written: an audit found that change tracking
# had left a change out. The mark stays with the layer, whatever merges do to its file.
suspicions = Table(
    "layer_suspicions",
    metadata,
    Column("layer_id", ForeignKey("backup_layers.layer_id", ondelete="RESTRICT"), primary_key=True),
    Column("finding", Text, nullable=False),
    Column("marked_at", UtcDateTime, nullable=False),
)

retention_runs = Table(
    "retention_runs",
    metadata,
    Column("run_id", String(191), primary_key=True),
    Column("repository_id", ForeignKey("backup_repositories.id", ondelete="RESTRICT"), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    # JSON lists of backup ids, by VM: what the plan removes, and what is gone already.
    Column("to_remove_json", Text, nullable=False),
    Column("removed_json", Text, nullable=False),
    Column("freed_bytes", BigInteger, nullable=False),
    Column("error_reason", String(64), nullable=False),
    Column("error_message", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    one_of("state", "running", "done", "failed"),
)

trusted_clock = Table(
    "trusted_clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # The latest moment that surely has come, and where the machine's own count stood then.
    Column("reached", UtcDateTime, nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("boot_seconds", BigInteger, nullable=False),
)

usage_samples = Table(
    "usage_samples",
    metadata,
    Column("repository_id", ForeignKey("backup_repositories.id", ondelete="RESTRICT"), primary_key=True),
    # One for each day, UTC, `YYYY-MM-DD`: how much the layers took when it was last looked at on that day.
    Column("day", String(10), primary_key=True),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("sampled_at", UtcDateTime, nullable=False),
)
