"""The description of the REST API is complete, sound and up to date."""

import json
import re
import subprocess
import sys
from datetime import datetime

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory

from sendense.backup.v1 import backup_pb2
from sendense_access.public_api import public_services
from sendense_gateway.contract import DOWNLOAD_TEMPLATE, Contract, packaged
from sendense_gateway.openapi import build
from sendense_gateway.routes import METRICS_PATH, OPENAPI_PATH


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.load(packaged("descriptor.binpb"))


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(packaged("openapi.json").read_text())


def test_committed_document_is_what_the_contract_says(contract, document):
    assert document == build(contract), "run protos/generate and commit openapi.json"


def test_module_writes_the_document(tmp_path):
    command = (sys.executable, "-m", "sendense_gateway.openapi", packaged("descriptor.binpb"), tmp_path / "o.json")
    subprocess.run(command, check=True, timeout=30)
    assert (tmp_path / "o.json").read_text() == packaged("openapi.json").read_text()


def test_every_public_path_is_described_and_no_other(contract, document):
    described = {(verb.upper(), path) for path, item in document["paths"].items() for verb in item}
    rest = {(rest.verb, rest.template) for rpc in contract.public for rest in rpc.rest}
    own = {("GET", path) for path in (DOWNLOAD_TEMPLATE, METRICS_PATH, OPENAPI_PATH, "/healthz", "/readyz")}
    assert described == rest | own


def test_operations_are_sound(document):
    seen = set()
    tags = {tag["name"] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            assert operation["summary"]
            assert set(operation["tags"]) <= tags
            in_path = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))
            assert all(each["required"] for each in operation.get("parameters", ()) if each["in"] == "path")
            assert any(status.startswith("2") for status in operation["responses"])


def test_all_references_resolve_and_every_component_is_used(document):
    text = json.dumps(document)
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', text))
    assert references
    for reference in references:
        found = document
        for part in reference.split("/"):
            found = found[part]
    for kind in ("schemas", "responses"):
        assert {f"components/{kind}/{name}" for name in document["components"][kind]} <= references


def test_patterns_compile_and_every_field_is_described(document):
    for pattern in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(document)):
        re.compile(json.loads(pattern))
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema["properties"].items():
            assert described.get("description"), f"{name}.{field} has no comment"


def test_rules_of_fields_are_in_the_description(document):
    start = document["paths"]["/api/v1/backup/start"]["post"]
    body = start["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["backup_type"]
    assert body["properties"]["backup_type"]["enum"] == ["full", "incremental"]
    assert body["properties"]["vm_name"]["maxLength"] == 255
    cancel = document["paths"]["/api/v1/backup/{backup_id}/cancel"]["post"]
    assert cancel["requestBody"]["content"]["application/json"]["schema"]["properties"].keys() == {"request_id"}
    assert start["x-sendense-role"] == "operator"
    watch = document["paths"]["/api/v1/backup/{backup_id}/watch"]["get"]
    assert list(watch["responses"]["200"]["content"]) == ["text/event-stream"]


def fits(value, schema, document) -> None:
    """Checks a JSON value against the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    assert isinstance(value, kinds[schema["type"]]), (value, schema)
    if schema["type"] == "object":
        assert set(schema.get("required", ())) <= set(value)
        for name, each in value.items():
            fits(each, schema["properties"][name], document)
    for each in value if schema["type"] == "array" else ():
        fits(each, schema["items"], document)
    if schema.get("format") == "date-time":
        datetime.fromisoformat(value)
    if "pattern" in schema:
        assert re.search(schema["pattern"], value)


def test_real_answer_fits_its_schema(document):
    backup = backup_pb2.Backup(backup_id="b", bytes_transferred=-1, disks=[backup_pb2.BackupDisk(disk_id=-1)])
    backup.progress.percent = 12.5
    backup.created_at.FromJsonString("2025-10-04T12:00:00.5Z")
    body = json_format.MessageToDict(
        backup, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    fits(body, {"$ref": "#/components/schemas/BackupBackup"}, document)


def test_empty_answer_of_every_rpc_fits_its_schema(contract, document):
    assert public_services()  # makes every public message known
    for rpc in contract.public:
        if rpc.rest:
            kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(rpc.answer))
            body = json_format.MessageToDict(
                kind(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            operation = document["paths"][rpc.rest[0].template][rpc.rest[0].verb.lower()]
            (content,) = operation["responses"]["200"]["content"].values()
            schema = content["schema"]
            if rpc.streaming:  # each event's data is the message, as a string of JSON
                schema = schema["properties"]["data"]["contentSchema"]
            fits(body, schema, document)
