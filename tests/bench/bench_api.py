"""200 REST clients for a minute on list, get and watch while two backups run: times, errors, memory."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figures import Row, run_script

from rest_load import Load, load, percentile
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api

CLIENTS = int(os.environ.get("SENDENSE_LOAD_CLIENTS", "200"))
VMS = ("load-1", "load-2")
SECONDS = float(os.environ.get("SENDENSE_LOAD_SECONDS", "60"))


def rows() -> list[Row]:
    """Runs the load on a node of its own."""
    home = Path(tempfile.mkdtemp(prefix="ba-", dir="/var/tmp"))
    try:
        with RunningNode(home) as node:
            return _measured(node)
    finally:
        shutil.rmtree(home)


def _measured(node: RunningNode) -> list[Row]:
    api, lab = Api(node), LabClient(node.home)
    for name in VMS:
        lab.create_vm(name, ["1G:ext4"], small_files=200)
    done = api.back_up(VMS[0], "full")["backup_id"]
    running = [_start(api, name) for name in VMS]
    came, backups = asyncio.run(_loaded(node, lab, [done, *running]))
    api.client.close()
    for error in came.errors[:10]:
        print(error, file=sys.stderr)  # noqa: T201  # the row has their number only
    name = f"{CLIENTS} REST clients, {SECONDS:.0f} s, two backups"
    found = [
        row
        for kind, taken in sorted(came.seconds.items())
        for row in (
            Row.of(f"{name}: {kind}, median", [percentile(taken, 0.5) * 1000], unit="ms"),
            Row.of(f"{name}: {kind}, 99th percentile", [percentile(taken, 0.99) * 1000], unit="ms"),
        )
    ]
    requests = sum(map(len, came.seconds.values()))
    quarter = max(1, len(came.resident) // 4)
    growth = sum(came.resident[-quarter:]) / sum(came.resident[quarter : 2 * quarter] or came.resident[:quarter])
    return [
        *found,
        Row.of(f"{name}: requests", [requests / SECONDS], unit="1/s"),
        Row.of(f"{name}: errors", [len(came.errors)], unit="errors"),
        Row.of(f"{name}: backups completed meanwhile", [backups], unit="backups"),
        Row.of(f"{name}: memory of the node, last quarter against second", [growth], unit="×"),
    ]


def _start(api: Api, vm: str) -> str:
    answer = api.post("/backup/start", {"vm_name": vm, "backup_type": "full"})
    return str(answer.raise_for_status().json()["backup_id"])


async def _loaded(node: RunningNode, lab: LabClient, backup_ids: list[str]) -> tuple[Load, int]:
    """Puts the load on while a backup of each VM runs all the time: one that has ended is followed by the next."""
    over = asyncio.Event()

    async def keep_running(number: int) -> int:
        api = Api(node)
        try:
            for completed in itertools.count(1):
                ended = await asyncio.to_thread(api.finished, backup_ids[number], 200)
                if ended["status"] != "completed":
                    raise RuntimeError(f"a backup under load ended as {ended}")
                if over.is_set():
                    return completed
                await asyncio.to_thread(lab.guest_write, VMS[number - 1], 0, 512 << 20, seed=completed, length=64 << 20)
                backup_ids[number] = await asyncio.to_thread(_start, api, VMS[number - 1])
        finally:
            api.client.close()
        raise AssertionError("counting ended")

    keeping = [asyncio.create_task(keep_running(number)) for number in range(1, len(backup_ids))]
    came = await load(node.home, backup_ids, CLIENTS, SECONDS)
    over.set()
    return came, sum(await asyncio.gather(*keeping))


if __name__ == "__main__":
    run_script(__doc__, rows)
