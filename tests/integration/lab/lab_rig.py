"""A lab's server for a module of tests, and the real pyVmomi client logged in to it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

from sendense_lab.client import LabClient

BLOCK = 64 * 1024


def leftovers(root: Path) -> list[str]:
    """Returns mounts and loop devices below a folder."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    loops = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True)
    return mounts + [line for line in loops.stdout.splitlines() if str(root) in line]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    yield path
    assert leftovers(path) == []
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[LabClient]:
    """A running lab that keeps removed snapshots."""
    with LabClient.start(home, SENDENSE_LAB_KEEP_SNAPSHOTS="1") as client:
        yield client


class Vcenter:
    """The real client's view of a lab."""

    def __init__(self, lab: LabClient) -> None:
        account = lab.credentials()
        self.account = account
        self.si = SmartConnect(
            host=account["host"],
            port=account["port"],
            user=account["username"],
            pwd=account["password"],
            sslContext=ssl.create_default_context(cafile=account["certificate"]),
        )

    @property
    def content(self) -> Any:
        return self.si.RetrieveContent()

    @property
    def cookie(self) -> str:
        return str(self.si._stub.cookie).split(";")[0]

    def vm(self, moref: str) -> Any:
        return vim.VirtualMachine(moref, self.si._stub)

    def enable_tracking(self, vm: Any) -> None:
        WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        self.remove(self.snapshot(vm, "enable"))

    def snapshot(self, vm: Any, name: str) -> Any:
        task = vm.CreateSnapshot_Task(name=name, description="test", memory=False, quiesce=False)
        WaitForTask(task)
        return task.info.result

    def remove(self, snapshot: Any, **arguments: Any) -> None:
        WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False, **arguments))

    def close(self) -> None:
        Disconnect(self.si)


@pytest.fixture
def vcenter(lab: LabClient) -> Iterator[Vcenter]:
    client = Vcenter(lab)
    yield client
    client.close()


def disks(config: Any) -> list[Any]:
    return [device for device in config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)]


def areas_of(vm: Any, snapshot: Any, key: int, change_id: str) -> list[tuple[int, int]]:
    """Asks page after page; returns (offset, length)."""
    capacity = next(disk.capacityInBytes for disk in disks(vm.config) if disk.key == key)
    found, start = [], 0
    while start < capacity:
        answer = vm.QueryChangedDiskAreas(snapshot, key, start, change_id)
        assert answer.startOffset == start
        assert answer.length > 0
        found += [(area.start, area.length) for area in answer.changedArea]
        start += answer.length
    assert start == capacity
    return found


def differing_blocks(left: Path, right: Path) -> set[int]:
    """Returns the numbers of the 64 KiB blocks in which two files differ."""
    found = set()
    with left.open("rb") as one, right.open("rb") as two:
        number = 0
        while (first := one.read(BLOCK)) or two.peek(1):
            if first != two.read(BLOCK):
                found.add(number)
            number += 1
    return found


def blocks(areas: list[tuple[int, int]]) -> set[int]:
    return {
        number for start, length in areas for number in range(start // BLOCK, (start + length + BLOCK - 1) // BLOCK)
    }


@pytest.fixture
def exported(lab: LabClient, tmp_path: Path) -> Callable[..., Path]:
    """Exports a disk to a new file."""
    made = []

    def export(vm: str, disk: int, snapshot: str | None = None) -> Path:
        made.append(tmp_path / f"{len(made)}.raw")
        lab.export(vm, disk, made[-1], snapshot=snapshot)
        return made[-1]

    return export
