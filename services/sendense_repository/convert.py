"""Between protobuf messages and the service's own values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.repository.v1 import integrity_pb2, layer_pb2, point_pb2, repository_pb2
from sendense_blockio.extents import Extent
from sendense_repository.chain import Chain
from sendense_repository.integrity import MAX_SHOWN_DAMAGES, Integrity
from sendense_repository.layout import CLUSTER_SIZE
from sendense_repository.point import PlacedPoint
from sendense_repository.records import Holder, LayerRecord, LeaseRecord, PlacedLayer, RepositoryRecord


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


def repository(record: RepositoryRecord) -> repository_pb2.Repository:
    """Returns a repository."""
    return repository_pb2.Repository(
        repository_id=record.repository_id,
        name=record.name,
        repository_type=record.repository_type,
        path=str(record.path),
        enabled=record.enabled,
        total_size_bytes=record.total_size_bytes,
        available_size_bytes=record.available_size_bytes,
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
    )


@dataclass(frozen=True, slots=True)
class Doubts:
    """What speaks against layers, by layer id.

    Attributes:
        damages: What is wrong with their files, or with one below.
        suspicions: Why their content may be wrong although their files are as they were written.
    """

    damages: Mapping[str, str]
    suspicions: Mapping[str, str]


def layer(record: LayerRecord, place: RepositoryRecord, doubts: Doubts | None = None) -> layer_pb2.Layer:
    """Returns a layer, its bytes as they are now."""
    files = record.files(place.path)
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
