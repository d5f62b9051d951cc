"""Page tokens survive a round trip and foreign ones are refused."""

import base64
import json
from datetime import UTC, datetime

import pytest

from sendense_access.errors import InvalidRequest
from sendense_access.paging import decode_page, encode_page, page_limit


def test_page_token_survives_a_round_trip():
    at = datetime(2025, 10, 4, 12, 0, 0, 123456, tzinfo=UTC)
    assert decode_page(encode_page(at, "abc")) == (at, "abc")
    assert decode_page("") is None


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "äöü",
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(json.dumps(["2025-10-04T12:00:00", "a"]).encode()).decode(),
        base64.urlsafe_b64encode(json.dumps(["2025-10-04T12:00:00+00:00", 3]).encode()).decode(),
        base64.urlsafe_b64encode(json.dumps([3, "a"]).encode()).decode(),
        base64.urlsafe_b64encode(json.dumps(["a"]).encode()).decode(),
    ],
)
def test_foreign_page_token_is_refused(token):
    with pytest.raises(InvalidRequest) as refused:
        decode_page(token)
    assert refused.value.reason == "INVALID_PAGE_TOKEN"


def test_page_size_is_bounded():
    assert [page_limit(size) for size in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(InvalidRequest):
        page_limit(-1)
