"""The signing key: made once, in a file that only its owner reads; its public half is the JWKS that others use."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from sendense_rpc.identity import ALGORITHM, AUDIENCE, GRANTS, ISSUER
from sendense_rpc.limits import Limits

WORKLOADS = ("access", "agent", "backup", "exports", "gateway", "repository", "restore", "tunnel")
"""Processes that get a workload identity."""

WORKLOAD_LIFETIME = 400 * 24 * 3600
"""Seconds for which a workload token is good; each start of a node writes new ones."""


_SEALED = "sendense-access-only"


class SigningKey:
    """An Ed25519 key that signs tokens.

    Args:
        private: The key. `kid` is derived from its public half, so that the same key always has the same name.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.kid = hashlib.sha256(public).hexdigest()[:16]

    @classmethod
    def load_or_create(cls, keys_dir: Path) -> SigningKey:
        """Returns the key of `keys_dir`, making it, with its JWKS, on first use."""
        keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = keys_dir / "signing.pem"
        if path.exists():
            loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
            if not isinstance(loaded, Ed25519PrivateKey):
                raise TypeError(f"{path} is not an Ed25519 key; move it away and a new one is made")
            key = cls(loaded)
        else:
            key = cls(Ed25519PrivateKey.generate())
            pem = key._private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            write_private(path, pem)
        write_private(keys_dir / "jwks.json", json.dumps(key.jwks()).encode())
        return key

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Returns the public half as a JWK set."""
        jwk = json.loads(OKPAlgorithm.to_jwk(self._private.public_key()))
        return {"keys": [{**jwk, "kid": self.kid, "alg": ALGORITHM, "use": "sig"}]}

    def jwks_json(self) -> str:
        """Returns the public half as a JWK set, in JSON."""
        return json.dumps(self.jwks())

    def sign(
        self,
        subject: str,
        role: str,
        lifetime_seconds: int,
        token_id: str = "",
        *,
        limits: Limits | None = None,
        issued_at: int | None = None,
    ) -> str:
        """Returns a signed token. The same arguments give the same token: Ed25519 signatures are deterministic.

        Args:
            subject: Who it is for.
            role: A role of `sendense_rpc.identity.GRANTS`.
            lifetime_seconds: How long it is good, from now.
            token_id: Its `jti`; a new one when empty.
            limits: What it is limited to.
            issued_at: Unix time from which it counts; now unless said.
        """
        if role not in GRANTS:
            raise ValueError(f"no role '{role}'")
        now = int(time.time()) if issued_at is None else issued_at
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "role": role,
            "jti": token_id or uuid.uuid4().hex,
            "iat": now,
            "exp": now + lifetime_seconds,
        }
        if limits:
            claims |= {"vms": sorted(limits.vms), "repositories": sorted(limits.repositories)}
        return jwt.encode(claims, self._private, algorithm=ALGORITHM, headers={"kid": self.kid})

    def seal(self, facts: dict[str, Any]) -> str:
        """Returns facts signed for this service itself; no verifier takes them for a token."""
        return jwt.encode({**facts, "aud": _SEALED}, self._private, algorithm=ALGORITHM, headers={"kid": self.kid})

    def unseal(self, sealed: str) -> dict[str, Any]:
        """Returns facts that this key sealed.

        Raises:
            jwt.PyJWTError: It did not.
        """
        facts: dict[str, Any] = jwt.decode(sealed, self._private.public_key(), algorithms=[ALGORITHM], audience=_SEALED)
        return facts

    def read(self, token: str) -> dict[str, Any]:
        """Returns the claims of a token that this key signed and that has not expired.

        Raises:
            jwt.PyJWTError: It is no such token.
        """
        claims: dict[str, Any] = jwt.decode(
            token,
            self._private.public_key(),
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": ["exp", "iat", "sub", "jti", "role"]},
        )
        return claims


def write_workload_identities(key: SigningKey, keys_dir: Path) -> None:
    """Writes a fresh workload token (role `internal`) for each of this machine's processes."""
    identities = keys_dir / "identities"
    identities.mkdir(parents=True, exist_ok=True, mode=0o700)
    for workload in WORKLOADS:
        token = key.sign(f"service:{workload}", "internal", WORKLOAD_LIFETIME)
        write_private(identities / f"{workload}.token", token.encode())


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file atomically by one that only its owner can read."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
