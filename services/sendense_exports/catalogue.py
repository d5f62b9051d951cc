"""The use cases of the exports service: create, get, list, delete, reload.

What always holds: the row is written before the conf file and marked deleted after nbdd has let go, so a crash between
leaves a row that the next start (`recover`) or the next call makes true again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import structlog

from sendense_db.columns import utc_now
from sendense_exports.admission import AdmissionRules, NotAdmittedError, PathNotAdmittedError, admit
from sendense_exports.errors import (
    ExportBusyError,
    ExportFailedError,
    ExportNotFoundError,
    ImageBusyError,
    ImageRefusedError,
    NbddDownError,
    PathRefusedError,
)
from sendense_exports.exportconf import ExportSpec, ImageFormat, write_export
from sendense_exports.nbdd_link import NbddLink
from sendense_exports.status import ExportStatus, replace_file
from sendense_exports.store import ExportRow, ExportStore, Holder
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

FORCED_SECONDS = 10.0
"""How long a removal may take after its clients were cut off."""


@dataclass(frozen=True, slots=True)
class Export:
    """An export as callers see it: the catalogue's row with nbdd's word on it.

    Attributes:
        name: NBD export name.
        row: The catalogue's row; None for one that was configured by hand.
        live: nbdd's word; None while it has none.
        socket_path: Where the daemon listens.
    """

    name: str
    row: ExportRow | None
    live: ExportStatus | None
    socket_path: str


class Catalogue:
    """The exports of this machine."""

    def __init__(self, store: ExportStore, link: NbddLink, rules: AdmissionRules, socket_path: Path) -> None:
        self._store = store
        self._link = link
        self._rules = rules
        self._socket_path = str(socket_path)

    async def create(
        self,
        name: str,
        path: str,
        fmt: ImageFormat,
        *,
        kind: Literal["file", "block"],
        read_only: bool,
        holder: Holder,
        agent_id: str,
    ) -> Export:
        """Serves an image or a device; the same call for the same attempt gives the same export.

        Raises:
            PathRefusedError, ImageRefusedError: It may not be served; nothing was changed.
            StaleAttemptError, ExportExistsError, ImageBusyError: Somebody else was there; nothing was changed.
            NbddDownError: Nothing was changed.
            NbddTimeoutError, NbddConfigError: It may still come: delete it, or ask again.
            ExportFailedError: nbdd could not serve it; it was taken back.
        """
        spec = await self._admitted(name, path, fmt, kind=kind, read_only=read_only)
        await self._link.require_running()
        wanted = ExportRow(name, kind, str(spec.path), fmt, read_only, holder, agent_id, utc_now())
        row = await self._store.add(wanted)
        status = await self._link.write(spec)
        live = status.exports.get(name)
        if live is None or live.state != "serving" or live.error:
            problem = live.error if live is not None else "nbdd does not name it"
            if row is wanted:  # else it was there before this call, and is not this call's to remove
                await self._take_back(name)
            if "is being written" in problem or "is being read" in problem or "is in use" in problem:
                raise ImageBusyError(str(spec.path), problem)
            raise ExportFailedError(name, problem)
        return Export(name, row, live, self._socket_path)

    async def get(self, name: str) -> Export:
        """Returns one export with its live state.

        Raises:
            ExportNotFoundError: Neither the catalogue nor nbdd knows it.
        """
        row = await self._store.get(name)
        live = (await self._live()).get(name)
        if row is None and live is None:
            raise ExportNotFoundError(name)
        return Export(name, row, live, self._socket_path)

    async def list(self, limit: int, after: str) -> list[Export]:
        """Returns exports by name, those that were configured by hand too.

        Args:
            limit: The most to return.
            after: Only names behind this one.
        """
        rows = {row.name: row for row in await self._store.living()}
        live = await self._live()
        names = sorted(name for name in rows.keys() | live.keys() if name > after)[:limit]
        return [Export(name, rows.get(name), live.get(name), self._socket_path) for name in names]

    async def delete(self, name: str, holder: Holder, *, wait_seconds: float, force: bool) -> None:
        """Stops serving; no error when there is no such export.

        Args:
            name: The export.
            holder: Who asks.
            wait_seconds: How long clients may take to leave.
            force: Cut them off then; otherwise the export stays.

        Raises:
            StaleAttemptError, ExportHeldError: The caller may not.
            ExportBusyError: Clients are connected; the export is served as before.
            NbddDownError, NbddTimeoutError, NbddConfigError: It may still be served: ask again.
        """
        row = await self._store.claim_removal(name, holder)
        if row is None:
            return
        await self._link.remove(name)
        if not await self._link.wait_gone(name, wait_seconds):
            if force:
                await self._link.force(name)
            if not force or not await self._link.wait_gone(name, FORCED_SECONDS):
                await self._link.write(_spec_of(row, self._link.conf_file(name)))
                raise ExportBusyError(name, wait_seconds)
        await self._store.mark_deleted(name)
        log.info("export deleted", export=name, holder=holder.job_id, forced=force)

    async def reload(self) -> int:
        """Makes nbdd read its configuration again.

        Returns:
            The applied generation.

        Raises:
            NbddDownError, NbddTimeoutError, NbddConfigError: It was not applied.
        """
        return (await self._link.reload()).generation

    async def recover(self) -> None:
        """Makes conf files agree with the catalogue after a crash; files that it does not know are left alone.

        Raises:
            OSError: They cannot be written.
        """
        changed = 0
        for row in await self._store.living():
            changed += await asyncio.to_thread(self._ensure_conf, row)
        for name in await self._store.deleted_names():
            changed += await asyncio.to_thread(self._ensure_no_conf, name)
        if changed:
            log.info("conf files made to agree with the catalogue", changed=changed)
            # one that starts later reads them anyway
            with contextlib.suppress(NbddDownError):
                await self._link.reload()

    async def check(self) -> None:
        """Looks whether exports can be made.

        Raises:
            SendenseError, OSError: They cannot, and why.
        """
        await self._store.check()
        await self._link.require_running()

    async def _live(self) -> Mapping[str, ExportStatus]:
        status = await self._link.status()
        return status.exports if status is not None else {}

    async def _admitted(
        self, name: str, path: str, fmt: ImageFormat, *, kind: Literal["file", "block"], read_only: bool
    ) -> ExportSpec:
        given = Path(path)
        if not given.is_absolute() or ".." in given.parts:
            raise PathRefusedError(path, "is not an absolute path without '..'")
        real = await asyncio.to_thread(given.resolve)
        is_device = await asyncio.to_thread(real.is_block_device)
        if is_device != (kind == "block"):
            raise PathRefusedError(path, "is a block device" if is_device else "is not a block device")
        conf_file = self._link.conf_file(name)
        spec = ExportSpec(name, real, fmt, read_only, trim=False, size_bytes=None, file=conf_file, line=1)
        try:
            await asyncio.to_thread(admit, spec, self._rules)
            write_export(spec)
        except PathNotAdmittedError as error:
            raise PathRefusedError(path, str(error)) from error
        except NotAdmittedError as error:
            raise ImageRefusedError(path, str(error)) from error
        except ValueError as error:
            raise PathRefusedError(path, str(error)) from error
        return spec

    async def _take_back(self, name: str) -> None:
        try:
            await self._link.remove(name)
        except SendenseError as error:
            log.warning("a failed export could not be taken back yet", export=name, error=str(error))
            return  # the row lives, so its holder's delete finds it
        await self._store.mark_deleted(name)

    def _ensure_conf(self, row: ExportRow) -> int:
        file = self._link.conf_file(row.name)
        if file.exists():
            return 0
        replace_file(file, write_export(_spec_of(row, file)))
        return 1

    def _ensure_no_conf(self, name: str) -> int:
        file = self._link.conf_file(name)
        if not file.exists():
            return 0
        file.unlink()
        return 1


def _spec_of(row: ExportRow, conf_file: Path) -> ExportSpec:
    return ExportSpec(
        name=row.name,
        path=Path(row.path),
        format=cast("ImageFormat", row.format),
        read_only=row.read_only,
        trim=False,
        size_bytes=None,
        file=conf_file,
        line=1,
    )
