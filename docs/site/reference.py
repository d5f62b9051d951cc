"""mkdocs hook: makes the references of CLI and REST API from the programs themselves: they are never out of date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OPENAPI = ROOT / "services/sendense_gateway/generated/openapi.json"
_METHODS = ("get", "post", "put", "patch", "delete")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the two pages to the site."""
    files.append(File.generated(config, "cli-reference.md", content=cli_reference()))
    files.append(File.generated(config, "api-reference.md", content=api_reference(json.loads(OPENAPI.read_text()))))
    return files


def cli_reference() -> str:
    """Returns all commands with their options, as `--help` shows them."""
    import typer.main
    from typer.cli import get_docs_for_click

    from sendense_ctl.main import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="sendense-ctl")
    return get_docs_for_click(obj=command, ctx=context, name="sendense-ctl", title="CLI reference")


def api_reference(document: dict[str, Any]) -> str:
    """Returns all routes with their parameters and answers, by service."""
    return "\n".join(_api_lines(document))


def _api_lines(document: dict[str, Any]) -> Iterator[str]:
    yield "# API reference\n"
    yield document["info"]["description"] + "\n"
    yield (
        "A running gateway serves this description as OpenAPI 3.1 at `/api/v1/openapi.json`. Each route needs a token "
        "of the role that is named, or of one above it.\n"
    )
    for tag in document["tags"]:
        operations = [
            (method, path, operation)
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if method in _METHODS and tag["name"] in operation["tags"]
        ]
        if not operations:
            continue
        yield f"## {tag['name']}\n"
        yield tag.get("description", "") + "\n"
        for method, path, operation in operations:
            yield f"### `{method.upper()} {path}`\n"
            yield operation.get("description", operation.get("summary", "")) + "\n"
            yield from _fields("Parameters", _parameters(operation))
            yield from _fields("Body", _properties(document, _body(operation)))
    yield "## Messages\n"
    for name, schema in document["components"]["schemas"].items():
        yield f"### {name}\n"
        if description := schema.get("description"):
            yield description + "\n"
        yield from _fields("", _properties(document, schema))


def _parameters(operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        each["name"]: {**each["schema"], "description": each.get("description", "")}
        for each in operation.get("parameters", [])
    }


def _body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    schema: dict[str, Any] = content.get("application/json", {}).get("schema", {})
    return schema


def _properties(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    return properties


def _fields(title: str, fields: dict[str, dict[str, Any]]) -> Iterator[str]:
    if not fields:
        return
    if title:
        yield f"**{title}**\n"
    yield "| field | type | |"
    yield "|---|---|---|"
    for name, schema in fields.items():
        yield f"| `{name}` | {_type(schema)} | {_cell(schema.get('description', ''))} |"
    yield ""


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("allOf", "anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(each) for each in schema[several])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format") or schema.get("type", ""))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
