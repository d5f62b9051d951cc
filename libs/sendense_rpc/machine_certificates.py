"""Makes the certificates with which machines prove themselves to each other (`sendense-certificate`).

Run it on the machine that keeps the CA, once for each machine, and carry the directory there: it holds `ca.crt`,
`node.crt` and `node.key` (0600), what `SENDENSE_MTLS_DIR` wants. The CA's own key never leaves.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = timedelta(days=3650)
MACHINE_LIFETIME = timedelta(days=825)


def make_certificate(ca_dir: Path, out: Path, names: Sequence[str]) -> None:
    """Writes a machine's certificate, making the CA at its first use.

    Args:
        ca_dir: Where the CA is kept, its key with mode 0600.
        out: Directory for the machine's three files.
        names: The machine's host names and addresses, at least one: others check that it is called so.

    Raises:
        ValueError: No name was given.
    """
    if not names:
        raise ValueError("a machine needs at least one name or address")
    ca_cert, ca_key = _ca(ca_dir)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(names[0], key, MACHINE_LIFETIME)
        .issuer_name(ca_cert.subject)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(out / "ca.crt", ca_cert.public_bytes(serialization.Encoding.PEM))
    _write(out / "node.crt", certificate.public_bytes(serialization.Encoding.PEM))
    _write(out / "node.key", _pem(key))


def _ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert_file, key_file = folder / "ca.crt", folder / "ca.key"
    if cert_file.exists() and key_file.exists():
        loaded = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key_file} is not an EC key")
        return x509.load_pem_x509_certificate(cert_file.read_bytes()), loaded
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"Sendense machines {uuid.uuid4().hex[:8]}"
    certificate = (
        _builder(name, key, CA_LIFETIME)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_file, _pem(key))
    _write(cert_file, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _builder(name: str, key: ec.EllipticCurvePrivateKey, lifetime: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lifetime)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    temporary.rename(path)


def main() -> None:
    """Makes one machine's certificate."""
    parser = argparse.ArgumentParser(description="Makes a certificate for calls between Sendense's machines.")
    parser.add_argument("names", nargs="+", help="the machine's host names and addresses")
    parser.add_argument("--ca", type=Path, required=True, help="directory of the CA; made at its first use")
    parser.add_argument("--out", type=Path, required=True, help="directory for ca.crt, node.crt and node.key")
    arguments = parser.parse_args()
    make_certificate(arguments.ca, arguments.out, arguments.names)


if __name__ == "__main__":
    main()
