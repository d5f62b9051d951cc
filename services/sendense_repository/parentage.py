"""What an increment may be built on: the disk's layer in the VM's latest restore point, undamaged, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from sendense_qemu.errors import HeaderError
from sendense_qemu.header import check_chain
from sendense_repository import documents
from sendense_repository.documents import DocumentError
from sendense_repository.errors import LayerDamaged, SizeChanged, StaleParent
from sendense_repository.qcow2_metadata import MetadataError, metadata_digest
from sendense_repository.records import LayerRecord
from sendense_repository.store import Catalogue

SIDECAR_KIND = "layer"


async def require_latest(
    catalogue: Catalogue, repository_id: str, vm_uuid: str, disk_id: int, identity: str, parent_layer_id: str
) -> LayerRecord:
    """Returns the parent, which is the disk's layer in the VM's latest committed point.

    Raises:
        StaleParent: It is not.
    """
    latest = await catalogue.points.latest(repository_id, vm_uuid)
    layers = await catalogue.layers.of_points([latest.backup_id]) if latest is not None else []
    current = next((layer for layer in layers if layer.disk_id == disk_id), None)
    if current is None or current.layer_id != parent_layer_id:
        raise StaleParent(identity, parent_layer_id, current.layer_id if current is not None else None)
    return current


def require_same_size(parent: LayerRecord, virtual_size_bytes: int) -> None:
    """Raises SizeChanged when the disk does not have its parent's size any more."""
    if parent.virtual_size_bytes != virtual_size_bytes:
        raise SizeChanged(parent.layer_id, parent.virtual_size_bytes, virtual_size_bytes)


def ancestry(layer: LayerRecord, known: Mapping[str, LayerRecord]) -> list[LayerRecord]:
    """Returns a layer and the layers below it, down to the full.

    Raises:
        LayerDamaged: The catalogue lacks one of them.
    """
    chain = [layer]
    seen = {layer.layer_id}
    while chain[-1].parent_layer_id is not None:
        below = known.get(chain[-1].parent_layer_id)
        if below is None or below.layer_id in seen:
            raise LayerDamaged(layer.layer_id, f"the layer below {chain[-1].name} is missing")
        chain.append(below)
        seen.add(below.layer_id)
    return chain


async def require_sound_chain(image: Path, chain: list[LayerRecord]) -> None:
    """Judges the headers of an image and of all layers below it before qemu opens them.

    Args:
        image: The file of `chain[0]`, whatever it is called now.
        chain: The layer and those below it, as the catalogue has them.

    Raises:
        LayerDamaged: A header is foreign or names another layer than the catalogue.
    """
    try:
        headers = await asyncio.to_thread(check_chain, image, [image.parent])
    except (HeaderError, OSError) as error:
        raise LayerDamaged(chain[0].layer_id, str(error)) from error
    found = [header.path.name for header in headers[1:]]
    expected = [layer.name for layer in chain[1:]]
    if found != expected:
        raise LayerDamaged(chain[0].layer_id, f"its header leads to {found}, the catalogue says {expected}")


async def require_as_sealed(layer: LayerRecord, root: Path) -> None:
    """Compares a sealed layer's sidecar and metadata with what was recorded when it was sealed.

    Raises:
        LayerDamaged: A sidecar or a table of the image changed since, or is missing.
    """
    await asyncio.to_thread(_compare_with_seal, layer, root)


def _compare_with_seal(layer: LayerRecord, root: Path) -> None:
    files = layer.files(root)
    try:
        sidecar = documents.read(files.sidecar, SIDECAR_KIND)
        if sidecar["digest"] != layer.digest:
            raise LayerDamaged(layer.layer_id, f"its sidecar {files.sidecar.name} is not the one that was sealed")
        if metadata_digest(files.sealed) != layer.metadata_digest:
            raise LayerDamaged(layer.layer_id, f"the tables of {files.sealed.name} changed since it was sealed")
    except (DocumentError, MetadataError, OSError) as error:
        raise LayerDamaged(layer.layer_id, str(error)) from error
