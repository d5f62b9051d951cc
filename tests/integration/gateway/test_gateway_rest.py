"""REST through the real Envoy: documented paths reach their RPC; everything else is refused with a reason."""

import asyncio
import json
import ssl

import httpx
import pytest

from fakes import gateway_edge
from fakes.bad_tokens import AT_THE_SERVICE, KINDS, bad_tokens
from fakes.gateway_fakes import CONTENT

edge = gateway_edge.edge
exports = gateway_edge.exports
pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCUMENTED = [
    (
        "POST",
        "/api/v1/backup/start",
        {"vm_name": "pgtest2", "backup_type": "full", "repository": "local"},
        "StartBackup",
        {"vm_name": "pgtest2", "backup_type": "full", "repository": "local"},
    ),
    ("GET", "/api/v1/backup/list?vm_name=pgtest2", None, "ListBackups", {"vm_name": "pgtest2"}),
    (
        "GET",
        "/api/v1/backup/list?status=failed&created_after=2025-10-04T12:00:00Z&page_size=7",
        None,
        "ListBackups",
        {"status": "failed", "page_size": 7},
    ),
    (
        "GET",
        "/api/v1/backup/backup-pgtest2-20251004120000",
        None,
        "GetBackup",
        {"backup_id": "backup-pgtest2-20251004120000"},
    ),
    ("DELETE", "/api/v1/backup/b1", None, "DeleteBackup", {"backup_id": "b1", "cascade": False}),
    ("DELETE", "/api/v1/backup/b1?cascade=true&dry_run=true", None, "DeleteBackup", {"cascade": True, "dry_run": True}),
    ("GET", "/api/v1/backup/chain?vm_name=pgtest2", None, "GetChain", {"vm_name": "pgtest2"}),
    ("POST", "/api/v1/backup/b1/cancel", {}, "CancelBackup", {"backup_id": "b1"}),
    ("POST", "/api/v1/backup/b1/cancel", None, "CancelBackup", {"backup_id": "b1"}),
    ("GET", "/api/v1/backup/b1/log", None, "ListLogEntries", {"backup_id": "b1"}),
    (
        "POST",
        "/api/v1/restore/mount",
        {"backup_id": "backup-pgtest2-20251004120000", "mode": "read-only"},
        "MountBackup",
        {"backup_id": "backup-pgtest2-20251004120000", "mode": "read-only"},
    ),
    ("GET", "/api/v1/restore", None, "ListMounts", {}),
    ("GET", "/api/v1/restore/mount-uuid-123", None, "GetMount", {"mount_id": "mount-uuid-123"}),
    (
        "GET",
        "/api/v1/restore/mount-uuid-123/files?path=/var/www/html",
        None,
        "ListFiles",
        {"mount_id": "mount-uuid-123", "path": "/var/www/html"},
    ),
    ("GET", "/api/v1/restore/m/files?path=/a%20b%2Fc%2B+%C3%BC", None, "ListFiles", {"path": "/a b/c+ ü"}),
    ("DELETE", "/api/v1/restore/mount-uuid-123", None, "UnmountBackup", {"mount_id": "mount-uuid-123"}),
    ("GET", "/api/v1/vms", None, "ListVms", {}),
    ("GET", "/api/v1/repositories", None, "ListRepositories", {}),
    ("GET", "/api/v1/repositories/r1", None, "GetRepository", {"repository_id": "r1"}),
]


def assert_error(answer: httpx.Response, status: int, reason: str) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (answer.status_code, body["reason"]) == (status, reason), body
    assert set(body) == {"code", "reason", "message", "help", "details"}
    assert body["message"]
    assert body["help"]
    return body


@pytest.mark.parametrize(("verb", "path", "body", "rpc", "fields"), DOCUMENTED)
async def test_documented_path_reaches_its_rpc_with_its_fields(edge, verb, path, body, rpc, fields):
    answer = await edge.http.request(verb, path, json=body, headers=edge.auth())
    assert answer.status_code == 200, answer.text
    name, request = edge.seen.last()
    assert name == rpc
    assert {field: getattr(request, field) for field in fields} == fields


