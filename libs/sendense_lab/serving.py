"""The running server as commands may touch it: its sessions, its account, its certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from sendense_lab import credentials
from sendense_lab.credentials import Credentials
from sendense_lab.sessions import Sessions


class Serving:
    """What belongs to the simulated vCenter's port.

    Args:
        root: The lab's folder.
        account: What clients need to log in.
        sessions: Who is logged in.
        tls: The server's TLS settings.

    Attributes:
        account: As it is now.
        sessions: Who is logged in.
    """

    def __init__(self, root: Path, account: Credentials, sessions: Sessions, tls: ssl.SSLContext) -> None:
        self._root = root
        self._tls = tls
        self.account = account
        self.sessions = sessions

    @property
    def url(self) -> str:
        """Where the vSphere API is."""
        return f"https://{self.account.host}:{self.account.port}/sdk"

    def change_certificate(self) -> Credentials:
        """Serves a new certificate to new connections, as somebody in between would; returns the account."""
        certificate, key = credentials.new_certificate(self._root, self.account.host)
        self._tls.load_cert_chain(certificate, key)
        self.account = credentials.save(self._root, self.account.host, self.account.port, certificate)
        return self.account
