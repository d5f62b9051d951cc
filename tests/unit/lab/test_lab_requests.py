"""What comes from outside: SOAP bodies, Range headers, folder URLs, disk sizes."""

from __future__ import annotations

import pytest
from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from sendense_lab import folder, soap

VERSION = "vim.version.v8_0_3_0"


def serialized(this: object, method: str, *arguments: object) -> bytes:
    """Returns the request that the real client would send."""
    stub = SoapAdapter.SoapStubAdapter(host="127.0.0.1", version=VERSION)
    info = VmomiSupport.GetWsdlMethod("urn:vim25", method).info
    request: bytes = stub.SerializeRequest(this, info, arguments)
    return request


def test_the_clients_request_is_read_with_its_types() -> None:
    query = vmodl.query.PropertyCollector
    specs = [
        query.FilterSpec(
            objectSet=[
                query.ObjectSpec(
                    obj=vim.view.ContainerView("view-1"),
                    skip=True,
                    selectSet=[query.TraversalSpec(name="t", type=vim.view.ContainerView, path="view")],
                )
            ],
            propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "config.uuid"])],
        )
    ] * 2
    body = serialized(query("propertyCollector"), "RetrievePropertiesEx", specs, query.RetrieveOptions(maxObjects=7))
    request = soap.parse(body, VERSION)
    assert request.method == "RetrievePropertiesEx"
    assert request.this._GetMoId() == "propertyCollector"
    first, second = request.arguments["specSet"]
    assert isinstance(first.objectSet[0].selectSet[0], query.TraversalSpec)
    assert second.propSet[0].type is vim.VirtualMachine
    assert list(second.propSet[0].pathSet) == ["name", "config.uuid"]
    assert request.arguments["options"].maxObjects == 7


def test_missing_arguments_are_none() -> None:
    body = serialized(vim.VirtualMachine("vm-1"), "QueryChangedDiskAreas", None, 2000, 0, "*")
    assert soap.parse(body, VERSION).arguments == {
        "snapshot": None,
        "deviceKey": 2000,
        "startOffset": 0,
        "changeId": "*",
    }


@pytest.mark.parametrize("body", [b"", b"<x", b"<a/>", b"{}"])
def test_anything_else_is_malformed(body: bytes) -> None:
    with pytest.raises(soap.MalformedRequestError):
        soap.parse(body, VERSION)


def test_an_unknown_method_is_malformed() -> None:
    body = serialized(vim.VirtualMachine("vm-1"), "PowerOnVM_Task", None).replace(b"PowerOnVM_Task", b"Nothing")
    with pytest.raises(soap.MalformedRequestError):
        soap.parse(body, VERSION)


@pytest.mark.parametrize(
    "fault",
    [
        vmodl.fault.InvalidArgument(invalidProperty="changeId", msg="a <b> & c"),
        vim.fault.FileFault(file="[x] y/z.vmdk", msg="broken"),
        vim.fault.NotAuthenticated(object=vim.Folder("group-d1"), privilegeId="System.View", msg="who?"),
        vmodl.fault.ManagedObjectNotFound(obj=vim.VirtualMachine("vm-9"), msg="gone"),
        vmodl.query.InvalidProperty(name="nonsense", msg="no"),
    ],
)
def test_the_client_reads_our_faults_as_they_were(fault: vmodl.MethodFault) -> None:
    answer = soap.write_fault(fault, VERSION)
    stub = SoapAdapter.SoapStubAdapter(host="127.0.0.1", version=VERSION)
    read = SoapAdapter.SoapResponseDeserializer(stub).Deserialize(answer, None)
    assert type(read) is type(fault)
    assert read.msg == fault.msg
    for name in ("invalidProperty", "file", "privilegeId", "name"):
        assert getattr(read, name, None) == getattr(fault, name, None)


@pytest.mark.parametrize(
    ("header", "start", "length"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 10),
        ("bytes=90-", 90, 10),
        ("bytes=-5", 95, 5),
        ("bytes=50-500", 50, 50),
    ],
)
def test_ranges_are_read(header: str, start: int, length: int) -> None:
    assert folder.parse_range(header, 100) == folder.ByteRange(start, length)


@pytest.mark.parametrize("header", [None, "", "bytes=-", "bytes=5-4", "items=0-1", "bytes=0-1,5-6"])
def test_what_is_no_single_range_means_the_whole_file(header: str | None) -> None:
    assert folder.parse_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(header: str) -> None:
    with pytest.raises(folder.FolderError) as refused:
        folder.parse_range(header, 100)
    assert refused.value.status == 416
