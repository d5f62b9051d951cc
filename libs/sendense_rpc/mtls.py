"""Mutual TLS between machines: both sides show a certificate of the installation's own CA, and nobody else gets in.

The files lie in one directory (`SENDENSE_MTLS_DIR`): `ca.crt`, `node.crt` and `node.key` (0600), which
`sendense-certificate` makes. The certificate proves the machine; the workload token in each call proves the process.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.settings import ServiceSettings


class NoMachineCertificate(SendenseError):
    """A service is to talk to another machine and has nothing to prove itself with."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"calls between machines need certificates: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_MACHINE_CERTIFICATE",
            help="Set SENDENSE_MTLS_DIR to the directory that `sendense-certificate` made for this machine.",
        )


def channel_credentials(settings: ServiceSettings) -> grpc.ChannelCredentials:
    """Returns what a client shows and checks.

    Raises:
        NoMachineCertificate: A file is not there.
    """
    ca, chain, key = _files(settings)
    return grpc.ssl_channel_credentials(ca, key, chain)


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials:
    """Returns what a server shows and checks; a client without a certificate of the CA is refused in the handshake.

    Raises:
        NoMachineCertificate: A file is not there.
    """
    ca, chain, key = _files(settings)
    return grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=True)


def server_context(settings: ServiceSettings) -> ssl.SSLContext:
    """Returns the same for a server that speaks plain HTTP inside.

    Raises:
        NoMachineCertificate: A file is not there.
    """
    _files(settings)
    folder = mtls_folder(settings)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "node.crt", folder / "node.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def mtls_folder(settings: ServiceSettings) -> Path:
    """Returns the directory of this machine's certificate.

    Raises:
        NoMachineCertificate: It is not set.
    """
    if settings.mtls_dir is None:
        raise NoMachineCertificate("SENDENSE_MTLS_DIR is not set")
    return settings.mtls_dir.absolute()


def _files(settings: ServiceSettings) -> tuple[bytes, bytes, bytes]:
    folder = mtls_folder(settings)
    try:
        ca, chain, key = ((folder / name).read_bytes() for name in ("ca.crt", "node.crt", "node.key"))
    except OSError as error:
        raise NoMachineCertificate(f"{error.filename} cannot be read ({error.strerror})") from error
    return ca, chain, key
