"""Between the proto's messages and the service's own types."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.exports.v1 import exports_pb2
from sendense_exports.catalogue import Export
from sendense_exports.errors import InvalidPageError
from sendense_exports.store import Holder

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


def from_holder(holder: exports_pb2.Holder) -> Holder:
    """Returns who asks."""
    return Holder(holder.job_id, holder.attempt)


def to_export(export: Export) -> exports_pb2.Export:
    """Returns the message; what the catalogue does not know comes from nbdd."""
    row, live = export.row, export.live
    message = exports_pb2.Export(export_name=export.name, socket_path=export.socket_path, state="pending")
    if row is not None:
        message.path, message.format, message.read_only = row.path, row.format, row.read_only
        message.holder, message.agent_id = row.holder.job_id, row.agent_id
        message.created_at.CopyFrom(_timestamp(row.created_at))
        message.lease_expires_at.CopyFrom(_timestamp(row.lease_until))
    elif live is not None:
        message.path, message.format, message.read_only = live.path, live.format, live.read_only
    if live is not None:
        # while it drains it is still served
        message.state = "error" if live.state == "error" else "serving"
        message.size_bytes, message.epoch, message.error = live.size_bytes, live.epoch, live.error
    return message


def _timestamp(at: datetime) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(at)
    return moment


def page_limit(page_size: int) -> int:
    """Returns how many to list: 0 means 100, more than 1000 means 1000.

    Raises:
        InvalidPageError: It is negative.
    """
    if page_size < 0:
        raise InvalidPageError("page_size", "is negative")
    return min(page_size or DEFAULT_PAGE, LARGEST_PAGE)


def encode_page(last_name: str) -> str:
    """Returns the token of the page behind a name."""
    return base64.urlsafe_b64encode(last_name.encode()).decode("ascii")


def decode_page(token: str) -> str:
    """Returns the name that a page begins behind; "" for the first.

    Raises:
        InvalidPageError: The token was not made here.
    """
    try:
        return base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidPageError("page_token", "is not one that a list returned") from error
