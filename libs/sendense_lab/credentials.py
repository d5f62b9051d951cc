"""The simulated vCenter's certificate and account, made at the first start."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sendense_lab.config import USERNAME

VALID_DAYS = 3650


@dataclass(frozen=True)
class Credentials:
    """What a client needs to log in; also the content of `lab/credentials.json`.

    Attributes:
        name: What the lab's vCenter is called.
        host: Address.
        port: TCP port.
        username: The account.
        password: Its password.
        certificate: Path of the server's certificate, PEM.
        sha256: Fingerprint of the certificate, hex pairs joined by colons.
        sha1: Thumbprint of the certificate in the same form, as the VDDK wants it.
    """

    name: str
    host: str
    port: int
    username: str
    password: str
    certificate: str
    sha256: str
    sha1: str


def ensure_certificate(root: Path, host: str) -> tuple[Path, Path]:
    """Returns paths of certificate and key (PEM), making both if they are missing."""
    certificate_path, key_path = root / "certificate.pem", root / "key.pem"
    if certificate_path.exists() and key_path.exists():
        return certificate_path, key_path
    return new_certificate(root, host)


def new_certificate(root: Path, host: str) -> tuple[Path, Path]:
    """Makes a certificate and its key in place of those that are there; returns their paths (PEM)."""
    certificate_path, key_path = root / "certificate.pem", root / "key.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sendense lab vCenter")])
    now = datetime.now(UTC)
    addresses = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address(host)}
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), *(x509.IPAddress(ip) for ip in addresses)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=True,
                key_cert_sign=True,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(key_path, private)
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_path, key_path


def save(root: Path, host: str, port: int, certificate: Path) -> Credentials:
    """Writes `credentials.json` for the present address, with the password of the last run or a new one."""
    path = root / "credentials.json"
    password = json.loads(path.read_text())["password"] if path.exists() else secrets.token_urlsafe(18)
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    credentials = Credentials(
        name="lab",
        host=host,
        port=port,
        username=USERNAME,
        password=password,
        certificate=str(certificate),
        sha256=hashlib.sha256(der).digest().hex(":").upper(),
        sha1=hashlib.sha1(der, usedforsecurity=False).digest().hex(":").upper(),
    )
    _write_private(path, json.dumps(asdict(credentials), indent=1).encode())
    return credentials


def _write_private(path: Path, content: bytes) -> None:
    """Replaces a file that only its owner may read."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    partial.replace(path)
