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

from sendense_agent.errors import ReaderUnsuitable
from sendense_agent.model import Disk
from sendense_agent.readers.description import ReaderKind
from sendense_agent.readers.source import DiskSource

NAME = "https"
PROBE_SECONDS = 30.0
SECTOR = 512
REQUEST_SECONDS = 120
"""Longest single request; the copy engine's own deadline is shorter where it matters."""

_NO_FLAT_FILES = {"vsan": "vSAN", "vsand": "vSAN", "vvol": "vVol"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def has_flat_extent(source: DiskSource) -> None:
    """Raises unless the disk is one plain file of its own bytes.

    Raises:
        ReaderUnsuitable: The backing is itself a delta, has no flat file, or holds ciphertext.
    """
    disk = source.disk
    if disk.is_delta:
        raise ReaderUnsuitable(
            NAME,
            str(disk),
            "the snapshot's backing is itself a delta: the VM had a snapshot before, and a delta has no flat extent. "
            "Remove that snapshot, or use the reader 'vddk'",
        )
    if not source.flat_extent:
        raise ReaderUnsuitable(NAME, str(disk), "its backing is no VMDK file")
    storage = _NO_FLAT_FILES.get(source.place.storage.lower())
    if storage:
        raise ReaderUnsuitable(NAME, str(disk), f"it is on {storage}, which has no flat files. Use the reader 'vddk'")
    if source.place.encrypted:
        raise ReaderUnsuitable(NAME, str(disk), "the VM is encrypted: its file holds ciphertext. Use the reader 'vddk'")
    if disk.capacity_bytes < SECTOR:
        raise ReaderUnsuitable(NAME, str(disk), "it is smaller than a sector")


def answers_a_range(source: DiskSource) -> None:
    """Reads one sector with a Range request; blocking.

    Raises:
        ReaderUnsuitable: The extent cannot be read this way; the message says why.
    """
    disk = source.disk
    credentials = base64.b64encode(f"{source.username}:{source.password}".encode()).decode()
    connection = http.client.HTTPSConnection(
        source.host, source.port, timeout=PROBE_SECONDS, context=source.pin.context()
    )
    try:
        headers = {"Authorization": f"Basic {credentials}", "Range": f"bytes=0-{SECTOR - 1}"}
        connection.request("GET", source.flat_extent, headers=headers)
        response = connection.getresponse()
        body = response.read(SECTOR)
        judge(disk, response.status, response.getheader("Content-Range", ""), body)
    except (OSError, http.client.HTTPException) as error:
        raise ReaderUnsuitable(NAME, str(disk), str(error) or type(error).__name__, retryable=True) from error
    finally:
        connection.close()


def judge(disk: Disk, status: int, content_range: str, body: bytes) -> None:
    """Raises unless an answer to the probe is one sector of a file of the disk's size.

    Raises:
        ReaderUnsuitable: It is not; the message says why.
    """
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


HTTPS = ReaderKind(
    name=NAME,
    plugin="curl",
    parameters={
        "url": "{extent_url}",
        "user": "{username}",
        "protocols": "https",
        "followlocation": "false",
        # Cookies are kept in memory only: the session goes on with the one that the first answer sets.
        "cookiefile": "",
        "timeout": str(REQUEST_SECONDS),
        "tcp-keepalive": "true",
        "retries": "3",
        "retry-delay": "1",
        "retry-readonly": "yes",
    },
    secrets={"password": "{password}"},
    files={"cainfo": "{certificate}"},
    # A lost HTTPS connection costs a reopened handle, not the copy; a lasting error still fails it after 7 s.
    filters=("retry",),
    needs=(has_flat_extent, answers_a_range),
    # Each connection has one HTTPS connection and one request in flight.
    connections=4,
    depth=2,
)
"""The kind; its number of connections is a setting."""
