"""Immutable files: committed ones are not changed by accident, and Sendense itself still merges and deletes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import VM, Rig, open_rig

from sendense_repository.administration import Change
from sendense_repository.file_flags import is_immutable, supports_immutable, unprotect
from sendense_repository.layout import point_file
from sendense_repository.records import Holder
from sendense_repository.upkeep import build_upkeep


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    if not await asyncio.to_thread(supports_immutable, tmp_path):
        pytest.skip("files cannot be made immutable here: the file system or CAP_LINUX_IMMUTABLE is missing")
    async with open_rig(tmp_path) as opened:
        yield opened
        await asyncio.to_thread(lambda: unprotect(tmp_path.rglob("*")))


async def test_committed_files_are_immutable_and_deletion_still_works(rig: Rig) -> None:
    administration = build_upkeep(rig.parts).administration
    await administration.update("local", Change(immutable_files=True))
    layers, disks = await rig.chain_of(3)
    files = [layer.layer.files(rig.root) for layer in layers]
    guarded = [*(path for one in files for path in (one.sealed, one.journal, one.sidecar))]
    guarded.append(point_file(rig.root, VM, "job-0"))
    assert all(is_immutable(path) for path in guarded)
    for path in guarded:
        with pytest.raises(PermissionError):
            path.unlink()
        with pytest.raises(PermissionError):
            path.chmod(0o644)

    await rig.parts.deleter.delete(Holder("delete", 1), ["job-0"], cascade=False)

    assert not files[0].sealed.exists()
    assert all(is_immutable(path) for path in (files[1].sealed, files[1].journal, files[1].sidecar))
    assert [rig.content(layer) for layer in layers[1:]] == disks[1:]
    await rig.parts.deleter.delete(Holder("delete", 1), ["job-2", "job-1"], cascade=False)
    assert list((rig.root / VM / "disk-0").iterdir()) == []
