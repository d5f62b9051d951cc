"""What browsers and tools ask the gateway: the docs page, compression, CORS, keys that change, draining."""

import asyncio
import json
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes import gateway_edge
from sendense_access.keys import SigningKey, write_private
from sendense_gateway.edge_tokens import KEYS_CACHED_SECONDS

edge = gateway_edge.edge
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
async def test_docs_come_from_here_alone(edge, path):
    page = await edge.http.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(linked) == 4
    for address in linked:
        assert address.startswith("/docs/")
        asset = await edge.http.get(address)
        assert asset.status_code == 200, address
        assert asset.content
    start = (await edge.http.get("/docs/start.js")).text
    assert "/api/v1/openapi.json" in start
    assert "http" not in start


@pytest.mark.parametrize("name", ["swagger-editor-bundle.js", "LICENSE", "..%2fLICENSE", ".."])
async def test_docs_show_no_other_file(edge, name):
    assert (await edge.http.get(f"/docs/{name}", headers=edge.auth())).status_code in (400, 404)


async def test_json_is_compressed_when_asked_and_events_are_not(edge):
    plain = await edge.http.get("/api/v1/openapi.json", headers={"Accept-Encoding": "identity"})
    packed = await edge.http.get("/api/v1/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    listed = await edge.http.get(
        "/api/v1/restore/m/files?page_size=5", headers={**edge.auth(), "Accept-Encoding": "gzip"}
    )
    assert listed.headers["content-encoding"] == "gzip"
    watched = await edge.http.get("/api/v1/backup/b/watch", headers={**edge.auth(), "Accept-Encoding": "gzip"})
    assert "content-encoding" not in watched.headers


async def test_errors_keep_their_shape_when_compressed(edge):
    answer = await edge.http.get("/api/v1/backup/nothing", headers={**edge.auth(), "Accept-Encoding": "gzip"})
    assert answer.json()["reason"] == "BACKUP_NOT_FOUND"


async def test_no_other_origin_is_let_in_unless_it_is_set(edge):
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    preflight = await edge.http.options("/api/v1/backup/list", headers=origin)
    assert not [name for name in preflight.headers if name.startswith("access-control-")]
    answer = await edge.http.get("/api/v1/backup/list", headers={**edge.auth(), **origin})
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_keys_have_no_public_route(edge):
    for path in ("/keys/sendense", "/api/v1/keys/sendense", "/docs/../keys/sendense"):
        assert (await edge.http.get(path, headers=edge.auth())).status_code == 404


async def test_a_new_key_is_taken_without_a_restart_and_the_old_one_no_more(edge):
    file = edge.settings.jwks_file
    before = file.read_bytes()
    new = SigningKey(Ed25519PrivateKey.generate())
    bearer = {"Authorization": "Bearer " + new.sign("ann", "viewer", 600)}
    assert (await edge.http.get("/api/v1/backup/list", headers=bearer)).status_code == 401
    both = {"keys": [*json.loads(before)["keys"], *new.jwks()["keys"]]}
    write_private(file, json.dumps(both).encode())
    try:
        async with asyncio.timeout(KEYS_CACHED_SECONDS + 60):
            while (await edge.http.get("/api/v1/backup/list", headers=bearer)).status_code != 200:  # noqa: ASYNC110  # Envoy tells nobody
                await asyncio.sleep(0.5)
        assert (await edge.get("/api/v1/backup/list")).status_code == 200
    finally:
        write_private(file, before)
    # Services read the file at once, whatever Envoy still holds.
    answer = await edge.http.get("/api/v1/backup/list", headers=bearer)
    assert answer.status_code == 401
