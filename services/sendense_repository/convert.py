"""Between protobuf messages and the service's own values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.repository.v1 import integrity_pb2, layer_pb2, point_pb2, rebuild_pb2, repository_pb2
from sendense_blockio.extents import Extent
from sendense_repository.administration import Outlook
from sendense_repository.chain import Chain
from sendense_repository.immutability import locked_until
from sendense_repository.integrity import MAX_SHOWN_DAMAGES, Integrity
from sendense_repository.layout import CLUSTER_SIZE
from sendense_repository.point import PlacedPoint
from sendense_repository.records import Holder, LayerRecord, LeaseRecord, PlacedLayer, RepositoryRecord
from sendense_repository.scan import Report
from sendense_repository.stored import StoredPoint


def timestamp(moment: datetime) -> Timestamp:
    """Returns a moment as a Timestamp."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def moment(message: Timestamp) -> datetime:
    """Returns a Timestamp as a moment in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def holder(message: layer_pb2.Holder) -> Holder:
    """Returns who asks."""
    return Holder(message.job_id, message.attempt)


def extent(message: layer_pb2.Area) -> Extent:
    """Returns an area; raises InvalidExtentError when it cannot be one."""
    return Extent(message.offset, message.length)


def page(extents: Iterable[Extent]) -> layer_pb2.AreaPage:
    """Returns areas as a page."""
    return layer_pb2.AreaPage(areas=[layer_pb2.Area(offset=each.offset, length=each.length) for each in extents])


def repository(record: RepositoryRecord, outlook: Outlook, reserve_bytes: int) -> repository_pb2.Repository:
    """Returns a repository with how it fills."""
    message = repository_pb2.Repository(
        repository_id=record.repository_id,
        name=record.name,
        repository_type=record.repository_type,
        path=str(record.path),
        enabled=record.enabled,
        total_size_bytes=record.total_size_bytes,
        available_size_bytes=record.available_size_bytes,
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
        config_json=json.dumps({"path": str(record.path), **record.options.as_json()}),
        reserve_bytes=reserve_bytes,
        lock_seconds=record.options.lock_seconds,
        immutable_files=record.options.immutable_files,
        point_count=outlook.point_count,
        stored_bytes=outlook.stored_bytes,
        growth_bytes_per_day=outlook.forecast.bytes_per_day,
        warning=outlook.warning,
        problem=outlook.problem,
    )
    if outlook.forecast.full_at is not None:
        message.full_at.CopyFrom(timestamp(outlook.forecast.full_at))
    return message


def scan_report(report: Report) -> repository_pb2.ScanReport:
    """Returns what a scan found."""
    return repository_pb2.ScanReport(
        repository_id=report.repository.repository_id,
        agreed_points=report.agreed,
        importable_points=[
            repository_pb2.StoredPointSummary(
                backup_id=each.record.backup_id,
                vm_name=each.record.vm_name,
                vm_uuid=each.record.vm_uuid,
                committed_at=timestamp(each.record.committed_at),
            )
            for each in report.importable
        ],
        findings=[
            repository_pb2.ScanFinding(kind=each.kind, path=each.path, backup_id=each.backup_id, finding=each.finding)
            for each in report.findings
        ],
    )


def stored_point(stored: StoredPoint, place: RepositoryRecord) -> rebuild_pb2.StoredPoint:
    """Returns a restore point as storage describes it."""
    record = stored.record
    message = rebuild_pb2.StoredPoint(
        backup_id=record.backup_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        vm_context_id=record.vm_context_id,
        sequence=record.sequence,
        committed_at=timestamp(record.committed_at),
        previous_backup_id=record.previous_backup_id,
        hardware_json=record.hardware_json,
        layers=[layer(each, place) for each in stored.layers],
        reasons=[each.reason for each in stored.layers],
        copied_bytes=[each.area_bytes for each in stored.layers],
    )
    if record.snapshot_at is not None:
        message.snapshot_at.CopyFrom(timestamp(record.snapshot_at))
    return message


@dataclass(frozen=True, slots=True)
class Doubts:
    """What is known of layers besides their rows, by layer id.

    Attributes:
        damages: What is wrong with their files, or with one below.
        suspicions: Why their content may be wrong although their files are as they were written.
        verified: When their files were last found sound.
    """

    damages: Mapping[str, str]
    suspicions: Mapping[str, str]
    verified: Mapping[str, datetime]


def layer(record: LayerRecord, place: RepositoryRecord, doubts: Doubts | None = None) -> layer_pb2.Layer:
    """Returns a layer, its bytes as they are now."""
    files = record.files(place.path)
    verified = doubts.verified.get(record.layer_id) if doubts else None
    return layer_pb2.Layer(
        layer_id=record.layer_id,
        repository_id=record.repository_id,
        vm_uuid=record.vm_uuid,
        disk_id=record.disk_id,
        disk_identity=record.disk_identity,
        backup_type=record.backup_type,
        backup_id=record.backup_id,
        parent_layer_id=record.parent_layer_id or "",
        chain_id=record.chain_id,
        path=str(files.sealed if record.state == "sealed" else files.partial),
        virtual_size_bytes=record.virtual_size_bytes,
        stored_bytes=files.stored_bytes() or record.stored_bytes,
        change_id=record.change_id,
        state=record.state,
        created_at=timestamp(record.created_at),
        cluster_size_bytes=CLUSTER_SIZE,
        damage=doubts.damages.get(record.layer_id, "") if doubts else "",
        suspicion=doubts.suspicions.get(record.layer_id, "") if doubts else "",
        verified_at=timestamp(verified) if verified else None,
    )


def placed_layer(placed: PlacedLayer) -> layer_pb2.Layer:
    """Returns a layer."""
    return layer(placed.layer, placed.repository)


def integrity(known: Integrity) -> integrity_pb2.Integrity:
    """Returns what is known of a point's files."""
    message = integrity_pb2.Integrity(
        state=known.state,
        damages=[integrity_pb2.Damage(**damage.as_json()) for damage in known.damages[:MAX_SHOWN_DAMAGES]],
        suspicion=known.suspicion,
    )
    if known.checked_at is not None:
        message.checked_at.CopyFrom(timestamp(known.checked_at))
    return message


