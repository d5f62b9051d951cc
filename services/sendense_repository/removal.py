"""Takes a restore point's files away, in an order in which a crash leaves nothing that looks whole and is not.

The points file goes first: from then on there is no restore point. Then the layers. Then the rows. Each part can be
repeated, so a deletion that a crash interrupted is finished by doing it again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sendense_repository import durable, layout
from sendense_repository.layer_files import remove_layer_files
from sendense_repository.records import PointRecord
from sendense_repository.steps import StepObserver
from sendense_repository.store import Catalogue


async def remove_point(catalogue: Catalogue, root: Path, point: PointRecord, observe: StepObserver) -> int:
    """Removes a point in state `deleting` from storage and then from the catalogue.

    Returns:
        Bytes that came back.
    """
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
    durable.remove(path)
    durable.sync_directory(path.parent)
    return size
