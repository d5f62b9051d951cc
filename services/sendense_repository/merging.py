"""Makes the image that a layer becomes when the layers below are merged into it; nothing that exists is changed.

A clone of the lowest layer (where the file system has reflinks) receives what the layers above give; elsewhere a new
image receives everything once. It is proven against the untouched chain and the manifests, gets a manifest and a
sidecar of its own, and lies beside the layer as `….merged` until `swap` puts it in the layer's place. Until the sidecar
is there, which is written last, what lies there is a leftover.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sendense_blockio.engine import CopyProgress
from sendense_blockio.errors import BlockIOError, CopyCancelledError
from sendense_blockio.extents import Extent, areas_digest, total
from sendense_blockio.journal import Entry, JournalWriter, read_journal
from sendense_qemu import img
from sendense_qemu.errors import QemuError
from sendense_qemu.header import check_chain
from sendense_repository import durable
from sendense_repository.clone import clone
from sendense_repository.documents import DocumentError
from sendense_repository.errors import LayerDamaged, MergeFailed
from sendense_repository.image_data import UnreadableData
from sendense_repository.journals import journal_header
from sendense_repository.layout import CLUSTER_SIZE, LayerFiles
from sendense_repository.manifest import compare_allocation
from sendense_repository.merge_copy import commit_layers
from sendense_repository.merge_proof import MappedImage, MergeDiffers, SourceDamaged, prove_merge
from sendense_repository.merged_manifest import MergedManifest, merge_manifests
from sendense_repository.parentage import require_as_sealed, require_sound_chain
from sendense_repository.qcow2_metadata import MetadataError, read_metadata
from sendense_repository.records import LayerRecord
from sendense_repository.sidecar import encode_sidecar, read_sidecar
from sendense_repository.sparse_tables import give_back_unused
from sendense_repository.steps import StepObserver
from sendense_repository.zeroes import first_not_zero

log = structlog.get_logger()

_READ_ONLY = 0o444
_WRITABLE = 0o640
_BATCH_ENTRIES = 32_768


@dataclass(frozen=True, slots=True)
class Merge:
    """A run of layers of one disk that goes into the layer above it.

    Attributes:
        chain: The receiving layer and all layers below it, down to the full.
        count: How many layers below the receiving one go into it, at least one.
    """

    chain: tuple[LayerRecord, ...]
    count: int

    @property
    def child(self) -> LayerRecord:
        """The layer that receives the others and keeps its identity."""
        return self.chain[0]

    @property
    def merged(self) -> Sequence[LayerRecord]:
        """The receiving layer and those that go into it, from the top down."""
        return self.chain[: self.count + 1]

    @property
    def parent(self) -> LayerRecord | None:
        """The layer that the receiving one is based on afterwards; None makes it a full."""
        return self.chain[self.count + 1] if len(self.chain) > self.count + 1 else None

    @property
    def is_full(self) -> bool:
        """Whether the receiving layer is a full afterwards."""
        return self.parent is None


def read_manifest(merge: Merge, root: Path) -> MergedManifest:
    """Returns what a merge consists of, from the journals of its layers; blocks for the disk.

    Raises:
        LayerDamaged: A journal is not as it was sealed.
    """
    manifests = []
    for layer in merge.merged:
        try:
            journal = read_journal(layer.files(root).journal, journal_header(layer, layer.areas_digest))
        except (BlockIOError, OSError) as error:
            raise LayerDamaged(layer.layer_id, str(error)) from error
        if journal.checksum.hex() != layer.journal_digest:
            raise LayerDamaged(layer.layer_id, "its journal is not the one that was sealed")
        manifests.append(journal.entries)
    return merge_manifests(manifests)


class MergeBuilder:
    """Makes merged images.

    Args:
        work_dir: Folder with a short path for sockets.
        sync: Makes a file durable; replaced in fault tests.
        observe: Told of each step after it was done.
    """

    def __init__(self, work_dir: Path, sync: Callable[[Path], None], observe: StepObserver) -> None:
        self._work_dir = work_dir
        self._sync = sync
        self._observe = observe

    async def build(self, merge: Merge, root: Path, progress: CopyProgress, cancel: threading.Event) -> None:
        """Makes and proves a merged image with journal and sidecar beside the receiving layer.

        Raises:
            LayerDamaged: A layer is not what was backed up.
            MergeFailed: The merged image could not be made, or is not right; nothing was changed.
            CopyCancelledError: `cancel` was set.
            OSError: The file system failed, or is full.
        """
        files = merge.child.files(root)
        await asyncio.to_thread(remove_merge, files)
        await require_sound_chain(files.sealed, list(merge.chain))
        for layer in merge.merged:
            await require_as_sealed(layer, root)
        manifest = await asyncio.to_thread(read_manifest, merge, root)
        try:
            cloned = await self._prepare(merge, root)
            self._observe("merge-target")
            await self._copy(merge, root, progress, cancel, cloned=cloned)
            self._observe("merge-copied")
            await self._check(merge, files)
            self._observe("merge-checked")
            entries = await self._prove(merge, manifest, root, cancel, cloned=cloned)
            self._observe("merge-proved")
            merged = await asyncio.to_thread(_write_journal, merge, manifest.areas, entries, files)
            self._observe("merge-journal")
            await asyncio.to_thread(self._make_durable, files)
            self._observe("merge-synced")
            await asyncio.to_thread(_describe, merged, merge.parent, files)
            self._observe("merge-ready")
        except CopyCancelledError:
            raise
        except (BlockIOError, QemuError, MergeDiffers, MetadataError, UnreadableData, DocumentError) as error:
            raise MergeFailed(merge.child.layer_id, str(error)) from error
        except SourceDamaged as error:
            raise LayerDamaged(merge.merged[error.depth].layer_id, str(error)) from error

    async def _prepare(self, merge: Merge, root: Path) -> bool:
        """Makes the image that receives the merge; tells whether it is a clone of the lowest layer."""
        target = merge.child.files(root).merged
        lowest = merge.merged[-1].files(root).sealed
        if await asyncio.to_thread(clone, lowest, target):
            return True
        parent = merge.parent
        await img.create_qcow2(
            target,
            merge.child.virtual_size_bytes,
            backing_name=parent.name if parent is not None else None,
            cluster_size=CLUSTER_SIZE,
        )
        await asyncio.to_thread(target.chmod, _WRITABLE)
        return False

    async def _copy(
        self, merge: Merge, root: Path, progress: CopyProgress, cancel: threading.Event, *, cloned: bool
    ) -> None:
        chain = [layer.files(root).sealed for layer in merge.chain]
        await commit_layers(
            chain[: merge.count if cloned else merge.count + 1],
            [merge.child.files(root).merged, *chain[merge.count + 1 :]],
            work_dir=self._work_dir,
            progress=progress,
            cancel=cancel,
        )

    async def _check(self, merge: Merge, files: LayerFiles) -> None:
        checked = await img.check(files.merged)
        if checked.is_sound and checked.leaks:
            checked = await img.check(files.merged, repair_leaks=True)
        if not checked.is_sound or checked.leaks:
            finding = f"qemu-img check found {checked.corruptions} corruptions and {checked.leaks} leaks"
            raise MergeFailed(merge.child.layer_id, finding)
        headers = await asyncio.to_thread(check_chain, files.merged, [files.directory])
        found = [header.path.name for header in headers[1:]]
        expected = [layer.name for layer in merge.chain[merge.count + 1 :]]
        if found != expected:
            raise MergeFailed(merge.child.layer_id, f"the merged header leads to {found}, not to {expected}")
        await asyncio.to_thread(give_back_unused, files.merged, end=checked.image_end_offset, cluster_size=CLUSTER_SIZE)

    async def _prove(
        self, merge: Merge, manifest: MergedManifest, root: Path, cancel: threading.Event, *, cloned: bool
    ) -> list[Entry]:
        child, files = merge.child, merge.child.files(root)
        chain = [layer.files(root).sealed for layer in merge.chain]
        merged_map, *maps = await asyncio.gather(
            *(img.map_depths(path, "qcow2") for path in (files.merged, *chain[: merge.count + 1]))
        )
        layers = [MappedImage(found, chain[depth:]) for depth, found in enumerate(maps)]
        merged = MappedImage(merged_map, [files.merged, *chain[merge.count + 1 :]])
        entries = await asyncio.to_thread(
            prove_merge,
            manifest,
            merged,
            layers,
            cloned=cloned,
            virtual_size=child.virtual_size_bytes,
            cancel=cancel,
        )
        difference = await asyncio.to_thread(
            compare_allocation,
            entries,
            merged_map,
            cluster_size=CLUSTER_SIZE,
            virtual_size=child.virtual_size_bytes,
            has_parent=not merge.is_full,
        )
        if difference.finding:
            raise MergeFailed(child.layer_id, difference.finding)
        if difference.to_prove_zero:
            finding = await first_not_zero(files.merged, difference.to_prove_zero)
            if finding:
                raise MergeFailed(child.layer_id, f"zeroes are not zero: {finding}")
        return entries

    def _make_durable(self, files: LayerFiles) -> None:
        """Syncs image and journal, once: when that fails, the merge is thrown away."""
        for path in (files.merged, files.merged_journal):
            path.chmod(_READ_ONLY)
            self._sync(path)
        durable.sync_directory(files.directory)


def remove_merge(files: LayerFiles) -> None:
    """Removes what a merge made beside a layer; blocks. What is not there is no error."""
    removed = [durable.remove(path) for path in files.of_merge]
    if any(removed):
        durable.sync_directory(files.directory)


def _write_journal(merge: Merge, areas: Sequence[Extent], entries: Sequence[Entry], files: LayerFiles) -> LayerRecord:
    """Writes the merged layer's manifest and returns the layer as it will be, sidecar and image's sums aside."""
    child = merge.child
    digest = areas_digest(areas, child.virtual_size_bytes)
    with JournalWriter.create(files.merged_journal, journal_header(child, digest)) as writer:
        for start in range(0, len(entries), _BATCH_ENTRIES):
            writer.append_batch(writer.next_sequence, entries[start : start + _BATCH_ENTRIES])
        journal_digest = writer.checksum.hex()
    return replace(
        child,
        backup_type="full" if merge.is_full else "incremental",
        parent_layer_id=merge.parent.layer_id if merge.parent is not None else None,
        areas_digest=digest,
        area_count=len(areas),
        area_bytes=total(areas),
        journal_digest=journal_digest,
    )


def _describe(merged: LayerRecord, parent: LayerRecord | None, files: LayerFiles) -> None:
    """Writes the merged layer's sidecar: from now on the merge can be put in place."""
    found = read_metadata(files.merged)
    before = read_sidecar(files.sidecar)
    complete = replace(merged, metadata_digest=found.digest, stored_bytes=files.merged.stat().st_blocks * 512)
    supersedes = [*before.get("supersedes", []), merged.digest]
    content, _ = encode_sidecar(complete, parent, files, found.marks, supersedes=supersedes)
    durable.write_new(files.merged_sidecar, content, mode=_READ_ONLY)
