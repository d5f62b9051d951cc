"""`sendense-lab vm …`: the inventory and the VMs' hardware."""

from __future__ import annotations

import typer
from rich.table import Table

from sendense_lab.disknames import DISK_HELP
from sendense_lab.printing import DISK, JSON, Shown, client, show, size, table

DISKS = typer.Option([], help=f"{DISK_HELP} Repeat for more disks.")
ATTRIBUTES = typer.Option([], help="Custom attribute as NAME=VALUE; NAME= takes it away. Repeat for more.")
app = typer.Typer(no_args_is_help=True, help="Virtual machines.")


@app.command("list")
def vm_list(json_: bool = JSON) -> None:
    """Lists all VMs."""

    def human(shown: Shown) -> Table:
        return table(
            ["id", "name", "folder", "power", "CBT", "snapshots", "disks"],
            [
                [
                    vm["moref"],
                    vm["name"],
                    vm["folder"],
                    vm["power_state"],
                    "on" if vm["change_tracking"] else "off",
                    vm["snapshots"],
                    ", ".join(f"{d['slot']} {size(d['capacity_bytes'])} {d['filesystem']}" for d in vm["disks"]),
                ]
                for vm in shown["vms"]
            ],
        )

    show(lambda: {"vms": client().vms()}, human, json_)


@app.command("create")
def vm_create(
    name: str,
    disk: list[str] = DISKS,
    no_disk: bool = typer.Option(False, "--no-disk", help="Make a VM without any disk."),
    seed: int = typer.Option(1, help="Seed of all content."),
    small_files: int = typer.Option(3000, help="Files of 1 to 64 KiB, over all disks."),
    folder: str = typer.Option("", help="Folder; the same name may be in several."),
    bios_uuid: str = typer.Option("", help="BIOS uuid; several VMs may have the same."),
    hardware_version: int = typer.Option(19, help="Below 7 there is no change tracking."),
    json_: bool = JSON,
) -> None:
    """Creates a powered-on VM whose disks hold real file systems."""
    show(
        lambda: client().create_vm(
            name,
            disk,
            seed=seed,
            small_files=small_files,
            folder=folder,
            diskless=no_disk,
            bios_uuid=bios_uuid or None,
            hardware_version=hardware_version,
        ),
        lambda vm: f"{vm['moref']} {vm['name']}: {len(vm['disks'])} disks",
        json_,
    )


@app.command("delete")
def vm_delete(name: str, json_: bool = JSON) -> None:
    """Deletes a VM with its disks, snapshots and kept contents."""
    show(lambda: client().delete_vm(name), lambda vm: f"{vm['moref']} {vm['name']} deleted", json_)


@app.command("snapshots")
def vm_snapshots(name: str, json_: bool = JSON) -> None:
    """Lists a VM's snapshots, the open ones and those removed but kept."""

    def human(shown: Shown) -> Table:
        return table(
            ["id", "name", "description", "created", "state", "change ids"],
            [
                [
                    snapshot["moref"],
                    snapshot["name"],
                    snapshot["description"],
                    snapshot["created"][:19],
                    "kept" if snapshot["kept"] else "open",
                    "\n".join(f"{disk['disk']}: {disk['change_id'] or '-'}" for disk in snapshot["disks"]),
                ]
                for snapshot in shown["snapshots"]
            ],
        )

    show(lambda: {"snapshots": client().snapshots(name)}, human, json_)


@app.command("set")
def vm_set(
    name: str,
    rename: str = typer.Option("", help="Another name."),
    hardware_version: int | None = typer.Option(None, help="Below 7 there is no change tracking."),
    change_tracking: bool | None = typer.Option(None, help="changeTrackingEnabled; true from the next stun on."),
    tracking_supported: bool | None = typer.Option(None, help="The capability changeTrackingSupported."),
    template: bool | None = typer.Option(None, help="Make it a template (and switch it off), or a VM again."),
    tools: str | None = typer.Option(None, help="running, notRunning or notInstalled."),
    connection: str | None = typer.Option(None, help="connected, disconnected, inaccessible or orphaned."),
    encrypted: bool | None = typer.Option(None, help="Its files in the datastore are ciphertext then."),
    bios_uuid: str | None = typer.Option(None, help="Several VMs may have the same."),
    host: str | None = typer.Option(None, help="The host on which it is; a new one is made."),
    attribute: list[str] = ATTRIBUTES,
    json_: bool = JSON,
) -> None:
    """Changes what is given of a VM."""
    show(
        lambda: client().command(
            "vm/set",
            vm=name,
            name=rename,
            hardware_version=hardware_version,
            change_tracking=change_tracking,
            tracking_supported=tracking_supported,
            template=template,
            tools=tools,
            connection=connection,
            encrypted=encrypted,
            uuid=bios_uuid,
            host=host,
            attributes={name: value for name, _, value in (each.partition("=") for each in attribute)},
        ),
        lambda vm: f"{vm['moref']} {vm['name']} changed",
        json_,
    )


