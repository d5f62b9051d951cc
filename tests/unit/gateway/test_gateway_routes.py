"""Routes come from the contract alone: every public RPC has one, an internal one has none."""

import re

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from sendense.access.v1 import options_pb2
from sendense_gateway.contract import Contract, packaged
from sendense_gateway.routes import path_regex, routes

MOST = 1 << 20
"""Bytes of a body."""


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.load(packaged("descriptor.binpb"))


def has(header, sent):
    """Whether a header's matcher fits what is sent."""
    value = sent.get(header["name"])
    if "present_match" in header:
        return (value is not None) != header.get("invert_match", False)
    if "range_match" in header:
        return value is not None and header["range_match"]["start"] <= int(value) < header["range_match"]["end"]
    return value == header["string_match"]["exact"]


def first_match(all_routes, path, verb="GET", grpc=False, **sent):
    """What Envoy would do: the first route whose path, headers and kind fit."""
    sent = {":method": verb, **{name.replace("_", "-"): value for name, value in sent.items()}}
    for route in all_routes:
        match = route["match"]
        if "path" in match:
            fits = match["path"] == path
        elif "prefix" in match:
            fits = path.startswith(match["prefix"])
        else:
            fits = re.fullmatch(match["safe_regex"]["regex"], path) is not None
        fits = fits and ("grpc" not in match or grpc)
        fits = fits and all(has(header, sent) for header in match.get("headers", ()))
        if fits:
            return route
    return None


def test_every_public_rpc_is_routed_to_its_owner_and_no_internal_one(contract):
    all_routes = routes(contract, MOST)
    assert len(contract.public) > 20
    for rpc in contract.rpcs:
        route = first_match(all_routes, rpc.path, "POST", grpc=True)
        if rpc.public:
            assert route["route"]["cluster"] == rpc.owner
            assert (route["route"]["timeout"] == "0s") == rpc.streaming
        else:
            assert route is None
        for rest in rpc.rest:
            path = re.sub(r"\{[a-z_]+\}", "some-id", rest.template)
            assert first_match(all_routes, path, rest.verb)["route"]["cluster"] == rpc.owner


def test_grpc_path_is_closed_to_anything_but_grpc(contract):
    assert first_match(routes(contract, MOST), "/sendense.backup.v1.BackupService/GetBackup", "POST") is None


def test_a_body_that_says_to_be_too_large_goes_where_it_is_refused(contract):
    all_routes = routes(contract, MOST)

    def cluster(**sent):
        return first_match(all_routes, "/api/v1/backup/start", "POST", **sent)["route"]["cluster"]

    assert cluster(content_length=str(MOST)) == "backup"
    assert cluster(content_length=str(MOST + 1)) == "gateway"
    assert cluster(content_length=str(1 << 61)) == "gateway"
    assert cluster(content_length=str(MOST + 1), expect="100-continue") == "backup"  # Envoy refuses it unsent


def test_literal_path_beats_a_variable_and_keeps_its_methods(contract):
    all_routes = routes(contract, MOST)
    assert first_match(all_routes, "/api/v1/backup/list", "GET")["route"]["cluster"] == "backup"
    assert first_match(all_routes, "/api/v1/backup/list", "DELETE")["direct_response"]["status"] == 405
    assert first_match(all_routes, "/api/v1/backup/anything", "DELETE")["route"]["cluster"] == "backup"
    assert first_match(all_routes, "/api/v1/restore/m/download")["route"] == {
        "cluster": "restore-http",
        "timeout": "0s",
    }


def test_variable_is_one_segment_and_dots_are_dots():
    regex = path_regex("/api/v1/a.b/{id}/log")
    assert re.fullmatch(regex, "/api/v1/a.b/x y/log")
    for path in ("/api/v1/a.b//log", "/api/v1/a.b/x/y/log", "/api/v1/aXb/x/log", "/api/v1/a.b/x/log/"):
        assert not re.fullmatch(regex, path)


def one_rpc(role: int, *paths: str) -> descriptor_pb2.FileDescriptorSet:
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="sendense.x.v1")
    file.message_type.add(name="M")
    service = file.service.add(name="XService")
    for number, path in enumerate(paths or ("",)):
        method = service.method.add(name=f"Do{number}", input_type=".sendense.x.v1.M", output_type=".sendense.x.v1.M")
        method.options.Extensions[options_pb2.role] = role
        if path:
            method.options.Extensions[annotations_pb2.http].get = path
    return descriptor_pb2.FileDescriptorSet(file=[file])


def test_rpc_without_role_and_internal_one_with_a_path_are_refused():
    with pytest.raises(ValueError, match="names no role"):
        Contract(one_rpc(options_pb2.ROLE_UNSPECIFIED))
    with pytest.raises(ValueError, match="internal"):
        Contract(one_rpc(options_pb2.ROLE_INTERNAL, "/api/v1/x"))


def test_one_path_for_two_rpcs_is_refused():
    with pytest.raises(ValueError, match="two RPCs"):
        routes(Contract(one_rpc(options_pb2.ROLE_VIEWER, "/api/v1/x", "/api/v1/x")), MOST)
