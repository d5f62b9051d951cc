"""The lab's own commands: JSON over a Unix socket that only the owner may open.

The server is the one owner of the lab's state; the command line and the tests talk to it here. File arguments
are absolute paths on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from sendense_lab import areas, creation, guest, tracking
from sendense_lab.areas import Area
from sendense_lab.credentials import Credentials
from sendense_lab.errors import AmbiguousNameError, LabError, NotFoundError
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.sessions import Sessions

log = structlog.get_logger(__name__)

Arguments = dict[str, Any]
STATUS = {"NOT_FOUND": 404, "AMBIGUOUS_NAME": 409, "INVALID_ARGUMENT": 400, "INVALID_CHANGE_ID": 400}


class Control:
    """Each public method is a command: `POST /<name>` with its arguments as a JSON object."""

    def __init__(self, lab: Lab, sessions: Sessions, credentials: Credentials) -> None:
        self._lab = lab
        self._sessions = sessions
        self._credentials = credentials
        self._commands: dict[str, Callable[[Arguments], Any]] = {
            "info": self.info,
            "vm/list": self.vm_list,
            "vm/create": self.vm_create,
            "vm/delete": self.vm_delete,
            "vm/snapshots": self.vm_snapshots,
            "guest/write": self.guest_write,
            "guest/put": self.guest_put,
            "guest/rm": self.guest_rm,
            "guest/cat": self.guest_cat,
            "guest/run": self.guest_run,
            "disk/changed": self.disk_changed,
            "disk/export": self.disk_export,
            "fault/page-areas": self.fault_page_areas,
            "fault/lose-sessions": self.fault_lose_sessions,
        }

    def application(self) -> web.Application:
        """Returns the aiohttp application."""
        application = web.Application(client_max_size=1024 * 1024)
        application.router.add_post("/{command:.+}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.Response:
        command = self._commands.get(request.match_info["command"])
        if command is None:
            return _error(404, LabError(f"No command {request.path}", reason="NOT_FOUND"))
        try:
            arguments = await request.json()
            return web.json_response(await _in_thread(command, arguments))
        except LabError as err:
            return _error(STATUS.get(err.reason, 500), err)
        except OSError as err:  # a full guest, an output that cannot be written
            return _error(500, LabError(f"{err.strerror}: {err.filename}", reason="IO_ERROR"))
        except (KeyError, TypeError, ValueError) as err:
            log.warning("bad arguments", command=request.path, error=repr(err))
            return _error(400, LabError(f"Bad arguments: {err!r}", reason="INVALID_ARGUMENT"))

    def info(self, _: Arguments) -> Any:
        """Where the simulated vCenter is and what it holds; never the password."""
        capacity, free = self._lab.free_bytes()
        return {
            "url": f"https://{self._credentials.host}:{self._credentials.port}/sdk",
            "username": self._credentials.username,
            "credentials": str(self._lab.store.root / "credentials.json"),
            "certificate": self._credentials.certificate,
            "instance_uuid": self._lab.record.instance_uuid,
            "vms": len(self._lab.machines),
            "sessions": self._sessions.count(),
            "page_areas": self._lab.page_areas,
            "keep_snapshots": self._lab.settings.keep_snapshots,
            "datastore_bytes": capacity,
            "datastore_free_bytes": free,
        }

    def vm_list(self, _: Arguments) -> Any:
        """All VMs."""
        return {"vms": [vm_json(machine) for machine in list(self._lab.machines.values())]}

    def vm_create(self, arguments: Arguments) -> Any:
        """Creates a VM."""
        machine = self._lab.create_vm(
            arguments["name"],
            [creation.parse_disk(text) for text in arguments["disks"]],
            seed=int(arguments.get("seed", 1)),
            small_files=int(arguments.get("small_files", 3000)),
            folder=arguments.get("folder") or "",
        )
        return vm_json(machine)

    def vm_delete(self, arguments: Arguments) -> Any:
        """Deletes a VM."""
        record = self._lab.delete_vm(arguments["vm"])
        return {"moref": record.moref, "name": record.name}

    def vm_snapshots(self, arguments: Arguments) -> Any:
        """Open and kept snapshots of a VM, oldest first."""
        record = self._lab.find(arguments["vm"]).record
        kept: list[Arguments] = [
            {
                "moref": snapshot.moref,
                "name": snapshot.name,
                "description": snapshot.description,
                "created": snapshot.created.isoformat(),
                "removed": snapshot.removed.isoformat(),
                "kept": True,
                "disks": [
                    {"disk": _index(record.disks, key), "key": key, "change_id": disk.change_id}
                    for key, disk in sorted(snapshot.disks.items())
                ],
            }
            for snapshot in record.kept
        ]
        live: list[Arguments] = [
            {
                "moref": snapshot.moref,
                "name": snapshot.name,
                "description": snapshot.description,
                "created": snapshot.created.isoformat(),
                "removed": None,
                "kept": False,
                "disks": [
                    {"disk": _index(record.disks, key), "key": key, "change_id": disk.change_id}
                    for key, disk in sorted(snapshot.disks.items())
                ],
            }
            for snapshot in record.snapshots
        ]
        everything = sorted([*kept, *live], key=lambda snapshot: int(str(snapshot["moref"]).partition("-")[2]))
        return {"vm": record.moref, "snapshots": everything}

    def guest_write(self, arguments: Arguments) -> Any:
        """Writes a byte range of a disk."""
        machine = self._lab.find(arguments["vm"])
        source = Path(arguments["file"]) if arguments.get("file") else None
        if source is not None and not source.is_file():
            raise NotFoundError(f"There is no file {source}")
        written = guest.write_bytes(
            machine,
            int(arguments["disk"]),
            int(arguments["offset"]),
            source,
            int(arguments.get("seed") or 0),
            int(arguments.get("length") or 0),
        )
        return {"vm": machine.record.moref, "disk": int(arguments["disk"]), "bytes": written}

    def guest_put(self, arguments: Arguments) -> Any:
        """Puts a file into the guest."""
        machine, local = self._lab.find(arguments["vm"]), Path(arguments["local"])
        if not local.is_file():
            raise NotFoundError(f"There is no file {local}")
        return {"path": arguments["path"], "bytes": guest.put(machine, local, arguments["path"])}

    def guest_rm(self, arguments: Arguments) -> Any:
        """Removes a file or directory of the guest."""
        count = guest.remove(self._lab.find(arguments["vm"]), arguments["path"])
        return {"path": arguments["path"], "files": count}

    def guest_cat(self, arguments: Arguments) -> Any:
        """Copies a file of the guest to `output`."""
        count = guest.read(self._lab.find(arguments["vm"]), arguments["path"], Path(arguments["output"]))
        return {"path": arguments["path"], "bytes": count}

    def guest_run(self, arguments: Arguments) -> Any:
        """Random changes."""
        machine = self._lab.find(arguments["vm"])
        changes = guest.run_changes(machine, float(arguments["share"]), int(arguments.get("seed") or 0))
        return {
            "vm": machine.record.moref,
            "files_changed": changes.files_changed,
            "bytes_changed": changes.bytes_changed,
            "file_bytes": changes.file_bytes,
            "share": changes.bytes_changed / max(changes.file_bytes, 1),
            "operations": changes.operations,
        }

    def disk_changed(self, arguments: Arguments) -> Any:
        """Areas changed since a change id, up to an open snapshot, a kept one, or now."""
        machine = self._lab.find(arguments["vm"])
        disk = machine.disk_at(int(arguments["disk"]))
        name = arguments.get("snapshot")
        record = machine.record
        changed: tuple[Area, ...]
        live = next((s for s in reversed(record.snapshots) if name in (s.moref, s.name)), None)
        kept = next((s for s in reversed(record.kept) if name in (s.moref, s.name)), None)
        if name and live is None and kept is None:
            raise NotFoundError(f"{record.name} has no snapshot {name!r}")
        if name and live is None and kept is not None:
            until = kept.disks[disk.key].change_id
            if until is None:
                raise tracking.TrackingResetError(f"{disk.label}: the snapshot had no change id")
            changed = tracking.changes_since(disk, arguments["since"], until)
        else:
            changed = self._lab.changed_areas(machine, disk, live, arguments["since"])
        return {
            "vm": record.moref,
            "disk": int(arguments["disk"]),
            "key": disk.key,
            "since": arguments["since"],
            "areas": [{"offset": start, "length": end - start} for start, end in changed],
            "bytes": areas.total(changed),
        }

    def disk_export(self, arguments: Arguments) -> Any:
        """Writes a disk's content to a file."""
        output = Path(arguments["output"])
        self._lab.export_disk(
            self._lab.find(arguments["vm"]), int(arguments["disk"]), arguments.get("snapshot"), output
        )
        return {"output": str(output), "bytes": output.stat().st_size}

    def fault_page_areas(self, arguments: Arguments) -> Any:
        """Sets the page size of QueryChangedDiskAreas."""
        self._lab.set_faults(self._lab.record.faults.model_copy(update={"page_areas": arguments.get("areas")}))
        return {"page_areas": self._lab.page_areas}

    def fault_lose_sessions(self, _: Arguments) -> Any:
        """Ends all sessions."""
        return {"sessions": self._sessions.close_all()}


