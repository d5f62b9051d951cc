"""An agent's key has one form, whatever was pasted."""

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sendense_access.agents import canonical_key
from sendense_access.errors import InvalidRequest


def openssh(key) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def test_comment_and_blanks_do_not_make_another_key():
    line = openssh(Ed25519PrivateKey.generate())
    assert canonical_key(line) == canonical_key(f"  {line} root@agent one \n")
    assert canonical_key(line)[0] == line


def test_two_keys_have_two_fingerprints():
    one, other = (canonical_key(openssh(Ed25519PrivateKey.generate())) for _ in range(2))
    assert one[1] != other[1]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + b"k" * 31).decode(),
        "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + b"k" * 33).decode(),
        openssh(ec.generate_private_key(ec.SECP256R1())),
        openssh(ec.generate_private_key(ec.SECP256R1())).replace("ecdsa-sha2-nistp256 ", "ssh-ed25519 "),
    ],
)
def test_anything_else_than_an_ed25519_key_is_refused(line):
    with pytest.raises(InvalidRequest):
        canonical_key(line)
