"""The methods of the vSphere API that the lab answers: service, session and properties; dispatch of all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pyVmomi import vim, vmodl

from sendense_lab import inventory as inv
from sendense_lab.apifaults import ApiFaults
from sendense_lab.call import Call
from sendense_lab.cbtmethods import CbtMethods
from sendense_lab.collector import Collector
from sendense_lab.eventmethods import EventMethods
from sendense_lab.inventory import Inventory
from sendense_lab.lab import Lab
from sendense_lab.sessions import Session, Sessions
from sendense_lab.soap import FETCH, Request
from sendense_lab.vmmethods import VmMethods

Handler = Callable[[Call], Any]
ANONYMOUS = {"RetrieveServiceContent", "Login", "Logout"}


class Methods:
    """Dispatches requests."""

    def __init__(self, lab: Lab, inventory: Inventory, sessions: Sessions) -> None:
        self._lab = lab
        self._inventory = inventory
        self._sessions = sessions
        self._faults = ApiFaults(lab, sessions)
        self._handlers: dict[str, Handler] = self._own_handlers()
        for methods in (VmMethods(lab), CbtMethods(lab), EventMethods(lab)):
            self._handlers |= methods.handlers()

    def handle(self, call: Call) -> Any:
        """Runs a method; returns its result.

        Raises:
            vmodl.MethodFault: What vCenter would raise.
            HttpRefusalError: A fault answers without the API.
            ConnectionCutError: A fault leaves the call without an answer.
        """
        request = call.request
        anonymous = _anonymous(request)
        self._faults.before(call, anonymous=anonymous)
        if not anonymous:
            _ = call.logged_in
        handler = self._handlers.get(request.method)
        if handler is None:
            raise vmodl.fault.NotSupported(msg=f"The lab does not know {request.method}")
        result = handler(call)
        self._faults.after(call)
        return result

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
        limit = options.maxObjects if options else None
        return call.logged_in.collector.retrieve(call.argument("specSet") or [], limit)

    def retrieve(self, call: Call) -> Any:
        """RetrieveProperties, the old form without pages."""
        collector = call.logged_in.collector
        return [content for spec in call.argument("specSet") or [] for content in collector.contents(spec)]

    def continue_retrieve(self, call: Call) -> Any:
        """ContinueRetrievePropertiesEx."""
        return call.logged_in.collector.proceed(call.argument("token"))

    def cancel_retrieve(self, call: Call) -> None:
        """CancelRetrievePropertiesEx."""
        call.logged_in.collector.proceed(call.argument("token"))

    def create_collector(self, call: Call) -> Any:
        """CreatePropertyCollector: whoever waits beside others needs filters and versions of its own."""
        session = call.logged_in
        moref = f"session[{session.key}]{uuid4()}"
        session.more_collectors[moref] = session.collector.sibling()
        return vmodl.query.PropertyCollector(moref)

    def destroy_collector(self, call: Call) -> None:
        """DestroyPropertyCollector."""
        collector = call.logged_in.more_collectors.pop(call.moref, None)
        if collector is None:
            raise call.gone()
        collector.cancelled = True

    @staticmethod
    def _collector(call: Call) -> Collector:
        collector = call.logged_in.collector_of(call.moref)
        if collector is None:
            raise call.gone()
        return collector

    def create_filter(self, call: Call) -> Any:
        """CreateFilter."""
        return vmodl.query.PropertyCollector.Filter(self._collector(call).create_filter(call.argument("spec")))

    def destroy_filter(self, call: Call) -> None:
        """DestroyPropertyFilter."""
        session = call.logged_in
        for collector in (session.collector, *list(session.more_collectors.values())):
            if collector.destroy_filter(call.moref):
                return
        raise call.gone()

    def wait_for_updates_ex(self, call: Call) -> Any:
        """WaitForUpdatesEx."""
        options = call.argument("options")
        limit = options.maxWaitSeconds if options else None
        return self._collector(call).wait(call.argument("version"), limit)

    def wait_for_updates(self, call: Call) -> Any:
        """WaitForUpdates, the old form without a time limit."""
        return self._collector(call).wait(call.argument("version"), None)

    def check_for_updates(self, call: Call) -> Any:
        """CheckForUpdates."""
        return self._collector(call).wait(call.argument("version"), 0)

    def create_container_view(self, call: Call) -> Any:
        """CreateContainerView."""
        container, types = call.argument("container"), call.argument("type") or []
        views = call.logged_in.views
        return vim.view.ContainerView(views.add(container, types, bool(call.argument("recursive"))))

    def destroy_view(self, call: Call) -> None:
        """DestroyView."""
        if call.logged_in.views.contents.pop(call.moref, None) is None:
            raise call.gone()

    def find_all_by_uuid(self, call: Call) -> list[Any]:
        """FindAllByUuid."""
        wanted = (call.argument("uuid") or "").lower()
        by_instance = call.argument("instanceUuid")
        return [
            vim.VirtualMachine(moref)
            for moref, machine in list(self._lab.machines.items())
            if wanted == (machine.record.instance_uuid if by_instance else machine.record.uuid)
        ]

    def find_by_uuid(self, call: Call) -> Any:
        """FindByUuid."""
        found = self.find_all_by_uuid(call)
        return found[0] if found else None

    def _own_handlers(self) -> dict[str, Handler]:
        return {
            "RetrieveServiceContent": lambda _: inv.service_content(self._lab),
            "CurrentTime": lambda _: datetime.now(UTC),
            "Login": self.login,
            "Logout": self.logout,
            "SessionIsActive": lambda call: call.argument("sessionID") == call.logged_in.key,
            FETCH: self.fetch,
            "RetrievePropertiesEx": self.retrieve_ex,
            "RetrieveProperties": self.retrieve,
            "ContinueRetrievePropertiesEx": self.continue_retrieve,
            "CancelRetrievePropertiesEx": self.cancel_retrieve,
            "CreatePropertyCollector": self.create_collector,
            "DestroyPropertyCollector": self.destroy_collector,
            "CreateFilter": self.create_filter,
            "DestroyPropertyFilter": self.destroy_filter,
            "WaitForUpdatesEx": self.wait_for_updates_ex,
            "WaitForUpdates": self.wait_for_updates,
            "CheckForUpdates": self.check_for_updates,
            "CreateContainerView": self.create_container_view,
            "DestroyView": self.destroy_view,
            "FindByUuid": self.find_by_uuid,
            "FindAllByUuid": self.find_all_by_uuid,
        }


def _anonymous(request: Request) -> bool:
    """Whether a call is answered without a login, as vCenter does for its service content."""
    reads_content = request.method == FETCH and isinstance(request.this, vim.ServiceInstance)
    return request.method in ANONYMOUS or reads_content


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
