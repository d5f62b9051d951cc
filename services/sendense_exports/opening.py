"""Opens and closes exports in a qemu-storage-daemon, several at a time: most of a command's time is spent waiting.

What always holds: an export that cannot be made leaves no open image behind (it would stay locked); an image is closed
only after its export is gone; the first command of each opening, which takes the image's lock, is sent in the order
given, so of two that want one image the first has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from sendense_exports.admission import Admitted
from sendense_exports.exportconf import ExportSpec
from sendense_qemu.cut_off import wake_cut_off_writers
from sendense_qemu.errors import StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.monitor import MonitorLostError
from sendense_qemu.nodes import FileAccess, qcow2_node, raw_node, refuse_discard
from sendense_qemu.storage_daemon import StorageDaemon

CLOSE_SECONDS = 5.0
"""How long a removed export may take to finish the requests that are in flight."""

WAKE_SECONDS = 0.3
"""How long clients that were cut off may hold an export before it is looked whether they take no answers."""

CACHE_BYTES = 8 << 20
"""For one export's L2 tables: with it 200 exports of large disks take 1.6 GiB at most, below the daemon's limit."""

_POLL_SECONDS = 0.005
_AT_ONCE = 16

_Result = TypeVar("_Result")

log = structlog.get_logger()


def node_name(export_id: str) -> str:
    """Returns the name of an export's image among the daemon's nodes."""
    return "n" + export_id[1:]


async def together(calls: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Runs calls, a few at a time, begun in order.

    Returns:
        What they return, in order.

    Raises:
        BaseException: What the first of them raised, after all have ended.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Coroutine[Any, Any, _Result]) -> _Result:
        async with slots:
            return await call

    results = await asyncio.gather(*map(one, calls), return_exceptions=True)
    done: list[_Result] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done


async def open_export(daemon: StorageDaemon, spec: ExportSpec, admitted: Admitted, access: FileAccess) -> None:
    """Opens an image and serves it.

    Raises:
        StorageDaemonError: The daemon refuses; nothing is left behind.
        StorageDaemonGoneError, MonitorLostError: What it has now is not known.
        OSError: The image cannot be looked at.
    """
    node = node_name(admitted.id)
    if spec.format == "qcow2":
        image = qcow2_node(
            node, admitted.chain, access, read_only=spec.read_only, cache_bytes=CACHE_BYTES, preallocate=True
        )
        if not spec.read_only:
            image = refuse_discard(image)
    else:
        image = raw_node(
            node,
            admitted.chain[0],
            access,
            read_only=spec.read_only,
            discard="unmap" if spec.trim else "ignore",
            size_bytes=spec.size_bytes,
        )
    await daemon.add_node(image)
    try:
        await daemon.add_nbd_export(admitted.id, node, spec.name, writable=not spec.read_only)
    except (StorageDaemonGoneError, MonitorLostError):
        raise
    except StorageDaemonError:
        await daemon.remove_node(node)
        raise


async def close_exports(daemon: StorageDaemon, wanted: Mapping[str, bool]) -> dict[str, str]:
    """Stops serving, and closes the images of what is served no more.

    Args:
        daemon: The daemon.
        wanted: Ids of exports, each with whether its clients are to be cut off.

    Returns:
        The exports that are still there, and why: clients use them, or their requests are not finished after 5 s.

    Raises:
        StorageDaemonGoneError, MonitorLostError: What the daemon has now is not known.
        StorageDaemonError: An image cannot be closed.
    """
    there = {export.id: export for export in await daemon.list_exports()}
    asked = [export_id for export_id in wanted if export_id in there and not there[export_id].shutting_down]
    answers = await together([_request(daemon, export_id, hard=wanted[export_id]) for export_id in asked])
    left = {export_id: why for export_id, why in zip(asked, answers, strict=True) if why}
    going = wanted.keys() - left.keys()
    loop = asyncio.get_running_loop()
    began = loop.time()
    wake_at = began + WAKE_SECONDS
    while slow := going & {export.id for export in await daemon.list_exports()}:
        if loop.time() > began + CLOSE_SECONDS:
            left |= dict.fromkeys(slow, "its requests are not finished")
            break
        if loop.time() > wake_at and any(wanted[export_id] for export_id in slow):
            await _wake(daemon)
            wake_at += WAKE_SECONDS
        await asyncio.sleep(_POLL_SECONDS)
    await together([daemon.remove_node(node_name(export_id)) for export_id in wanted if export_id not in left])
    return left


async def _wake(daemon: StorageDaemon) -> None:
    """Ends answers that clients who were cut off never took."""
    try:
        woken = await asyncio.to_thread(wake_cut_off_writers, daemon.pid)
    except OSError as error:
        log.warning("clients that take no answers hold an export until they leave", error=str(error))
    else:
        log.info("woke writers to clients that were cut off", connections=woken)


async def _request(daemon: StorageDaemon, export_id: str, *, hard: bool) -> str:
    """Asks for an export's end; returns why the daemon refuses."""
    try:
        await daemon.remove_export(export_id, mode="hard" if hard else "safe")
    except (StorageDaemonGoneError, MonitorLostError):
        raise
    except StorageDaemonError as error:
        return str(error)
    return ""
