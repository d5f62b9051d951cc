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
from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl

from sendense_agent.accounts import Account, read_accounts
from sendense_agent.certificate import Pin, check_server, find_pin
from sendense_agent.errors import NoVCenter, VCenterFault, VCenterLoginRefused, VCenterUnavailable, VmNotFound

log = structlog.get_logger()

Result = TypeVar("Result")

REQUEST_SECONDS = 120
"""Longest wait for an answer of vCenter; waiting for a task is many requests."""
IDLE_SECONDS = 60
"""Connections idle for longer are not used again: servers close them without notice."""
THREADS = 6

_LOST = (OSError, http.client.HTTPException, ExpatError)


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
        self._login = threading.Lock()
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

    def close(self) -> None:
        """Logs out, if there is a session, and ends the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._service is None:
            return
        try:
            self._service.content.sessionManager.Logout()
        except (*_LOST, vmodl.MethodFault) as error:
            log.debug("no logout", vcenter=self.account.name, error=str(error))

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
        service = self._session()
        try:
            return work(service)
        except vim.fault.NotAuthenticated:
            log.info("the session expired, logging in again", vcenter=self.account.name)
            self._log_in_again(service)
            return work(service)
        except _LOST as error:
            if not repeatable:
                raise
            log.info("the connection was lost, asking again", vcenter=self.account.name, error=str(error))
            self._forget(service)
            return work(self._session())

    def _session(self) -> Any:
        with self._login:
            if self._service is None:
                self._pin = find_pin(self.account)
                self._service = self._connect(self._pin)
            return self._service

    def _forget(self, service: Any = None) -> None:
        with self._login:
            if service is None or self._service is service:
                self._service = None

    def _connect(self, pin: Pin) -> Any:
        account = self.account
        context = pin.context()
        check_server(account, context)
        try:
            service = SmartConnect(
                host=account.host,
                port=account.port,
                user=account.username,
                pwd=account.read_password(),
                sslContext=context,
                httpConnectionTimeout=REQUEST_SECONDS,
                connectionPoolTimeout=IDLE_SECONDS,
            )
        except vim.fault.InvalidLogin as error:
            raise VCenterLoginRefused(account.name, account.username) from error
        except (*_LOST, vmodl.MethodFault):
            raise
        except Exception as error:  # pyVmomi raises a bare Exception for "not a VIM server"
            if type(error) is not Exception:
                raise
            raise VCenterUnavailable(account.name, str(error)) from error
        log.info("logged in", vcenter=account.name, version=service.content.about.version)
        return service

    def _log_in_again(self, service: Any) -> None:
        """Logs in on the same connection adapter, so that managed objects in hand stay good."""
        with self._login:
            manager = service.content.sessionManager
            if manager.currentSession:
                return
            try:
                manager.Login(self.account.username, self.account.read_password(), None)
            except vim.fault.InvalidLogin as error:
                raise VCenterLoginRefused(self.account.name, self.account.username) from error


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
            VCenterUnavailable: None of those that answer has it, and one does not answer.
        """
        unavailable: VCenterUnavailable | None = None
        for vcenter in await self.all():
            try:
                if await vcenter.uuid() == uuid:
                    return vcenter
            except VCenterUnavailable as error:
                unavailable = error
        raise unavailable or VmNotFound(uuid, vm_uuid)

    async def close(self) -> None:
        """Logs out everywhere."""
        for vcenter in self._known.values():
            await asyncio.to_thread(vcenter.close)
