"""A limit that is not understood never counts as none; a name or a uuid admits a VM."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
import pytest

from sendense_access.keys import SigningKey
from sendense_rpc.identity import Caller, TokenVerifier, Unauthenticated, on_behalf
from sendense_rpc.limits import Limits, OutsideLimits

UUID = "420a1b2c-0000-1111-2222-333344445555"


def test_no_limits_admit_everything() -> None:
    assert not Limits()
    Limits().require_vm("any", UUID)
    Limits().require_repository("any", "id")


def test_a_vm_is_admitted_by_its_name_or_its_uuid_in_any_case() -> None:
    by_name, by_uuid = Limits(frozenset({"web"})), Limits(frozenset({UUID.upper()}))
    assert by_name.admits_vm("web", "other")
    assert by_uuid.admits_vm("renamed", UUID)
    for limits in (by_name, by_uuid):
        with pytest.raises(OutsideLimits, match="db"):
            limits.require_vm("db", "another")
    assert by_name.admits_repository("any", "id")


@pytest.mark.parametrize(
    "said",
    ['"web"', "[]", '{"vms": "web", "repositories": []}', '{"vms": []}', "{", '{"vms": [1], "repositories": []}'],
)
def test_malformed_limits_are_refused_and_never_none(said: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Limits.from_header(said)
    with pytest.raises(Unauthenticated):
        on_behalf(Caller("service:restore", "internal", "id"), said)


def test_limits_that_come_with_a_call_are_believed_from_workloads_only() -> None:
    header = Limits(frozenset({"web"})).to_header()
    assert on_behalf(Caller("service:restore", "internal", "id"), header).limits.vms == {"web"}
    mine = Caller("ann", "admin", "id", Limits(frozenset({"db"})))
    assert on_behalf(mine, header).limits.vms == {"db"}


def test_a_tokens_limits_are_its_callers(tmp_path: Path) -> None:
    key = SigningKey.load_or_create(tmp_path)
    verifier = TokenVerifier(tmp_path / "jwks.json", tmp_path / "revoked.json")
    limits = Limits(frozenset({"web", UUID}), frozenset({"local"}))
    assert verifier.verify("Bearer " + key.sign("ann", "viewer", 60, limits=limits)).limits == limits
    now = int(time.time())
    claims = {
        "iss": "sendense",
        "aud": "sendense",
        "sub": "x",
        "role": "admin",
        "jti": "j",
        "iat": now,
        "exp": now + 60,
    }
    odd = jwt.encode({**claims, "vms": "web"}, key._private, algorithm="EdDSA", headers={"kid": key.kid})
    with pytest.raises(Unauthenticated, match="limits"):
        verifier.verify(f"Bearer {odd}")


def test_the_header_is_json_in_ascii() -> None:
    header = Limits(frozenset({"wéb"})).to_header()
    assert header.isascii()
    assert Limits.from_header(header).vms == {"wéb"}
    assert json.loads(header)["repositories"] == []
