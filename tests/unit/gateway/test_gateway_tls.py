"""The self-made certificate is good for its names, stays, and is made anew when it must be."""

import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

import sendense_gateway.tls as tls
from sendense_gateway.tls import ensure_certificate, server_names

NAMES = ["localhost", "127.0.0.1", "::1"]


def test_certificate_serves_tls_to_whoever_trusts_the_ca(tmp_path):
    files = ensure_certificate(tmp_path, NAMES)
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    server.load_cert_chain(files.chain, files.key)
    client.load_verify_locations(tmp_path / "ca.crt")
    for name in NAMES:
        pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
        one = client.wrap_bio(pipes[0], pipes[1], server_hostname=name)
        other = server.wrap_bio(pipes[1], pipes[0], server_side=True)
        done = set()
        for _ in range(10):
            for side in (one, other):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    continue
        assert done == {one, other}


def test_keys_are_private_and_nothing_changes_at_the_next_start(tmp_path):
    ensure_certificate(tmp_path, NAMES)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"ca.crt", "ca.key", "server.crt", "server.key"}
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    ensure_certificate(tmp_path, NAMES[:1])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_missing_name_renews_the_certificate_and_keeps_the_ca(tmp_path):
    ensure_certificate(tmp_path, NAMES)
    ca, server = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "server.crt").read_bytes()
    ensure_certificate(tmp_path, [*NAMES, "backup.example.org"])
    assert (tmp_path / "ca.crt").read_bytes() == ca
    renewed = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    assert (tmp_path / "server.crt").read_bytes() != server
    held = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "backup.example.org" in held.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("damage", ["expiring", "another key", "another CA"])
def test_certificate_that_is_no_longer_good_is_renewed(tmp_path, monkeypatch, damage):
    if damage == "expiring":
        monkeypatch.setattr(tls, "SERVER_LIFETIME", timedelta(days=29))
    ensure_certificate(tmp_path, NAMES)
    monkeypatch.undo()
    if damage == "another key":
        (tmp_path / "server.key").write_bytes((tmp_path / "ca.key").read_bytes())
    if damage == "another CA":
        (tmp_path / "ca.key").unlink()
    before = (tmp_path / "server.crt").read_bytes()
    files = ensure_certificate(tmp_path, NAMES)
    certificate = x509.load_pem_x509_certificate(files.chain.read_bytes())
    assert files.chain.read_bytes() != before
    assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=300)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes()))


def test_names_hold_this_machine_and_what_was_set():
    names = server_names(["a.example.org", "", "localhost"])
    assert names[:3] == ["localhost", "127.0.0.1", "::1"]
    assert names.count("localhost") == 1
    assert "a.example.org" in names
    assert "" not in names
