"""The lab's own commands: JSON over a Unix socket that only the owner may open.

The server is the one owner of the lab's state; the command line and the tests talk to it here. File arguments
are absolute paths on this machine. Each command is `POST /<name>` with its arguments as a JSON object.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from aiohttp import web
from pydantic import ValidationError

from sendense_lab.commanded import Arguments, Command
from sendense_lab.diskcommands import DiskCommands
from sendense_lab.errors import AmbiguousNameError, LabError
from sendense_lab.faultcommands import FaultCommands
from sendense_lab.guestcommands import GuestCommands
from sendense_lab.lab import Lab
from sendense_lab.serving import Serving
from sendense_lab.vmcommands import VmCommands

log = structlog.get_logger(__name__)

STATUS = {"NOT_FOUND": 404, "AMBIGUOUS_NAME": 409, "INVALID_ARGUMENT": 400, "INVALID_CHANGE_ID": 400}


class Control:
    """Dispatches the commands."""

    def __init__(self, lab: Lab, serving: Serving) -> None:
        self._lab = lab
        self._serving = serving
        self._commands: dict[str, Command] = {
            "info": self.info,
            **VmCommands(lab).commands(),
            **DiskCommands(lab).commands(),
            **GuestCommands(lab).commands(),
            **FaultCommands(lab, serving).commands(),
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
            return web.json_response(await asyncio.to_thread(command, arguments))
        except LabError as err:
            return _error(STATUS.get(err.reason, 500), err)
        except OSError as err:  # a full guest, an output that cannot be written
            return _error(500, LabError(f"{err.strerror}: {err.filename}", reason="IO_ERROR"))
        except (KeyError, TypeError, ValueError) as err:
            log.warning("bad arguments", command=request.path, error=repr(err))
            return _error(400, LabError(f"Bad arguments: {_plain(err)}", reason="INVALID_ARGUMENT"))

    def info(self, _: Arguments) -> Any:
        """Where the simulated vCenter is and what it holds; never the password."""
        capacity, free = self._lab.free_bytes()
        account = self._serving.account
        return {
            "url": self._serving.url,
            "username": account.username,
            "credentials": str(self._lab.store.root / "credentials.json"),
            "certificate": account.certificate,
            "instance_uuid": self._lab.record.instance_uuid,
            "vms": len(self._lab.machines),
            "sessions": self._serving.sessions.count(),
            "faults": len([active for active in self._lab.faults.all() if not active.spent]),
            "page_areas": self._lab.page_areas(),
            "keep_snapshots": self._lab.settings.keep_snapshots,
            "datastore_bytes": capacity,
            "datastore_free_bytes": free,
        }


def _plain(err: Exception) -> str:
    """Returns what is wrong with arguments in words."""
    if isinstance(err, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'][1:]) or problem['loc']}: {problem['msg']}"
            for problem in err.errors(include_url=False, include_context=False, include_input=False)
        )
    return repr(err)


def _error(status: int, err: LabError) -> web.Response:
    body: Arguments = {"error": {"reason": err.reason, "message": err.message, "help": err.help}}
    if isinstance(err, AmbiguousNameError):
        body["error"]["candidates"] = err.morefs
    return web.json_response(body, status=status)
