"""The downloads' HTTP server on a Unix socket: tokens, routes, and errors as the gateway shows them elsewhere."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web

from sendense_restore.disk_exports import DiskExports
from sendense_restore.downloads import Downloads
from sendense_restore.errors import InvalidPath
from sendense_restore.mounts import Mounts
from sendense_restore.paths import parse_guest_path
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.identity import TokenVerifier, require_role, set_caller
from sendense_rpc.server import listening

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTE = "/api/v1/restore/{mount_id}/download"
_STOP_SECONDS = 5.0
_MAX_LINE = 16 << 10  # a path of 4096 bytes, each written as %XX, and the rest

STATUSES: dict[Kind, tuple[int, int]] = {
    Kind.CANCELLED: (1, 499),
    Kind.INVALID_ARGUMENT: (3, 400),
    Kind.DEADLINE_EXCEEDED: (4, 504),
    Kind.NOT_FOUND: (5, 404),
    Kind.ALREADY_EXISTS: (6, 409),
    Kind.PERMISSION_DENIED: (7, 403),
    Kind.RESOURCE_EXHAUSTED: (8, 429),
    Kind.FAILED_PRECONDITION: (9, 400),
    Kind.ABORTED: (10, 409),
    Kind.UNIMPLEMENTED: (12, 501),
    Kind.INTERNAL: (13, 500),
    Kind.UNAVAILABLE: (14, 503),
    Kind.UNAUTHENTICATED: (16, 401),
}
"""For each kind of error gRPC's number and HTTP's status, as the gateway's transcoder maps them."""


class HttpServer:
    """Serves downloads.

    Args:
        mounts: Where the files are.
        exports: Whole disks.
        downloads: Sends them.
        verifier: Verifies tokens.
    """

    def __init__(self, mounts: Mounts, exports: DiskExports, downloads: Downloads, verifier: TokenVerifier) -> None:
        self._mounts = mounts
        self._exports = exports
        self._downloads = downloads
        self._verifier = verifier

    @asynccontextmanager
    async def serving(
        self, socket: Path, elsewhere: tuple[str, ssl.SSLContext] | None = None
    ) -> AsyncIterator[Sequence[web.BaseSite]]:
        """Listens for the time of the block.

        Args:
            socket: Where a gateway on this machine calls.
            elsewhere: Where one on another machine calls, `address:port`, and how both prove themselves.

        Yields:
            The listeners, which can be stopped before the block ends.
        """
        app = web.Application(middlewares=[self._guard])
        app.router.add_get(ROUTE, self._download)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=_STOP_SECONDS, max_line_size=_MAX_LINE, max_field_size=_MAX_LINE
        )
        await runner.setup()
        try:
            with listening(socket):
                site = web.UnixSite(runner, str(socket))
                await site.start()
                await asyncio.to_thread(socket.chmod, 0o600)
                sites: list[web.BaseSite] = [site]
                if elsewhere:
                    host, _, port = elsewhere[0].rpartition(":")
                    sites.append(web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=elsewhere[1]))
                    await sites[-1].start()
                yield sites
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request.headers.get("x-request-id") or str(uuid.uuid4()))
        try:
            caller = self._verifier.verify(request.headers.get("Authorization"))
            set_caller(caller)
            structlog.contextvars.bind_contextvars(caller=caller.subject)
            require_role(caller, "restore", "download")
            return await handler(request)
        except SendenseError as error:
            return _error_response(error)
        except web.HTTPException as error:
            unknown = error.status == 404
            kind = Kind.NOT_FOUND if unknown else Kind.INVALID_ARGUMENT
            reason = "ROUTE_NOT_FOUND" if unknown else "MALFORMED_REQUEST"
            return _error_response(SendenseError(error.reason, kind=kind, reason=reason), status=error.status)
        except Exception:
            incident = uuid.uuid4().hex[:12]
            log.exception("unexpected error", incident=incident)
            internal = SendenseError(
                f"an unexpected error happened; it is in the log as {incident}",
                kind=Kind.INTERNAL,
                reason="INTERNAL",
                help=f"Look for {incident} in the service's log and report it.",
                metadata={"incident": incident},
            )
            return _error_response(internal)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["mount_id"].startswith("export-"):
            return await self._downloads.send_export(request, await self._exports.open(request.match_info["mount_id"]))
        paths = request.query.getall("path", [])
        if len(paths) != 1 or not paths[0]:
            raise InvalidPath(", ".join(paths), "one path is needed, as ?path=/…")
        mount = await self._mounts.admitted(request.match_info["mount_id"])
        path = parse_guest_path(paths[0])
        with mount.used(download=True):
            return await self._downloads.send(request, mount, path, request.query.get("archive", ""))


def _error_response(error: SendenseError, status: int = 0) -> web.Response:
    code, usual = STATUSES[error.kind]
    status = status or usual
    log.info("download refused", status=status, reason=error.reason, message=error.message)
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.reason,
        "domain": "sendense",
        "metadata": {**error.metadata, "retryable": "true" if error.retryable else "false"},
    }
    body = {"code": code, "reason": error.reason, "message": error.message, "help": error.help, "details": [info]}
    headers = {"WWW-Authenticate": "Bearer"} if error.kind is Kind.UNAUTHENTICATED else None
    return web.json_response(body, status=status, headers=headers)
