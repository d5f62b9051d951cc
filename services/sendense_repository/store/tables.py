"""The repository service's tables. Names and columns of the first two are the product spec's."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from sendense_db.columns import UtcDateTime, one_of
from sendense_db.engine import new_metadata
from sendense_db.requests import requests_table

metadata = new_metadata()

backup_repositories = Table(
    "backup_repositories",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("repository_type", String(16), nullable=False),
    Column("config", JSON, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("total_size_bytes", BigInteger, nullable=False),
    Column("available_size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    one_of("repository_type", "local", "s3", "azure", "nfs"),
    Index(None, "repository_type"),
)

backup_chains = Table(
    "backup_chains",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("vm_context_id", String(191), nullable=False),
    Column("disk_id", Integer, nullable=False),
    Column("full_backup_id", String(64), nullable=False),
    Column("latest_backup_id", String(64), nullable=False),
    Column("total_backups", Integer, nullable=False),
    Column("total_size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("vm_context_id", "disk_id"),
    Index(None, "vm_context_id"),
)

restore_points = Table(
    "restore_points",
    metadata,
    Column("backup_id", String(191), primary_key=True),
    Column("repository_id", ForeignKey("backup_repositories.id", ondelete="RESTRICT"), nullable=False),
    Column("vm_uuid", String(36), nullable=False),
    Column("vm_name", String(255), nullable=False),
    Column("vm_context_id", String(191), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("previous_backup_id", String(191), nullable=False),
    Column("hardware_json", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("snapshot_at", UtcDateTime),
    Column("committed_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    one_of("state", "committed", "deleting", "deleted"),
    UniqueConstraint("repository_id", "vm_uuid", "sequence"),
    Index(None, "vm_context_id"),
)

backup_layers = Table(
    "backup_layers",
    metadata,
    Column("layer_id", String(64), primary_key=True),
    Column("repository_id", ForeignKey("backup_repositories.id", ondelete="RESTRICT"), nullable=False),
    Column("vm_uuid", String(36), nullable=False),
    Column("disk_id", Integer, nullable=False),
    Column("disk_identity", Text, nullable=False),
    Column("backup_type", String(16), nullable=False),
    Column("backup_id", String(191), nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("point_id", ForeignKey("restore_points.backup_id", ondelete="RESTRICT"), index=True),
    Column("parent_layer_id", ForeignKey("backup_layers.layer_id", ondelete="RESTRICT"), index=True),
    Column("chain_id", String(64), nullable=False, index=True),
    Column("relative_path", String(191), nullable=False),
    Column("virtual_size_bytes", BigInteger, nullable=False),
    Column("estimated_bytes", BigInteger, nullable=False),
    Column("change_id", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("areas_digest", String(64), nullable=False),
    Column("area_count", BigInteger, nullable=False),
    Column("area_bytes", BigInteger, nullable=False),
    Column("journal_digest", String(64), nullable=False),
    Column("metadata_digest", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("reason", String(191), nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("poison", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("sealed_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    one_of("backup_type", "full", "incremental"),
    one_of("state", "partial", "sealed"),
    UniqueConstraint("repository_id", "relative_path"),
    Index(None, "repository_id", "vm_uuid"),
    # One living layer for each job and disk, however often a step is repeated.
    Index(
        "uq_backup_layers_living",
        "backup_id",
        "repository_id",
        "disk_id",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

point_leases = Table(
    "point_leases",
    metadata,
    Column("backup_id", ForeignKey("restore_points.backup_id", ondelete="RESTRICT"), primary_key=True),
    Column("holder", String(191), primary_key=True),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

repository_fences = Table(
    "repository_fences",
    metadata,
    Column("job_id", String(191), primary_key=True),
    Column("attempt", BigInteger, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

requests = requests_table(metadata, "repository")
