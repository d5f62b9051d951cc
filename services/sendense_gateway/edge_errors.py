"""What Envoy itself refuses, in the shape of every other error: code, reason, message, help, details.

gRPC clients get a gRPC status with plain text; only REST requests get JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"
"""Envoy's own description of what is wrong."""


@dataclass(frozen=True, slots=True)
class EdgeError:
    """How one HTTP status that Envoy answers by itself is shown.

    Attributes:
        status: Envoy's status.
        code: Number of the gRPC code that means the same.
        reason: Word of docs/errors.md.
        message: What is wrong, in Envoy's format language.
        help: What the caller may do.
        shown_as: The status that the caller sees; 0 for the same.
        details: How Envoy's details of the answer begin, where one status has several causes.
    """

    status: int
    code: int
    reason: str
    message: str
    help: str
    shown_as: int = 0
    details: str = ""


_UNKNOWN_TOKEN_HELP = "Send 'Authorization: Bearer <token>' with a valid token; `sendense-ctl token create` makes one."  # noqa: S105

EDGE_ERRORS = (
    EdgeError(
        400,
        3,
        "INVALID_QUERY",
        ENVOYS_WORDS,
        "Use only the query parameters that the API reference lists for this path, with values of their type.",
        details="early_grpc_json_transcode_failure",
    ),
    EdgeError(
        400,
        3,
        "MALFORMED_BODY",
        ENVOYS_WORDS,
        "Send one JSON object in UTF-8, with fields as the API reference shows them.",
        details="grpc_json_transcode_failure",
    ),
    EdgeError(
        400,
        3,
        "MALFORMED_PATH",
        "the path has an escaped slash or cannot be normalised",
        "Identifiers have no slashes; paths of files go into the query parameter 'path'.",
        details="path_normalization_failed",
    ),
    EdgeError(400, 3, "MALFORMED_REQUEST", ENVOYS_WORDS, "Send HTTP as the API reference shows it."),
    EdgeError(401, 16, "UNAUTHENTICATED", ENVOYS_WORDS, _UNKNOWN_TOKEN_HELP),
    # Envoy says 403 for a token with another audience; to callers that is a token that is not good.
    EdgeError(403, 16, "UNAUTHENTICATED", ENVOYS_WORDS, _UNKNOWN_TOKEN_HELP, shown_as=401),
    EdgeError(
        404,
        5,
        "ROUTE_NOT_FOUND",
        "there is nothing at this path",
        "GET /api/v1/openapi.json lists all paths.",
    ),
    EdgeError(
        405,
        12,
        "METHOD_NOT_ALLOWED",
        "this path does not know the method %REQ(:METHOD)%",
        "The Allow header lists the methods of this path.",
    ),
    EdgeError(408, 4, "REQUEST_TIMEOUT", "the request did not arrive in time", "Send the whole request at once."),
    EdgeError(413, 8, "BODY_TOO_LARGE", "the request's body is too large", "Bodies may have 1 MiB."),
    EdgeError(431, 8, "HEADERS_TOO_LARGE", "the request's headers are too large", "Headers may have 32 KiB."),
    EdgeError(
        503,
        14,
        "SERVICE_UNAVAILABLE",
        "the service '%UPSTREAM_CLUSTER%' does not answer",
        "Try again in a moment; GET /readyz tells which services answer.",
    ),
    EdgeError(
        504,
        4,
        "DEADLINE_EXCEEDED",
        "the service '%UPSTREAM_CLUSTER%' did not answer in time",
        "Look at the resource before trying again: the request may have been done.",
    ),
)

_OTHER = EdgeError(
    500, 13, "EDGE_ERROR", ENVOYS_WORDS, "Look for the x-request-id of this answer in the gateway's log."
)


def local_reply_config() -> Config:
    """Returns Envoy's `local_reply_config`."""
    own_words = [error for error in EDGE_ERRORS if error.message != ENVOYS_WORDS and not error.details]
    mappers = [_grpc_mapper(_both(_status("EQ", error.status), _GRPC), error.message) for error in own_words]
    # gRPC's code is made from the status: a shown status gives the shown code.
    mappers += [
        {**_grpc_mapper(_both(_status("EQ", error.status), _GRPC), error.message), "status_code": error.shown_as}
        for error in EDGE_ERRORS
        if error.shown_as
    ]
    mappers.append(_grpc_mapper(_GRPC, ENVOYS_WORDS))
    mappers += [_json_mapper(error, "EQ") for error in EDGE_ERRORS]
    mappers.append(_json_mapper(_OTHER, "GE", 400))
    return {"mappers": mappers}


def _grpc_mapper(matches: Config, message: str) -> Config:
    return {"filter": matches, "body_format_override": {"text_format_source": {"inline_string": message}}}


def _json_mapper(error: EdgeError, operator: str, status: int = 0) -> Config:
    body = {
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
        "help": error.help,
        "details": [],
    }
    matches = _status(operator, status or error.status)
    if error.details:
        matches = _both(matches, _details(error.details))
    mapper: Config = {
        "filter": matches,
        "body_format_override": {"json_format": body, "content_type": "application/json"},
    }
    if error.shown_as:
        mapper["status_code"] = error.shown_as
    return mapper


def _status(operator: str, status: int) -> Config:
    value = {"default_value": status, "runtime_key": f"sendense.{operator.lower()}.{status}"}
    return {"status_code_filter": {"comparison": {"op": operator, "value": value}}}


def _details(prefix: str) -> Config:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": f"response.code_details.startsWith('{prefix}')",
            },
        }
    }


def _both(*filters: Config) -> Config:
    return {"and_filter": {"filters": list(filters)}}


def _header(name: str, **match: Any) -> Config:
    return {"header_filter": {"header": {"name": name, **match}}}


# The transcoder turns a REST request into a gRPC one and leaves this header; clients cannot send it.
_GRPC = _both(
    _header("content-type", string_match={"prefix": "application/grpc"}),
    _header("x-envoy-original-path", present_match=True, invert_match=True),
)
