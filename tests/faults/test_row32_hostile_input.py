"""Row 32: hostile input is refused at the edge, with one reason, and nothing is changed by it.

For every field of every public request what its rule forbids is generated from the descriptors; the rest are tricks
that no rule can describe.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor

from fakes import gateway_edge
from fakes.gateway_fakes import services
from sendense.access.v1 import options_pb2
from sendense_access.public_api import all_methods
from sendense_gateway.contract import Contract, RestRoute, Rpc, packaged
from sendense_rpc.validation import DEFAULT_MAX_STRING_BYTES
from support import serving

edge = gateway_edge.edge


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def all_services(edge) -> AsyncIterator[None]:
    async with serving(services(edge.seen)["exports"], edge.settings):
        yield


pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

CONTRACT = Contract.load(packaged("descriptor.binpb"))
REFUSALS = {400, 404, 413}
REASONS = {"INVALID_FIELD", "MALFORMED_PATH", "INVALID_QUERY", "ROUTE_NOT_FOUND"}
ODD_NAMES = ["--help;$(id)", "'; DROP TABLE backup_jobs; --", "${jndi:x}", "%s%n", "..", "<script>"]
MISTYPED = ["dryrun=true", "cascade=true&dry-run=true", "dry_run=maybe", "cascade=true&cascad=1"]
HARMLESS = {"exclude_disks"}
"""Without it more is backed up: nothing is lost or changed by that."""
WIDENING = ("no_", "keep_", "skip_", "exclude_", "only_")


def bad_strings(field: FieldDescriptor) -> list[str]:
    """Returns values that the field's rule forbids."""
    rule = field.GetOptions().Extensions[options_pb2.rule]
    bad = ["x" * ((rule.max_bytes or DEFAULT_MAX_STRING_BYTES) + 1)]
    if rule.pattern:
        bad += [value for value in ("\x00", "a\nb", "\x7f\x1b[2J") if not _fits(rule.pattern, value)]
    if getattr(rule, "in"):
        bad += ["--help", "$(id)", "full "]
    return bad


def _fits(pattern: str, value: str) -> bool:
    return re.fullmatch(pattern, value) is not None


def _strings() -> list[tuple[Rpc, RestRoute, FieldDescriptor]]:
    all_methods()  # imports every contract
    pool = descriptor_pool.Default()
    return [
        (rpc, rest, field)
        for rpc in CONTRACT.public
        for rest in rpc.rest
        for field in pool.FindMessageTypeByName(rpc.request).fields
        if field.type == FieldDescriptor.TYPE_STRING
    ]


def _filled(rest: RestRoute, **values: str) -> str:
    path = rest.template
    for variable in rest.variables:
        path = path.replace(f"{{{variable}}}", quote(values.get(variable, "x1"), safe=""))
    return path


FIELDS = _strings()


async def test_every_string_of_every_request_is_bounded_at_the_edge(edge):
    assert len(FIELDS) > 40
    for _, rest, field in FIELDS:
        for value in bad_strings(field):
            before = len(edge.seen.calls)
            in_path = field.name in rest.variables
            path = _filled(rest, **({field.name: value} if in_path else {}))
            given = [value] if field.is_repeated else value
            if in_path:
                answer = await edge.http.request(rest.verb, path, headers=edge.auth())
            elif rest.body:
                answer = await edge.http.request(rest.verb, path, json={field.name: given}, headers=edge.auth())
            else:
                answer = await edge.http.request(rest.verb, path, params={field.name: given}, headers=edge.auth())
            what = (rest.verb, rest.template, field.name, value[:30], answer.status_code, answer.text[:200])
            assert answer.status_code in REFUSALS, what
            assert answer.json()["reason"] in REASONS, what
            assert len(edge.seen.calls) == before, what


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_a_name_that_is_only_odd_arrives_as_it_is(edge, name):
    """A VM may be called so; nobody may read it as anything but a name."""
    answer = await edge.post("/api/v1/backup/start", json={"vm_name": name, "backup_type": "full"})
    assert answer.status_code == 200, answer.text
    assert edge.seen.last()[1].vm_name == name


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/exports/..%2f..%2fetc%2fpasswd",
        "/api/v1/exports/..%5c..%5cetc",
        "/api/v1/exports/%00",
        "/api/v1/exports/%2e%2e%2fetc",
        "/api/v1/backup/%0d%0aX-Injected:1",
    ],
)
async def test_no_identifier_leads_anywhere(edge, path):
    before = len(edge.seen.calls)
    request = edge.http.build_request("GET", "/", headers=edge.auth())
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = await edge.http.send(request)
    assert "x-injected" not in answer.headers
    if answer.status_code == 200:  # it is one segment and no more than a name
        assert "/" not in edge.seen.last()[1].ListFields()[0][1]
    else:
        assert answer.status_code in REFUSALS
        assert answer.json()["reason"]
        assert len(edge.seen.calls) == before


@pytest.mark.parametrize("megabytes", [2, 10])
async def test_megabytes_of_json_are_refused_unread(edge, megabytes):
    before = len(edge.seen.calls)
    body = json.dumps({"vm_name": "a" * (megabytes << 20), "backup_type": "full"}).encode()
    try:
        answer = await edge.post("/api/v1/backup/start", content=body)
    except httpx.TransportError:
        # Envoy has answered and hung up while the client was still sending: some clients do not read it any more.
        assert megabytes > 2
    else:
        assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")
    assert len(edge.seen.calls) == before


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"vm_name=a&backup_type=full", "application/x-www-form-urlencoded", 400),
        (b"<backup/>", "application/xml", 400),
        (b"\x1f\x8b\x08\x00\x00", "application/json", 400),
        (b'{"backup_type": "full", "backup_type": "incremental"', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 50_000, "application/json", 400),
        (b"\x00\x00\x00\x00\x05hello", "application/grpc-web", 400),
    ],
)
async def test_what_is_no_json_object_is_refused(edge, body, kind, status):
    before = len(edge.seen.calls)
    answer = await edge.post_raw("/api/v1/backup/start", body, kind)
    assert answer.status_code in (status, 415), answer.text
    assert answer.json()["reason"]
    assert len(edge.seen.calls) == before


async def test_unknown_body_fields_are_dropped_and_make_no_mutation_broader(edge):
    """The transcoder drops what it does not know; so each optional field must narrow, never widen, what is done."""
    answer = await edge.post(
        "/api/v1/backup/start", json={"vm_name": "a", "backup_type": "full", "all_vms": True, "reposito": "x"}
    )
    assert answer.status_code == 200
    for rpc in CONTRACT.public:
        for rest in rpc.rest:
            if rest.verb == "GET":
                continue
            fields = descriptor_pool.Default().FindMessageTypeByName(rpc.request).fields_by_name
            for name in ("cascade", "force", "all", "recursive", "overwrite"):
                if name in fields:
                    # Its absence, so also a mistyped name, is the narrower deed.
                    empty = message_factory.GetMessageClass(fields[name].containing_type)()
                    assert getattr(empty, name) is False, (rpc.path, name)
            assert not [name for name in fields if name.startswith(WIDENING) and name not in HARMLESS], rpc.path


@pytest.mark.parametrize("query", MISTYPED)
async def test_a_mistyped_query_never_deletes(edge, query):
    before = len(edge.seen.calls)
    answer = await edge.http.delete(f"/api/v1/backup/b1?{query}", headers=edge.auth())
    assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_QUERY")
    assert len(edge.seen.calls) == before