def vm_json(machine: Machine) -> Arguments:
    """Returns a VM as the commands show it."""
    record = machine.record
    return {
        "moref": record.moref,
        "name": record.name,
        "folder": record.folder or "vm",
        "uuid": record.uuid,
        "instance_uuid": record.instance_uuid,
        "power_state": record.power_state,
        "change_tracking": record.tracking_enabled,
        "consolidation_needed": record.consolidation_needed,
        "snapshots": len(record.snapshots),
        "kept_snapshots": len(record.kept),
        "disks": [
            {
                "disk": index,
                "key": disk.key,
                "label": disk.label,
                "uuid": disk.uuid,
                "capacity_bytes": disk.capacity,
                "filesystem": disk.filesystem,
                "mountpoint": disk.mountpoint,
                "file": f"[labstore] {record.directory}/{disk.top.descriptor}",
                "change_id": tracking.change_id(disk.tracking),
            }
            for index, disk in enumerate(record.disks)
        ],
    }


def _index(disks: Any, key: int) -> int | None:
    return next((index for index, disk in enumerate(disks) if disk.key == key), None)


def _in_thread(command: Callable[[Arguments], Any], arguments: Arguments) -> Awaitable[Any]:
    return asyncio.to_thread(command, arguments)


def _error(status: int, err: LabError) -> web.Response:
    body: Arguments = {"error": {"reason": err.reason, "message": err.message, "help": err.help}}
    if isinstance(err, AmbiguousNameError):
        body["error"]["candidates"] = err.morefs
    return web.json_response(body, status=status)
