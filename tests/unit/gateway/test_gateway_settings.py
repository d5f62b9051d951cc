"""Wrong settings stop the gateway before it starts; every reason of the edge is documented."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sendense_gateway.config import GatewaySettings
from sendense_gateway.edge_errors import EDGE_ERRORS

ERRORS_PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN", "127.0.0.1"),
        ("LISTEN", "localhost:0"),
        ("LISTEN", "127.0.0.1:70000"),
        ("LISTEN", ":443"),
        ("TLS_CERT", "/a.crt"),
        ("CONCURRENCY", "0"),
        ("LOG_LEVEL", "loud"),
        ("MAX_BODY_BYTES", "1"),
    ],
)
def test_wrong_setting_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"SENDENSE_GATEWAY_{name}", value)
    with pytest.raises(ValidationError):
        GatewaySettings()


def test_ipv6_address_is_understood(monkeypatch):
    monkeypatch.setenv("SENDENSE_GATEWAY_LISTEN", "[::1]:443")
    settings = GatewaySettings()
    assert (settings.listen_host, settings.listen_port) == ("::1", 443)


def test_every_reason_of_the_edge_and_the_access_service_is_documented():
    sources = Path(__file__).parents[3] / "services"
    reasons = {error.reason for error in EDGE_ERRORS}
    for file in (sources / "sendense_access").glob("*.py"):
        reasons |= set(re.findall(r'reason(?:: str)? ?= ?"([A-Z_]+)"', file.read_text()))
    assert {"AGENT_NOT_FOUND", "INVALID_FIELD", "INVALID_PAGE_TOKEN"} <= reasons
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", ERRORS_PAGE.read_text(), re.MULTILINE))
    assert reasons <= documented
