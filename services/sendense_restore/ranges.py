"""HTTP's validators and byte ranges for a file that does not change (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.IGNORECASE)
_MAX_DATE = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one version of a file from another.

    Attributes:
        etag: Strong entity tag, the same in every mount of one restore point.
        modified: Seconds since 1970.
    """

    etag: str
    modified: int

    @property
    def last_modified(self) -> str:
        """The value of Last-Modified."""
        return formatdate(self.modified, usegmt=True)


@dataclass(frozen=True, slots=True)
class Selection:
    """The bytes to send: `[start, start + length)`, and the status 200, 206, 304, 412 or 416."""

    status: int
    start: int
    length: int


def validators(backup_id: str, path: str, status: os.stat_result) -> Validators:
    """Returns the validators of a file of a restore point; not by its inode, which guestfs' FUSE makes up."""
    facts = f"{backup_id}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:32]
    return Validators(f'"{digest}"', min(max(status.st_mtime_ns // 1_000_000_000, 0), _MAX_DATE))


def select(headers: Mapping[str, str], size: int, current: Validators) -> Selection:
    """Decides what a request for a file gets.

    Several ranges at once, and a range that is malformed, are answered with the whole file, as the RFC allows.
    """
    whole = Selection(200, 0, size)
    if "If-Match" in headers and not _names(headers["If-Match"], current.etag):
        return Selection(412, 0, 0)
    if "If-None-Match" in headers:
        if _names(headers["If-None-Match"], current.etag):
            return Selection(304, 0, 0)
    elif "If-Modified-Since" in headers and _not_newer(headers["If-Modified-Since"], current):
        return Selection(304, 0, 0)
    match = _RANGE.fullmatch(headers.get("Range", "").replace(" ", ""))
    if match is None or not any(match.groups()) or not _still(headers.get("If-Range"), current):
        return whole
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        return Selection(206, size - length, length) if length else Selection(416, 0, 0)
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return whole
    if start >= size:
        return Selection(416, 0, 0)
    return Selection(206, start, min(end, size - 1) - start + 1)


def attachment(name: str) -> str:
    """Returns the Content-Disposition of a file name (RFC 6266): plain ASCII, and UTF-8 beside it when needed."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name) or "download"
    if plain == name:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _names(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in header.split(","))


def _not_newer(header: str, current: Validators) -> bool:
    try:
        return current.modified <= parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return False


def _still(if_range: str | None, current: Validators) -> bool:
    return if_range is None or if_range.strip() in (current.etag, current.last_modified)
