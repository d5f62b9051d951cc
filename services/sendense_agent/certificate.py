"""Pins a vCenter's certificate: what is trusted is one PEM, given by its owner, and no authority of the system."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from sendense_agent.accounts import Account
from sendense_agent.errors import VCenterCertificateRefused, VCenterUnavailable

CONNECT_SECONDS = 15.0


@dataclass(frozen=True)
class Pin:
    """What is trusted.

    Attributes:
        pem: The certificate, or the one that signed it.
        exact: Whether it is the server's own certificate, chosen by its fingerprint: then the name is not compared.
    """

    pem: str
    exact: bool

    def context(self) -> ssl.SSLContext:
        """Returns a TLS context that trusts only this."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.pem)
        # A leaf may be pinned without its authority.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = not self.exact
        return context


def find_pin(account: Account) -> Pin:
    """Returns what to trust for an account; with a fingerprint only, the server is asked for its certificate.

    Raises:
        VCenterCertificateRefused: The file cannot be read, or the server shows another fingerprint.
        VCenterUnavailable: The server cannot be reached.
    """
    if account.certificate is not None:
        return Pin(_read(account.name, account.certificate), exact=False)
    try:
        pem = ssl.get_server_certificate((account.host, account.port), timeout=CONNECT_SECONDS)
    except OSError as error:
        raise VCenterUnavailable(account.name, str(error)) from error
    found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    if not hmac.compare_digest(found, account.fingerprint):
        raise VCenterCertificateRefused(account.name, f"its SHA-256 is {found}, pinned is {account.fingerprint}")
    return Pin(pem, exact=True)


def check_server(account: Account, context: ssl.SSLContext) -> None:
    """Shakes hands once, so that a wrong certificate is told from a server that is down.

    Raises:
        VCenterCertificateRefused: The certificate is not the pinned one, or not for this name.
        VCenterUnavailable: The server cannot be reached.
    """
    try:
        with (
            socket.create_connection((account.host, account.port), timeout=CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=account.host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise VCenterCertificateRefused(account.name, error.verify_message) from error
    except OSError as error:
        raise VCenterUnavailable(account.name, str(error)) from error


def _read(vcenter: str, path: Path) -> str:
    try:
        pem = path.read_text()
        Pin(pem, exact=False).context()
    except (OSError, ValueError) as error:
        raise VCenterCertificateRefused(vcenter, f"{path} holds no readable certificate: {error}") from error
    return pem
