"""The gateway's certificate: a self-made CA and a server certificate on first start, unless a real one is set.

The CA stays for ten years, so that clients keep trusting it; the server certificate is made anew when it is about to
expire or a name is missing in it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)
"""The longest that browsers accept."""
RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """PEM files: the certificate chain and its key."""

    chain: Path
    key: Path


def server_names(further: Sequence[str]) -> list[str]:
    """Returns the names that a self-made certificate is good for."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *further]
    return list(dict.fromkeys(name for name in names if name))


def ensure_certificate(directory: Path, names: Sequence[str]) -> ServerCertificate:
    """Returns the self-made certificate of a directory, making what is missing, too old or lacks a name.

    Writes `ca.crt`, `ca.key` (0600), `server.crt` and `server.key` (0600).
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca_cert, ca_key = _ensure_ca(directory)
    files = ServerCertificate(directory / "server.crt", directory / "server.key")
    if not _still_good(files, ca_cert, names):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder("Sendense gateway", key, SERVER_LIFETIME)
            .issuer_name(ca_cert.subject)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        _write(files.key, _private_pem(key), 0o600)
        _write(files.chain, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return files


def _ensure_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert_file, key_file = directory / "ca.crt", directory / "ca.key"
    if cert_file.exists() and key_file.exists():
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key_file} is not an EC key; move it and {cert_file} away and new ones are made")
        return x509.load_pem_x509_certificate(cert_file.read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    # A name of its own for each installation: a client that trusts several CAs must tell them apart.
    name = f"Sendense {socket.gethostname()[:32]} {uuid.uuid4().hex[:8]}"
    certificate = (
        _builder(name, key, CA_LIFETIME)
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_file, _private_pem(key), 0o600)
    _write(cert_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate, key


def _still_good(files: ServerCertificate, ca_cert: x509.Certificate, names: Sequence[str]) -> bool:
    if not (files.chain.exists() and files.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(files.chain.read_bytes())
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    held = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    return (
        certificate.issuer == ca_cert.subject
        and certificate.public_key() == key.public_key()
        and certificate.not_valid_after_utc - RENEW_BEFORE > datetime.now(UTC)
        and held >= {_general_name(name) for name in names}
    )


def _builder(common_name: str, key: ec.EllipticCurvePrivateKey, lifetime: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour back: clocks of clients differ.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lifetime)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
