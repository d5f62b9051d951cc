"""Builds the OpenAPI 3.1 description of the REST API from the contracts: `python -m sendense_gateway.openapi IN OUT`.

Everything comes from the protos (paths, comments, field rules, roles) but the few paths that are no RPC.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sendense_gateway.contract import DOWNLOAD_TEMPLATE, Contract, RestRoute, Rpc, prose
from sendense_gateway.openapi_examples import BODIES, VALUES
from sendense_gateway.openapi_schema import Schemas
from sendense_gateway.routes import METRICS_PATH, OPENAPI_PATH

Document = dict[str, Any]

_INTRODUCTION = (
    "Backup and restore of VMware virtual machines. 64-bit integers are JSON strings. Query parameters that are not "
    "listed are refused. Every error has one shape: `code` (gRPC's number), `reason` (a word from docs/errors.md, for "
    "programs), `message`, `help` (what to do) and `details`. The next page of a list is asked for with "
    "`page_token`, which is the answer's `next_page_token`."
)
_ERROR_SCHEMA: Document = {
    "type": "object",
    "description": "What went wrong and what the caller may do.",
    "properties": {
        "code": {"type": "integer", "description": "Number of the gRPC status code."},
        "reason": {"type": "string", "description": "Word from docs/errors.md, for programs."},
        "message": {"type": "string", "description": "What is wrong, for people."},
        "help": {"type": "string", "description": "What to do; may be empty."},
        "details": {"type": "array", "items": {"type": "object"}, "description": "Further facts, typed by `@type`."},
    },
    "required": ["code", "reason", "message", "help", "details"],
}
_ERRORS: Document = {status: {"$ref": "#/components/responses/Error"} for status in ("4XX", "5XX")}


def build(contract: Contract) -> Document:
    """Returns the OpenAPI document of a contract."""
    schemas = Schemas(contract.files)
    paths: dict[str, Document] = {}
    for rpc in contract.public:
        for number, rest in enumerate(rpc.rest):
            name = f"{rpc.service.split('.')[-1]}_{rpc.name}" + (f"_{number + 1}" if number else "")
            paths.setdefault(rest.template, {})[rest.verb.lower()] = _operation(rpc, rest, name, schemas)
    paths.update(_other_paths())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sendense",
            "version": "v1",
            "summary": "Incremental backup of VMware virtual machines into plain QCOW2",
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": _tags(contract),
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**schemas.components, "Error": _ERROR_SCHEMA},
            "responses": {
                "Error": {
                    "description": "The request was refused, or failed.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token of `POST /api/v1/tokens` or `sendense-ctl token create`.",
                }
            },
        },
    }


def _operation(rpc: Rpc, rest: RestRoute, name: str, schemas: Schemas) -> Document:
    fields = [field.name for field in schemas.message(rpc.request).proto.field]
    in_query = [] if rest.body else [field for field in fields if field not in rest.variables]
    operation: Document = {
        "operationId": name,
        "tags": [rpc.service.split(".")[-1]],
        "summary": rpc.comment.split(". ")[0].rstrip("."),
        "description": f"{rpc.comment} Needs the role `{rpc.role}`.",
        "parameters": [
            *(_parameter("path", rpc, field, schemas) for field in rest.variables),
            *(_parameter("query", rpc, field, schemas) for field in in_query),
        ],
        "responses": {"200": _answer(rpc, schemas), **_ERRORS},
        "x-sendense-role": rpc.role,
    }
    if rest.body:
        body = schemas.request_body(rpc.request, rest.variables)
        content: Document = {"schema": body}
        if rpc.name in BODIES:
            content["example"] = BODIES[rpc.name]
        operation["requestBody"] = {"required": "required" in body, "content": {"application/json": content}}
    return operation


def _parameter(place: str, rpc: Rpc, field: str, schemas: Schemas) -> Document:
    schema = schemas.request_field(rpc.request, field)
    description = schema.pop("description", "")
    parameter: Document = {
        "name": field,
        "in": place,
        "required": place == "path" or schemas.is_required(rpc.request, field),
        "schema": schema,
    }
    if description:
        parameter["description"] = description
    if parameter["required"] and field in VALUES:
        parameter["example"] = VALUES[field]
    return parameter


def _answer(rpc: Rpc, schemas: Schemas) -> Document:
    reference = schemas.reference(rpc.answer)
    if rpc.streaming:
        text = "Server-sent events; the data of each is one JSON object of this schema."
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        return {"description": text, "content": {"text/event-stream": {"schema": event}}}
    return {"description": "Done.", "content": {"application/json": {"schema": reference}}}


def _tags(contract: Contract) -> list[Document]:
    public = {rpc.service for rpc in contract.public if rpc.rest}
    tags: list[Document] = [{"name": "Gateway", "description": "What the gateway tells about itself."}]
    for file in contract.files.file:
        comments = {tuple(each.path): prose(each.leading_comments) for each in file.source_code_info.location}
        for number, service in enumerate(file.service):
            if f"{file.package}.{service.name}" in public:
                tags.append({"name": service.name, "description": comments.get((6, number), "")})
    return sorted(tags, key=lambda tag: tag["name"])


def _other_paths() -> dict[str, Document]:
    octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    state: Document = {
        "type": "object",
        "properties": {
            "ready": {"type": "boolean"},
            "missing": {"type": "array", "items": {"type": "string"}, "description": "Services that do not serve."},
            "services": {
                "type": "object",
                "additionalProperties": {"type": "string", "enum": ["serving", "not serving", "unreachable"]},
            },
        },
        "required": ["ready", "missing", "services"],
    }
    readiness = {"application/json": {"schema": state}}
    return {
        DOWNLOAD_TEMPLATE: {
            "get": {
                "operationId": "DownloadFile",
                "tags": ["RestoreService"],
                "summary": "Downloads a file of a mounted restore point",
                "description": (
                    "Plain HTTP with Content-Length, ETag and Range; a broken transfer is seen as broken. "
                    "A directory comes as an archive, without them. Needs the role `restore`."
                ),
                "parameters": [
                    {
                        "name": "mount_id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "minLength": 1, "maxLength": 1024},
                        "description": "The mount, or a completed disk export.",
                    },
                    {
                        "name": "path",
                        "in": "query",
                        "required": False,
                        "schema": {"type": "string", "minLength": 1, "maxLength": 4096},
                        "description": "Absolute path in the guest, as ListFiles shows names; needed for a mount.",
                    },
                    {
                        "name": "archive",
                        "in": "query",
                        "required": False,
                        "schema": {"type": "string", "enum": ["tar", "tar.zst", "zip"], "default": "tar"},
                        "description": "The form in which a directory comes.",
                    },
                    {
                        "name": "Range",
                        "in": "header",
                        "required": False,
                        "schema": {"type": "string"},
                        "description": "One range of bytes, such as `bytes=0-1023`.",
                    },
                ],
                "responses": {
                    "200": {"description": "The whole file.", "content": octets},
                    "206": {"description": "The range that was asked for.", "content": octets},
                    **_ERRORS,
                },
                "x-sendense-role": "restore",
            }
        },
        METRICS_PATH: {
            "get": {
                "operationId": "ReadMetrics",
                "tags": ["Gateway"],
                "summary": "Returns the metrics of all services of this node, in Prometheus' text format",
                "responses": {
                    "200": {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                    **_ERRORS,
                },
                "x-sendense-role": "viewer",
            }
        },
        OPENAPI_PATH: {
            "get": {
                "operationId": "DescribeApi",
                "tags": ["Gateway"],
                "summary": "Returns this document",
                "security": [],
                "responses": {
                    "200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}},
                    **_ERRORS,
                },
            }
        },
        "/healthz": {
            "get": {
                "operationId": "CheckHealth",
                "tags": ["Gateway"],
                "summary": "Tells that the gateway answers",
                "security": [],
                "responses": {
                    "200": {"description": "It does.", "content": {"application/json": {"schema": {"type": "object"}}}}
                },
            }
        },
        "/readyz": {
            "get": {
                "operationId": "CheckReadiness",
                "tags": ["Gateway"],
                "summary": "Tells which services answer",
                "security": [],
                "responses": {
                    "200": {"description": "All of them.", "content": readiness},
                    "503": {"description": "Not all of them.", "content": readiness},
                },
            }
        },
    }


def main() -> None:
    """Writes the document of a descriptor set."""
    parser = argparse.ArgumentParser(description="Builds openapi.json from a descriptor set.")
    parser.add_argument("descriptor", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    document = build(Contract.load(arguments.descriptor))
    arguments.output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
