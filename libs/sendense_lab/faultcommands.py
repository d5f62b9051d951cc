"""Commands about misbehaviour on demand."""

from __future__ import annotations

import inspect
from typing import Any

from sendense_lab import faults, vimfaults
from sendense_lab.commanded import Arguments, Command
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.faults import Fault
from sendense_lab.lab import Lab
from sendense_lab.labrecord import ActiveFault
from sendense_lab.serving import Serving

COMMON = tuple(Fault.model_fields)
PAGE_AREAS = "cbt-page-areas"


class FaultCommands:
    """`fault/…`."""

    def __init__(self, lab: Lab, serving: Serving) -> None:
        self._lab = lab
        self._serving = serving

    def commands(self) -> dict[str, Command]:
        """Returns the commands by their names."""
        return {
            "fault/kinds": self.kinds,
            "fault/list": self.all,
            "fault/set": self.put,
            "fault/clear": self.clear,
            "fault/page-areas": self.page_areas,
            "fault/lose-sessions": self.lose_sessions,
            "fault/change-certificate": self.change_certificate,
            "fault/forget-events": self.forget_events,
            "fault/calls": self.calls,
        }

    def kinds(self, _: Arguments) -> Any:
        """All kinds of faults with their parameters."""
        return {
            "kinds": [
                {
                    "kind": name,
                    "about": inspect.getdoc(kind),
                    "times": kind.model_fields["times"].default,
                    "parameters": {
                        field: None if info.is_required() else info.default
                        for field, info in kind.model_fields.items()
                        if field not in (*COMMON, "kind")
                    },
                }
                for name, kind in faults.KINDS.items()
            ]
        }

    def all(self, _: Arguments) -> Any:
        """All faults that were set and not cleared."""
        return {"faults": [self._json(active) for active in self._lab.faults.all()]}

    def put(self, arguments: Arguments) -> Any:
        """Puts a fault in force; `vm` and `disk` as everywhere, the rest by the kind."""
        wanted = dict(arguments)
        if wanted.get("kind") not in faults.KINDS:
            raise InvalidRequestError(
                f"There is no fault {wanted.get('kind')!r}", help="`sendense-lab fault kinds` shows all."
            )
        vm, disk = wanted.pop("vm", None), wanted.pop("disk", None)
        if vm is not None:
            machine = self._lab.find(vm)
            wanted["vm"] = machine.record.instance_uuid
            if disk is not None:
                wanted["disk"] = machine.disk_at(disk).uuid
        elif disk is not None:
            raise InvalidRequestError("A disk belongs to a VM: give that, too")
        if "error" in wanted:
            vimfaults.fault_type(wanted["error"])
        return self._json(self._lab.faults.set(faults.ADAPTER.validate_python(wanted)))

    def clear(self, arguments: Arguments) -> Any:
        """Takes back a fault (by id), those of a kind, or all."""
        which = arguments.get("which")
        if isinstance(which, str) and which.isdecimal():
            which = int(which)
        cleared = self._lab.faults.clear(which)
        if which is not None and not cleared:
            raise NotFoundError(f"No fault {which} is set", help="`sendense-lab fault list` shows all.")
        return {"cleared": [self._json(active) for active in cleared]}

    def page_areas(self, arguments: Arguments) -> Any:
        """Sets the page size of QueryChangedDiskAreas for all disks; none is the setting's again."""
        areas = arguments.get("areas")
        fault = None if areas is None else faults.CbtPageAreas(areas=areas)
        self._lab.faults.clear(PAGE_AREAS)
        if fault is not None:
            self._lab.faults.set(fault)
        return {"page_areas": self._lab.page_areas()}

    def lose_sessions(self, _: Arguments) -> Any:
        """Ends all sessions."""
        return {"sessions": self._serving.sessions.close_all()}

    def change_certificate(self, _: Arguments) -> Any:
        """Serves another certificate from now on."""
        account = self._serving.change_certificate()
        return {"certificate": account.certificate, "sha256": account.sha256, "sha1": account.sha1}

    def forget_events(self, _: Arguments) -> Any:
        """Empties vCenter's event log."""
        return {"events": self._lab.events.forget()}

    def calls(self, arguments: Arguments) -> Any:
        """The latest API calls, oldest first."""
        calls = list(self._lab.calls)
        if arguments.get("reset"):
            self._lab.calls.clear()
        return {"calls": [{"method": method, "object": moref} for method, moref in calls]}

    def _json(self, active: ActiveFault) -> Arguments:
        fault = active.fault.model_dump()
        shown = {field: value for field, value in fault.items() if field not in (*COMMON, "kind")}
        machines = list(self._lab.machines.values())
        vm = next((found.record for found in machines if found.record.instance_uuid == active.fault.vm), None)
        return {
            "id": active.id,
            "kind": active.fault.kind,
            "vm": vm.name if vm else active.fault.vm,
            "disk": active.fault.disk,
            "after": active.fault.after,
            "times": active.fault.times,
            "parameters": shown,
            "seen": active.seen,
            "spoiled": active.spoiled,
            "spent": active.spent,
            "last": active.last,
        }
