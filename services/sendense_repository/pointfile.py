"""The file that makes a restore point: `points/<backup_id>.json`, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sendense_repository import documents, layout
from sendense_repository.documents import DocumentError
from sendense_repository.records import LayerRecord, PointRecord

KIND = "point"


@dataclass(frozen=True, slots=True)
class PointFile:
    """A points file as read.

    Attributes:
        record: The point.
        layer_digests: For each layer's id the digest of its sidecar.
    """

    record: PointRecord
    layer_digests: Mapping[str, str]


def encode_point(record: PointRecord, layers: Sequence[LayerRecord]) -> tuple[bytes, str]:
    """Returns the bytes of a points file and its digest; `record.digest` and `record.state` do not count."""
    return documents.encode(
        KIND,
        {
            "backup_id": record.backup_id,
            "repository_id": record.repository_id,
            "vm_uuid": record.vm_uuid,
            "vm_name": record.vm_name,
            "vm_context_id": record.vm_context_id,
            "sequence": record.sequence,
            "previous_backup_id": record.previous_backup_id or None,
            "snapshot_at": record.snapshot_at.isoformat() if record.snapshot_at is not None else None,
            "committed_at": record.committed_at.isoformat(),
            "layers": [
                {
                    "layer_id": layer.layer_id,
                    "disk_id": layer.disk_id,
                    "disk_identity": layer.disk_identity,
                    "path": f"disk-{layer.disk_id}/{layer.name}",
                    "backup_type": layer.backup_type,
                    "virtual_size_bytes": layer.virtual_size_bytes,
                    "digest": layer.digest,
                }
                for layer in sorted(layers, key=lambda each: each.disk_id)
            ],
            "hardware": json.loads(record.hardware_json) if record.hardware_json else None,
        },
    )


def read_point(path: Path) -> PointFile:
    """Reads a points file.

    Raises:
        DocumentError: It is damaged, of an unknown format, or lies under another point's name.
        FileNotFoundError: There is none.
    """
    document = documents.read(path, KIND)
    try:
        record = _record(document)
        digests = {str(layer["layer_id"]): str(layer["digest"]) for layer in document["layers"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DocumentError(path, f"a member is missing or wrong: {error}") from error
    if path.name != f"{record.backup_id}.json":
        raise DocumentError(path, f"it is the points file of {record.backup_id}")
    return PointFile(record, digests)


def point_ids(root: Path, vm_uuid: str) -> frozenset[str]:
    """Returns the backup ids that a VM has points files of."""
    directory = layout.points_directory(root, vm_uuid)
    if not directory.is_dir():
        return frozenset()
    return frozenset(path.stem for path in directory.glob("*.json") if not path.name.startswith("."))


def last_sequence(root: Path, vm_uuid: str, backup_ids: frozenset[str]) -> int:
    """Returns the highest sequence of some points files, 0 for none. Damaged ones do not count."""
    highest = 0
    for backup_id in backup_ids:
        try:
            found = read_point(layout.point_file(root, vm_uuid, backup_id)).record.sequence
        except (DocumentError, FileNotFoundError):
            continue
        highest = max(highest, found)
    return highest


def _record(document: Mapping[str, Any]) -> PointRecord:
    snapshot_at = document["snapshot_at"]
    hardware = document["hardware"]
    return PointRecord(
        backup_id=str(document["backup_id"]),
        repository_id=str(document["repository_id"]),
        vm_uuid=str(document["vm_uuid"]),
        vm_name=str(document["vm_name"]),
        vm_context_id=str(document["vm_context_id"]),
        sequence=int(document["sequence"]),
        previous_backup_id=str(document["previous_backup_id"] or ""),
        hardware_json=json.dumps(hardware, sort_keys=True) if hardware is not None else "",
        digest=str(document["digest"]),
        state="committed",
        snapshot_at=datetime.fromisoformat(snapshot_at) if snapshot_at is not None else None,
        committed_at=datetime.fromisoformat(document["committed_at"]),
    )
