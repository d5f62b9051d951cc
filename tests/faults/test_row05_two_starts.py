"""Row 5: a second start for a VM is refused and names the first; foreign snapshots stay, whatever they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rehearsal import REPOSITORY, rehearsal
from sendense_backup.errors import BackupRunning
from sendense_backup.store.admission import NewJob
from sendense_lab.client import LabClient

pytestmark = pytest.mark.timeout(120)


async def test_the_second_start_names_the_first_and_foreign_snapshots_stay(sendense_home: Path) -> None:
    with LabClient.start(sendense_home) as lab:
        lab.create_vm("web", ["1M:blank"])
        async with rehearsal(sendense_home, lab) as node:
            ref = await node.ref("web")
            new = NewJob("web", ref, "lab", "full", REPOSITORY, quiesce=False)
            job, _ = await node.catalogue.admission.admit(new)
            with pytest.raises(BackupRunning) as refused:
                await node.catalogue.admission.admit(new)
            assert job.backup_id in refused.value.message
            await node.catalogue.running.end(job.backup_id, 0, "failed")

            first = await node.back_up("web", ref)
            ours_by_name = f"sendense-{first.backup_id}"
            lab.create_snapshot("web", ours_by_name)
            lab.create_snapshot("web", ours_by_name, description="{}")
            foreign = {"installation": "somebody else's", "job": first.backup_id, "attempt": 1}
            lab.create_snapshot("web", ours_by_name, description=json.dumps(foreign))
            before = [each["moref"] for each in lab.snapshots("web") if not each["kept"]]
            for _ in range(2):
                assert (await node.back_up("web", ref)).status == "completed"
            assert [each["moref"] for each in lab.snapshots("web") if not each["kept"]] == before
            removed = await node.agent.remove_snapshot(ref, node.holder(first.backup_id, 9), "")
            assert removed == []
