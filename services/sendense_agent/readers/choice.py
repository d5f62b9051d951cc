"""Which reader reads a disk: the one that was asked for, or the first that is installed, suits and has read a sector.

Nothing is assumed: a reader is used once it runs, tells the disk's size and has delivered its first sector, right after
the snapshot was made (cbt-facts 16). One that cannot is passed over with a line in the log; when none can, the error
says for each of them why.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from sendense_agent.errors import ReaderUnsuitable
from sendense_agent.readers.description import ReaderDescription, ReaderKind, describe
from sendense_agent.readers.nbdkit import Reader, running_reader
from sendense_agent.readers.source import DiskSource

log = structlog.get_logger()

AUTOMATIC = "auto"
DUMP_SECONDS = 20.0


@dataclass(frozen=True)
class ReaderChoice:
    """What an administrator chose.

    Attributes:
        kinds: All kinds, with their settings, in the order in which they are tried.
        default: Name of a kind, or `auto`.
        of_vm: For single VMs, by name or instance uuid: name of a kind, or `auto`.
    """

    kinds: Sequence[ReaderKind]
    default: str = AUTOMATIC
    of_vm: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, source: DiskSource) -> str:
        """Returns what was chosen for a disk's VM."""
        place = source.place
        return self.of_vm.get(place.vm_uuid) or self.of_vm.get(place.vm_name) or self.default


@dataclass(frozen=True)
class OpenReader:
    """A reader that has delivered.

    Attributes:
        description: What it is.
        process: The running process.
    """

    description: ReaderDescription
    process: Reader


class Readers:
    """Starts readers.

    Args:
        choice: What was chosen.
        directory: Private directory for their files.
    """

    def __init__(self, choice: ReaderChoice, directory: Path) -> None:
        self._choice = choice
        self._directory = directory

    @contextlib.asynccontextmanager
    async def open(self, source: DiskSource, check_account: Callable[[], Awaitable[None]]) -> AsyncIterator[OpenReader]:
        """Starts the reader for a disk and yields it; it is gone after the block.

        Args:
            source: The disk.
            check_account: Raises when the server refuses certificate or account. Asked when a reader failed: plugins
                tell neither apart (VMware's library calls another certificate "Unknown error").

        Raises:
            ReaderUnsuitable: None can read it; the message says for each of them why.
        """
        refusals: list[ReaderUnsuitable] = []
        async with contextlib.AsyncExitStack() as stack:
            for kind in await self._candidates(source, refusals):
                try:
                    opened = await stack.enter_async_context(self._try(kind, source))
                except ReaderUnsuitable as refusal:
                    await check_account()
                    log.warning("a reader was passed over", reader=kind.name, disk=str(source.disk), why=str(refusal))
                    refusals.append(refusal)
                else:
                    log.info("reader", reader=kind.name, disk=str(source.disk), pid=opened.process.pid)
                    yield opened
                    return
        raise _none(source, refusals)

    async def _candidates(self, source: DiskSource, refusals: list[ReaderUnsuitable]) -> list[ReaderKind]:
        """Returns the kinds to try, best first; what is asked for and missing goes into the refusals."""
        wanted = self._choice.wanted(source)
        if wanted != AUTOMATIC:
            asked = [kind for kind in self._choice.kinds if kind.name == wanted]
            missing = [kind for kind in asked if not await is_installed(kind)]
            refusals += [
                ReaderUnsuitable(kind.name, str(source.disk), f"{kind.plugin} is not installed") for kind in missing
            ]
            return [kind for kind in asked if kind not in missing]
        able = [kind for kind in self._choice.kinds if kind.automatic and await is_installed(kind)]
        return sorted(able, key=lambda kind: kind.for_running_vms != source.place.running)

    @contextlib.asynccontextmanager
    async def _try(self, kind: ReaderKind, source: DiskSource) -> AsyncIterator[OpenReader]:
        for need in kind.needs:
            await asyncio.to_thread(need, source)
        description = describe(kind, source)
        async with running_reader(description, self._directory, source.disk) as process:
            yield OpenReader(description, process)


async def is_installed(kind: ReaderKind) -> bool:
    """Tells whether all that a kind's plugin needs is on this machine; asked each time, since it may be added."""
    if kind.installed is None:
        return True
    libdir = [f"libdir={kind.options['libdir']}"] if kind.options.get("libdir") else []
    process = await asyncio.create_subprocess_exec(
        "nbdkit",
        kind.plugin,
        *libdir,
        "--dump-plugin",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DUMP_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
    return process.returncode == 0 and any(
        line.startswith(kind.installed) for line in output.decode(errors="replace").splitlines()
    )


def _none(source: DiskSource, refusals: Sequence[ReaderUnsuitable]) -> ReaderUnsuitable:
    """Returns the error that says for each reader why it was refused."""
    if len(refusals) == 1:
        return refusals[0]
    why = "; ".join(f"{refusal.reader}: {refusal.problem}" for refusal in refusals) or "none is installed"
    retryable = any(refusal.retryable for refusal in refusals)
    return ReaderUnsuitable("any", str(source.disk), why, retryable=retryable)


def configured(kind: ReaderKind, *, plugin: str = "", connections: int = 0, **options: str) -> ReaderKind:
    """Returns a kind with an administrator's settings; what is empty or 0 stays as it is."""
    return dataclasses.replace(
        kind,
        plugin=plugin or kind.plugin,
        connections=connections or kind.connections,
        options={**kind.options, **{name: value for name, value in options.items() if value}},
    )