async def test_answers_have_snake_case_names_and_defaults_and_64_bit_numbers_as_strings(edge):
    body = (await edge.get("/api/v1/backup/b1", "viewer")).json()
    assert body["backup_id"] == "b1"
    assert body["status"] == "running"
    assert body["bytes_transferred"] == str(1 << 40)
    assert body["error_message"] == ""
    assert body["disks"] == []


@pytest.mark.parametrize("kind", KINDS)
async def test_bad_token_is_refused_and_reaches_nothing(edge, kind):
    calls, loads = len(edge.seen.calls), len(edge.seen.downloads)
    headers = bad_tokens(edge.key)[kind]
    answer = await edge.http.get("/api/v1/backup/list", headers=headers)
    assert_error(answer, 401, "UNAUTHENTICATED")
    if kind not in AT_THE_SERVICE:  # that one is for the restore service to refuse, which is a fake here
        assert_error(await edge.http.get("/api/v1/restore/m/download?path=/a", headers=headers), 401, "UNAUTHENTICATED")
    assert (len(edge.seen.calls), len(edge.seen.downloads)) == (calls, loads)


async def test_token_in_the_query_is_not_taken(edge):
    answer = await edge.http.get("/api/v1/backup/list", params={"access_token": edge.token()})
    assert_error(answer, 401, "UNAUTHENTICATED")


async def test_revoked_token_is_refused_at_once(edge):
    made = (await edge.post("/api/v1/tokens", json={"subject": "anna", "role": "viewer"})).json()
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert (await edge.http.get("/api/v1/backup/list", headers=bearer)).status_code == 200
    await edge.http.delete(f"/api/v1/tokens/{made['token']['token_id']}", headers=edge.auth())
    assert_error(await edge.http.get("/api/v1/backup/list", headers=bearer), 401, "UNAUTHENTICATED")


async def test_role_that_does_not_suffice_is_refused_with_the_role_that_does(edge):
    answer = await edge.post("/api/v1/backup/start", "viewer", json={"vm_name": "a", "backup_type": "full"})
    body = assert_error(answer, 403, "ROLE_MISSING")
    assert "'operator'" in body["message"]
    assert_error(await edge.get("/api/v1/restore", "operator"), 403, "ROLE_MISSING")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"vm_name":', "MALFORMED_BODY"),
        (b"[]", "MALFORMED_BODY"),
        (b'"text"', "MALFORMED_BODY"),
        (b"nonsense", "MALFORMED_BODY"),
        (b'{"vm_name": 3}', "MALFORMED_BODY"),
        (b'{"vm_name": "\xff\xfe", "backup_type": "full"}', "MALFORMED_BODY"),
        (b'{"vm_name": "\xed\xa0\x80", "backup_type": "full"}', "MALFORMED_BODY"),
        (b"[" * 20000, "MALFORMED_BODY"),
        (b"", "INVALID_FIELD"),
        (b'{"vm_name": "a"}', "INVALID_FIELD"),
        (b'{"vm_name": "a", "backup_type": "differential"}', "INVALID_FIELD"),
        (b'{"vm_name": "a\\u0000b", "backup_type": "full"}', "INVALID_FIELD"),
        (json.dumps({"vm_name": "a" * 256, "backup_type": "full"}).encode(), "INVALID_FIELD"),
    ],
)
async def test_body_that_is_wrong_is_a_bad_request_and_starts_nothing(edge, body, reason):
    before = len(edge.seen.calls)
    assert_error(await edge.post("/api/v1/backup/start", content=body), 400, reason)
    assert len(edge.seen.calls) == before


@pytest.mark.parametrize(
    "query", ["unknown=1", "vm_name=a&VM_NAME=b", "page_size=x", "page_size=99999999999", "status="]
)
async def test_query_is_checked(edge, query):
    answer = await edge.get(f"/api/v1/backup/list?{query}")
    if query == "status=":
        assert answer.status_code == 200
    else:
        assert_error(answer, 400, "INVALID_QUERY")


