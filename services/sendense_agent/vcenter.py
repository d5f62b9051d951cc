"""Sessions at vCenters: one each, shared by all calls, logged in again when it has expired.

pyVmomi blocks: all its calls run in a vCenter's own threads. Work that only reads may be repeated after a lost
connection; work that changes something is repeated only when the server says that it was not authenticated, and so
did nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from xml.parsers.expat import ExpatError

import structlog
from pyVim.connect import SmartStubAdapter
from pyVmomi import vim, vmodl

from sendense_agent.accounts import Account, read_accounts
from sendense_agent.certificate import Pin, check_server, find_pin
from sendense_agent.errors import NoVCenter, VCenterFault, VCenterLoginRefused, VCenterUnavailable, VmNotFound
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

Result = TypeVar("Result")

REQUEST_SECONDS = 120
"""Longest wait for an answer of vCenter; waiting for a task is many requests."""
IDLE_SECONDS = 60
"""Connections idle for longer are not used again: servers close them without notice."""
THREADS = 6

_LOST = (OSError, http.client.HTTPException, ExpatError)


class Service:
    """pyVmomi's service instance with its content read once: pyVmomi asks vCenter for it at each use.

    Attributes:
        content: Where all managers are; the same for the time of a session.
    """

    def __init__(self, instance: Any) -> None:
        self._stub = instance._stub  # noqa: SLF001  # managed objects are made with it
        self._instance = instance
        self.content = instance.RetrieveContent()

    def CurrentTime(self) -> Any:  # as pyVmomi calls it
        """Returns the time by vCenter's clock."""
        return self._instance.CurrentTime()


class VCenter:
    """One vCenter.

    Args:
        account: How to log in.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self._service: Any = None
        self._uuid = ""
        self._pin: Pin | None = None
        self._logins = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"vcenter-{account.name}")

    async def read(self, action: str, work: Callable[[Any], Result]) -> Result:
        """Runs work that changes nothing, in a thread.

        Args:
            action: What it does, for errors: `list VMs`.
            work: Called with pyVmomi's service instance; may be called again from its beginning.

        Raises:
            VCenterUnavailable: No connection, also at the second attempt.
            VCenterLoginRefused: The account is refused.
            VCenterCertificateRefused: Another certificate than the pinned one.
            VCenterFault: Any other fault.
        """
        return await self._in_thread(lambda: self._run(action, work, repeatable=True))

    async def change(self, action: str, work: Callable[[Any], Result]) -> Result:
        """Runs work that changes something; a lost connection is not repeated. The session is looked at before.

        Raises:
            SendenseError: As `read`.
        """
        await self.read("look at the session", lambda service: service.CurrentTime())
        return await self._in_thread(lambda: self._run(action, work, repeatable=False))

    async def uuid(self) -> str:
        """Returns the vCenter's instance uuid."""
        if not self._uuid:
            self._uuid = await self.read("tell its identity", lambda service: str(service.content.about.instanceUuid))
        return self._uuid

    async def pin(self) -> Pin:
        """Returns the pinned certificate, after a connection with it."""
        await self.uuid()
        if self._pin is None:
            raise VCenterUnavailable(self.account.name, "there is no session")
        return self._pin

    async def check_account(self) -> None:
        """Logs in anew and out again: tells whether certificate and account are still good.

        Raises:
            VCenterUnavailable: No connection.
            VCenterLoginRefused: The account is refused.
            VCenterCertificateRefused: Another certificate than the pinned one.
        """
        pin = await self.pin()
        await self._in_thread(lambda: self._run("log in", lambda _: self._log_in_and_out(pin), repeatable=False))

    def close(self) -> None:
        """Logs out, if there is a session, and ends the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._service is None:
            return
        try:
            self._service.content.sessionManager.Logout()
        except (*_LOST, vmodl.MethodFault) as error:
            log.debug("no logout", vcenter=self.account.name, error=str(error))
        self._forget()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _run(self, action: str, work: Callable[[Any], Result], *, repeatable: bool) -> Result:
        try:
            return self._attempt(work, repeatable=repeatable)
        except vmodl.MethodFault as fault:
            raise VCenterFault(self.account.name, action, type(fault).__name__, fault.msg or "no message") from fault
        except _LOST as error:
            self._forget()
            raise VCenterUnavailable(self.account.name, str(error) or type(error).__name__) from error

    def _attempt(self, work: Callable[[Any], Result], *, repeatable: bool) -> Result:
        service, logins = self._session()
        try:
            return work(service)
        except vim.fault.NotAuthenticated:
            log.info("the session expired, logging in again", vcenter=self.account.name)
            self._log_in_again(service, logins)
            return work(service)
        except _LOST as error:
            if not repeatable:
                raise
            log.info("the connection was lost, asking again", vcenter=self.account.name, error=str(error))
            self._forget(service)
            return work(self._session()[0])

    def _session(self) -> tuple[Any, int]:
        """Returns the session's service instance, logged in, and how many logins there have been."""
        with self._lock:
            if self._service is None:
                self._pin = find_pin(self.account)
                self._service = self._connect(self._pin)
                self._logins += 1
            return self._service, self._logins

    def _forget(self, service: Any = None) -> None:
        """Gives a session's connections up; the next call logs in anew."""
        with self._lock:
            if self._service is not None and service in (None, self._service):
                _drop_connections(self._service)
                self._service = None

    def _connect(self, pin: Pin) -> Any:
        account = self.account
        context = pin.context()
        check_server(account, context)
        try:
            stub = SmartStubAdapter(
                host=account.host,
                port=account.port,
                sslContext=context,
                httpConnectionTimeout=REQUEST_SECONDS,
                connectionPoolTimeout=IDLE_SECONDS,
            )
        except _LOST:
            raise
        except Exception as error:  # pyVmomi raises a bare Exception for "not a VIM server"
            if type(error) is not Exception:
                raise
            raise VCenterUnavailable(account.name, str(error)) from error
        service = vim.ServiceInstance("ServiceInstance", stub)
        try:
            self._log_in(service)
            session = Service(service)
            log.info("logged in", vcenter=account.name, version=session.content.about.version)
        except BaseException:
            _drop_connections(service)
            raise
        return session

    def _log_in_and_out(self, pin: Pin) -> None:
        service = self._connect(pin)
        try:
            service.content.sessionManager.Logout()
        finally:
            _drop_connections(service)

    def _log_in(self, service: Any) -> None:
        account = self.account
        try:
            service.content.sessionManager.Login(account.username, account.read_password(), None)
        except vim.fault.InvalidLogin as error:
            raise VCenterLoginRefused(account.name, account.username) from error

    def _log_in_again(self, service: Any, logins: int) -> None:
        """Logs in on the same connection adapter, so that managed objects in hand stay good.

        Args:
            service: The session that expired.
            logins: How many logins there were when its work began: with more, another thread was quicker.
        """
        with self._lock:
            if self._logins == logins:
                self._log_in(service)
                self._logins += 1


