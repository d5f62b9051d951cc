"""Envoy's routes, one per RPC and per REST path, derived from the contract. What is not listed here does not exist.

Order matters, the first match wins: pages of the gateway, gRPC paths, then REST paths with literal ones before those
with variables. Each REST path ends with a refusal of the methods that it does not have: without it
`DELETE /api/v1/backup/list` would be taken for the deletion of a backup named `list`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sendense_gateway.contract import DOWNLOAD_TEMPLATE, Contract

Config = dict[str, Any]

TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
BUFFER = "envoy.filters.http.buffer"
JWT = "envoy.filters.http.jwt_authn"
UNARY_TIMEOUT = "120s"
"""Longer than any RPC that waits, such as an unmount (30 s) or a mount by libguestfs (10 s)."""
PAGES_CLUSTER = "gateway"
DOWNLOADS_CLUSTER = "restore-http"
REFLECTION_OWNER = "access"
OPENAPI_PATH = "/api/v1/openapi.json"
API_PREFIX = "/api/"
METRICS_PATH = "/api/v1/metrics"
DOCS_PATH = "/docs"

_DISABLED: Config = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
NO_TRANSCODING: Config = {TRANSCODER: _DISABLED}
_NO_TOKEN: Config = {JWT: _DISABLED}
_REFLECTION = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


def routes(contract: Contract, max_body_bytes: int) -> list[Config]:
    """Returns all routes, in their order; bodies that say to exceed `max_body_bytes` go where they are refused."""
    return [*_pages(), *_grpc(contract), _oversize(max_body_bytes), *_rest(contract)]


def path_regex(template: str) -> str:
    """Returns the regular expression of a REST path; a variable is one segment."""
    parts = re.split(r"(\{[a-z0-9_]+\})", template)
    return "".join("[^/]+" if part.startswith("{") else re.escape(part) for part in parts)


def _pages() -> Iterator[Config]:
    yield {
        "match": {"path": "/healthz", "headers": [_method_is("GET")]},
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps({"status": "ok"})}},
        "response_headers_to_add": [{"header": {"key": "content-type", "value": "application/json"}}],
        "typed_per_filter_config": {**NO_TRANSCODING, **_NO_TOKEN},
    }
    # The description of the API is no secret, and a browser shows it before anybody has entered a token.
    for match in (
        {"path": "/readyz"},
        {"path": DOCS_PATH},
        {"safe_regex": {"regex": f"{DOCS_PATH}/[a-z0-9.-]*"}},
    ):
        yield {
            "match": {**match, "headers": [_method_is("GET")]},
            "route": {"cluster": PAGES_CLUSTER, "timeout": "10s"},
            "typed_per_filter_config": {**NO_TRANSCODING, **_NO_TOKEN},
        }
    for path in ("/healthz", "/readyz", DOCS_PATH):
        yield _refuse_other_methods({"path": path}, ["GET"])


def _grpc(contract: Contract) -> Iterator[Config]:
    for rpc in contract.public:
        yield _grpc_route(rpc.path, rpc.owner, streaming=rpc.streaming)
    for path in _REFLECTION:
        yield _grpc_route(path, REFLECTION_OWNER, streaming=True)


def _oversize(max_body_bytes: int) -> Config:
    too_large = {"name": "content-length", "range_match": {"start": max_body_bytes + 1, "end": 1 << 62}}
    # Who asks before sending is refused at once, by Envoy, and sends nothing.
    asks = {"name": "expect", "present_match": True, "invert_match": True}
    return {
        "match": {"prefix": API_PREFIX, "headers": [too_large, asks]},
        "route": {"cluster": PAGES_CLUSTER, "timeout": UNARY_TIMEOUT},
        "typed_per_filter_config": {**NO_TRANSCODING, BUFFER: _DISABLED},
    }


def _grpc_route(path: str, owner: str, *, streaming: bool) -> Config:
    return {
        "match": {"path": path, "grpc": {}},
        "route": _to(owner, streaming=streaming),
        # A stream's end is not waited for; services bound the size of each message.
        "typed_per_filter_config": {**NO_TRANSCODING, BUFFER: _DISABLED},
    }


def _rest(contract: Contract) -> Iterator[Config]:
    paths: dict[str, dict[str, Config]] = {
        METRICS_PATH: {"GET": {"route": {"cluster": PAGES_CLUSTER}, "typed_per_filter_config": NO_TRANSCODING}},
        OPENAPI_PATH: {
            "GET": {
                "route": {"cluster": PAGES_CLUSTER},
                "typed_per_filter_config": {**NO_TRANSCODING, **_NO_TOKEN},
            }
        },
        DOWNLOAD_TEMPLATE: {
            verb: {
                "route": {"cluster": DOWNLOADS_CLUSTER, "timeout": "0s"},
                "typed_per_filter_config": NO_TRANSCODING,
            }
            for verb in ("GET", "HEAD")
        },
    }
    for rpc in contract.public:
        for rest in rpc.rest:
            of_path = paths.setdefault(rest.template, {})
            if rest.verb in of_path:
                raise ValueError(f"{rest.verb} {rest.template} belongs to two RPCs, one of them {rpc.path}")
            of_path[rest.verb] = {"route": _to(rpc.owner, streaming=rpc.streaming)}
    for template in sorted(paths, key=lambda each: (each.count("{"), each)):
        match = {"safe_regex": {"regex": path_regex(template)}}
        for verb, action in paths[template].items():
            yield {"match": {**match, "headers": [_method_is(verb)]}, **action}
        yield _refuse_other_methods(match, paths[template])


def _refuse_other_methods(match: Config, verbs: Iterable[str]) -> Config:
    return {
        "match": match,
        "direct_response": {"status": 405},
        "response_headers_to_add": [{"header": {"key": "allow", "value": ", ".join(sorted(verbs))}}],
        "typed_per_filter_config": NO_TRANSCODING,
    }


def _method_is(verb: str) -> Config:
    return {"name": ":method", "string_match": {"exact": verb}}


def _to(owner: str, *, streaming: bool) -> Config:
    retry = {"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 1}
    return {"cluster": owner, "timeout": "0s" if streaming else UNARY_TIMEOUT, "retry_policy": retry}