@pytest.mark.parametrize(
    "path", ["/", "/api/v1/nope", "/api/v1/backup", "/api/v1//backup/list", "/api/v1/backup/a/b/c"]
)
async def test_unknown_path_is_not_found(edge, path):
    assert_error(await edge.get(path), 404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize("path", ["/api/v1/backup/a%2Fb", "/api/v1/backup/a%5Cb", "/api/v1%2Fbackup/list"])
async def test_escaped_slash_is_refused(edge, path):
    assert_error(await edge.get(path), 400, "MALFORMED_PATH")


async def test_dots_lead_to_no_other_place(edge):
    before = len(edge.seen.calls)
    for path in ("/healthz/../sendense.repository.v1.LayerService/SealLayer", "/healthz/%2e%2e/api/v1/nope"):
        request = edge.http.build_request("GET", path, headers=edge.auth())
        request.url = request.url.copy_with(raw_path=path.encode())
        assert_error(await edge.http.send(request), 404, "ROUTE_NOT_FOUND")
    assert len(edge.seen.calls) == before


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("DELETE", "/api/v1/backup/list", "GET"),
        ("GET", "/api/v1/backup/start", "POST"),
        ("PUT", "/api/v1/backup/b1", "DELETE, GET"),
        ("POST", "/api/v1/restore/m/download", "GET, HEAD"),
    ],
)
async def test_wrong_method_names_the_right_ones_and_reaches_nothing(edge, verb, path, allowed):
    before = len(edge.seen.calls)
    answer = await edge.http.request(verb, path, headers=edge.auth())
    assert_error(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == allowed
    assert len(edge.seen.calls) == before


async def test_services_error_has_reason_help_and_its_exact_words(edge):
    body = assert_error(await edge.get("/api/v1/backup/nothing"), 404, "BACKUP_NOT_FOUND")
    assert body["code"] == 5
    assert body["message"] == 'no backup "nothing" {or so}, \\ "reason":"WRONG" ü'
    assert body["help"] == 'List the backups with "sendense-ctl backup list".'
    assert body["details"][0]["metadata"]["backup_id"] == "nothing"


async def test_unexpected_error_shows_no_inside(edge):
    body = assert_error(await edge.get("/api/v1/backup/bug"), 500, "INTERNAL")
    assert "ZeroDivision" not in str(body)


async def test_watch_is_a_stream_of_events_that_ends_with_a_final_state(edge):
    answer = await edge.get("/api/v1/backup/b1/watch", "viewer")
    assert answer.headers["content-type"] == "text/event-stream"
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    assert [event["status"] for event in events] == ["running", "completed"]


async def test_watch_of_an_unknown_backup_is_a_plain_error(edge):
    assert_error(await edge.get("/api/v1/backup/nothing/watch", "viewer"), 404, "BACKUP_NOT_FOUND")


async def test_download_is_plain_http_with_ranges(edge):
    whole = await edge.get("/api/v1/restore/m1/download?path=/var/www/html/index.php", "restore")
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert whole.headers["content-length"] == str(len(CONTENT))
    assert whole.headers["etag"] == '"1"'
    path, headers = edge.seen.downloads[-1]
    assert path == "/api/v1/restore/m1/download?path=/var/www/html/index.php"
    assert "Authorization" in headers

    asked = {**edge.auth("restore"), "Range": "bytes=256-511"}
    part = await edge.http.get("/api/v1/restore/m1/download?path=/a", headers=asked)
    assert (part.status_code, part.content) == (206, CONTENT[256:512])
    assert part.headers["content-range"] == f"bytes 256-511/{len(CONTENT)}"


async def test_large_answer_passes_and_large_body_does_not(edge):
    answer = await edge.get("/api/v1/restore/m/files?page_size=700")
    assert answer.status_code == 200
    assert len(answer.json()["entries"]) == 700
    body = json.dumps({"vm_name": "a" * (2 << 20), "backup_type": "full"}).encode()
    assert_error(await edge.post("/api/v1/backup/start", content=body), 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("protocol", ["--http2", "--http1.1"])
async def test_curl_shows_why_a_large_body_is_refused(edge, tmp_path, protocol):
    (tmp_path / "body").write_bytes(b" " * (10 << 20))
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", protocol, "--cacert", str(edge.ca), "--max-time", "60"),
        *("-H", f"Authorization: Bearer {edge.token()}", "-H", "content-type: application/json"),
        *("--data-binary", f"@{tmp_path / 'body'}", "--write-out", "\n%{http_code}"),
        f"{edge.endpoint}/api/v1/backup/start",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    body, _, status = said.rpartition(b"\n")
    assert (status, json.loads(body)["reason"]) == (b"413", "BODY_TOO_LARGE")


async def test_a_large_body_of_unknown_length_is_refused_too(edge):
    async def pieces():
        for _ in range(40):
            yield b" " * (64 << 10)

    headers = {**edge.auth(), "content-type": "application/json"}
    answer = await edge.http.post("/api/v1/backup/start", headers=headers, content=pieces())
    assert_error(answer, 413, "BODY_TOO_LARGE")


async def test_large_headers_are_refused(edge):
    headers = {**edge.auth(), "x-large": "a" * (40 << 10)}
    answer = await edge.http.get("/api/v1/backup/list", headers=headers)
    assert_error(answer, 431, "HEADERS_TOO_LARGE")


async def test_identity_headers_and_request_ids_of_clients_do_not_pass(edge):
    forged = {"x-sendense-caller": "root", "x-envoy-original-path": "/x", "x-request-id": "mine"}
    answer = await edge.http.get("/api/v1/backup/list", headers={**edge.auth(), **forged})
    metadata = edge.seen.calls[-1][2]
    assert not any(key.startswith("x-sendense-") for key in metadata)
    assert metadata["x-envoy-original-path"] == "/api/v1/backup/list"
    assert metadata["x-request-id"] == answer.headers["x-request-id"] != "mine"
    assert metadata["authorization"].startswith("Bearer ")


async def test_service_that_is_down_is_named_the_others_answer_and_it_comes_back(edge, exports):
    body = assert_error(await edge.get("/api/v1/exports"), 503, "SERVICE_UNAVAILABLE")
    assert "'exports'" in body["message"]
    ready = await edge.http.get("/readyz")
    assert ready.status_code == 503
    states = ready.json()["services"]
    assert (states["exports"], states["access"], states["backup"]) == ("unreachable", "serving", "serving")
    assert ready.json()["missing"] == sorted(name for name, state in states.items() if state != "serving")
    assert (await edge.get("/api/v1/backup/list")).status_code == 200
    async with exports:
        answer = await edge.get("/api/v1/exports")
        assert answer.json() == {"exports": [], "next_page_token": ""}
    assert_error(await edge.get("/api/v1/exports"), 503, "SERVICE_UNAVAILABLE")


async def test_health_and_the_description_need_no_token(edge):
    assert (await edge.http.get("/healthz")).json() == {"status": "ok"}
    document = (await edge.http.get("/api/v1/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert "/api/v1/backup/start" in document["paths"]


async def test_tokens_and_agents_are_administered_over_rest(edge):
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP//////////////////////////////////////////"
    enrolled = await edge.post("/api/v1/agents", json={"agent_id": "site-1", "public_key": key})
    assert enrolled.status_code == 200, enrolled.text
    assert enrolled.json()["public_key"] == key
    listed = (await edge.get("/api/v1/agents", "viewer")).json()["agents"]
    assert [agent["agent_id"] for agent in listed] == ["site-1"]
    removed = await edge.http.delete("/api/v1/agents/site-1", headers=edge.auth())
    assert removed.status_code == 200
    assert_error(await edge.http.delete("/api/v1/agents/site-1", headers=edge.auth()), 404, "AGENT_NOT_FOUND")


async def test_plain_text_connection_and_unknown_ca_are_refused(edge):
    async with httpx.AsyncClient(trust_env=False) as plain:
        with pytest.raises(httpx.TransportError):
            await plain.get(edge.endpoint.replace("https", "http") + "/healthz")
    async with httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False) as stranger:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get(edge.endpoint + "/healthz")
