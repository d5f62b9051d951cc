"""The examples in the API's description are sent as they stand, and reach their RPC with their fields."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.message import Message

from fakes import gateway_edge
from fakes.gateway_fakes import services
from sendense_gateway.contract import packaged
from sendense_gateway.openapi_examples import BODIES
from support import serving

edge = gateway_edge.edge


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def all_services(edge) -> AsyncIterator[None]:
    async with serving(services(edge.seen)["exports"], edge.settings):
        yield


pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCUMENT = json.loads(packaged("openapi.json").read_text())
OPERATIONS = [
    (verb, path, operation)
    for path, verbs in DOCUMENT["paths"].items()
    for verb, operation in verbs.items()
    if operation["operationId"] != "DownloadFile"
]

NEEDS_MORE = {"CheckReadiness", "EnrollmentService_CreateEnrollment"}
"""What needs the tunnel, which does not run here: they say so."""
NAMES = [operation["operationId"] for _, _, operation in OPERATIONS]


def _needed(operation: dict[str, Any], place: str) -> list[dict[str, Any]]:
    return [each for each in operation.get("parameters", []) if each["in"] == place and each["required"]]


@pytest.mark.parametrize(("verb", "path", "operation"), OPERATIONS, ids=NAMES)
async def test_an_example_is_accepted(edge, verb, path, operation):
    for parameter in _needed(operation, "path"):
        path = path.replace(f"{{{parameter['name']}}}", quote(str(parameter.get("example", "x1")), safe=""))
    query = {each["name"]: each["example"] for each in _needed(operation, "query") if "example" in each}
    if len(query) < len(_needed(operation, "query")):
        pytest.skip("a query parameter that must be given has no example")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if body.get("schema", {}).get("required") and "example" not in body:
        pytest.skip("the body that must be given has no example")
    sent = {"json": body["example"]} if "example" in body else {}
    answer = await edge.http.request(verb, path, params=query, headers=edge.auth(), **sent)
    # The access service is the real one: what the example names need not be there.
    missing = answer.status_code == 404 and answer.json()["reason"].endswith("_NOT_FOUND")
    if operation["operationId"] in NEEDS_MORE:
        assert answer.status_code == 503, answer.text
        return
    assert answer.status_code == 200 or missing, answer.text
    if "example" in body and not path.startswith(("/api/v1/tokens", "/api/v1/agents")):
        _, request = edge.seen.last()
        assert json_format.ParseDict(body["example"], type(request)()) == _without_path(request, operation)


def _without_path(request: Message, operation: dict[str, Any]) -> Message:
    copied = type(request)()
    copied.CopyFrom(request)
    for parameter in _needed(operation, "path"):
        copied.ClearField(parameter["name"])
    return copied


async def test_the_specifications_requests_have_examples():
    assert {"StartBackup", "MountBackup"} <= set(BODIES)
    assert BODIES["StartBackup"] == {"vm_name": "pgtest2", "backup_type": "full", "repository": "local"}
