"""Doubts beside the layers that they are about, so that a catalogue which is rebuilt from storage has them too.

A doubt says that a layer's content may be wrong although its bytes are as they were written: an audit found that change
tracking had left a change out. It stays with the layer, whatever merges do to its file, and goes with it. The catalogue
is what is asked; the file `{name}.doubt` is its copy. Whichever of the two knows more tells the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from sendense_db.columns import utc_now
from sendense_repository import documents, durable
from sendense_repository.documents import DocumentError
from sendense_repository.records import LayerRecord
from sendense_repository.store import Catalogue

log = structlog.get_logger()

KIND = "doubt"
_READ_ONLY = 0o444


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a layer's content may be wrong, and since when that is known."""

    finding: str
    marked_at: datetime


async def doubt_layers(catalogue: Catalogue, root: Path, layers: Sequence[LayerRecord], finding: str) -> None:
    """Doubts sealed layers; a newer finding takes the place of an older one.

    A file that cannot be written now, on a full disk, is written when the service starts again.
    """
    doubt = Doubt(finding, utc_now())
    await catalogue.suspicions.put({layer.layer_id: (doubt.finding, doubt.marked_at) for layer in layers})
    try:
        await asyncio.to_thread(_write, root, [(layer, doubt) for layer in layers])
    except OSError:
        log.exception("doubts are in the catalogue only", root=str(root), layers=[each.name for each in layers])


async def agree_on_doubts(catalogue: Catalogue, root: Path, layers: Iterable[LayerRecord]) -> None:
    """Gives storage the doubts that only the catalogue has, and the catalogue those that only storage has."""
    sealed = [layer for layer in layers if layer.state == "sealed"]
    on_storage = await asyncio.to_thread(_read_all, root, sealed)
    known = await catalogue.suspicions.with_times([layer.layer_id for layer in sealed])
    news = {layer_id: (each.finding, each.marked_at) for layer_id, each in on_storage.items() if layer_id not in known}
    if news:
        await catalogue.suspicions.put(news)
        log.warning("doubts were found on storage", root=str(root), layers=sorted(news))
    missing = [
        (layer, Doubt(*known[layer.layer_id]))
        for layer in sealed
        if layer.layer_id in known and layer.layer_id not in on_storage
    ]
    try:
        await asyncio.to_thread(_write, root, missing)
    except OSError as error:
        log.warning("doubts are in the catalogue only", root=str(root), error=str(error))


def read_doubt(path: Path, layer_id: str) -> Doubt | None:
    """Returns the doubt that a file holds, None when there is no file; blocks for the disk.

    A file that cannot be read is a doubt too: there was one, whatever it said.
    """
    try:
        said = documents.read(path, KIND)
        doubt = Doubt(str(said["finding"]), datetime.fromisoformat(said["marked_at"]))
        about = said["layer_id"]
    except FileNotFoundError:
        return None
    except (DocumentError, OSError, KeyError, TypeError, ValueError) as error:
        return Doubt(f"{path.name} cannot be used: {error}", utc_now())
    return doubt if about == layer_id else Doubt(f"{path.name} is about another layer, {about}", utc_now())


def _read_all(root: Path, layers: Iterable[LayerRecord]) -> dict[str, Doubt]:
    found: dict[str, Doubt] = {}
    for layer in layers:
        doubt = read_doubt(layer.files(root).doubt, layer.layer_id)
        if doubt is not None:
            found[layer.layer_id] = doubt
    return found


def _write(root: Path, doubts: Iterable[tuple[LayerRecord, Doubt]]) -> None:
    for layer, doubt in doubts:
        files = layer.files(root)
        if files.sidecar.exists():
            members = {
                "layer_id": layer.layer_id,
                "finding": doubt.finding,
                "marked_at": doubt.marked_at.isoformat(),
            }
            durable.replace(files.doubt, documents.encode(KIND, members)[0], mode=_READ_ONLY)
