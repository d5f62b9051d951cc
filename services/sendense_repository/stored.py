"""Restore points as storage alone describes them: what a rebuilt catalogue would hold.

A point counts as whole when its points file and the sidecars of its layers, and of all layers below, are sound and name
one another, every image is there with a header that qemu may be shown, and every journal is there. Data is not read:
an imported point is unverified. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sendense_qemu.errors import HeaderError
from sendense_qemu.header import check_header
from sendense_repository import layout, pointfile
from sendense_repository.documents import DocumentError
from sendense_repository.layout import LayerFiles
from sendense_repository.records import LayerRecord, PointRecord
from sendense_repository.sidecar import read_sidecar


class NotWhole(Exception):
    """A point or layer on storage cannot be used; `path` is the file that is in the way."""

    def __init__(self, path: Path, finding: str) -> None:
        super().__init__(f"{path.name}: {finding}")
        self.path = path
        self.finding = finding


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A whole restore point on storage: its layers by disk, and everything below them, the fulls first."""

    record: PointRecord
    layers: Sequence[LayerRecord]
    needed: Sequence[LayerRecord]


@dataclass(frozen=True, slots=True)
class _Known:
    """A layer as its sidecar describes it: the digests by which it may be named, and how it names the one below."""

    layer: LayerRecord
    digests: frozenset[str]
    below: tuple[str, str] | None


@dataclass(slots=True)
class StoredVm:
    """One VM's directory, its sidecars read once. Methods block for the disk.

    Args:
        root: The repository's root.
        repository_id: The repository's id, which every document must name.
        vm_uuid: The VM.
    """

    root: Path
    repository_id: str
    vm_uuid: str
    _layers: dict[str, _Known] = field(default_factory=dict)
    _whole: dict[str, list[LayerRecord]] = field(default_factory=dict)
    damaged_sidecars: dict[Path, str] = field(default_factory=dict)

    def read(self) -> None:
        """Reads all sidecars of the VM."""
        for sidecar in sorted((self.root / self.vm_uuid).glob("disk-*/*.qcow2.json")):
            if sidecar.name.startswith("."):
                continue
            try:
                said = read_sidecar(sidecar)
                layer = _layer(said, sidecar, self.vm_uuid)
            except DocumentError as error:
                self.damaged_sidecars[sidecar] = error.finding
            except (OSError, KeyError, TypeError, ValueError) as error:
                self.damaged_sidecars[sidecar] = f"it cannot be used: {error}"
            else:
                digests = frozenset({str(said["digest"]), *(str(each) for each in said.get("supersedes", ()))})
                parent = said["parent"]
                below = (str(parent["layer_id"]), str(parent["digest"])) if parent else None
                self._layers[layer.layer_id] = _Known(layer, digests, below)

    def layers(self) -> list[LayerRecord]:
        """Returns every sealed layer whose sidecar is sound."""
        return [known.layer for known in self._layers.values()]

    def point(self, backup_id: str) -> StoredPoint:
        """Returns a whole point.

        Raises:
            NotWhole: What is in the way.
        """
        path = layout.point_file(self.root, self.vm_uuid, backup_id)
        try:
            found = pointfile.read_point(path)
        except DocumentError as error:
            raise NotWhole(path, error.finding) from error
        except OSError as error:
            raise NotWhole(path, f"it cannot be read: {error.strerror or error}") from error
        record = found.record
        if (record.repository_id, record.vm_uuid) != (self.repository_id, self.vm_uuid):
            raise NotWhole(path, f"it is of VM {record.vm_uuid} in repository {record.repository_id}")
        needed: dict[str, LayerRecord] = {}
        own = []
        for layer_id, digest in found.layer_digests.items():
            chain = self._chain(path, layer_id, digest)
            own.append(chain[0])
            needed |= {layer.layer_id: layer for layer in reversed(chain)}
        return StoredPoint(record, sorted(own, key=lambda layer: layer.disk_id), list(needed.values()))

    def _chain(self, namer: Path, layer_id: str, digest: str) -> list[LayerRecord]:
        """Returns a layer and those below it, each of which is as the one above names it."""
        chain: list[LayerRecord] = []
        wanted: tuple[str, str] | None = (layer_id, digest)
        while wanted is not None:
            known = self._layers.get(wanted[0])
            if known is None:
                raise NotWhole(namer, f"there is no sound sidecar of layer {wanted[0]}, which it needs")
            layer = known.layer
            files = layer.files(self.root)
            if wanted[1] not in known.digests:
                raise NotWhole(files.sidecar, f"{namer.name} was made with another layer of that name")
            if layer.layer_id in self._whole:
                # Another point needed it: what is below it was looked at.
                chain += self._whole[layer.layer_id]
                break
            if layer in chain:
                raise NotWhole(files.sidecar, "its parents lead back to itself")
            if layer.repository_id != self.repository_id or layer.vm_uuid != self.vm_uuid:
                raise NotWhole(files.sidecar, "it is another VM's, or of another repository")
            chain.append(layer)
            namer, wanted = files.sidecar, known.below
        for position, layer in enumerate(chain):
            if layer.layer_id in self._whole:
                break
            below = chain[position + 1].name if position + 1 < len(chain) else None
            _require_files(layer.files(self.root), below)
        self._whole |= {layer.layer_id: chain[position:] for position, layer in enumerate(chain)}
        return chain


