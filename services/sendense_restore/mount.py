"""A mount as the service keeps it: its state, who uses it, and when it ends by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sendense_db.columns import utc_now
from sendense_restore.errors import FileMissing, MountNotReady
from sendense_restore.listing import Listings
from sendense_restore.openings import Opening
from sendense_restore.paths import GuestPath
from sendense_restore.places import Place
from sendense_restore.tree import Tree, Wish
from sendense_rpc.errors import SendenseError


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a mount lasts, in seconds: without use, and at most."""

    idle: float
    most: float


@dataclass(eq=False)
class Mount:
    """A restore point that is being mounted, is mounted, or is being unmounted.

    Attributes:
        place: Its paths on the host.
        asked: The backup id, or prefix, that the caller gave.
        request_id: The caller's request id; may be empty.
        lifetime: How long it lasts.
        wish: How it is to be mounted; without passphrases once it is.
        backup_id: The whole backup id, once it is known.
        state: `mounting`, `mounted`, `unmounting`, `failed`; `gone` when nothing is left of it.
        tree: What is mounted.
        opening: What `tree` stands on, perhaps together with others.
        error: Why it failed, when somebody was told before that it is being mounted.
        told: Whether somebody was told its id while it was being mounted: then its failure stays visible.
        created_at: When it was asked for.
        lock: Held while its state changes.
        listings: What listings keep of its directories.
        making: The task that mounts it.
        watcher: The task that renews its lease and ends it in time.
    """

    place: Place
    asked: str
    request_id: str
    lifetime: Lifetime
    wish: Wish = field(default_factory=Wish)
    backup_id: str = ""
    state: str = "mounting"
    tree: Tree | None = None
    opening: Opening | None = None
    error: SendenseError | None = None
    told: bool = False
    created_at: datetime = field(default_factory=utc_now)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    listings: Listings = field(default_factory=Listings)
    making: asyncio.Task[None] | None = None
    watcher: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.backup_id = self.backup_id or self.asked
        # Monotonic: a wrong clock that is put right must not end a mount.
        self._born = time.monotonic()
        self._last_used = self._born
        self._users = 0
        self._downloads: set[asyncio.Task[object]] = set()
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def mount_id(self) -> str:
        """Its identifier."""
        return self.place.mount_id

    @property
    def seconds_left(self) -> float:
        """Until it ends by itself unless it is used before; use never extends its greatest age."""
        now = time.monotonic()
        last = now if self._users else self._last_used
        return min(last + self.lifetime.idle, self._born + self.lifetime.most) - now

    @property
    def expires_at(self) -> datetime:
        """When it ends by itself unless it is used before."""
        return utc_now() + timedelta(seconds=self.seconds_left)

    @property
    def is_too_old(self) -> bool:
        """Whether it has reached its greatest age."""
        return time.monotonic() >= self._born + self.lifetime.most

    @property
    def users(self) -> int:
        """How many listings and downloads run."""
        return self._users

    def touch(self) -> None:
        """Begins its idle time anew."""
        self._last_used = time.monotonic()

    def root_of(self, path: GuestPath) -> Path:
        """Returns the directory on the host that a path starts at.

        Raises:
            FileMissing: It names a volume that is not mounted.
        """
        tree = self._mounted()
        if not path.volume:
            return tree.root
        if path.volume not in tree.volume_roots:
            raise FileMissing(path.display)
        return tree.volume_roots[path.volume]

    @contextmanager
    def used(self, *, download: bool = False) -> Iterator[None]:
        """Keeps it mounted for the time of the block; a download's task can be cut off by a forced unmount.

        Raises:
            MountNotReady: It is not mounted.
        """
        self._mounted()
        task = asyncio.current_task() if download else None
        self._users += 1
        self._unused.clear()
        if task is not None:
            self._downloads.add(task)
        try:
            yield
        finally:
            self._users -= 1
            if task is not None:
                self._downloads.discard(task)
            self.touch()
            if not self._users:
                self._unused.set()

    async def wait_unused(self, seconds: float) -> bool:
        """Waits until no listing or download runs; returns whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                await self._unused.wait()
        except TimeoutError:
            return False
        return True

    def cut_downloads(self) -> None:
        """Ends running downloads; their receivers see them broken."""
        for task in self._downloads:
            task.cancel()

    def _mounted(self) -> Tree:
        if self.state != "mounted" or self.tree is None:
            raise MountNotReady(self.mount_id, self.state)
        return self.tree
