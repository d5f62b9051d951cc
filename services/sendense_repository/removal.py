"""Takes restore points away, in an order in which a crash leaves nothing that looks whole and is not.

First every layer that a kept point builds on is swapped for its merge, which was made and proven before. Then, point by
point: the points file, from which moment there is no restore point; the layers; the rows. Each part can be repeated, so
a deletion that a crash interrupted is finished by doing it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sendense_repository import durable, layout
from sendense_repository.file_flags import unprotect
from sendense_repository.layer_files import remove_layer_files
from sendense_repository.merge_swap import swap
from sendense_repository.records import PointRecord
from sendense_repository.steps import StepObserver
from sendense_repository.store import Catalogue


async def remove_points(catalogue: Catalogue, root: Path, points: Sequence[PointRecord], observe: StepObserver) -> int:
    """Removes points of one VM that are in state `deleting`. The caller holds the VM's lock.

    Args:
        catalogue: Where they are recorded.
        root: The repository's root.
        points: The points, newest first.
        observe: Told of each step.

    Returns:
        Bytes that came back.

    Raises:
        LayerDamaged: A kept layer builds on one of theirs and has no proven merge: nothing was removed.
    """
    if not points:
        return 0
    ids = [point.backup_id for point in points]
    doomed = {layer.layer_id for layer in await catalogue.layers.of_points(ids)}
    freed = 0
    for layer in await catalogue.layers.of_vm(points[0].repository_id, points[0].vm_uuid):
        if layer.layer_id not in doomed and layer.parent_layer_id in doomed:
            files = layer.files(root)
            before = await asyncio.to_thread(files.sealed_bytes)
            await swap(catalogue, root, layer, observe)
            freed += before - await asyncio.to_thread(files.sealed_bytes)
    for point in points:
        freed += await _remove_point(catalogue, root, point, observe)
    return freed


async def _remove_point(catalogue: Catalogue, root: Path, point: PointRecord, observe: StepObserver) -> int:
    path = layout.point_file(root, point.vm_uuid, point.backup_id)
    freed = await asyncio.to_thread(_remove_point_file, path)
    observe("point-file-removed")
    for layer in await catalogue.layers.of_points([point.backup_id]):
        files = layer.files(root)
        freed += await asyncio.to_thread(files.freed_bytes)
        await asyncio.to_thread(remove_layer_files, files)
    observe("layer-files-removed")
    await catalogue.points.finish_delete(point)
    observe("delete-row")
    return freed


def _remove_point_file(path: Path) -> int:
    try:
        size = path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
    unprotect([path])
    durable.remove(path)
    durable.sync_directory(path.parent)
    return size
