"""The use cases of the exports service: create, get, list, delete, reload, and the sweeping of expired leases.

What always holds: the row is written before the conf file and marked deleted after nbdd has let go, so a crash between
leaves a row that the next start (`recover`) or the next call makes true again; what changes one export is done one
after the other; files that people wrote are neither replaced nor removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import structlog

from sendense_db.columns import utc_now
from sendense_exports.errors import (
    ExportBusyError,
    ExportExistsError,
    ExportFailedError,
    ExportNotFoundError,
    ImageBusyError,
    NbddDownError,
    PathRefusedError,
)
from sendense_exports.exportconf import ExportSpec, ImageFormat, write_export
from sendense_exports.intake import Kind, Wanted, judge
from sendense_exports.nbdd_link import NbddLink
from sendense_exports.roots import Roots
from sendense_exports.status import ExportStatus, Status, replace_file
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
    """The exports of this machine.

    Args:
        store: The tables.
        link: nbdd.
        roots: Below which directories images may lie.
        socket_path: Where the daemon listens.
        lease: How long an export stays without its holder's or a client's being seen.
    """

    def __init__(self, store: ExportStore, link: NbddLink, roots: Roots, socket_path: Path, lease: timedelta) -> None:
        self._store = store
        self._link = link
        self._roots = roots
        self._socket_path = str(socket_path)
        self._lease = lease
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self,
        name: str,
        path: str,
        fmt: ImageFormat,
        *,
        kind: Kind,
        read_only: bool,
        holder: Holder,
        agent_id: str,
    ) -> Export:
        """Serves an image or a device; the same call for the same attempt renews the lease of the same export.

        Raises:
            PathRefusedError, ImageRefusedError: It may not be served; nothing was changed.
            StaleAttemptError, ExportExistsError, ImageBusyError: Somebody else was there; nothing was changed.
            NbddDownError: Nothing was changed.
            NbddTimeoutError, NbddConfigError: It may still come: delete it, or ask again.
            ExportFailedError: nbdd could not serve it; it was taken back.
        """
        conf_file = self._link.conf_file(name)
        try:
            wanted = await self._judge(name, path, fmt, kind, conf_file, read_only=read_only)
        except PathRefusedError:
            if not await self._roots.learn():
                raise
            wanted = await self._judge(name, path, fmt, kind, conf_file, read_only=read_only)
        await self._link.require_running()
        now = utc_now()
        row = ExportRow(
            name, kind, str(wanted.spec.path), fmt, read_only, holder, agent_id, now, lease_until=now + self._lease
        )
        async with self._alone(name):
            await self._require_not_by_hand(name)
            row, is_new = await self._store.add(row)
            status = await self._link.write(wanted.spec)
            problem = _problem(status, wanted.spec, wanted.size_bytes)
            if problem and is_new:  # else it was there before this call, and is not this call's to remove
                await self._take_back(name)
        live = status.exports.get(name)
        if problem:
            if live is not None and live.busy:
                raise ImageBusyError(str(wanted.spec.path), problem)
            raise ExportFailedError(name, problem)
        return Export(name, row, live, self._socket_path)

    async def _judge(
        self, name: str, path: str, fmt: ImageFormat, kind: Kind, conf_file: Path, *, read_only: bool
    ) -> Wanted:
        rules = await self._roots.rules()
        return await judge(name, path, fmt, kind=kind, read_only=read_only, conf_file=conf_file, rules=rules)

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
        async with self._alone(name):
            row = await self._store.claim_removal(name, holder)
            if row is None:
                return
            await self._stop(row, wait_seconds=wait_seconds, force=force)
        log.info("export deleted", export=name, holder=holder.job_id, forced=force)

    async def reload(self) -> int:
        """Makes nbdd read its configuration again.

        Returns:
            The applied generation.

        Raises:
            NbddDownError, NbddTimeoutError, NbddConfigError: It was not applied.
        """
        return (await self._link.reload()).generation

    async def sweep(self) -> frozenset[str]:
        """Removes the exports whose lease has run out, except those that are in use.

        In use is what has clients, which qemu says by refusing the removal, and an image that was written to within
        the time of a lease. Both get a new lease from then. So a copy may last as long as it likes, and a holder that
        never comes back loses its export one lease after the last sign of life.

        Returns:
            The names of the removed exports.

        Raises:
            SendenseError, OSError: nbdd or the catalogue cannot be asked; what was removed before stays removed.
        """
        removed = set()
        for row in await self._store.expired(utc_now()):
            async with self._alone(row.name):
                if await self._sweep_one(row.name):
                    removed.add(row.name)
        return frozenset(removed)

    async def recover(self) -> None:
        """Makes conf files agree with the catalogue after a crash; files that it does not know are left alone.

        While the service was down nobody could renew a lease, so every lease begins anew.

        Raises:
            OSError: They cannot be written.
        """
        await self._store.extend_all(utc_now() + self._lease)
        changed = 0
        for row in await self._store.living():
            changed += await asyncio.to_thread(self._ensure_conf, row)
        for row in await self._store.deleted(await asyncio.to_thread(self._link.configured_names)):
            changed += await asyncio.to_thread(self._ensure_no_conf, row)
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

    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """Keeps other changes of the same export out."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            yield

    async def _live(self) -> Mapping[str, ExportStatus]:
        status = await self._link.status()
        return status.exports if status is not None else {}

    async def _require_not_by_hand(self, name: str) -> None:
        """Refuses a name that a person's conf file uses: its export is not ours to replace."""
        if await self._store.get(name) is not None:
            return
        own_file = self._link.conf_file(name)
        live = (await self._live()).get(name)
        if await asyncio.to_thread(own_file.exists):
            raise ExportExistsError(name, "", f"it is configured by hand in {own_file}")
        if live is not None and live.file != str(own_file):
            raise ExportExistsError(name, "", f"it is configured by hand in {live.file}")

    async def _stop(self, row: ExportRow, *, wait_seconds: float, force: bool) -> None:
        await self._link.remove(row.name)
        if not await self._link.wait_gone(row.name, wait_seconds):
            if force:
                await self._link.force(row.name)
            if not force or not await self._link.wait_gone(row.name, FORCED_SECONDS):
                await self._link.write(_spec_of(row, self._link.conf_file(row.name)))
                raise ExportBusyError(row.name, wait_seconds)
        await self._store.mark_deleted(row.name)

    async def _sweep_one(self, name: str) -> bool:
        row = await self._store.get(name)
        now = utc_now()
        if row is None or row.lease_until >= now:
            return False  # deleted or renewed meanwhile
        written = await asyncio.to_thread(_last_written, row)
        if written is not None and written + self._lease > now:
            await self._store.extend(name, min(written, now) + self._lease)
            return False
        try:
            await self._stop(row, wait_seconds=0, force=False)
        except ExportBusyError:
            await self._store.extend(name, now + self._lease)
            return False
        log.warning("lease ran out; export removed", export=name, holder=row.holder.job_id, path=row.path)
        return True

    async def _take_back(self, name: str) -> None:
        try:
            await self._link.remove(name)
        except SendenseError as error:
            log.warning("a failed export could not be taken back yet", export=name, error=str(error))
            return  # the row lives, so its holder's delete or the sweeper finds it
        await self._store.mark_deleted(name, withdrawn=True)

    def _ensure_conf(self, row: ExportRow) -> int:
        file = self._link.conf_file(row.name)
        if file.exists():
            return 0
        replace_file(file, write_export(_spec_of(row, file)))
        return 1

    def _ensure_no_conf(self, row: ExportRow) -> int:
        """Removes a file that this service wrote; one that a person wrote since under that name stays."""
        file = self._link.conf_file(row.name)
        if file.read_text("utf-8", "replace") != write_export(_spec_of(row, file)):
            return 0
        file.unlink()
        return 1


def _problem(status: Status, spec: ExportSpec, size_bytes: int) -> str:
    """Returns why nbdd does not serve what was asked for; "" when it does."""
    live = status.exports.get(spec.name)
    if live is None:
        return "nbdd does not name it"
    if live.file != str(spec.file):
        return f"{live.file} has that name already"
    if live.state != "serving" or live.error:
        return live.error or f"it is {live.state}"
    if live.size_bytes != size_bytes:
        return f"{live.size_bytes} bytes are served, but qemu-img says {size_bytes}"
    return ""


def _last_written(row: ExportRow) -> datetime | None:
    """When a served image was written to last; None for what is not written to, or is gone."""
    if row.read_only or row.kind != "file":
        return None
    try:
        return datetime.fromtimestamp(Path(row.path).stat().st_mtime, UTC)
    except OSError:
        return None


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