def point(placed: PlacedPoint, known: Integrity, doubts: Doubts) -> point_pb2.Point:
    """Returns a restore point with what is known of its files."""
    record = placed.point
    message = point_pb2.Point(
        backup_id=record.backup_id,
        repository_id=record.repository_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        vm_context_id=record.vm_context_id,
        sequence=record.sequence,
        layers=[layer(each, placed.repository, doubts) for each in placed.layers],
        committed_at=timestamp(record.committed_at),
        previous_backup_id=record.previous_backup_id,
        hardware_json=record.hardware_json,
    )
    message.integrity.CopyFrom(integrity(known))
    locked = locked_until(placed.repository, record)
    if locked is not None:
        message.locked_until.CopyFrom(timestamp(locked))
    if record.snapshot_at is not None:
        message.snapshot_at.CopyFrom(timestamp(record.snapshot_at))
    return message


def chain(shown: Chain, doubts: Doubts) -> point_pb2.Chain:
    """Returns a chain."""
    return point_pb2.Chain(
        chain_id=shown.chain_id,
        disk_id=shown.layers[0].disk_id,
        full_backup_id=shown.layers[0].backup_id,
        latest_backup_id=shown.layers[-1].backup_id,
        total_backups=len(shown.layers),
        total_size_bytes=shown.total_size_bytes,
        current=shown.current,
        layers=[layer(each, shown.repository, doubts) for each in shown.layers],
    )


def lease(record: LeaseRecord, known: Integrity | None) -> point_pb2.Lease:
    """Returns a lease with what is known of the point's files."""
    message = point_pb2.Lease(backup_id=record.backup_id, holder=record.holder, expires_at=timestamp(record.expires_at))
    if known is not None:
        message.integrity.CopyFrom(integrity(known))
    return message
