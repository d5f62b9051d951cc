"""Makes what qemu-storage-daemon serves equal to what is wanted, by additions and removals only.

What always holds: an export that stays as it is is not touched; one that is served and whose file is broken now
stays as last good; one that clients still use goes when they have left, or at once when that is asked for; after
the daemon's death every writable export has a higher epoch, since what was not flushed is gone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import structlog

from sendense_exports.admission import AdmissionRules, Admitted, NotAdmittedError, admit, identify
from sendense_exports.exportconf import Configuration, ExportSpec, ImageFormat
from sendense_exports.opening import close_exports, node_name, open_export, together
from sendense_exports.status import ExportState, ExportStatus
from sendense_qemu.errors import StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.monitor import MonitorLostError
from sendense_qemu.nodes import Aio, FileAccess, file_access
from sendense_qemu.storage_daemon import StorageDaemon

log = structlog.get_logger()

_NODE_NAME = re.compile(r"n[0-9a-f]{20}")


@dataclass(slots=True)
class Served:
    """An export that is served, or was when the daemon died.

    Attributes:
        spec: As it was when it was added: the last good one.
        id: The daemon's name for the export; "" while the daemon does not have it.
        size_bytes: What clients see.
        draining: It is to go, and clients are connected.
        error: Why its file's present content is not what is served.
        size_warning: How its size differs from the file's.
    """

    spec: ExportSpec
    id: str
    size_bytes: int
    draining: bool = False
    error: str = ""
    size_warning: str = ""


@dataclass(frozen=True, slots=True)
class _Judged:
    """An export that may be opened."""

    spec: ExportSpec
    admitted: Admitted
    access: FileAccess


class Serving:
    """What is served now, and how it is changed.

    Attributes:
        served: By name.
        failed: What is wanted and not served, by name.
        rules: What may be served.
    """

    # Epochs are kept by name, and for as long as a file wants the export: it may fail and come back meanwhile.

    def __init__(self, rules: AdmissionRules) -> None:
        self.rules = rules
        self.served: dict[str, Served] = {}
        self.failed: dict[str, ExportStatus] = {}
        self._epochs: dict[str, int] = {}

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
            alive = same_daemon and entry.id in running
            lost = bool(entry.id) and not alive and not entry.read_only
            self._epochs[name] = entry.epoch + lost
            if entry.id:
                self.served[name] = Served(
                    _spec_of(name, entry),
                    entry.id if alive else "",
                    entry.size_bytes,
                    size_warning=entry.size_warning,
                )
        unknown = running - {served.id for served in self.served.values()}
        for spec in configured if unknown else ():
            try:
                admitted = await asyncio.to_thread(admit, spec, self.rules)
            except NotAdmittedError:
                continue  # shown when it is applied
            if admitted.id in unknown and spec.name not in self.served:
                unknown.discard(admitted.id)
                self.served[spec.name] = Served(
                    spec, admitted.id, admitted.size_bytes, size_warning=admitted.size_warning
                )
        if unknown:
            log.warning("cutting off exports that nothing explains", export_ids=sorted(unknown))
            await close_exports(daemon, dict.fromkeys(unknown, True))
        await self._drop_orphans(daemon)

    async def _drop_orphans(self, daemon: StorageDaemon) -> None:
        """Closes images that were opened for an export which then was not made: they would stay locked."""
        used = {node_name(served.id) for served in self.served.values() if served.id}
        for name in sorted(await daemon.node_names() - used):
            if _NODE_NAME.fullmatch(name):
                await daemon.remove_node(name)

    def forget_daemon(self) -> None:
        """Notes that the daemon is dead: nothing is served, and writable exports are in a new epoch."""
        for name, served in list(self.served.items()):
            if served.draining:
                del self.served[name]  # its clients are gone with the daemon
                continue
            served.id = ""
            if not served.spec.read_only:
                self._epochs[name] = self._epoch(name) + 1

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
        await self._remove(daemon, [name for name in self.served if name not in target], force)
        await self._bring_up(daemon, target, force)
        self._note_problems(wanted)
        self._epochs = {name: self._epochs[name] for name in self._epochs if name in target or name in self.served}

    def _epoch(self, name: str) -> int:
        return self._epochs.get(name, 1)

    def _target(self, wanted: Configuration) -> dict[str, ExportSpec]:
        target: dict[str, ExportSpec] = {}
        for name, served in self.served.items():
            problem = wanted.problem_of(name, served.spec.file)
            served.error = problem.message if problem is not None and name not in wanted.exports else ""
            if served.error and not served.draining:
                target[name] = served.spec
        return target | wanted.exports

    async def _bring_up(self, daemon: StorageDaemon, target: dict[str, ExportSpec], force: Collection[str]) -> None:
        judged = await asyncio.to_thread(self._judge, target.values(), daemon.aio)
        changed = [each for each in judged if (served := self.served.get(each.spec.name)) is not None and served.id]
        await self._remove(daemon, [each.spec.name for each in changed], force)
        ready = []
        for each in judged:
            served = self.served.get(each.spec.name)
            if served is not None and served.id:
                served.error = "waits for its clients to leave before it is changed"
            else:
                ready.append(each)
        await together([self._open(daemon, each) for each in ready])

    def _judge(self, specs: Iterable[ExportSpec], aio: Aio) -> list[_Judged]:
        """Returns what is to be opened: new, or another than is served; blocks while it reads headers."""
        judged = []
        for spec in specs:
            served = self.served.get(spec.name)
            try:
                if served is not None and served.id and served.id == identify(spec):
                    served.draining = False
                    served.spec = spec
                    continue
                admitted = admit(spec, self.rules)
                judged.append(_Judged(spec, admitted, file_access(admitted.chain[0], aio)))
            except (NotAdmittedError, OSError) as error:
                if served is not None and served.id:
                    served.error = str(error)
                else:
                    self._fail(spec, str(error))
        return judged

    async def _open(self, daemon: StorageDaemon, judged: _Judged) -> None:
        spec, admitted = judged.spec, judged.admitted
        served = self.served.get(spec.name)
        try:
            await open_export(daemon, spec, admitted, judged.access)
        except (StorageDaemonGoneError, MonitorLostError):
            raise
        except (StorageDaemonError, OSError) as error:
            is_locked = isinstance(error, StorageDaemonError) and error.is_locked
            self._fail(spec, self._explain(spec, error), busy=is_locked)
            return
        kept = served.error if served is not None and served.spec is spec else ""
        self.served[spec.name] = Served(
            spec, admitted.id, admitted.size_bytes, error=kept, size_warning=admitted.size_warning
        )
        if admitted.size_warning:
            log.warning(
                "the size is not the file's", export=spec.name, path=str(spec.path), found=admitted.size_warning
            )
        log.info("serving", export=spec.name, path=str(spec.path), format=spec.format, epoch=self._epoch(spec.name))

    async def _remove(self, daemon: StorageDaemon, names: Sequence[str], force: Collection[str]) -> None:
        """Removes exports; those that clients still use, and that are not forced, drain."""
        ids = {served.id: name in force for name in names if (served := self.served[name]).id}
        left = await close_exports(daemon, ids) if ids else {}
        for name in names:
            served = self.served[name]
            if served.id in left:
                if not served.draining:
                    log.info("waiting for clients to leave", export=name, daemon=left[served.id])
                served.draining = True
            else:
                del self.served[name]
                log.info("removed", export=name, forced=name in force)

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
        epoch = self._epoch(spec.name)
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
                    served.spec,
                    "draining" if served.draining else "serving",
                    epoch=self._epoch(name),
                    error=served.error,
                ),
                id=served.id,
                size_bytes=served.size_bytes,
                size_warning=served.size_warning,
            )
            for name, served in self.served.items()
            if served.id
        }
        return dict(sorted((self.failed | shown).items()))


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
