"""Puts a proven merge in its layer's place: sidecar that admits both, image, journal, sidecar, row.

Each is one rename, so at every moment the layer is whole: what is there is the old image or the new one, and the
sidecar fits it. Whatever interrupts it, doing it again finishes. The layer keeps its name and identity, so headers,
points files and sidecars above it stay valid: the new sidecar lists the digests that it had before.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from sendense_repository import documents, durable
from sendense_repository.documents import DocumentError
from sendense_repository.errors import LayerDamaged
from sendense_repository.file_flags import is_immutable, protect, unprotect
from sendense_repository.layout import LayerFiles
from sendense_repository.parentage import SIDECAR_KIND
from sendense_repository.records import LayerRecord
from sendense_repository.sidecar import read_sidecar
from sendense_repository.steps import StepObserver
from sendense_repository.store import Catalogue

log = structlog.get_logger()

_READ_ONLY = 0o444


async def swap(catalogue: Catalogue, root: Path, child: LayerRecord, observe: StepObserver) -> LayerRecord:
    """Puts a merge in place of the layer that received it, and returns the layer as it is now; again is no error.

    The caller holds the VM's lock, and nobody reads the layers that were merged.

    Raises:
        LayerDamaged: There is no proven merge: the layers below must stay.
    """
    files = child.files(root)
    replaced = (files.sealed, files.journal, files.sidecar)
    try:
        if await asyncio.to_thread(files.merged_sidecar.exists):
            protected = await asyncio.to_thread(is_immutable, files.sealed)
            await asyncio.to_thread(unprotect, replaced)
            await asyncio.to_thread(_admit_both, child, files)
            observe("swap-admitted")
            await asyncio.to_thread(_move_over, files.merged, files.sealed)
            observe("swap-image")
            await asyncio.to_thread(_move_over, files.merged_journal, files.journal)
            observe("swap-journal")
            await asyncio.to_thread(_move_over, files.merged_sidecar, files.sidecar)
            observe("swap-sidecar")
            if protected:
                await asyncio.to_thread(protect, replaced)
        now = await asyncio.to_thread(_as_described, child, files)
    except (DocumentError, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise LayerDamaged(child.layer_id, f"its merge cannot be put in place: {error}") from error
    await catalogue.layers.record_merge(now)
    observe("swap-row")
    log.info("layer merged", layer_id=child.layer_id, path=child.relative_path, stored_bytes=now.stored_bytes)
    return now


def _admit_both(child: LayerRecord, files: LayerFiles) -> None:
    """Writes a sidecar that fits the old image and journal as well as the new ones."""
    present = read_sidecar(files.sidecar)
    if "swap" in present:
        return
    coming = read_sidecar(files.merged_sidecar)
    if coming["layer_id"] != child.layer_id or present["digest"] not in coming["supersedes"]:
        raise ValueError(f"{files.merged_sidecar.name} was made for another state of the layer")
    before = {
        name: present[name]
        for name in ("digest", "backup_type", "parent", "stored_bytes", "areas", "journal", "metadata_digest")
    }
    marks = present.get("metadata_marks", "")
    members = {key: value for key, value in coming.items() if key not in {"format", "kind", "digest"}}
    content, _ = documents.encode(SIDECAR_KIND, {**members, "swap": {**before, "metadata_marks": marks}})
    durable.replace(files.sidecar, content, mode=_READ_ONLY)


def _move_over(source: Path, target: Path) -> None:
    """Renames durably, replacing the target; a source that is gone was moved before."""
    try:
        source.replace(target)
    except FileNotFoundError:
        return
    durable.sync_directory(target.parent)


def _as_described(child: LayerRecord, files: LayerFiles) -> LayerRecord:
    """Returns the layer as its sidecar says now, which must be a merged one."""
    said = read_sidecar(files.sidecar)
    parent: dict[str, Any] | None = said["parent"]
    parent_id = parent["layer_id"] if parent is not None else None
    merged = parent_id != child.parent_layer_id and child.digest in said["supersedes"]
    if said["layer_id"] != child.layer_id or not merged:
        raise ValueError(f"{files.sidecar.name} says nothing of a merge")
    return replace(
        child,
        backup_type="full" if parent_id is None else "incremental",
        parent_layer_id=parent_id,
        areas_digest=said["areas"]["digest"],
        area_count=int(said["areas"]["count"]),
        area_bytes=int(said["areas"]["total_bytes"]),
        journal_digest=said["journal"]["digest"],
        metadata_digest=said["metadata_digest"],
        stored_bytes=int(said["stored_bytes"]),
        digest=said["digest"],
    )
