"""Logged-in sessions of the simulated vCenter, by the value of their cookie."""

from __future__ import annotations

import hmac
import secrets
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sendense_lab.collector import Collector, Views
from sendense_lab.credentials import Credentials
from sendense_lab.inventory import PROPERTY_COLLECTOR, Inventory
from sendense_lab.lab import Lab

COOKIE = "vmware_soap_session"


@dataclass
class Session:
    """One login.

    Attributes:
        key: What the API calls the session; not its secret.
        collector: Its own property collector.
        more_collectors: Those that it made besides, by managed object id: each has its own filters and versions.
        views: Its container views.
    """

    key: str
    collector: Collector
    views: Views
    more_collectors: dict[str, Collector] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_active: datetime = field(default_factory=lambda: datetime.now(UTC))

    def collector_of(self, moref: str) -> Collector | None:
        """Returns a collector by its managed object id; None when there is no such one."""
        return self.collector if moref == PROPERTY_COLLECTOR else self.more_collectors.get(moref)

    def cancel(self) -> None:
        """Ends everything that waits for news."""
        for collector in (self.collector, *self.more_collectors.values()):
            collector.cancelled = True


class Sessions:
    """All sessions; they do not survive a restart of the server, as with vCenter."""

    def __init__(self, lab: Lab, inventory: Inventory, credentials: Credentials) -> None:
        self._lab = lab
        self._inventory = inventory
        self._credentials = credentials
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def check(self, username: str | None, password: str | None) -> bool:
        """Whether this is the account and its password."""
        right_name = hmac.compare_digest((username or "").encode(), self._credentials.username.encode())
        right_password = hmac.compare_digest((password or "").encode(), self._credentials.password.encode())
        return right_name and right_password

    def open(self) -> tuple[str, Session]:
        """Starts a session; returns the cookie's value and the session."""
        views = Views()
        session = Session(secrets.token_hex(20), Collector(self._lab, self._inventory, views), views)
        secret = secrets.token_hex(20)
        with self._lock:
            self._sessions[secret] = session
        return secret, session

    def get(self, secret: str | None) -> Session | None:
        """Returns the session of a cookie and notes that it is in use."""
        session = self._sessions.get(secret or "")
        if session is not None:
            session.last_active = datetime.now(UTC)
        return session

    def close(self, secret: str) -> None:
        """Ends one session."""
        with self._lock:
            session = self._sessions.pop(secret, None)
        if session is not None:
            session.cancel()
            self._lab.notify()

    def close_all(self) -> int:
        """Ends every session at once, as a restarted or impatient vCenter does; returns how many."""
        with self._lock:
            lost, self._sessions = list(self._sessions.values()), {}
        for session in lost:
            session.cancel()
        self._lab.notify()
        return len(lost)

    def count(self) -> int:
        """Returns how many sessions are open."""
        return len(self._sessions)
