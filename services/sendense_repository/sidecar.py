"""A sealed layer's sidecar: everything that is needed to use the layer without a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sendense_repository import documents
from sendense_repository.layout import CLUSTER_SIZE, LayerFiles
from sendense_repository.parentage import SIDECAR_KIND
from sendense_repository.records import LayerRecord


def encode_sidecar(
    layer: LayerRecord,
    parent: LayerRecord | None,
    files: LayerFiles,
    metadata_marks: str,
    *,
    supersedes: Sequence[str] = (),
) -> tuple[bytes, str]:
    """Returns a sidecar's bytes and its digest.

    Args:
        layer: The layer with all that its seal found; its own `digest` does not count.
        parent: The layer below, None for a full.
        files: Where it lies.
        metadata_marks: Of the image's tables (`qcow2_metadata`).
        supersedes: Digests of the sidecars that the layer had before layers below were merged into it, oldest first.
            Points files and sidecars above go on naming them.
    """
    if layer.sealed_at is None:
        raise ValueError(f"layer {layer.layer_id} has no time of its seal")
    below = None
    if parent is not None:
        below = {"layer_id": parent.layer_id, "name": parent.name, "digest": parent.digest}
    earlier = {"supersedes": list(supersedes)} if supersedes else {}
    return documents.encode(
        SIDECAR_KIND,
        {
            **earlier,
            "layer_id": layer.layer_id,
            "repository_id": layer.repository_id,
            "vm_uuid": layer.vm_uuid,
            "disk_id": layer.disk_id,
            "disk_identity": layer.disk_identity,
            "backup_type": layer.backup_type,
            "backup_id": layer.backup_id,
            "attempt": layer.attempt,
            "chain_id": layer.chain_id,
            "name": layer.name,
            "parent": below,
            "change_id": layer.change_id,
            "virtual_size_bytes": layer.virtual_size_bytes,
            "cluster_size_bytes": CLUSTER_SIZE,
            "stored_bytes": layer.stored_bytes,
            "areas": {"digest": layer.areas_digest, "count": layer.area_count, "total_bytes": layer.area_bytes},
            "journal": {"name": files.journal.name, "digest": layer.journal_digest},
            "metadata_digest": layer.metadata_digest,
            "metadata_marks": metadata_marks,
            "reason": layer.reason,
            "created_at": layer.created_at.isoformat(),
            "sealed_at": layer.sealed_at.isoformat(),
        },
    )


def read_sidecar(path: Path) -> dict[str, Any]:
    """Returns a sidecar's members; raises as `documents.read`."""
    return documents.read(path, SIDECAR_KIND)
