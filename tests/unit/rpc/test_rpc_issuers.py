"""A second issuer is a setting: its keys, its audience, its claim for the role; it can never make a workload."""

from __future__ import annotations

import base64
import hmac
import json
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from sendense_access.keys import SigningKey
from sendense_rpc.identity import TokenVerifier, Unauthenticated
from sendense_rpc.settings import ServiceSettings

OIDC = "https://login.example"


def _rsa(kid: str) -> tuple[rsa.RSAPrivateKey, dict[str, str]]:
    key = rsa.generate_private_key(65537, 2048)
    return key, {**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": kid}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    monkeypatch.setenv("SENDENSE_HOME", str(tmp_path))
    monkeypatch.setenv("SENDENSE_OIDC_ISSUER", OIDC)
    monkeypatch.setenv("SENDENSE_OIDC_AUDIENCE", "backup")
    monkeypatch.setenv("SENDENSE_OIDC_JWKS", str(tmp_path / "oidc.json"))
    return ServiceSettings()


def _claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    claims = {"iss": OIDC, "aud": "backup", "sub": "ann", "sendense_role": "viewer", "iat": now, "exp": now + 60}
    return {**claims, **changes}


def _verify(verifier: TokenVerifier, key: rsa.RSAPrivateKey, kid: str = "k1", **changes: object) -> object:
    token = jwt.encode(_claims(**changes), key, algorithm="RS256", headers={"kid": kid})
    return verifier.verify(f"Bearer {token}")


def test_its_tokens_are_taken_under_a_name_of_their_own(settings: ServiceSettings) -> None:
    key, jwk = _rsa("k1")
    settings.oidc_jwks_file.write_text(json.dumps({"keys": [jwk]}))
    caller = settings.verifier().verify(
        "Bearer " + jwt.encode(_claims(), key, algorithm="RS256", headers={"kid": "k1"})
    )
    assert (caller.subject, caller.role) == ("oidc:ann", "viewer")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sendense_role": "internal"}, "role"),
        ({"sendense_role": "root"}, "role"),
        ({"sendense_role": ["admin"]}, "role"),
        ({"aud": "sendense"}, "audience"),
        ({"iss": "sendense"}, "keys|key"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"exp": 1}, "expired"),
        ({"nbf": int(time.time()) + 3600}, "not yet valid"),
        ({"exp": None}, "valid"),
    ],
)
def test_what_it_may_not_say_is_refused(settings: ServiceSettings, changes: dict[str, object], why: str) -> None:
    key, jwk = _rsa("k1")
    settings.oidc_jwks_file.write_text(json.dumps({"keys": [jwk]}))
    with pytest.raises(Unauthenticated, match=why):
        _verify(settings.verifier(), key, **changes)


def test_its_keys_are_rotated_without_a_restart(settings: ServiceSettings) -> None:
    old, old_jwk = _rsa("k1")
    new, new_jwk = _rsa("k2")
    verifier = settings.verifier()
    with pytest.raises(Unauthenticated, match="not known here yet"):
        _verify(verifier, old)
    settings.oidc_jwks_file.write_text(json.dumps({"keys": [old_jwk]}))
    _verify(verifier, old)
    with pytest.raises(Unauthenticated, match="unknown key"):
        _verify(verifier, new, "k2")
    replaced = settings.oidc_jwks_file.with_suffix(".new")
    replaced.write_text(json.dumps({"keys": [new_jwk]}))
    replaced.rename(settings.oidc_jwks_file)
    _verify(verifier, new, "k2")
    with pytest.raises(Unauthenticated, match="unknown key"):
        _verify(verifier, old)


def test_its_keys_sign_nothing_for_sendense_and_the_other_way_round(settings: ServiceSettings, tmp_path: Path) -> None:
    own = SigningKey.load_or_create(tmp_path / "keys")
    key, jwk = _rsa(own.kid)
    settings.oidc_jwks_file.write_text(json.dumps({"keys": [jwk]}))
    verifier = settings.verifier()
    with pytest.raises(Unauthenticated):
        _verify(verifier, key, own.kid, iss="sendense", aud="sendense", role="admin", jti="j")
    forged = jwt.encode(_claims(), own._private, algorithm="EdDSA", headers={"kid": own.kid})
    with pytest.raises(Unauthenticated):
        verifier.verify(f"Bearer {forged}")


def test_a_key_is_no_shared_secret(settings: ServiceSettings) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": "k1"}
    settings.oidc_jwks_file.write_text(json.dumps({"keys": [jwk]}))
    # PyJWT itself signs no such thing, an attacker does: HMAC with what everybody may read.
    head, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "kid": "k1"}, _claims())
    )
    mac = hmac.digest(settings.oidc_jwks_file.read_bytes(), f"{head}.{payload}".encode(), "sha256")
    signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
    with pytest.raises(Unauthenticated):
        settings.verifier().verify(f"Bearer {head}.{payload}.{signature}")
