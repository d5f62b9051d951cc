"""A lost catalogue comes back: real migrations, the repository service on its socket, the backup service's importer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from repository_rig import CONTEXT, VM, open_rig, tree

from sendense_backup.clients.rebuild import RebuildClient
from sendense_backup.clients.repository import RepositoryClient
from sendense_backup.errors import PointNotImportable
from sendense_backup.import_points import Importer
from sendense_backup.model import Repository, VmRef
from sendense_backup.store import Catalogue
from sendense_backup.store.admission import NewJob
from sendense_db.migrate import upgrade
from sendense_repository.config import RepositorySettings
from sendense_repository.main import build
from sendense_rpc.channel import unix_peer
from support import serving

VCENTER = "11111111-1111-1111-1111-111111111111"


async def test_backups_are_listed_again_and_the_chain_goes_on(
    sendense_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path / "lost") as rig:
        layers, disks = await rig.chain_of(3)
        root, before = rig.root, tree(rig.root)
        damaged = layers[2].layer.files(root).sidecar
    monkeypatch.setenv("SENDENSE_REPOSITORY_DEFAULT_ROOT", str(root))
    settings = RepositorySettings()
    await asyncio.to_thread(upgrade, settings.catalogue_url)
    async with build(settings) as service, serving(service, settings):
        peer = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
        catalogue = Catalogue(settings.catalogue_url)
        try:
            repository = RepositoryClient(peer)
            importer = Importer(catalogue, repository, RebuildClient(peer))
            with pytest.raises(PointNotImportable):
                await importer.run("local", ["job-9"])

            first = await importer.run("local", ["job-0"])
            rest = await importer.run("local", [])
            again = await importer.run("local", [])

            assert (first.backup_ids, rest.backup_ids, again.backup_ids) == (["job-0"], ["job-1", "job-2"], [])
            assert not rest.refused
            assert tree(root) == before
            for number in range(3):
                job = await catalogue.jobs.get(f"job-{number}")
                assert (job.status, job.repository, job.vm_name) == ("completed", "local", "web")
                assert job.backup_type == ("incremental" if number else "full")
                assert job.parent_backup_id == (f"job-{number - 1}" if number else "")
                (disk,) = job.disks
                assert (disk.identity, disk.layer_id) == ("disk-a", layers[number].layer.layer_id)
            (chain,) = await repository.chains(CONTEXT)
            assert (chain.total_backups, chain.current) == (3, True)
            place = await repository.repository("local")
            ref = VmRef(VCENTER, VM)
            admitted, new = await catalogue.admission.admit(_job(ref, place))
            assert new
            assert admitted.vm_context_id == CONTEXT, "the imported VM is the vCenter's from its next backup on"
            assert damaged.exists()
            assert rig.content(layers[2]) == disks[2]
        finally:
            await catalogue.close()
            await peer.close()


def _job(ref: VmRef, repository: Repository) -> NewJob:
    return NewJob(
        vm_name="web", ref=ref, agent_id="agent", requested_type="incremental", repository=repository, quiesce=False
    )
