"""Driving a lab from Python: the commands as methods, and a server of one's own for a test.

with LabClient.start(home) as lab:
    lab.create_vm("web", ["64M:ext4", "16M:blank@1:0"])
    lab.guest_run("web", share=0.05)
    with lab.fault("cbt-error", vm="web", error="FileFault"):
        ...
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sendense_lab.disknames import DiskName
from sendense_lab.labserver import LabServer


class LabClient(LabServer):
    """Talks to the lab's server of one home; every method is blocking and returns the command's JSON.

    A VM is given by name or managed object id, a disk by index, device key or uuid, a snapshot by name or managed
    object id. Errors of the server are raised as LabError with its reason, message and help.
    """

    @property
    def credentials_path(self) -> Path:
        """`lab/credentials.json`."""
        return self.root / "credentials.json"

    def credentials(self) -> dict[str, Any]:
        """Returns host, port, username, password, certificate (path), sha256, sha1 of the simulated vCenter."""
        found: dict[str, Any] = json.loads(self.credentials_path.read_text())
        return found

    def info(self) -> dict[str, Any]:
        """Returns address, sizes and settings of the lab."""
        return self.command("info")

    # -- virtual machines ----------------------------------------------------------------------------------

    def vms(self) -> list[dict[str, Any]]:
        """Returns all VMs."""
        found: list[dict[str, Any]] = self.command("vm/list")["vms"]
        return found

    def vm(self, vm: str) -> dict[str, Any]:
        """Returns one VM."""
        return self.command("vm/show", vm=vm)

    def create_vm(
        self,
        name: str,
        disks: list[str],
        *,
        seed: int = 1,
        small_files: int = 3000,
        folder: str = "",
        diskless: bool = False,
        bios_uuid: str | None = None,
        hardware_version: int = 19,
    ) -> dict[str, Any]:
        """Creates a running VM.

        Args:
            name: Its name.
            disks: As "2G:ext4", "1G:xfs", "64M:blank@1:0" or "16M:blank,independent" (see `disknames.DISK_HELP`).
            seed: Of all content.
            small_files: Files of 1 to 64 KiB over all disks.
            folder: Folder of the inventory; the same name may be in several.
            diskless: Say that no disk is wanted.
            bios_uuid: That of another VM, for instance.
            hardware_version: 4 for one that knows no change tracking.
        """
        return self.command(
            "vm/create",
            name=name,
            disks=disks,
            seed=seed,
            small_files=small_files,
            folder=folder,
            diskless=diskless,
            bios_uuid=bios_uuid,
            hardware_version=hardware_version,
        )

    def delete_vm(self, vm: str) -> dict[str, Any]:
        """Deletes a VM."""
        return self.command("vm/delete", vm=vm)

    def set_vm(
        self,
        vm: str,
        *,
        name: str | None = None,
        hardware_version: int | None = None,
        change_tracking: bool | None = None,
        tracking_supported: bool | None = None,
        template: bool | None = None,
        tools: Literal["running", "notRunning", "notInstalled"] | None = None,
        connection: Literal["connected", "disconnected", "inaccessible", "orphaned"] | None = None,
        encrypted: bool | None = None,
        uuid: str | None = None,
        host: str | None = None,
        attributes: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Changes what is given of a VM; a template is powered off. `uuid` is the BIOS uuid, a new host is made.

        `attributes` are custom attributes, name to value; an empty value takes one away.
        """
        return self.command(
            "vm/set",
            vm=vm,
            name=name,
            hardware_version=hardware_version,
            change_tracking=change_tracking,
            tracking_supported=tracking_supported,
            template=template,
            tools=tools,
            connection=connection,
            encrypted=encrypted,
            uuid=uuid,
            host=host,
            attributes=attributes,
        )

    def power_on(self, vm: str) -> dict[str, Any]:
        """Switches a VM on."""
        return self.command("vm/power", vm=vm, on=True)

    def power_off(self, vm: str) -> dict[str, Any]:
        """Switches a VM off: its guest can do nothing then."""
        return self.command("vm/power", vm=vm, on=False)

    def register_again(self, vm: str) -> dict[str, Any]:
        """Gives a VM and its snapshots new managed object ids; returns the VM, with `former_moref`."""
        return self.command("vm/register-again", vm=vm)

    def add_disk(self, vm: str, disk: str, *, small_files: int = 0) -> dict[str, Any]:
        """Adds a disk ("16M:blank@1"); returns it."""
        return self.command("vm/add-disk", vm=vm, disk=disk, small_files=small_files)

    def remove_disk(self, vm: str, disk: DiskName) -> dict[str, Any]:
        """Removes a disk with its files, but for those that snapshots need."""
        return self.command("vm/remove-disk", vm=vm, disk=disk)

    def recreate_disk(self, vm: str, disk: DiskName, *, size: str | None = None) -> dict[str, Any]:
        """Puts a blank disk with another uuid into a disk's slot; returns it."""
        return self.command("vm/recreate-disk", vm=vm, disk=disk, size=size)

    def move_disk(
        self, vm: str, disk: DiskName, *, to: str | None = None, position: int | None = None
    ) -> dict[str, Any]:
        """Moves a disk to a slot ("1:3"; whoever is there takes its place) or a place in the list; returns it."""
        return self.command("vm/move-disk", vm=vm, disk=disk, to=to, position=position)

    def share_bus(self, vm: str, bus: int, sharing: Literal["none", "virtual", "physical"]) -> dict[str, Any]:
        """Shares the bus of a SCSI controller with other VMs, or not."""
        return self.command("vm/share-bus", vm=vm, bus=bus, sharing=sharing)

    def events(self, vm: str) -> list[dict[str, Any]]:
        """Returns vCenter's events of a VM, oldest first: key, created, kind, message."""
        found: list[dict[str, Any]] = self.command("vm/events", vm=vm)["events"]
        return found

    # -- snapshots -----------------------------------------------------------------------------------------

    def snapshots(self, vm: str) -> list[dict[str, Any]]:
        """Returns open and kept snapshots: moref, name, description, kept, disks with their change ids."""
        found: list[dict[str, Any]] = self.command("vm/snapshots", vm=vm)["snapshots"]
        return found

    def create_snapshot(self, vm: str, name: str, *, description: str = "", quiesce: bool = False) -> dict[str, Any]:
        """Makes a snapshot as a user would, outside of the API; returns it."""
        return self.command("vm/snapshot-create", vm=vm, name=name, description=description, quiesce=quiesce)

    def remove_snapshot(self, vm: str, snapshot: str | None = None, *, children: bool = False) -> dict[str, Any]:
        """Removes a snapshot (None: all) and merges its files."""
        return self.command("vm/snapshot-remove", vm=vm, snapshot=snapshot, children=children)

    def revert_snapshot(self, vm: str, snapshot: str, *, power_on: bool = False) -> dict[str, Any]:
        """Takes a VM back to a snapshot; without `power_on` it is off then, as vSphere does."""
        return self.command("vm/snapshot-revert", vm=vm, snapshot=snapshot, power_on=power_on)

    def consolidate(self, vm: str) -> dict[str, Any]:
        """Merges files that no snapshot needs; returns the VM."""
        return self.command("vm/consolidate", vm=vm)

    # -- guest and disks -----------------------------------------------------------------------------------

    def guest_write(
        self,
        vm: str,
        disk: DiskName,
        offset: int,
        *,
        file: Path | None = None,
        seed: int = 0,
        length: int = 0,
        zero: bool = False,
    ) -> dict[str, Any]:
        """Writes a byte range of a disk from a file, or `length` bytes of a seed's stream or zeros."""
        path = str(file.resolve()) if file else None
        return self.command(
            "guest/write", vm=vm, disk=disk, offset=offset, file=path, seed=seed, length=length, zero=zero
        )

    def guest_put(self, vm: str, local: Path, path: str) -> dict[str, Any]:
        """Puts a local file into the guest."""
        return self.command("guest/put", vm=vm, local=str(local.resolve()), path=path)

    def guest_rm(self, vm: str, path: str) -> dict[str, Any]:
        """Removes a file or directory of the guest."""
        return self.command("guest/rm", vm=vm, path=path)

    def guest_cat(self, vm: str, path: str, output: Path) -> dict[str, Any]:
        """Copies a file of the guest to a local one."""
        return self.command("guest/cat", vm=vm, path=path, output=str(output.resolve()))

    def guest_run(self, vm: str, *, share: float, seed: int = 0) -> dict[str, Any]:
        """Changes files at random: about `share` of the guest's file bytes."""
        return self.command("guest/run", vm=vm, share=share, seed=seed)

    def start_writing(self, vm: str, *, seed: int = 0, length: int = 1 << 20, pause_ms: float = 5) -> dict[str, Any]:
        """Lets the guest write at random on its blank disks until `stop_writing`; at most `length` bytes at a time."""
        return self.command("guest/start-writing", vm=vm, seed=seed, length=length, pause_ms=pause_ms)

    def stop_writing(self, vm: str) -> dict[str, Any]:
        """Lets the guest rest again; returns how many `writes` it did."""
        return self.command("guest/stop-writing", vm=vm)

    @contextlib.contextmanager
    def writing(self, vm: str, **options: Any) -> Iterator[None]:
        """Keeps the guest writing for the time of the block; options as of `start_writing`."""
        self.start_writing(vm, **options)
        try:
            yield
        finally:
            self.stop_writing(vm)

    def changed(self, vm: str, disk: DiskName, since: str, *, snapshot: str | None = None) -> dict[str, Any]:
        """Returns `areas` (offset, length) and `bytes` changed since a change id, up to a snapshot or now.

        It tells the truth, whatever faults are set.
        """
        return self.command("disk/changed", vm=vm, disk=disk, since=since, snapshot=snapshot)

    def export(self, vm: str, disk: DiskName, output: Path, *, snapshot: str | None = None) -> dict[str, Any]:
        """Writes a disk's raw content, now or of a snapshot (open or kept), to a sparse file."""
        return self.command("disk/export", vm=vm, disk=disk, output=str(output.resolve()), snapshot=snapshot)

    def resize_disk(
        self, vm: str, disk: DiskName, size: str, *, tracking: Literal["keep", "reset"] = "keep"
    ) -> dict[str, Any]:
        """Grows a disk to a size ("128M"); returns it."""
        return self.command("disk/resize", vm=vm, disk=disk, size=size, tracking=tracking)

    def reset_tracking(self, vm: str, disk: DiskName | None = None) -> dict[str, Any]:
        """Begins the change tracking of a disk (None: of all) anew, under another uuid."""
        return self.command("disk/reset-tracking", vm=vm, disk=disk)

    # -- faults --------------------------------------------------------------------------------------------

    def fault_kinds(self) -> list[dict[str, Any]]:
        """Returns all kinds of faults: kind, about, times, parameters with their defaults."""
        found: list[dict[str, Any]] = self.command("fault/kinds")["kinds"]
        return found

    def set_fault(self, kind: str, **parameters: object) -> dict[str, Any]:
        """Puts a fault in force, as `set_fault("api-error", method="QueryChangedDiskAreas", error="FileFault")`.

        Args:
            kind: As `fault_kinds` lists them.
            parameters: Those of the kind, and `vm`, `disk` (of that VM), `after` (occasions that pass first),
                `times` (occasions spoiled then; None for all).

        Returns:
            The fault with its `id`.
        """
        return self.command("fault/set", kind=kind, **parameters)

    def clear_faults(self, which: int | str | None = None) -> list[dict[str, Any]]:
        """Takes back a fault by its id, those of a kind, or all; returns them with how often they happened."""
        found: list[dict[str, Any]] = self.command("fault/clear", which=which)["cleared"]
        return found

    def faults(self) -> list[dict[str, Any]]:
        """Returns all faults that are set: id, kind, seen, spoiled, spent, last."""
        found: list[dict[str, Any]] = self.command("fault/list")["faults"]
        return found

    @contextlib.contextmanager
    def fault(self, kind: str, **parameters: object) -> Iterator[dict[str, Any]]:
        """Puts a fault in force for the time of the block."""
        made = self.set_fault(kind, **parameters)
        try:
            yield made
        finally:
            self.clear_faults(made["id"])

    def set_page_areas(self, areas: int | None) -> dict[str, Any]:
        """Sets how many areas one answer of QueryChangedDiskAreas holds; None takes the setting again."""
        return self.command("fault/page-areas", areas=areas)

    def lose_sessions(self) -> dict[str, Any]:
        """Ends all sessions of the simulated vCenter."""
        return self.command("fault/lose-sessions")

    def change_certificate(self) -> dict[str, Any]:
        """Lets the vCenter show another certificate to new connections; returns its fingerprints."""
        return self.command("fault/change-certificate")

    def forget_events(self) -> dict[str, Any]:
        """Empties vCenter's event log."""
        return self.command("fault/forget-events")

    def calls(self, *, reset: bool = False) -> list[dict[str, str]]:
        """Returns the latest API calls, oldest first: method, object; `reset` forgets them then."""
        found: list[dict[str, str]] = self.command("fault/calls", reset=reset)["calls"]
        return found
