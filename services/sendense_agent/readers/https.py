"""The reader `https`: the frozen base extent of a snapshot's disk, read from the datastore's HTTPS folder with Range.

Needs no proprietary library. Is not proved on live ESXi, where the extent of a running VM may be refused and vSAN and
vVol have none, so a probe right after the snapshot reads one sector and says what is wrong (cbt-facts 16). nbdkit's
curl plugin logs in with the account itself, and keeps the session cookie that the server answers with: reading does
not end when the agent's own session expires.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import urllib.parse
from dataclasses import dataclass

from sendense_agent.errors import ReaderUnsuitable
from sendense_agent.model import Disk
from sendense_agent.readers.description import ReaderDescription

NAME = "https"
PROBE_SECONDS = 30.0
SECTOR = 512
REQUEST_SECONDS = 120
"""Longest single request; the copy engine's own deadline is shorter where it matters."""

_FILE_NAME = re.compile(r"\[(?P<datastore>[^\]]+)\] (?P<path>.+)\.vmdk")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class FolderAccess:
    """How the datastore's folder is reached.

    Attributes:
        host: vCenter's address.
        port: TCP port.
        username: The account.
        password: Its password.
        certificate: What is trusted, PEM.
        datacenter: Path of the VM's datacenter.
    """

    host: str
    port: int
    username: str
    password: str
    certificate: str
    datacenter: str


def extent_url(access: FolderAccess, disk: Disk) -> str:
    """Returns the path and query of the disk's flat extent.

    Raises:
        ReaderUnsuitable: The backing is itself a delta, or has no flat extent.
    """
    if disk.is_delta:
        raise ReaderUnsuitable(
            NAME,
            str(disk),
            "the snapshot's backing is itself a delta: the VM had a snapshot before, and a delta has no flat extent. "
            "Remove that snapshot, or use the reader 'vddk'",
        )
    match = _FILE_NAME.fullmatch(disk.file_name)
    if match is None:
        raise ReaderUnsuitable(NAME, str(disk), "its backing is no VMDK file")
    query = urllib.parse.urlencode(
        {"dcPath": access.datacenter, "dsName": match["datastore"]}, quote_via=urllib.parse.quote
    )
    return f"/folder/{urllib.parse.quote(match['path'] + '-flat.vmdk')}?{query}"


def describe_https(access: FolderAccess, disk: Disk, connections: int) -> ReaderDescription:
    """Returns the description of the reader for a disk.

    Args:
        access: The datastore's folder.
        disk: The snapshot's disk.
        connections: NBD connections; each has one HTTPS connection and one request in flight.

    Raises:
        ReaderUnsuitable: The disk has no flat extent.
    """
    host = f"[{access.host}]" if ":" in access.host else access.host
    return ReaderDescription(
        name=NAME,
        plugin="curl",
        parameters={
            "url": f"https://{host}:{access.port}{extent_url(access, disk)}",
            "user": access.username,
            "protocols": "https",
            "followlocation": "false",
            "cookiefile": "",
            "timeout": str(REQUEST_SECONDS),
            "tcp-keepalive": "true",
            "retries": "3",
            "retry-delay": "1",
            "retry-readonly": "yes",
        },
        secrets={"password": access.password},
        files={"cainfo": access.certificate},
        # A lost HTTPS connection costs a reopened handle, not the copy; a lasting error still fails it after 7 s.
        filters=("retry",),
        connections=connections,
        depth=2,
    )


def probe_https(access: FolderAccess, disk: Disk, context: ssl.SSLContext) -> None:
    """Reads one sector with a Range request; blocking.

    Raises:
        ReaderUnsuitable: The extent cannot be read this way; the message says why.
    """
    if disk.capacity_bytes < SECTOR:
        raise ReaderUnsuitable(NAME, str(disk), "it is smaller than a sector")
    credentials = base64.b64encode(f"{access.username}:{access.password}".encode()).decode()
    connection = http.client.HTTPSConnection(access.host, access.port, timeout=PROBE_SECONDS, context=context)
    try:
        headers = {"Authorization": f"Basic {credentials}", "Range": f"bytes=0-{SECTOR - 1}"}
        connection.request("GET", extent_url(access, disk), headers=headers)
        response = connection.getresponse()
        body = response.read(SECTOR)
        _judge(disk, response.status, response.getheader("Content-Range", ""), body)
    except (OSError, http.client.HTTPException) as error:
        raise ReaderUnsuitable(NAME, str(disk), str(error) or type(error).__name__, retryable=True) from error
    finally:
        connection.close()


def _judge(disk: Disk, status: int, content_range: str, body: bytes) -> None:
    """Raises unless an answer to the probe is one sector of a file of the disk's size."""
    if status == http.client.OK:
        raise ReaderUnsuitable(NAME, str(disk), "the server ignores Range: it would send the whole file each time")
    if status != http.client.PARTIAL_CONTENT:
        words = body.decode(errors="replace").strip()[:200]
        raise ReaderUnsuitable(NAME, str(disk), f"the server answers {status}: {words or 'no message'}")
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None or (match[1], match[2]) != ("0", str(SECTOR - 1)) or len(body) != SECTOR:
        raise ReaderUnsuitable(NAME, str(disk), f"the server answered another range: '{content_range[:100]}'")
    if int(match[3]) != disk.capacity_bytes:
        raise ReaderUnsuitable(
            NAME, str(disk), f"its extent has {match[3]} bytes, the disk {disk.capacity_bytes}: not a plain flat extent"
        )
