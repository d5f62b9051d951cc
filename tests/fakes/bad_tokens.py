"""Tokens that are not good, one of each kind, as the headers to send."""

from __future__ import annotations

import base64
import json
import time

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sendense_access.keys import SigningKey


def claims(**changes: object) -> dict[str, object]:
    """Returns the claims of a good administrator's token, changed; None takes a claim away."""
    now = int(time.time())
    good = {"iss": "sendense", "aud": "sendense", "sub": "x", "role": "admin", "jti": "j", "iat": now, "exp": now + 60}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def bad_tokens(key: SigningKey) -> dict[str, dict[str, str]]:
    """Returns each kind of token that is not good for a system that `key` signs for."""
    headers = {"kid": key.kid}
    head, payload, signature = key.sign("x", "admin", 60).split(".")
    forged = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).decode().rstrip("=")

    def signed(signer: SigningKey, **changes: object) -> str:
        return jwt.encode(claims(**changes), signer._private, algorithm="EdDSA", headers=headers)

    other = SigningKey(Ed25519PrivateKey.generate())
    tokens = {
        "garbage": "x",
        "expired": key.sign("x", "admin", -3600),
        "another key": signed(other),
        "unknown key id": other.sign("x", "admin", 60),
        "changed": f"{head}.{forged}.{signature}",
        "no signature": f"{head}.{payload}.",
        "no algorithm": jwt.encode(claims(), None, algorithm="none", headers=headers),
        "shared secret": jwt.encode(claims(), "k" * 32, algorithm="HS256", headers=headers),
        "another audience": signed(key, aud="other"),
        "another issuer": signed(key, iss="other"),
        "not yet valid": signed(key, nbf=int(time.time()) + 3600),
        "no expiry": signed(key, exp=None),
        "unknown role": signed(key, role="root"),
        "role that is a list": signed(key, role=["admin"]),
        "limits that are no list": signed(key, vms="all"),
    }
    return {
        "none": {},
        "basic": {"Authorization": "Basic YTpi"},
        "empty": {"Authorization": "Bearer"},
        **{name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()},
    }


KINDS = tuple(bad_tokens(SigningKey(Ed25519PrivateKey.generate())))
AT_THE_SERVICE = frozenset({"unknown role", "role that is a list", "limits that are no list"})
"""Signed by us and good for Envoy: services refuse them."""