@app.command("power")
def vm_power(name: str, state: str = typer.Argument(..., help="on or off"), json_: bool = JSON) -> None:
    """Switches a VM on or off."""
    if state not in ("on", "off"):
        raise typer.BadParameter("Say on or off.")
    show(
        lambda: client().power_on(name) if state == "on" else client().power_off(name),
        lambda vm: f"{vm['moref']} {vm['name']} is {vm['power_state']}",
        json_,
    )


@app.command("register-again")
def vm_register_again(name: str, json_: bool = JSON) -> None:
    """Takes a VM out of the inventory and in again: other managed object ids, the same VM."""
    show(
        lambda: client().register_again(name),
        lambda vm: f"{vm['former_moref']} is {vm['moref']} now",
        json_,
    )


def _disk_line(disk: Shown) -> str:
    return f"{disk['label']}: {disk['slot']} (key {disk['key']}), {size(disk['capacity_bytes'])}, {disk['uuid']}"


@app.command("add-disk")
def vm_add_disk(
    name: str,
    disk: str = typer.Argument(..., help=DISK_HELP),
    small_files: int = typer.Option(0, help="Files of 1 to 64 KiB on it."),
    json_: bool = JSON,
) -> None:
    """Adds a disk."""
    show(lambda: client().add_disk(name, disk, small_files=small_files), _disk_line, json_)


@app.command("remove-disk")
def vm_remove_disk(name: str, disk: str = DISK, json_: bool = JSON) -> None:
    """Removes a disk and its files, but for those that snapshots need."""
    show(lambda: client().remove_disk(name, disk), lambda shown: f"{shown['label']} removed", json_)


@app.command("recreate-disk")
def vm_recreate_disk(
    name: str, disk: str = DISK, size_: str = typer.Option("", "--size", help="As 64M."), json_: bool = JSON
) -> None:
    """Puts a blank disk with another uuid into the slot of a disk, which is destroyed."""
    show(lambda: client().recreate_disk(name, disk, size=size_ or None), _disk_line, json_)


@app.command("move-disk")
def vm_move_disk(
    name: str,
    disk: str = DISK,
    to: str = typer.Option("", help="Slot, as 1:3; whoever is there takes the disk's place."),
    position: int | None = typer.Option(None, help="Place in the VM's list of disks, from 0."),
    json_: bool = JSON,
) -> None:
    """Moves a disk to another slot, which changes its device key, or to another place in the list."""
    show(lambda: client().move_disk(name, disk, to=to or None, position=position), _disk_line, json_)


@app.command("share-bus")
def vm_share_bus(
    name: str,
    bus: int = typer.Option(0, help="Number of the SCSI controller."),
    sharing: str = typer.Argument(..., help="none, virtual or physical"),
    json_: bool = JSON,
) -> None:
    """Shares the bus of a SCSI controller with other VMs: no snapshots, no change tracking."""
    if sharing not in ("none", "virtual", "physical"):
        raise typer.BadParameter("Say none, virtual or physical.")
    show(
        lambda: client().command("vm/share-bus", vm=name, bus=bus, sharing=sharing),
        lambda vm: ", ".join(f"controller {c['bus']}: {c['sharing']}" for c in vm["controllers"]),
        json_,
    )


@app.command("consolidate")
def vm_consolidate(name: str, json_: bool = JSON) -> None:
    """Merges files that no snapshot needs."""
    show(
        lambda: client().consolidate(name),
        lambda vm: f"consolidation {'still' if vm['consolidation_needed'] else 'not'} needed",
        json_,
    )


@app.command("events")
def vm_events(name: str, json_: bool = JSON) -> None:
    """Lists what vCenter's event log says of a VM under its present id."""
    show(
        lambda: {"events": client().events(name)},
        lambda shown: table(
            ["key", "when", "kind", "message"],
            [[e["key"], e["created"][:19], e["kind"], e["message"]] for e in shown["events"]],
        ),
        json_,
    )
