"""Where nbdd may listen on TCP: nowhere unless it is said, and not beside demands that it cannot meet."""

from __future__ import annotations

import pytest

from sendense_exports.tcp_forwarder import Address, AddressError, parse_address, wanted_address


def test_nothing_listens_unless_it_is_said() -> None:
    assert wanted_address("", {"port": "10809", "listenaddr": "192.0.2.1"}, []) is None


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:10809", "127.0.0.1", 10809),
        ("[::1]:10809", "::1", 10809),
        ("localhost:0", "localhost", 0),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address((host,), port)


@pytest.mark.parametrize("text", ["10809", ":10809", "127.0.0.1", "::1:10809", "h:", "h:x", "h:65536", "h:-1", "h:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


def test_the_configurations_own_keys_are_heeded_when_asked_for() -> None:
    assert wanted_address("config", {"listenaddr": "10.0.0.1, ::1", "port": "4711"}, []) == Address(
        ("10.0.0.1", "::1"), 4711
    )
    assert wanted_address("config", {}, []) == Address(("127.0.0.1",), 10809), "not all addresses, as nbd-server would"
    for generic in ({"port": "nbd"}, {"listenaddr": ","}):
        with pytest.raises(AddressError):
            wanted_address("config", generic, [])


@pytest.mark.parametrize("setting", ["config", "127.0.0.1:10809"])
def test_a_demand_that_cannot_be_met_keeps_the_address_shut(setting: str) -> None:
    with pytest.raises(AddressError, match="force_tls"):
        wanted_address(setting, {"force_tls": "true"}, [])
    with pytest.raises(AddressError, match="export secret has an authfile"):
        wanted_address(setting, {}, ["secret"])
    assert wanted_address(setting, {"force_tls": "false"}, []) is not None


@pytest.mark.parametrize(
    ("hosts", "is_loopback"),
    [
        (("127.0.0.1",), True),
        (("::1", "localhost"), True),
        (("127.0.0.1", "192.0.2.1"), False),
        (("example.org",), False),
    ],
)
def test_only_loopback_addresses_count_as_such(hosts: tuple[str, ...], is_loopback: bool) -> None:
    assert Address(hosts, 1).is_loopback == is_loopback
