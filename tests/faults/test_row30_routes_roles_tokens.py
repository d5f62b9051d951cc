"""Row 30: every route × role × bad token × path trick gives the same refusal, reaches nothing, and is logged.

Routes, roles and RPCs are read from the descriptors that the gateway itself is made from: a new RPC is covered without
anybody remembering.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import pytest
import pytest_asyncio

from fakes import gateway_edge
from fakes.bad_tokens import AT_THE_SERVICE, KINDS, bad_tokens
from fakes.gateway_fakes import services
from sendense_access.public_api import all_methods
from sendense_gateway.contract import DOWNLOAD_TEMPLATE, Contract, RestRoute, Rpc, packaged
from sendense_rpc.identity import GRANTS
from sendense_rpc.limits import Limits
from support import serving

edge = gateway_edge.edge


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def all_services(edge) -> AsyncIterator[None]:
    """Starts the one service that the shared gateway leaves down."""
    async with serving(services(edge.seen)["exports"], edge.settings):
        yield


pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

CONTRACT = Contract.load(packaged("descriptor.binpb"))
ROUTES = [(rpc, rest) for rpc in CONTRACT.public for rest in rpc.rest]
PEOPLE = tuple(role for role in GRANTS if role != "internal")
SPOOFED = {
    "x-sendense-limits": '{"vms": [], "repositories": []}',
    "x-sendense-caller": "root",
    "x-sendense-role": "admin",
    "x-envoy-original-path": "/api/v1/backup/list",
    "x-envoy-internal": "true",
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-client-cert": "By=x;Subject=root",
    "x-request-id": "mine",
    "grpc-status": "0",
    "x-http-method-override": "GET",
}


def name_of(route: tuple[Rpc, RestRoute]) -> str:
    return f"{route[1].verb} {route[1].template}"


def filled(template: str, value: str = "x1") -> str:
    for variable in RestRoute("GET", template, body=False).variables:
        template = template.replace(f"{{{variable}}}", value)
    return template


def tricks(template: str) -> Iterator[str]:
    """Other spellings of a path that a filter and a router could read differently."""
    path = filled(template)
    yield path.replace("/api/v1/", "/api//v1/")
    yield path.replace("/api/v1/", "/api/./v1/../v1/")
    yield path.replace("/api/v1/", "/api%2Fv1/")
    yield path.replace("/api/v1/", "/api/v1/%2e%2e/v1/")
    yield path.replace("/api/v1/", "/API/V1/")
    yield path + "/"
    yield path + "%2F"
    yield path + ";a=b"
    yield "/healthz/.." + path
    yield "/docs/%2e%2e" + path


async def ask(edge, verb: str, path: str, headers: dict[str, str], http: httpx.AsyncClient | None = None):
    client = http or edge.http
    body = {"content": b"{}"} if verb in ("POST", "PUT", "PATCH") else {}
    kind = {"content-type": "application/json"} if body else {}
    request = client.build_request(verb, "/", headers={**headers, **kind}, **body)
    request.url = request.url.copy_with(raw_path=path.encode())
    return await client.send(request)


def refused(answer: httpx.Response, status: int, reason: str, what: object) -> None:
    assert answer.headers.get("content-type") == "application/json", (what, answer.status_code, answer.text)
    body = answer.json()
    assert (answer.status_code, body["reason"]) == (status, reason), (what, body)
    assert set(body) == {"code", "reason", "message", "help", "details"}
    assert body["message"]
    assert body["help"], what


def reached(edge) -> tuple[int, int]:
    return len(edge.seen.calls), len(edge.seen.downloads)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_no_bad_token_reaches_a_route_whatever_it_pretends(edge, route):
    _, rest = route
    before = reached(edge)
    for kind, headers in bad_tokens(edge.key).items():
        for extra in ({}, SPOOFED):
            answer = await ask(edge, rest.verb, filled(rest.template), {**headers, **extra})
            refused(answer, 401, "UNAUTHENTICATED", (kind, extra))
    assert reached(edge) == before


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_each_role_reaches_what_it_is_granted_and_nothing_else(edge, route):
    rpc, rest = route
    for role in PEOPLE:
        for extra in ({}, SPOOFED):
            before = reached(edge)
            answer = await ask(edge, rest.verb, filled(rest.template), {**edge.auth(role), **extra})
            if rpc.role in GRANTS[role]:
                assert answer.status_code not in (401, 403), (role, answer.text)
            else:
                refused(answer, 403, "ROLE_MISSING", role)
                assert f"'{rpc.role}'" in answer.json()["message"]
                assert reached(edge) == before


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_no_trick_with_the_path_leads_past_the_token_or_the_role(edge, route):
    rpc, rest = route
    weak = next((role for role in PEOPLE if rpc.role not in GRANTS[role]), None)
    before = reached(edge)
    for path in tricks(rest.template):
        answer = await ask(edge, rest.verb, path, {})
        assert answer.status_code in (400, 401, 404, 405), (path, answer.status_code, answer.text)
        if weak:
            answer = await ask(edge, rest.verb, path, edge.auth(weak))
            assert answer.status_code in (400, 403, 404, 405), (path, answer.status_code, answer.text)
        assert answer.json()["reason"], path
    assert reached(edge) == before


@pytest.mark.parametrize("rpc", CONTRACT.public, ids=lambda rpc: rpc.path)
async def test_grpc_refuses_the_same_tokens_and_roles(edge, rpc):
    before = reached(edge)
    async with edge.channel() as channel:
        call = channel.unary_stream(rpc.path) if rpc.streaming else channel.unary_unary(rpc.path)

        async def code(headers: dict[str, str]) -> grpc.StatusCode:
            metadata = tuple((name.lower(), value) for name, value in headers.items())
            try:
                if rpc.streaming:
                    async for _ in call(b"", metadata=metadata, timeout=60):
                        pass
                else:
                    await call(b"", metadata=metadata, timeout=60)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        for kind, headers in bad_tokens(edge.key).items():
            assert await code(headers) is grpc.StatusCode.UNAUTHENTICATED, kind
        for role in PEOPLE:
            if rpc.role not in GRANTS[role]:
                assert await code(edge.auth(role)) is grpc.StatusCode.PERMISSION_DENIED, role
        assert reached(edge) == before
        for role in PEOPLE:
            if rpc.role in GRANTS[role]:
                assert await code(edge.auth(role)) not in (
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.PERMISSION_DENIED,
                    grpc.StatusCode.UNIMPLEMENTED,
                ), role


async def test_a_download_needs_its_role_too(edge):
    path = filled(DOWNLOAD_TEMPLATE) + "?path=/a"
    for kind, headers in bad_tokens(edge.key).items():
        if kind not in AT_THE_SERVICE:  # the restore service refuses these, and it is a fake here
            refused(await ask(edge, "GET", path, headers), 401, "UNAUTHENTICATED", kind)


async def test_internal_rpcs_have_no_route_for_anybody(edge):
    before = reached(edge)
    identities = (edge.settings.root / "keys" / "identities").glob("*.token")
    tokens = [edge.token(), *(file.read_text() for file in identities)]
    internal = [rpc.path for rpc in CONTRACT.rpcs if not rpc.public]
    assert internal
    assert len(tokens) > 5
    async with edge.channel() as channel:
        for path in internal:
            for token in tokens[:2]:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(path)(b"", metadata=(("authorization", f"Bearer {token}"),))
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            answer = await ask(edge, "POST", path, {"Authorization": f"Bearer {tokens[1]}"})
            assert answer.status_code == 404
    assert reached(edge) == before


async def test_a_limited_token_is_refused_by_every_rpc_that_does_not_honour_limits(edge):
    limitable = {method.path for method in all_methods() if method.limitable}
    secret = edge.key.sign("ann", "admin", 600, limits=Limits(frozenset({"web"})))
    headers = {"Authorization": f"Bearer {secret}"}
    for rpc, rest in ROUTES:
        answer = await ask(edge, rest.verb, filled(rest.template), headers)
        if rpc.path in limitable:
            assert answer.status_code not in (401, 403), (rest, answer.text)
        else:
            refused(answer, 403, "TOKEN_LIMITED", rest)
    assert limitable


async def test_role_refusals_are_in_the_audit_log_with_source_and_request_id(edge):
    headers = {**edge.auth("viewer"), "x-forwarded-for": "203.0.113.9"}
    answer = await edge.http.delete("/api/v1/tokens/nobody", headers=headers)
    refused(answer, 403, "ROLE_MISSING", "viewer")
    query = f"/api/v1/audit?logged_request_id={answer.headers['x-request-id']}"
    (entry,) = (await edge.get(query)).json()["entries"]
    assert (entry["actor"], entry["action"]) == ("viewer-person", "AccessService.RevokeToken")
    assert (entry["result"], entry["target"]) == ("ROLE_MISSING", "token_id=nobody")
    # Envoy names the machine's own address for its own callers; never what the caller says.
    assert entry["source"] not in ("", "203.0.113.9")
    # Another service reports to the access service, through its spool.
    answer = await edge.http.delete("/api/v1/backup/b7", headers=edge.auth("viewer"))
    query = f"/api/v1/audit?logged_request_id={answer.headers['x-request-id']}"
    async with asyncio.timeout(60):
        while not (entries := (await edge.get(query)).json()["entries"]):  # noqa: ASYNC110  # another process's work
            await asyncio.sleep(0.1)
    assert [(each["action"], each["result"]) for each in entries] == [("BackupService.DeleteBackup", "ROLE_MISSING")]


async def test_refusals_at_the_edge_are_logged_without_any_token(sendense_home):
    environment = {**os.environ, "SENDENSE_HOME": str(sendense_home)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sendense_gateway.main"), env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        endpoint = sendense_home / "endpoint"
        await gateway_edge.eventually(lambda: endpoint.exists() or process.returncode is not None, 60)
        context = ssl.create_default_context(cafile=sendense_home / "tls" / "ca.crt")
        async with httpx.AsyncClient(base_url=endpoint.read_text().strip(), verify=context, timeout=60) as http:
            answer = await http.get("/api/v1/vms?access_token=canary-1", headers={"Authorization": "Bearer canary-2"})
            assert answer.status_code == 401
    finally:
        process.terminate()
        _, said = await process.communicate()
    assert b"canary" not in said
    lines = [json.loads(line) for line in said.decode().splitlines() if line.startswith("{")]
    (line,) = [each for each in lines if each.get("path") == "/api/v1/vms"]
    assert (line["status"], line["method"], line["from"]) == (401, "GET", "127.0.0.1")
    assert line["request_id"] == answer.headers["x-request-id"]


async def test_the_matrix_is_not_empty():
    assert len(ROUTES) > 25
    assert len(KINDS) > 15
    assert PEOPLE == ("viewer", "restore", "operator", "admin")
