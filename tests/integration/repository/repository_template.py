"""Repositories that are made once and copied for each test, and processes that are killed halfway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from repository_rig import CLUSTER, SIZE, VM, Rig, content, noise, open_rig, tree

from sendense_blockio.extents import Extent
from sendense_repository.errors import PointNotFound
from sendense_repository.records import Holder, PlacedLayer
from sendense_repository.store import metadata

POINTS = 4
UNSEALED_JOB = "job-9"
RACING_JOB = "job-8"
DELETED = ("job-0", "job-2")
"""Points whose deletion makes two merges: into a full, and into an increment."""


@dataclass(frozen=True)
class Template:
    """A repository with its catalogue, and what its points must read as, by job."""

    home: Path
    disks: dict[str, bytes]
    names: dict[str, str]

    def copy(self, home: Path, root: Path | None = None) -> Path:
        """Makes a copy with its root where a fresh rig looks for it (or mounts it); returns the root."""
        root = root if root is not None else home / "backups"
        shutil.copytree(self.home / "backups", root, dirs_exist_ok=True)
        for name in self.home.glob("db.sqlite*"):
            shutil.copy(name, home / name.name)
        with closing(sqlite3.connect(home / "db.sqlite")) as database, database:
            database.execute("UPDATE backup_repositories SET config = ?", (json.dumps({"path": str(root)}),))
        return root

    def image(self, root: Path, job: str) -> Path:
        return root / self.names[job]


async def make_template(home: Path, *, unsealed: bool) -> Template:
    """Makes a chain; with `unsealed` two points and a written layer on them, else four points."""
    async with open_rig(home) as rig:
        layers, disks = await rig.chain_of(2 if unsealed else POINTS)
        names = {placed.layer.backup_id: placed.layer.relative_path for placed in layers}
        known = {f"job-{number}": disk for number, disk in enumerate(disks)}
        if unsealed:
            disk = bytes(CLUSTER) + disks[-1][CLUSTER : SIZE - 512] + b"\1" * 512
            areas = [Extent(0, CLUSTER), Extent(SIZE - 512, 512)]
            placed = await rig.written(UNSEALED_JOB, disk, areas, parent=layers[-1].layer.layer_id)
            known[UNSEALED_JOB], names[UNSEALED_JOB] = disk, placed.layer.relative_path
    return Template(home, known, names)


async def seal(rig: Rig, attempt: int) -> PlacedLayer:
    local = await rig.parts.registry.get("local")
    (layer,) = await rig.parts.catalogue.layers.of_job(local.repository_id, UNSEALED_JOB)
    return await rig.parts.sealer.seal(Holder(UNSEALED_JOB, attempt), layer.layer_id, "changed areas")


async def delete(rig: Rig, attempt: int) -> None:
    await rig.parts.deleter.delete(Holder("delete-1", attempt), ["job-2"], cascade=True)


async def consolidate(rig: Rig, attempt: int) -> None:
    await rig.parts.deleter.delete(Holder("delete-1", attempt), DELETED, cascade=False)


def next_disk(template_disk: bytes) -> bytes:
    """What the backup that races reads as."""
    return noise(CLUSTER, 99) + template_disk[CLUSTER:]


async def race(rig: Rig, attempt: int) -> None:
    """A deletion that merges, a backup on the same chain and a reader that comes and goes, all at once."""

    async def back_up() -> None:
        latest = await rig.parts.points.latest("local", VM)
        if latest.point.backup_id == RACING_JOB:
            return
        (below,) = latest.layers
        disk = next_disk(await asyncio.to_thread(content, below.files(rig.root).sealed, rig.scratch))
        placed = await rig.layer(RACING_JOB, parent=below.layer_id, attempt=attempt)
        if placed.layer.state != "sealed":  # a run before this one may have come so far
            areas = [Extent(0, CLUSTER)]
            await rig.written(RACING_JOB, disk, areas, parent=below.layer_id, attempt=attempt)
        sealed = await rig.parts.sealer.seal(Holder(RACING_JOB, attempt), placed.layer.layer_id, "changed areas")
        await rig.commit(RACING_JOB, sealed, attempt=attempt)

    async def mount() -> None:
        await rig.parts.points.lease("job-3", "mount-7", 600)
        await asyncio.to_thread(
            content, (await rig.parts.points.get("job-3")).layers[0].files(rig.root).sealed, rig.scratch
        )
        await rig.parts.points.release("job-3", "mount-7")

    deleting = rig.parts.deleter.delete(Holder("delete-1", attempt), DELETED, cascade=False, wait_seconds=120)
    await asyncio.gather(deleting, back_up(), mount())


ACTIONS: dict[str, Callable[[Rig, int], Awaitable[Any]]] = {
    "seal": seal,
    "delete": delete,
    "consolidate": consolidate,
    "race": race,
}


class Killer:
    """Lets processes die in the middle of an action.

    They are forked from one that has imported everything: what an interpreter's start takes is paid once.
    """

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._forker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def kill(self, home: Path, action: str, step: str, occurrence: int = 1) -> None:
        """Does an action in a process that kills itself right after a step, at its n-th time."""
        asking, answering = self._forker.stdin, self._forker.stdout
        assert asking is not None
        assert answering is not None
        asking.write(json.dumps([str(home), action, step, occurrence]).encode() + b"\n")
        asking.flush()
        assert json.loads(answering.readline()) == -signal.SIGKILL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._forker.pid, signal.SIGKILL)
        self._forker.communicate()


def leftovers(root: Path) -> list[str]:
    return [
        name for name in tree(root) if name.endswith((".partial", ".areas")) or ".new-" in name or ".merged" in name
    ]


def require_points(template: Template, rig: Rig, jobs: list[str]) -> None:
    """Every one of these points reads as it did when it was made, with qemu alone."""
    for job in jobs:
        assert content(template.image(rig.root, job), rig.scratch) == template.disks[job], job


async def committed(rig: Rig, jobs: list[str]) -> list[str]:
    found = []
    for job in jobs:
        try:
            await rig.parts.points.get(job)
        except PointNotFound:
            continue
        found.append(job)
    return found


async def _die(home: Path, action: str, step: str, occurrence: int) -> None:
    seen = 0

    def observe(now: str) -> None:
        nonlocal seen
        seen += now == step
        if seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    rig = Rig(home)
    async with rig.database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    rig.at_step = observe
    await rig.start()
    await ACTIONS[action](rig, 1)


def _fork_for_each_line() -> None:
    for line in sys.stdin:
        home, action, step, occurrence = json.loads(line)
        child = os.fork()
        if not child:
            os.dup2(2, 1)  # the log; the answers' pipe is the forker's
            try:
                asyncio.run(_die(Path(home), action, step, occurrence))
            except BaseException:  # noqa: BLE001 - a child must never return into the loop of its parent
                traceback.print_exc()
            finally:
                os._exit(1)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _fork_for_each_line()
