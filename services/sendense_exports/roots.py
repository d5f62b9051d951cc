"""Below which directories images may lie: those of the settings, and those of registered repositories.

An administrator who registers a repository means its images to be served, so nobody has to say it twice. The exports
service asks when an image lies elsewhere and keeps the answer in a file, which nbdd reads with the configuration: nbdd
itself asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from sendense_exports.admission import AdmissionRules
from sendense_exports.config import ExportsSettings
from sendense_exports.status import replace_file
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()


def read_rules(settings: ExportsSettings) -> AdmissionRules:
    """Returns what may be served now; blocks while it reads a small file.

    Raises:
        OSError: The file is there and cannot be read.
    """
    return AdmissionRules((*settings.image_roots, *_learned(settings.roots_file)), settings.device_pattern)


def _learned(roots_file: Path) -> list[Path]:
    try:
        lines = roots_file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Path(line) for line in lines if line.startswith("/")]


class Roots:
    """The exports service's view, which it widens and narrows as repositories come and go.

    Args:
        settings: Where the file lies.
        directories: Asks for the directories of the registered repositories.
    """

    def __init__(self, settings: ExportsSettings, directories: Callable[[], Awaitable[list[Path]]]) -> None:
        self._settings = settings
        self._directories = directories
        self._learning = asyncio.Lock()

    async def rules(self) -> AdmissionRules:
        """Returns what may be served now."""
        return await asyncio.to_thread(read_rules, self._settings)

    async def learn(self) -> bool:
        """Asks which repositories there are, and keeps that; returns whether it has changed."""
        async with self._learning:
            try:
                found = await self._directories()
            except SendenseError as error:
                log.warning("the repositories are not known now", error=str(error))
                return False
            # A newline in a path would be two roots.
            wanted = sorted(str(path) for path in found if path.is_absolute() and str(path).isprintable())
            known = sorted(map(str, await asyncio.to_thread(_learned, self._settings.roots_file)))
            if wanted == known:
                return False
            text = "".join(f"{path}\n" for path in wanted)
            await asyncio.to_thread(replace_file, self._settings.roots_file, text)
        log.info("repositories whose images may be served", directories=wanted)
        return True
