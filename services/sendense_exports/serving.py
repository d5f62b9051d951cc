"""Makes what qemu-storage-daemon serves equal to what is wanted, by additions and removals only.

What always holds: an export that stays as it is is not touched; one that is served and whose file is broken now
stays as last good; one that clients still use goes when they have left, or at once when that is asked for; after
the daemon's death every writable export has a higher epoch, since what was not flushed is gone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import structlog

from sendense_exports.admission import AdmissionRules, Admitted, NotAdmittedError, admit, identify
from sendense_exports.exportconf import Configuration, ExportSpec, ImageFormat
from sendense_exports.status import ExportState, ExportStatus
from sendense_qemu.errors import StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.monitor import MonitorLostError
from sendense_qemu.nodes import FILTER_SUFFIX, file_access, qcow2_node, raw_node, refuse_discard
from sendense_qemu.storage_daemon import StorageDaemon

log = structlog.get_logger()

CLOSE_SECONDS = 5.0
"""How long a removed export may take to finish the requests that are in flight."""

_POLL_SECONDS = 0.005
_NODE_NAME = re.compile(r"n[0-9a-f]{20}(\.f)?")


@dataclass(slots=True)
class Served:
    """An export that is served, or was when the daemon died.

    Attributes:
        spec: As it was when it was added: the last good one.
        id: The daemon's name for the export; "" while the daemon does not have it.
        size_bytes: What clients see.
        epoch: From 1; raised when the daemon dies under a writable export.
        draining: It is to go, and clients are connected.
        error: Why its file's present content is not what is served.
        size_warning: How its size differs from the file's.
    """

    spec: ExportSpec
    id: str
    size_bytes: int
    epoch: int
    draining: bool = False
    error: str = ""
    size_warning: str = ""


class Serving:
    """What is served now, and how it is changed.

    Attributes:
        served: By name.
        failed: What is wanted and not served, by name.
    """

    def __init__(self, rules: AdmissionRules) -> None:
        self._rules = rules
        self.served: dict[str, Served] = {}
        self.failed: dict[str, ExportStatus] = {}

    async def take_up(
        self,
        daemon: StorageDaemon,
        configured: Collection[ExportSpec],
        known: dict[str, ExportStatus],
        *,
        same_daemon: bool,
    ) -> None:
        """Learns what a daemon serves already, from the configuration and from the last status file.

        Exports that neither explains are cut off: nobody knows what they are.

        Args:
            daemon: The daemon.
            configured: What the files want now.
            known: The exports of the last status file.
            same_daemon: Whether that file was written about this daemon; if not, its exports get a new epoch.

        Raises:
            StorageDaemonError: The daemon refuses.
        """
        running = {export.id for export in await daemon.list_exports()}
        self.served = {}
        for name, entry in known.items():
            if not entry.id and entry.epoch == 1:
                continue  # it never was served
            alive = same_daemon and entry.id in running
            epoch = entry.epoch if alive or entry.read_only or not entry.id else entry.epoch + 1
            self.served[name] = Served(
                _spec_of(name, entry),
                entry.id if alive else "",
                entry.size_bytes,
                epoch,
                size_warning=entry.size_warning,
            )
        unknown = running - {served.id for served in self.served.values()}
        for spec in configured if unknown else ():
            try:
                admitted = await asyncio.to_thread(admit, spec, self._rules)
            except NotAdmittedError:
                continue  # shown when it is applied
            if admitted.id in unknown and spec.name not in self.served:
                unknown.discard(admitted.id)
                self.served[spec.name] = Served(
                    spec, admitted.id, admitted.size_bytes, 1, size_warning=admitted.size_warning
                )
        for export_id in unknown:
            log.warning("cutting off an export that nothing explains", export_id=export_id)
            await self._close(daemon, export_id, hard=True)
        await self._drop_orphans(daemon)

    async def _drop_orphans(self, daemon: StorageDaemon) -> None:
        """Closes images that were opened for an export which then was not made: they would stay locked."""
        used = {_node_name(served.id) for served in self.served.values() if served.id}
        names = sorted(await daemon.node_names(), key=len, reverse=True)  # filters before their images
        for name in names:
            if _NODE_NAME.fullmatch(name) and name.removesuffix(FILTER_SUFFIX) not in used:
                await daemon.remove_node(name)

    def forget_daemon(self) -> None:
        """Notes that the daemon is dead: nothing is served, and writable exports are in a new epoch."""
        for name, served in list(self.served.items()):
            if served.draining:
                del self.served[name]  # its clients are gone with the daemon
                continue
            served.id = ""
            if not served.spec.read_only:
                served.epoch += 1

    async def apply(self, daemon: StorageDaemon, wanted: Configuration, force: Collection[str] = ()) -> None:
        """Adds and removes exports until the daemon serves what is wanted.

        Args:
            daemon: The running daemon.
            wanted: The configuration.
            force: Names of exports that are removed though clients use them.

        Raises:
            StorageDaemonGoneError: The daemon died meanwhile.
            MonitorLostError: Its connection broke, so what it serves must be asked again (`take_up`).
        """
        target = self._target(wanted)
        self.failed = {}
        for name in [name for name in self.served if name not in target]:
            await self._remove(daemon, name, hard=name in force)
        for name, spec in target.items():
            await self._bring_up(daemon, name, spec, hard=name in force)
        self._note_problems(wanted)

    @property
    def is_unsettled(self) -> bool:
        """Whether trying again later may change something without a new configuration."""
        return bool(self.failed) or any(served.draining for served in self.served.values())

    def _target(self, wanted: Configuration) -> dict[str, ExportSpec]:
        target: dict[str, ExportSpec] = {}
        for name, served in self.served.items():
            problem = wanted.problem_of(name, served.spec.file)
            served.error = problem.message if problem is not None and name not in wanted.exports else ""
            if served.error and not served.draining:
                target[name] = served.spec
        return target | wanted.exports

    async def _bring_up(self, daemon: StorageDaemon, name: str, spec: ExportSpec, *, hard: bool) -> None:
        served = self.served.get(name)
        try:
            if served is not None and served.id == await asyncio.to_thread(identify, spec):
                served.draining = False
                served.spec = spec
                return
            admitted = await asyncio.to_thread(admit, spec, self._rules)
        except NotAdmittedError as error:
            if served is not None and served.id:
                served.error = str(error)
            else:
                self._fail(spec, str(error))
            return
        if served is not None and served.id:
            await self._remove(daemon, name, hard=hard)
            if name in self.served:
                self.served[name].error = "waits for its clients to leave before it is changed"
                return
        try:
            await self._open(daemon, spec, admitted)
        except (StorageDaemonGoneError, MonitorLostError):
            raise
        except (StorageDaemonError, OSError) as error:
            is_locked = isinstance(error, StorageDaemonError) and error.is_locked
            self._fail(spec, self._explain(spec, error), busy=is_locked)
            return
        epoch = served.epoch if served is not None else 1
        kept = served.error if served is not None and served.spec is spec else ""
        self.served[name] = Served(
            spec, admitted.id, admitted.size_bytes, epoch, error=kept, size_warning=admitted.size_warning
        )
        if admitted.size_warning:
            log.warning("the size is not the file's", export=name, path=str(spec.path), found=admitted.size_warning)
        log.info("serving", export=name, path=str(spec.path), format=spec.format, epoch=epoch)

    async def _open(self, daemon: StorageDaemon, spec: ExportSpec, admitted: Admitted) -> None:
        node = _node_name(admitted.id)
        access = await asyncio.to_thread(file_access, admitted.chain[0], daemon.aio)
        top = node
        added: list[str] = []
        try:
            if spec.format == "qcow2":
                await daemon.add_node(qcow2_node(node, admitted.chain, access, read_only=spec.read_only))
                added.append(node)
                if not spec.read_only:
                    top = node + FILTER_SUFFIX
                    await daemon.add_node(refuse_discard(top, node))
                    added.append(top)
            else:
                described = raw_node(
                    node,
                    admitted.chain[0],
                    access,
                    read_only=spec.read_only,
                    discard="unmap" if spec.trim else "ignore",
                    size_bytes=spec.size_bytes,
                )
                await daemon.add_node(described)
                added.append(node)
            await daemon.add_nbd_export(admitted.id, top, spec.name, writable=not spec.read_only)
        except (StorageDaemonGoneError, MonitorLostError):
            raise
        except StorageDaemonError:
            for name in reversed(added):
                await daemon.remove_node(name)
            raise

    async def _remove(self, daemon: StorageDaemon, name: str, *, hard: bool) -> None:
        served = self.served[name]
        if served.id:
            try:
                closed = await self._close(daemon, served.id, hard=hard)
            except (StorageDaemonGoneError, MonitorLostError):
                raise
            except StorageDaemonError as error:
                if not served.draining:
                    log.info("waiting for clients to leave", export=name, daemon=str(error))
                served.draining = True
                return
            if not closed:
                served.draining = True
                return
        del self.served[name]
        log.info("removed", export=name, forced=hard)

    async def _close(self, daemon: StorageDaemon, export_id: str, *, hard: bool) -> bool:
        """Removes an export and its nodes; False when its requests are not finished after 5 s.

        Raises:
            StorageDaemonError: Clients use it, and `hard` is not set.
        """
        exports = {export.id: export for export in await daemon.list_exports()}
        if export_id in exports and not exports[export_id].shutting_down:
            await daemon.remove_export(export_id, mode="hard" if hard else "safe")
        deadline = asyncio.get_running_loop().time() + CLOSE_SECONDS
        while any(export.id == export_id for export in await daemon.list_exports()):
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        node = _node_name(export_id)
        names = await daemon.node_names()
        for each in (node + FILTER_SUFFIX, node):
            if each in names:
                await daemon.remove_node(each)
        return True

    def _explain(self, spec: ExportSpec, error: Exception) -> str:
        """Names the export that holds an image, which the daemon's message about a lock does not."""
        if isinstance(error, StorageDaemonError) and error.is_locked:
            for name, served in self.served.items():
                if served.spec.path == spec.path and served.id:
                    how = "read" if served.spec.read_only else "written"
                    return f"{spec.path} is being {how} through the export {name}"
            return f"{spec.path} is in use by another process: {error.detail}"
        return str(error)

    def _fail(self, spec: ExportSpec, error: str, *, busy: bool = False) -> None:
        served = self.served.get(spec.name)
        epoch = served.epoch if served else 1
        self.failed[spec.name] = replace(_status_of(spec, "error", epoch=epoch, error=error), busy=busy)

    def _note_problems(self, wanted: Configuration) -> None:
        for problem in wanted.problems:
            name = problem.name
            if name is None or name in self.served or name in self.failed or name in wanted.exports:
                continue
            self.failed[name] = ExportStatus(
                state="error",
                size_bytes=0,
                format="",
                read_only=True,
                path="",
                epoch=1,
                error=problem.message,
                file=str(problem.file),
                line=problem.line,
            )

    def status(self) -> dict[str, ExportStatus]:
        """Returns every export's state, by name."""
        shown = {
            name: replace(
                _status_of(
                    served.spec, "draining" if served.draining else "serving", epoch=served.epoch, error=served.error
                ),
                id=served.id,
                size_bytes=served.size_bytes,
                size_warning=served.size_warning,
            )
            for name, served in self.served.items()
            if served.id
        }
        return dict(sorted((self.failed | shown).items()))


def _node_name(export_id: str) -> str:
    return "n" + export_id[1:]


def _spec_of(name: str, entry: ExportStatus) -> ExportSpec:
    return ExportSpec(
        name=name,
        path=Path(entry.path),
        format=cast("ImageFormat", entry.format),
        read_only=entry.read_only,
        trim=entry.trim,
        size_bytes=entry.limit_bytes,
        file=Path(entry.file),
        line=entry.line,
        warnings=entry.warnings,
    )


def _status_of(spec: ExportSpec, state: ExportState, *, epoch: int, error: str) -> ExportStatus:
    return ExportStatus(
        state=state,
        size_bytes=0,
        format=spec.format,
        read_only=spec.read_only,
        path=str(spec.path),
        epoch=epoch,
        error=error,
        file=str(spec.file),
        line=spec.line,
        trim=spec.trim,
        limit_bytes=spec.size_bytes,
        warnings=spec.warnings,
    )