def _drop_connections(service: Any) -> None:
    service._stub.DropConnections()  # noqa: SLF001  # pyVmomi's adapter has no public name


class VCenters:
    """All vCenters of the agent's file; the file is read again when it has changed.

    Args:
        file: The vCenters' file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[Account, VCenter] = {}

    async def all(self) -> list[VCenter]:
        """Returns all vCenters.

        Raises:
            NoVCenter: There is none.
            VCenterFileInvalid: The file cannot be used.
        """
        accounts = read_accounts(self._file)
        if not accounts:
            raise NoVCenter(str(self._file))
        for account in [known for known in self._known if known not in accounts]:
            await asyncio.to_thread(self._known.pop(account).close)
        for account in accounts:
            self._known.setdefault(account, VCenter(account))
        return [self._known[account] for account in accounts]

    async def by_uuid(self, uuid: str, vm_uuid: str) -> VCenter:
        """Returns the vCenter with this instance uuid.

        Args:
            uuid: vCenter's instance uuid.
            vm_uuid: The VM that is looked for, for the error.

        Raises:
            VmNotFound: None of them has it.
            SendenseError: None of those that answer has it, and this is why one does not answer.
        """
        unavailable: SendenseError | None = None
        for vcenter in await self.all():
            try:
                if await vcenter.uuid() == uuid:
                    return vcenter
            except SendenseError as error:  # what is wrong with one vCenter must not stop another one's VMs
                unavailable = unavailable or error
        raise unavailable or VmNotFound(uuid, vm_uuid)

    async def close(self) -> None:
        """Logs out everywhere."""
        for vcenter in self._known.values():
            await asyncio.to_thread(vcenter.close)