def _require_files(files: LayerFiles, backing_name: str | None) -> None:
    try:
        check_header(files.sealed, backing_name=backing_name)
    except HeaderError as error:
        raise NotWhole(files.sealed, error.finding) from error
    except FileNotFoundError as error:
        raise NotWhole(files.sealed, "it is gone") from error
    except OSError as error:
        raise NotWhole(files.sealed, f"it cannot be read: {error.strerror or error}") from error
    if not files.journal.is_file():
        raise NotWhole(files.journal, "it is gone")


def _layer(said: Mapping[str, Any], sidecar: Path, vm_uuid: str) -> LayerRecord:
    name = str(said["name"])
    if sidecar.name != f"{name}.json" or sidecar.parent.name != f"disk-{int(said['disk_id'])}":
        raise ValueError(f"it is the sidecar of {name} of disk {said['disk_id']}")
    parent: Mapping[str, Any] | None = said["parent"]
    kind = str(said["backup_type"])
    if kind not in {"full", "incremental"} or (kind == "full") != (parent is None):
        raise ValueError(f"a layer with{'out' if parent is None else ''} a parent is said to be '{kind}'")
    areas: Mapping[str, Any] = said["areas"]
    return LayerRecord(
        layer_id=str(said["layer_id"]),
        repository_id=str(said["repository_id"]),
        vm_uuid=str(said["vm_uuid"]),
        disk_id=int(said["disk_id"]),
        disk_identity=str(said["disk_identity"]),
        backup_type="full" if parent is None else "incremental",
        backup_id=str(said["backup_id"]),
        attempt=int(said["attempt"]),
        point_id=None,
        parent_layer_id=str(parent["layer_id"]) if parent is not None else None,
        chain_id=str(said["chain_id"]),
        relative_path=f"{vm_uuid}/{sidecar.parent.name}/{name}",
        virtual_size_bytes=int(said["virtual_size_bytes"]),
        estimated_bytes=int(areas["total_bytes"]),
        change_id=str(said["change_id"]),
        state="sealed",
        areas_digest=str(areas["digest"]),
        area_count=int(areas["count"]),
        area_bytes=int(areas["total_bytes"]),
        journal_digest=str(said["journal"]["digest"]),
        metadata_digest=str(said["metadata_digest"]),
        digest=str(said["digest"]),
        reason=str(said["reason"]),
        stored_bytes=int(said["stored_bytes"]),
        poison="",
        created_at=datetime.fromisoformat(said["created_at"]),
        sealed_at=datetime.fromisoformat(said["sealed_at"]),
        deleted_at=None,
    )
