"""Page sizes and page tokens of this service's lists. A token says where the next page begins."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime

from sendense_access.errors import InvalidRequest

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


def page_limit(page_size: int) -> int:
    """Returns how many to list: 0 means 100, more than 1000 means 1000.

    Raises:
        InvalidRequest: It is negative.
    """
    if page_size < 0:
        raise InvalidRequest("page_size", "is negative")
    return min(page_size or DEFAULT_PAGE, LARGEST_PAGE)


def encode_page(at: datetime, last_id: str) -> str:
    """Returns the token of the page that begins after the item with this time and id."""
    return base64.urlsafe_b64encode(json.dumps([at.isoformat(), last_id]).encode()).decode()


def decode_page(token: str) -> tuple[datetime, str] | None:
    """Returns what a page token says; None for the first page.

    Raises:
        InvalidRequest: It was not made here.
    """
    if not token:
        return None
    try:
        at, last_id = json.loads(base64.urlsafe_b64decode(token.encode()))
        moment = datetime.fromisoformat(at)
    except (binascii.Error, ValueError, TypeError) as error:
        raise _wrong_token() from error
    if moment.tzinfo is None or not isinstance(last_id, str):
        raise _wrong_token()
    return moment, last_id


def encode_name(name: str) -> str:
    """Returns the token of the page that begins after the item of this name."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def decode_name(token: str) -> str:
    """Returns the name that a page token says; empty for the first page.

    Raises:
        InvalidRequest: It was not made here.
    """
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _wrong_token() from error


def _wrong_token() -> InvalidRequest:
    return InvalidRequest(
        "page_token",
        "is not one that a list returned",
        reason="INVALID_PAGE_TOKEN",
        help="Use `next_page_token` of the page before, unchanged, or leave it out for the first page.",
    )
