"""Tokens prove who calls; roles say what they may do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sendense_access.keys import SigningKey
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.identity import GRANTS, Caller, TokenVerifier, Unauthenticated, require_role


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.load_or_create(tmp_path)


@pytest.fixture
def verifier(tmp_path: Path, key: SigningKey) -> TokenVerifier:
    return TokenVerifier(tmp_path / "jwks.json", tmp_path / "revoked.json")


def test_a_signed_token_proves_subject_and_role(key: SigningKey, verifier: TokenVerifier) -> None:
    caller = verifier.verify("Bearer " + key.sign("ann", "operator", 60, "id-1"))
    assert caller == Caller(subject="ann", role="operator", token_id="id-1")


def test_the_key_survives_a_restart_and_is_private(tmp_path: Path, key: SigningKey, verifier: TokenVerifier) -> None:
    token = key.sign("ann", "viewer", 60)
    SigningKey.load_or_create(tmp_path)
    assert verifier.verify(f"Bearer {token}").subject == "ann"
    assert (tmp_path / "signing.pem").stat().st_mode & 0o777 == 0o600


def test_a_revoked_token_is_refused_from_then_on(tmp_path: Path, key: SigningKey, verifier: TokenVerifier) -> None:
    token = "Bearer " + key.sign("ann", "viewer", 60, "id-1")
    verifier.verify(token)
    (tmp_path / "revoked.json").write_text(json.dumps(["id-1"]))
    with pytest.raises(Unauthenticated, match="revoked"):
        verifier.verify(token)


def test_a_token_that_was_good_ends_with_its_time(key: SigningKey, verifier: TokenVerifier) -> None:
    token = "Bearer " + key.sign("ann", "viewer", 2)
    assert verifier.verify(token) is verifier.verify(token)
    time.sleep(2.1)
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify(token)


def test_a_token_that_was_good_ends_with_its_key(tmp_path: Path, key: SigningKey, verifier: TokenVerifier) -> None:
    token = "Bearer " + key.sign("ann", "viewer", 60)
    verifier.verify(token)
    other = SigningKey(Ed25519PrivateKey.generate())
    (tmp_path / "jwks.json").write_text(other.jwks_json())
    with pytest.raises(Unauthenticated, match="unknown key"):
        verifier.verify(token)
    # The same id with another key in it is another key.
    forged = other.jwks()
    forged["keys"][0]["kid"] = key.kid
    (tmp_path / "jwks.json").write_text(json.dumps(forged))
    with pytest.raises(Unauthenticated, match="not valid"):
        verifier.verify(token)


def _foreign(**changes: object) -> str:
    now = int(time.time())
    claims = {
        "iss": "sendense",
        "aud": "sendense",
        "sub": "eve",
        "role": "admin",
        "jti": "x",
        "iat": now,
        "exp": now + 60,
    }
    claims.update(changes)
    return jwt.encode(claims, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": "foreign"})


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Basic abc", "Bearer not-a-token", "Bearer a.b.c", f"Bearer {_foreign()}"],
    ids=["nothing", "empty", "no token", "basic", "garbage", "three parts", "foreign key"],
)
def test_what_proves_nothing_is_refused(verifier: TokenVerifier, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(header)
    assert caught.value.kind is Kind.UNAUTHENTICATED
    assert caught.value.help


def test_an_expired_token_is_refused_as_such(key: SigningKey, verifier: TokenVerifier) -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify("Bearer " + key.sign("ann", "viewer", -5))


def test_the_none_algorithm_is_refused(key: SigningKey, verifier: TokenVerifier) -> None:
    now = int(time.time())
    claims = {
        "iss": "sendense",
        "aud": "sendense",
        "sub": "eve",
        "role": "admin",
        "jti": "x",
        "iat": now,
        "exp": now + 60,
    }
    token = jwt.encode(claims, None, algorithm="none", headers={"kid": key.kid})
    with pytest.raises(Unauthenticated):
        verifier.verify(f"Bearer {token}")


@pytest.mark.parametrize("role", GRANTS)
@pytest.mark.parametrize("needed", ["viewer", "restore", "operator", "admin", "internal"])
def test_a_role_opens_exactly_what_it_grants(role: str, needed: str) -> None:
    caller = Caller(subject="ann", role=role, token_id="x")
    if needed in GRANTS[role]:
        require_role(caller, needed, "X/Y")
    else:
        with pytest.raises(SendenseError) as caught:
            require_role(caller, needed, "X/Y")
        assert caught.value.reason == "ROLE_MISSING"


def test_operators_see_no_content_and_nobody_from_outside_is_internal() -> None:
    assert "restore" not in GRANTS["operator"]
    assert [role for role, granted in GRANTS.items() if "internal" in granted] == ["internal"]
