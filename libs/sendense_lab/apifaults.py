"""What can go wrong with any call of the API before and after it is carried out."""

from __future__ import annotations

import time
from typing import Any

from pyVmomi import vim

from sendense_lab import faults, vimfaults
from sendense_lab.call import Call
from sendense_lab.lab import Lab
from sendense_lab.sessions import Sessions


class ConnectionCutError(Exception):
    """The connection is to be closed without an answer."""


class HttpRefusalError(Exception):
    """The call is to be answered with an HTTP status that is no fault of the API.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class ApiFaults:
    """Asks the fault board about every call, and remembers the calls."""

    def __init__(self, lab: Lab, sessions: Sessions) -> None:
        self._lab = lab
        self._sessions = sessions

    def before(self, call: Call, *, anonymous: bool) -> None:
        """Spoils a call before anything is done.

        Raises:
            vmodl.MethodFault: It fails.
            HttpRefusalError: It does not get that far.
            ConnectionCutError: It gets no answer at all.
        """
        self._lab.calls.append((call.request.method, call.moref))
        delay = self._take(faults.ApiDelay, call)
        if delay:
            time.sleep(delay.ms / 1000)
        if self._take(faults.ApiDrop, call):
            raise ConnectionCutError
        refused = self._take(faults.ApiHttp, call)
        if refused:
            raise HttpRefusalError(refused.status)
        if not anonymous and call.session is not None and self._take(faults.ApiSessionExpired, call):
            self._sessions.close(call.secret or "")
            call.session = None
        error = self._take(faults.ApiError, call)
        if error:
            raise vimfaults.make(error.error, call.request.this)

    def after(self, call: Call) -> None:
        """Spoils a call that was carried out.

        Raises:
            ConnectionCutError: It gets no answer.
        """
        if self._take(faults.ApiDropAnswer, call):
            raise ConnectionCutError

    def _take(self, kind: type[faults.OfMethod], call: Call) -> Any:
        method = call.request.method
        return self._lab.faults.take(kind, vm=self._vm(call), fits=lambda fault: fault.fits(method))

    def _vm(self, call: Call) -> str | None:
        """Returns the instance uuid of the VM that a call is about."""
        if isinstance(call.request.this, vim.vm.Snapshot):
            found = self._lab.find_snapshot(call.moref)
            return found[0].record.instance_uuid if found else None
        machine = self._lab.machines.get(call.moref)
        return machine.record.instance_uuid if machine else None
