"""SOAP in the direction opposite to pyVmomi's: requests are read, responses and faults written.

pyVmomi's own serialisers do the work, which keeps the wire format that of the real client. They are internal to
it, so constraints.txt pins its version. Requests are parsed with expat handlers, since ElementTree loses the
prefixes of `xsi:type`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from pyVmomi import SoapAdapter, VmomiSupport, vmodl

NAMESPACE = "urn:vim25"
DEFAULT_VERSION = "vim.version.v8_0_0_1"
_SEPARATOR = SoapAdapter.NS_SEP
_BODY = f"{SoapAdapter.XMLNS_SOAPENV}{_SEPARATOR}Body"
FETCH = "Fetch"
"""The name under which property reads arrive; it is no method of the API."""


class MalformedRequestError(Exception):
    """The body is not a SOAP request that vCenter would understand."""


@dataclass(frozen=True)
class Request:
    """A call.

    Attributes:
        this: The managed object, without a stub.
        method: wsdl name: `CreateSnapshot_Task`, or `Fetch`.
        arguments: By parameter name; missing ones are None.
        result: Declared type of the result, None for Fetch.
        version: pyVmomi's version of the API that the client speaks.
    """

    this: Any
    method: str
    arguments: dict[str, Any]
    result: Any
    version: str


def client_version(soap_action: str) -> str:
    """Returns the API version that a SOAPAction header (`"urn:vim25/8.0.1.0"`) names."""
    urn = soap_action.strip('"').removeprefix("urn:")
    version: str = VmomiSupport.versionMap.get(urn, DEFAULT_VERSION)
    return version


def parse(body: bytes, version: str) -> Request:
    """Reads a request.

    Raises:
        MalformedRequestError: It is no XML, no SOAP, or names unknown methods or types.
    """
    reader = _RequestReader(version)
    try:
        return reader.read(body)
    except (ExpatError, KeyError, TypeError, AttributeError, ValueError) as err:
        raise MalformedRequestError(f"{type(err).__name__}: {err}") from err


class _RequestReader:
    """Expat handlers that hand each parameter's element to a deserialiser of pyVmomi."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._namespaces = SoapAdapter.ExpatDeserializerNSHandlers()
        self._in_body = False
        self._method: str | None = None
        self._parameters: dict[str, Any] = {}
        self._result: Any = None
        self._read: list[tuple[str, bool, Any]] = []
        self._parser = ParserCreate(namespace_separator=_SEPARATOR)
        self._parser.buffer_text = True
        SoapAdapter.SetHandlers(
            self._parser,
            (
                self._start,
                self._end,
                None,
                self._namespaces.StartNamespaceDeclHandler,
                self._namespaces.EndNamespaceDeclHandler,
            ),
        )

    def read(self, body: bytes) -> Request:
        self._parser.Parse(body, True)
        this: Any = None
        arguments: dict[str, Any] = {}
        for name, many, deserializer in self._read:
            value = deserializer.GetResult()
            if name == "_this":
                this = value
            elif many:
                arguments.setdefault(name, []).append(value)
            else:
                arguments[name] = value
        if self._method is None or this is None:
            raise MalformedRequestError("no method or no _this")
        for name in self._parameters:
            arguments.setdefault(name, None)
        return Request(this, self._method, arguments, self._result, self._version)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        namespace, _, name = tag.rpartition(_SEPARATOR)
        if tag == _BODY:
            self._in_body = True
        elif self._in_body and self._method is None:
            self._begin_method(namespace, name)
        elif self._in_body:
            self._begin_parameter(tag, name, attributes)

    def _end(self, tag: str) -> None:
        if tag == _BODY:
            self._in_body = False

    def _begin_method(self, namespace: str, name: str) -> None:
        self._method = name
        if name == FETCH:
            self._parameters = {"prop": str}
            return
        method = VmomiSupport.GetWsdlMethod(namespace, name)
        self._parameters = {parameter.name: parameter.type for parameter in method.info.params}
        self._result = method.info.result

    def _begin_parameter(self, tag: str, name: str, attributes: dict[str, str]) -> None:
        declared = VmomiSupport.ManagedObject if name == "_this" else self._parameters[name]
        many = issubclass(declared, list)
        deserializer = SoapAdapter.SoapDeserializer(None, self._version)
        # From here the deserialiser has the parser; at the element's end it gives our handlers back.
        deserializer.Deserialize(self._parser, declared.Item if many else declared, False, self._namespaces.nsMap)
        self._read.append((name, many, deserializer))
        deserializer.StartElementHandler(tag, attributes)


def write_result(request: Request, value: Any) -> bytes:
    """Writes the response to a method.

    Args:
        request: The call.
        value: A pyVmomi object, a list of them, or None.
    """
    declared = request.result
    if request.method == FETCH:
        info = request.this._GetPropertyInfo(request.arguments["prop"])  # noqa: SLF001 - pyVmomi's only way
        declared = info.type
    return _envelope(
        f'<{request.method}Response xmlns="{NAMESPACE}">{_value("returnval", value, declared, request.version)}'
        f"</{request.method}Response>"
    )


def write_fault(fault: Any, version: str) -> bytes:
    """Writes a fault: `detail` holds an element `<Name>Fault`."""
    name = VmomiSupport.GetWsdlName(type(fault))
    declared = VmomiSupport.Object(name=f"{name}Fault", type=type(fault), version=version, flags=0)
    namespaces = {**SoapAdapter.SOAP_NSMAP, NAMESPACE: ""}
    plain = copy.copy(fault)
    plain.msg = None  # on the wire the message is the faultstring
    detail = SoapAdapter.SerializeFaultDetail(plain, declared, version, namespaces)
    # The detail element itself must be in the API's namespace, with its type named.
    detail = detail.replace(f"<{name}Fault", f'<{name}Fault xmlns="{NAMESPACE}" xsi:type="{name}"', 1)
    text = SoapAdapter.XmlEscape(fault.msg or name)
    return _envelope(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{text}</faultstring><detail>{detail}</detail></soapenv:Fault>"
    )


def fingerprint(value: Any) -> str:
    """Returns a text that is the same for equal property values (typed, as `typed` returns them)."""
    return "" if value is None else str(_value("val", value, object, DEFAULT_VERSION))


def typed(value: Any, declared: Any) -> Any:
    """Returns a property's value as an object of its declared type.

    Where the API says "any" (property collector), lists and enumerations must carry their type.
    """
    if isinstance(value, list) and not isinstance(value, VmomiSupport.Array):
        return declared(value)
    if isinstance(value, str) and issubclass(declared, VmomiSupport.Enum):
        return declared(value)
    return value


def _value(name: str, value: Any, declared: Any, version: str) -> str:
    if value is None or (isinstance(value, list) and not value):
        return ""
    namespaces = {**SoapAdapter.SOAP_NSMAP, NAMESPACE: ""}
    info = VmomiSupport.Object(name=name, type=declared, version=version, flags=VmomiSupport.F_OPTIONAL)
    text: str = SoapAdapter.SerializeToStr(value, info, version, namespaces)
    return text


def _envelope(body: str) -> bytes:
    return f"{SoapAdapter.XML_HEADER}\n{SoapAdapter.SOAP_START}{body}{SoapAdapter.SOAP_END}".encode()


def unexpected(err: Exception) -> Any:
    """Returns the fault that vCenter would raise for an error of its own."""
    return vmodl.fault.SystemError(reason=str(err), msg=f"A general system error occurred: {err}")
