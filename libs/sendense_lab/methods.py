"""The methods of the vSphere API that the lab answers, each with the faults that vCenter would raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab import areas, snapshots, tracking
from sendense_lab import inventory as inv
from sendense_lab.errors import LabError
from sendense_lab.inventory import Inventory
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import VmRecord
from sendense_lab.sessions import Session, Sessions
from sendense_lab.soap import FETCH, Request
from sendense_lab.vmview import FIRST_VERSION_WITH_TRACKING, datastore_path

MAX_NAME = 80


@dataclass
class Call:
    """A request with its session.

    Attributes:
        request: The parsed request.
        secret: Value of the session cookie that came with it.
        session: The session, None when there is none.
        new_secret: Set by a login: the cookie to hand out.
    """

    request: Request
    secret: str | None
    session: Session | None
    new_secret: str | None = None

    def argument(self, name: str) -> Any:
        """Returns an argument, None when it was not given."""
        return self.request.arguments.get(name)

    @property
    def moref(self) -> str:
        """Managed object id of the object called."""
        return str(self.request.this._GetMoId())  # noqa: SLF001


Handler = Callable[["Methods", Call], Any]
ANONYMOUS = {"RetrieveServiceContent", "Login", "Logout"}


class Methods:
    """Dispatches requests."""

    def __init__(self, lab: Lab, inventory: Inventory, sessions: Sessions) -> None:
        self._lab = lab
        self._inventory = inventory
        self._sessions = sessions

    def handle(self, call: Call) -> Any:
        """Runs a method; returns its result.

        Raises:
            vmodl.MethodFault: What vCenter would raise.
        """
        request = call.request
        if call.session is None and not _anonymous(request):
            raise vim.fault.NotAuthenticated(
                object=request.this, privilegeId="System.View", msg="The session is not authenticated."
            )
        handler = HANDLERS.get(request.method)
        if handler is None:
            raise vmodl.fault.NotSupported(msg=f"The lab does not know {request.method}")
        return handler(self, call)

    # -- service and session -------------------------------------------------------------------------------

    def service_content(self, call: Call) -> Any:
        """RetrieveServiceContent."""
        return inv.service_content(self._lab)

    def current_time(self, call: Call) -> Any:
        """CurrentTime."""
        return datetime.now(UTC)

    def login(self, call: Call) -> Any:
        """Login."""
        if call.session is not None:
            raise vmodl.fault.InvalidRequest(msg="This session is logged in already")
        if not self._sessions.check(call.argument("userName"), call.argument("password")):
            raise vim.fault.InvalidLogin(msg="Cannot complete login due to an incorrect user name or password.")
        call.new_secret, call.session = self._sessions.open()
        return _user_session(call.session)

    def logout(self, call: Call) -> None:
        """Logout."""
        if call.secret:
            self._sessions.close(call.secret)

    def session_is_active(self, call: Call) -> bool:
        """SessionIsActive."""
        session = _session(call)
        return bool(call.argument("sessionID") == session.key)

    # -- properties ----------------------------------------------------------------------------------------

    def fetch(self, call: Call) -> Any:
        """Reads one property, as pyVmomi does for `vm.config`."""
        name = call.argument("prop")
        if call.session is None:
            return self._inventory.get(call.request.this, name)
        if call.moref == inv.SESSION_MANAGER and name == "currentSession":
            return _user_session(call.session)
        return call.session.collector.read(call.request.this, name)

    def retrieve_ex(self, call: Call) -> Any:
        """RetrievePropertiesEx."""
        options = call.argument("options")
        return _session(call).collector.retrieve(
            call.argument("specSet") or [], options.maxObjects if options else None
        )

    def retrieve(self, call: Call) -> Any:
        """RetrieveProperties, the old form without pages."""
        collector = _session(call).collector
        return [content for spec in call.argument("specSet") or [] for content in collector.contents(spec)]

    def continue_retrieve(self, call: Call) -> Any:
        """ContinueRetrievePropertiesEx."""
        return _session(call).collector.proceed(call.argument("token"))

    def cancel_retrieve(self, call: Call) -> None:
        """CancelRetrievePropertiesEx."""
        _session(call).collector.proceed(call.argument("token"))

    def create_filter(self, call: Call) -> Any:
        """CreateFilter."""
        return vmodl.query.PropertyCollector.Filter(_session(call).collector.create_filter(call.argument("spec")))

    def destroy_filter(self, call: Call) -> None:
        """DestroyPropertyFilter."""
        if not _session(call).collector.destroy_filter(call.moref):
            raise vmodl.fault.ManagedObjectNotFound(obj=call.request.this, msg="The filter is gone")

    def wait_for_updates_ex(self, call: Call) -> Any:
        """WaitForUpdatesEx."""
        options = call.argument("options")
        return _session(call).collector.wait(call.argument("version"), options.maxWaitSeconds if options else None)

    def wait_for_updates(self, call: Call) -> Any:
        """WaitForUpdates, the old form without a time limit."""
        return _session(call).collector.wait(call.argument("version"), None)

    def check_for_updates(self, call: Call) -> Any:
        """CheckForUpdates."""
        return _session(call).collector.wait(call.argument("version"), 0)

    def create_container_view(self, call: Call) -> Any:
        """CreateContainerView."""
        views = _session(call).views
        return vim.view.ContainerView(
            views.add(call.argument("container"), call.argument("type") or [], bool(call.argument("recursive")))
        )

    def destroy_view(self, call: Call) -> None:
        """DestroyView."""
        if _session(call).views.contents.pop(call.moref, None) is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=call.request.this, msg="The view is gone")

    def find_by_uuid(self, call: Call) -> Any:
        """FindByUuid."""
        found = self._by_uuid(call)
        return found[0] if found else None

    def find_all_by_uuid(self, call: Call) -> Any:
        """FindAllByUuid."""
        return self._by_uuid(call)

    def _by_uuid(self, call: Call) -> list[Any]:
        wanted = (call.argument("uuid") or "").lower()
        by_instance = call.argument("instanceUuid")
        return [
            vim.VirtualMachine(moref)
            for moref, machine in list(self._lab.machines.items())
            if wanted == (machine.record.instance_uuid if by_instance else machine.record.uuid)
        ]

    # -- virtual machines ----------------------------------------------------------------------------------

    def create_snapshot(self, call: Call) -> Any:
        """CreateSnapshot_Task and CreateSnapshotEx_Task."""
        machine = self._machine(call)
        name, description = call.argument("name") or "", call.argument("description") or ""
        if not name or len(name) > MAX_NAME:
            raise vim.fault.InvalidName(name=name, msg=f"A snapshot's name has 1 to {MAX_NAME} characters")
        quiesce = bool(call.argument("quiesce") or call.argument("quiesceSpec"))

        def work() -> Any:
            snapshot = self._lab.create_snapshot(machine, name, description, quiesce=quiesce)
            return vim.vm.Snapshot(snapshot.moref)

        return self._task(call, machine.record, "createSnapshot", work)

    def remove_snapshot(self, call: Call) -> Any:
        """RemoveSnapshot_Task."""
        found = self._lab.find_snapshot(call.moref)
        if found is None:
            raise vmodl.fault.ManagedObjectNotFound(
                obj=call.request.this, msg=f"The object {call.moref} has already been deleted"
            )
        machine, snapshot = found
        children = bool(call.argument("removeChildren"))
        consolidate = call.argument("consolidate") is not False

        def work() -> None:
            self._lab.remove_snapshot(machine, snapshot.moref, children=children, consolidate=consolidate)

        return self._task(call, machine.record, "removeSnapshot", work)

    def remove_all_snapshots(self, call: Call) -> Any:
        """RemoveAllSnapshots_Task."""
        machine = self._machine(call)

        def work() -> None:
            if machine.record.snapshots:
                first = machine.record.snapshots[0].moref
                self._lab.remove_snapshot(machine, first, children=True, consolidate=True)

        return self._task(call, machine.record, "removeAllSnapshots", work)

    def consolidate(self, call: Call) -> Any:
        """ConsolidateVMDisks_Task."""
        machine = self._machine(call)
        return self._task(call, machine.record, "consolidateDisks", lambda: snapshots.consolidate(machine))

    def reconfigure(self, call: Call) -> Any:
        """ReconfigVM_Task; the lab changes changeTrackingEnabled only."""
        machine = self._machine(call)
        wanted = call.argument("spec").changeTrackingEnabled

        def work() -> None:
            if wanted is not None:
                _set_tracking(machine, bool(wanted))

        return self._task(call, machine.record, "reconfigure", work)

    def query_changed_areas(self, call: Call) -> Any:
        """QueryChangedDiskAreas, in pages."""
        machine = self._machine(call)
        record = machine.record
        disk = record.disk(call.argument("deviceKey"))
        if disk is None:
            raise _invalid("deviceKey")
        start = call.argument("startOffset")
        snapshot = self._snapshot_of(call, record)
        capacity = snapshot.disks[disk.key].capacity if snapshot else disk.capacity
        if start is None or not 0 <= start < capacity:
            raise _invalid("startOffset")
        try:
            changed = self._lab.changed_areas(machine, disk, snapshot, call.argument("changeId") or "")
        except tracking.ChangeIdError as err:
            raise _invalid("changeId") from err
        except tracking.TrackingResetError as err:
            path = datastore_path(record, disk.top.descriptor)
            raise vim.fault.FileFault(file=path, msg=f"Error caused by file {path}: {err.message}") from err
        length, shown = areas.page(changed, start, capacity, self._lab.page_areas)
        info = vim.VirtualMachine.DiskChangeInfo
        return info(
            startOffset=start,
            length=length,
            changedArea=[info.DiskChangeExtent(start=begin, length=end - begin) for begin, end in shown],
        )

    def _snapshot_of(self, call: Call, record: VmRecord) -> Any:
        reference = call.argument("snapshot")
        if reference is None:
            if record.power_state == "poweredOn" and not record.snapshots:
                raise _invalid("snapshot")
            return record.snapshots[-1] if record.snapshots else None
        snapshot = record.snapshot(reference._GetMoId())  # noqa: SLF001
        if snapshot is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=reference, msg="The snapshot has already been deleted")
        if call.argument("deviceKey") not in snapshot.disks:
            raise _invalid("deviceKey")
        return snapshot

    def power_on(self, call: Call) -> Any:
        """PowerOnVM_Task."""
        return self._power(call, "poweredOn", "powerOn")

    def power_off(self, call: Call) -> Any:
        """PowerOffVM_Task."""
        return self._power(call, "poweredOff", "powerOff")

    def _power(self, call: Call, state: Any, name: str) -> Any:
        machine = self._machine(call)

        def work() -> None:
            with machine.lock:
                if machine.record.power_state == state:
                    raise vim.fault.InvalidPowerState(
                        existingState=state, requestedState=state, msg="The VM is in that state already"
                    )
                machine.save(_stunned(machine.record.model_copy(update={"power_state": state})))

        return self._task(call, machine.record, name, work)

    def cancel_task(self, call: Call) -> None:
        """CancelTask: no task of the lab can be cancelled."""
        raise vmodl.fault.NotSupported(msg="This task cannot be cancelled")

    def _machine(self, call: Call) -> Machine:
        machine = self._lab.machines.get(call.moref)
        if machine is None:
            raise vmodl.fault.ManagedObjectNotFound(
                obj=call.request.this, msg=f"The object {call.moref} has already been deleted"
            )
        return machine

    def _task(self, call: Call, record: VmRecord, name: str, work: Callable[[], Any]) -> Any:
        method = name[0].upper() + name[1:]
        return vim.Task(self._lab.tasks.start(method, f"VirtualMachine.{name}", record.moref, record.name, work))


def _set_tracking(machine: Machine, enabled: bool) -> None:
    with machine.lock:
        record = machine.record
        if enabled and record.hardware_version < FIRST_VERSION_WITH_TRACKING:
            raise vmodl.fault.NotSupported(msg="Change tracking needs hardware version 7 or later")
        if enabled != record.tracking_enabled and record.snapshots:
            raise vim.fault.InvalidSnapshotFormat(msg="Change tracking cannot be changed while the VM has snapshots")
        record = record.model_copy(update={"tracking_enabled": enabled})
        machine.save(record if record.power_state == "poweredOn" else _stunned(record))


def _stunned(record: VmRecord) -> VmRecord:
    """Lets the disks follow the tracking setting, as at every stun or power cycle."""
    disks = tuple(tracking.follow_setting(disk, enabled=record.tracking_enabled) for disk in record.disks)
    return record.model_copy(update={"disks": disks})


def _anonymous(request: Request) -> bool:
    return request.method in ANONYMOUS or (request.method == FETCH and isinstance(request.this, vim.ServiceInstance))


def _session(call: Call) -> Session:
    if call.session is None:
        raise LabError("no session")
    return call.session


def _user_session(session: Session) -> Any:
    return vim.UserSession(
        key=session.key,
        userName="LAB.LOCAL\\sendense",
        fullName="Sendense lab",
        loginTime=session.created,
        lastActiveTime=session.last_active,
        locale="en",
        messageLocale="en",
        extensionSession=False,
        ipAddress="127.0.0.1",
        userAgent="",
        callCount=0,
    )


def _invalid(name: str) -> Any:
    return vmodl.fault.InvalidArgument(invalidProperty=name, msg=f"A specified parameter was not correct: {name}")


HANDLERS: dict[str, Handler] = {
    "RetrieveServiceContent": Methods.service_content,
    "CurrentTime": Methods.current_time,
    "Login": Methods.login,
    "Logout": Methods.logout,
    "SessionIsActive": Methods.session_is_active,
    FETCH: Methods.fetch,
    "RetrievePropertiesEx": Methods.retrieve_ex,
    "RetrieveProperties": Methods.retrieve,
    "ContinueRetrievePropertiesEx": Methods.continue_retrieve,
    "CancelRetrievePropertiesEx": Methods.cancel_retrieve,
    "CreateFilter": Methods.create_filter,
    "DestroyPropertyFilter": Methods.destroy_filter,
    "WaitForUpdatesEx": Methods.wait_for_updates_ex,
    "WaitForUpdates": Methods.wait_for_updates,
    "CheckForUpdates": Methods.check_for_updates,
    "CreateContainerView": Methods.create_container_view,
    "DestroyView": Methods.destroy_view,
    "FindByUuid": Methods.find_by_uuid,
    "FindAllByUuid": Methods.find_all_by_uuid,
    "CreateSnapshot_Task": Methods.create_snapshot,
    "CreateSnapshotEx_Task": Methods.create_snapshot,
    "RemoveSnapshot_Task": Methods.remove_snapshot,
    "RemoveAllSnapshots_Task": Methods.remove_all_snapshots,
    "ConsolidateVMDisks_Task": Methods.consolidate,
    "ReconfigVM_Task": Methods.reconfigure,
    "QueryChangedDiskAreas": Methods.query_changed_areas,
    "PowerOnVM_Task": Methods.power_on,
    "PowerOffVM_Task": Methods.power_off,
    "CancelTask": Methods.cancel_task,
}
