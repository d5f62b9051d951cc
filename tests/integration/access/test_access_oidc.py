"""The keys of a further issuer are fetched: only public ones, and the last good ones stay."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from sendense_access.oidc import fetch


class Issuer:
    """Answers what the test tells it."""

    def __init__(self) -> None:
        self.body = b"{}"
        self.status = 200
        self.url = ""

    async def serve(self, request: web.Request) -> web.Response:
        return web.Response(body=self.body, status=self.status)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    application = web.Application()
    application.router.add_get("/jwks", issuer.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield issuer
    await runner.cleanup()


def _jwk(kid: str, *, private: bool = False) -> dict[str, str]:
    key = rsa.generate_private_key(65537, 2048)
    jwk: dict[str, str] = json.loads(RSAAlgorithm.to_jwk(key if private else key.public_key()))
    return {**jwk, "kid": kid}


async def test_public_keys_are_kept_and_nothing_else(issuer: Issuer, tmp_path: Path) -> None:
    shared = {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}
    issuer.body = json.dumps({"keys": [_jwk("a"), _jwk("b", private=True), shared]}).encode()
    file = tmp_path / "oidc.json"
    await fetch(issuer.url, file)
    kept = json.loads(file.read_text())["keys"]
    assert [key["kid"] for key in kept] == ["a", "b"]
    assert all(not {"d", "p", "q", "k"} & set(key) for key in kept)
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"nonsense", b'{"keys": "x"}', b'{"keys": []}', b"[" * (2 << 20)])
async def test_what_is_no_key_set_leaves_the_last_one(issuer: Issuer, tmp_path: Path, body: bytes) -> None:
    file = tmp_path / "oidc.json"
    file.write_text("before")
    issuer.body = body
    with pytest.raises(ValueError, match=r"gives|keys|JWK|Expecting"):
        await fetch(issuer.url, file)
    assert file.read_text() == "before"
