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
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, NamedTuple

import aiohttp
import grpc
import httpx
import pytest
import pytest_asyncio
from yarl import URL

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


class Answer(NamedTuple):
    """What came back over REST."""

    status: int
    content_type: str
    request_id: str
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Asker:
    """Sends requests exactly as they are written; aiohttp, since these are thousands and httpx takes 3 ms for each."""

    def __init__(self, endpoint: str, session: aiohttp.ClientSession) -> None:
        self._endpoint = endpoint
        self._session = session

    async def __call__(self, verb: str, path: str, headers: dict[str, str]) -> Answer:
        has_body = verb in ("POST", "PUT", "PATCH")
        kind = {"content-type": "application/json"} if has_body else {}
        url = URL(self._endpoint + path, encoded=True)
        sent = self._session.request(verb, url, headers={**headers, **kind}, data=b"{}" if has_body else None)
        async with sent as answer:
            assert answer.request_info.url.raw_path_qs == path  # nothing was put right on the way
            found = answer.headers
            text = await answer.text()
            return Answer(answer.status, found.get("content-type", ""), found.get("x-request-id", ""), text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ask(edge) -> AsyncIterator[Asker]:
    connector = aiohttp.TCPConnector(limit=8, ssl=ssl.create_default_context(cafile=edge.ca))
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Asker(edge.endpoint, session)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(edge) -> AsyncIterator[grpc.aio.Channel]:
    async with edge.channel() as channel:
        yield channel


async def together(waiting: dict[Any, Awaitable[Answer]]) -> list[tuple[Any, Answer]]:
    """Sends the requests at once; the connections' number bounds how many are under way."""
    return list(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))


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


def refused(answer: Answer, status: int, reason: str, what: object) -> None:
    assert answer.content_type == "application/json", (what, answer)
    body = answer.json()
    assert (answer.status, body["reason"]) == (status, reason), (what, body)
    assert set(body) == {"code", "reason", "message", "help", "details"}
    assert body["message"]
    assert body["help"], what


def reached(edge) -> tuple[int, int]:
    return len(edge.seen.calls), len(edge.seen.downloads)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_no_bad_token_reaches_a_route_whatever_it_pretends(edge, ask, route):
    _, rest = route
    before = reached(edge)
    waiting = {
        (kind, pretends): ask(rest.verb, filled(rest.template), {**headers, **(SPOOFED if pretends else {})})
        for kind, headers in bad_tokens(edge.key).items()
        for pretends in (False, True)
    }
    assert len(waiting) == 2 * len(KINDS)
    for what, answer in await together(waiting):
        refused(answer, 401, "UNAUTHENTICATED", what)
    assert reached(edge) == before


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_each_role_reaches_what_it_is_granted_and_nothing_else(edge, ask, route):
    rpc, rest = route
    granted = {role: rpc.role in GRANTS[role] for role in PEOPLE}

    def asked(roles: list[str]) -> dict[Any, Awaitable[Answer]]:
        return {
            (role, bool(extra)): ask(rest.verb, filled(rest.template), {**edge.auth(role), **extra})
            for role in roles
            for extra in ({}, SPOOFED)
        }

    before = reached(edge)
    for what, answer in await together(asked([role for role in PEOPLE if not granted[role]])):
        refused(answer, 403, "ROLE_MISSING", what)
        assert f"'{rpc.role}'" in answer.json()["message"]
    assert reached(edge) == before
    for what, answer in await together(asked([role for role in PEOPLE if granted[role]])):
        assert answer.status not in (401, 403), (what, answer)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
async def test_no_trick_with_the_path_leads_past_the_token_or_the_role(edge, ask, route):
    rpc, rest = route
    weak = next((role for role in PEOPLE if rpc.role not in GRANTS[role]), None)
    before = reached(edge)
    waiting = {(path, None): ask(rest.verb, path, {}) for path in tricks(rest.template)}
    if weak:
        waiting |= {(path, weak): ask(rest.verb, path, edge.auth(weak)) for path in tricks(rest.template)}
    for what, answer in await together(waiting):
        assert answer.status in (400, 403 if what[1] else 401, 404, 405), (what, answer)
        assert answer.json()["reason"], what
    assert reached(edge) == before


@pytest.mark.parametrize("rpc", CONTRACT.public, ids=lambda rpc: rpc.path)
async def test_grpc_refuses_the_same_tokens_and_roles(edge, channel, rpc):
    before = reached(edge)
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

    bad = bad_tokens(edge.key)
    codes = dict(zip(bad, await asyncio.gather(*map(code, bad.values())), strict=True))
    assert codes == dict.fromkeys(KINDS, grpc.StatusCode.UNAUTHENTICATED)
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


async def test_a_download_needs_its_role_too(edge, ask):
    path = filled(DOWNLOAD_TEMPLATE) + "?path=/a"
    for kind, headers in bad_tokens(edge.key).items():
        if kind not in AT_THE_SERVICE:  # the restore service refuses these, and it is a fake here
            refused(await ask("GET", path, headers), 401, "UNAUTHENTICATED", kind)


async def test_internal_rpcs_have_no_route_for_anybody(edge, ask, channel):
    before = reached(edge)
    identities = (edge.settings.root / "keys" / "identities").glob("*.token")
    tokens = [edge.token(), *(file.read_text() for file in identities)]
    internal = [rpc.path for rpc in CONTRACT.rpcs if not rpc.public]
    assert internal
    assert len(tokens) > 5
    for path in internal:
        for token in tokens[:2]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        answer = await ask("POST", path, {"Authorization": f"Bearer {tokens[1]}"})
        assert answer.status == 404
    assert reached(edge) == before


async def test_a_limited_token_is_refused_by_every_rpc_that_does_not_honour_limits(edge, ask):
    limitable = {method.path for method in all_methods() if method.limitable}
    secret = edge.key.sign("ann", "admin", 600, limits=Limits(frozenset({"web"})))
    headers = {"Authorization": f"Bearer {secret}"}
    for rpc, rest in ROUTES:
        answer = await ask(rest.verb, filled(rest.template), headers)
        if rpc.path in limitable:
            assert answer.status not in (401, 403), (rest, answer)
        else:
            refused(answer, 403, "TOKEN_LIMITED", rest)
    assert limitable


async def test_role_refusals_are_in_the_audit_log_with_source_and_request_id(edge, ask):
    headers = {**edge.auth("viewer"), "x-forwarded-for": "203.0.113.9"}
    answer = await ask("DELETE", "/api/v1/tokens/nobody", headers)
    refused(answer, 403, "ROLE_MISSING", "viewer")
    query = f"/api/v1/audit?logged_request_id={answer.request_id}"
    (entry,) = (await edge.get(query)).json()["entries"]
    assert (entry["actor"], entry["action"]) == ("viewer-person", "AccessService.RevokeToken")
    assert (entry["result"], entry["target"]) == ("ROLE_MISSING", "token_id=nobody")
    # Envoy names the machine's own address for its own callers; never what the caller says.
    assert entry["source"] not in ("", "203.0.113.9")
    # Another service reports to the access service, through its spool.
    answer = await ask("DELETE", "/api/v1/backup/b7", edge.auth("viewer"))
    query = f"/api/v1/audit?logged_request_id={answer.request_id}"
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
