"""`sendense-restore`: settings, wiring, serving."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import structlog

from sendense.restore.v1 import disk_pb2_grpc, restore_pb2_grpc
from sendense_db.engine import Database
from sendense_db.requests import RequestLedger
from sendense_restore.clients import ExportClients, PointClients
from sendense_restore.config import RestoreSettings
from sendense_restore.disk_exports import DiskExports
from sendense_restore.disk_servicer import DiskServicer
from sendense_restore.downloads import Downloads
from sendense_restore.guestfs_backend import GuestfsBackend
from sendense_restore.http_server import HttpServer
from sendense_restore.kernel_backend import KernelBackend
from sendense_restore.leases import Leases
from sendense_restore.mount import Lifetime
from sendense_restore.mounter import PointMounter
from sendense_restore.mounts import Limits, Mounts
from sendense_restore.places import Places
from sendense_restore.served_points import ServedPoints
from sendense_restore.servicer import RestoreServicer
from sendense_restore.store import MountStore, requests
from sendense_rpc.channel import service_peer
from sendense_rpc.mtls import server_context
from sendense_rpc.server import Service, Servicer, run

log = structlog.get_logger()

NAME = "restore"
_THREADS = 64
"""Each may wait for a repository's disk: so many listings and downloads at once do not hold up one another."""


@asynccontextmanager
async def build(settings: RestoreSettings) -> AsyncIterator[Service]:
    """Cleans up after an earlier run, opens everything, and undoes every mount at the end."""
    async with AsyncExitStack() as stack:
        places = stack.enter_context(Places(settings.work_root, settings.base, settings.run_dir).owned())
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="restore")
        asyncio.get_running_loop().set_default_executor(threads)
        database = Database(settings.catalogue_url)
        stack.push_async_callback(database.close)
        backup = service_peer(settings, "backup", NAME)
        stack.push_async_callback(backup.close)
        repository = service_peer(settings, "repository", NAME)
        stack.push_async_callback(repository.close)
        nbd = service_peer(settings, "exports", NAME)
        stack.push_async_callback(nbd.close)
        points = PointClients(backup, repository)
        leases = Leases(points, MountStore(database), settings.lease_seconds)
        stack.push_async_callback(leases.close)
        kernel = KernelBackend(settings.mount_timeout_seconds)
        guestfs = GuestfsBackend(settings.guestfs_timeout_seconds, settings.guestfs_acceleration)
        limits = Limits(
            most_mounts=settings.max_mounts,
            lifetime=Lifetime(settings.idle_seconds, settings.max_age_seconds),
            drain_seconds=settings.drain_seconds,
        )
        mounts = Mounts(PointMounter([kernel, guestfs], settings.backend), points, leases, places, limits)
        await mounts.recover()
        exports = DiskExports(
            points, leases, settings.work_root / "exports", settings.max_disk_exports, settings.max_age_seconds
        )
        await exports.recover()
        served = ServedPoints(points, ExportClients(nbd), leases, settings.max_mounts, settings.max_age_seconds)
        await leases.recover(before=served.end_of_earlier_run)
        downloads = Downloads(threads, settings.stall_seconds, settings.work_root)
        http = HttpServer(mounts, exports, downloads, settings.verifier())
        elsewhere = (settings.http_listen, server_context(settings)) if settings.http_listen else None
        sites = await stack.enter_async_context(http.serving(settings.http_socket, elsewhere))
        try:
            yield Service(
                name=NAME,
                servicers=[
                    Servicer(
                        "sendense.restore.v1.RestoreService",
                        RestoreServicer(mounts),
                        restore_pb2_grpc.add_RestoreServiceServicer_to_server,
                        own_repeats=frozenset({"MountBackup"}),
                    ),
                    Servicer(
                        "sendense.restore.v1.DiskService",
                        DiskServicer(exports, served),
                        disk_pb2_grpc.add_DiskServiceServicer_to_server,
                    ),
                ],
                check=database.check,
                requests=RequestLedger(database, requests),
            )
        finally:
            with _deaf_to_signals():
                for site in sites:
                    await site.stop()
                await asyncio.gather(mounts.close(), exports.close(), served.close())


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """Lets the end go on when it is asked for twice, as Ctrl-C below a process manager does."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, log.info, "undoing mounts already")
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def main() -> None:
    """Entry point of `sendense-restore`."""
    settings = RestoreSettings()
    run(lambda: build(settings), settings, NAME)
