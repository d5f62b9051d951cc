"""One connection to the simulated vCenter: SOAP calls to /sdk, disk bytes from /folder.

Disk bytes go from the page cache through one buffer of the connection into TLS; reading and encrypting both release
the interpreter lock, so connections run side by side.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import structlog
from pyVmomi import VmomiSupport, vmodl

from sendense_lab import folder, soap
from sendense_lab.apifaults import ConnectionCutError, HttpRefusalError
from sendense_lab.call import Call
from sendense_lab.content import Ciphertext
from sendense_lab.folder import ByteRange, Extent, FolderError
from sendense_lab.inventory import API_VERSION
from sendense_lab.readfaults import Spoiled
from sendense_lab.sessions import COOKIE

if TYPE_CHECKING:
    from sendense_lab.https import VcenterServer

log = structlog.get_logger(__name__)

MAX_REQUEST = 16 * 1024 * 1024
CHUNK = 1024 * 1024
MAX_HEADER_LINE = 16 * 1024
MAX_HEADERS = 100
MAX_ANSWER_HEAD = 1024
COOKIE_VALUE = re.compile(rf'(?:^|;\s*){COOKIE}="?([0-9a-f]+)"?')


class Connection(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "sendense-lab"
    sys_version = ""
    server: VcenterServer
    raw_requestline: bytes
    fields: dict[str, str]
    """Headers of the request, names in lower case."""

    def setup(self) -> None:
        """Does the TLS handshake, then the usual."""
        self.request.do_handshake()
        super().setup()
        self._buffer = bytearray(CHUNK + MAX_ANSWER_HEAD)

    def parse_request(self) -> bool:
        """Reads the request line and headers.

        The base class's way (an e-mail parser) costs more than reading and encrypting 128 KiB, for each of the
        thousands of ranges of one disk.
        """
        self.requestline = self.raw_requestline.decode("iso-8859-1").rstrip("\r\n")
        self.command, self.path, self.request_version, self.close_connection = "", "", "HTTP/1.1", True
        words = self.requestline.split()
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            self.send_error(HTTPStatus.BAD_REQUEST, "Bad request syntax")
            return False
        self.command, self.path, self.request_version = words
        fields: dict[str, str] = {}
        while (line := self.rfile.readline(MAX_HEADER_LINE + 1)) not in (b"\r\n", b"\n"):
            name, colon, value = line.decode("iso-8859-1").partition(":")
            if not colon or len(line) > MAX_HEADER_LINE or len(fields) >= MAX_HEADERS:
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                return False
            fields[name.strip().lower()] = value.strip()
        self.fields = fields
        connection = fields.get("connection", "").lower()
        self.close_connection = connection == "close" or (words[2] == "HTTP/1.0" and connection != "keep-alive")
        if fields.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Keeps request lines out of stderr; they are there at debug level."""
        log.debug("request", line=format % args)

    def do_POST(self) -> None:
        """SOAP calls."""
        length = self.fields.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_REQUEST:
            self.close_connection = True
            self._answer(413, "text/plain", b"")
            return
        body = self.rfile.read(int(length))
        if self.path.rstrip("/") != "/sdk":
            self._answer(404, "text/plain", b"Not found\n")
            return
        try:
            status, answer, cookie = self._call(body)
        except HttpRefusalError as refused:
            self._answer(refused.status, "text/plain", f"{refused}\n".encode())
            return
        except ConnectionCutError:
            self._cut()
            return
        self._answer(status, "text/xml; charset=utf-8", answer, cookie=cookie)

    def _call(self, body: bytes) -> tuple[int, bytes, str | None]:
        version = soap.client_version(self.fields.get("soapaction", ""))
        secret = self._secret()
        try:
            request = soap.parse(body, version)
        except soap.MalformedRequestError as err:
            log.warning("malformed request", error=str(err))
            return 500, soap.write_fault(vmodl.fault.InvalidRequest(msg=str(err)), version), None
        call = Call(request, secret, self.server.sessions.get(secret))
        try:
            answer = soap.write_result(request, self.server.methods.handle(call))
        except vmodl.MethodFault as fault:
            log.debug("fault", method=request.method, fault=type(fault).__name__, message=fault.msg)
            return 500, soap.write_fault(fault, version), None
        except (HttpRefusalError, ConnectionCutError):
            raise
        except Exception as err:
            log.exception("method failed", method=request.method)
            return 500, soap.write_fault(soap.unexpected(err), version), None
        return 200, answer, call.new_secret

    def do_GET(self) -> None:
        """Service versions and files of the datastore."""
        self._get(with_body=True)

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self._get(with_body=False)

    def _get(self, *, with_body: bool) -> None:
        if self.path == "/sdk/vimServiceVersions.xml":
            self._answer(200, "text/xml", _service_versions(), with_body=with_body)
        elif self.path.startswith("/folder/"):
            try:
                self._folder(with_body=with_body)
            except FolderError as err:
                login = {"WWW-Authenticate": 'Basic realm="VMware HTTP server"'} if err.status == 401 else None
                self._answer(err.status, "text/plain", f"{err}\n".encode(), with_body=with_body, extra=login)
        else:
            self._answer(404, "text/plain", b"Not found\n", with_body=with_body)

    def _folder(self, *, with_body: bool) -> None:
        if self.server.sessions.get(self._secret()) is None and not self._basic():
            raise FolderError(HTTPStatus.UNAUTHORIZED, "Log in first")
        found = folder.locate(self.server.lab, self.path)
        if isinstance(found, bytes):
            self._answer(200, "text/plain", found, with_body=with_body)
            return
        self.server.read_faults.require_readable(found)
        self._send_extent(found, with_body=with_body)

    def _send_extent(self, extent: Extent, *, with_body: bool) -> None:
        faults = self.server.read_faults
        descriptor = os.open(extent.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            ranges = faults.knows_ranges(extent)
            asked = folder.parse_range(self.fields.get("range"), size) if ranges else None
            wanted = asked or ByteRange(0, size)
            spoiled = faults.spoil(extent, wanted) if with_body else Spoiled()
            length = wanted.length - spoiled.missing
            head = [
                f"HTTP/1.1 {'206 Partial Content' if asked else '200 OK'}",
                "Content-Type: application/octet-stream",
                f"Content-Length: {length}",
            ]
            if ranges:
                head.append("Accept-Ranges: bytes")
            if asked:
                head.append(f"Content-Range: bytes {wanted.start}-{wanted.start + length - 1}/{size}")
            prefix = ("\r\n".join(head) + "\r\n\r\n").encode()
            body = length if spoiled.sent is None else min(spoiled.sent, length)
            disguise = Ciphertext(extent.vm.instance_uuid) if extent.vm.encrypted else None
            self._send_bytes(prefix, descriptor, wanted.start, body if with_body else 0, disguise)
            faults.count(extent, body if with_body else 0)
            if spoiled.sent is not None:
                self._cut()
        finally:
            os.close(descriptor)

    def _send_bytes(self, prefix: bytes, descriptor: int, start: int, length: int, disguise: Ciphertext | None) -> None:
        """Sends the head and the file's bytes; what fits in the buffer goes out as one write."""
        view = memoryview(self._buffer)
        filled = len(prefix)
        view[:filled] = prefix
        while length > 0:
            got = os.preadv(descriptor, [view[filled : filled + min(length, CHUNK)]], start)
            if got == 0:  # shorter than promised: the client must see a broken answer
                self.close_connection = True
                return
            if disguise:
                view[filled : filled + got] = disguise.of(bytes(view[filled : filled + got]), start)
            self.request.sendall(view[: filled + got])
            start, length, filled = start + got, length - got, 0
        if filled:
            self.request.sendall(view[:filled])

    def _cut(self) -> None:
        """Cuts the connection in the middle of whatever the client expects."""
        self.close_connection = True
        self.request.shutdown(socket.SHUT_RDWR)

    def _secret(self) -> str | None:
        found = COOKIE_VALUE.search(self.fields.get("cookie", ""))
        return found[1] if found else None

    def _basic(self) -> bool:
        kind, _, encoded = self.fields.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return False
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return self.server.sessions.check(name, password)

    def _answer(
        self,
        status: int,
        kind: str,
        body: bytes,
        *,
        with_body: bool = True,
        cookie: str | None = None,
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if cookie:
            self.send_header("Set-Cookie", f'{COOKIE}="{cookie}"; Path=/; HttpOnly; Secure')
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _service_versions() -> bytes:
    """Returns the document from which clients choose the API version."""
    current = f"vim.version.v{API_VERSION.replace('.', '_')}"
    prior = "".join(
        f"<version>{number}</version>"
        for name, number in VmomiSupport.versionIdMap.items()
        if name.startswith("vim.version.") and VmomiSupport.IsChildVersion(current, name) and name != current
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<namespaces version="1.0"><namespace>'
        f"<name>{soap.NAMESPACE}</name><version>{API_VERSION}</version>"
        f"<priorVersions>{prior}</priorVersions></namespace></namespaces>\n"
    ).encode()
