"""The negotiation filter: what an NBD client may say through the tunnel, and what reaches the server."""

from __future__ import annotations

import asyncio
import struct

import pytest

from sendense_tunnel.byte_stream import ByteStream, StreamEnded
from sendense_tunnel.nbd_haggling import (
    ERROR_INVALID,
    ERROR_POLICY,
    ERROR_TOO_BIG,
    ERROR_UNSUPPORTED,
    HELLO,
    MAGIC,
    MAX_OPTION_BYTES,
    MAX_OPTIONS,
    OPTION_HEAD,
    OPTION_MAGIC,
    REPLY_ACK,
    REPLY_HEAD,
    REPLY_MAGIC,
    Haggling,
    HagglingEnded,
    Option,
    export_name,
)


class Side:
    """A wire whose other end the test holds."""

    def __init__(self) -> None:
        self.incoming = ByteStream()
        self.sent = bytearray()

    async def read(self, length: int) -> bytes:
        return await self.incoming.read(length)

    def send(self, data: bytes) -> None:
        self.sent += data


def option(code: int, data: bytes) -> bytes:
    return OPTION_HEAD.pack(OPTION_MAGIC, code, len(data)) + data


def go(name: str, code: int = Option.GO) -> bytes:
    raw = name.encode()
    return option(code, struct.pack(">I", len(raw)) + raw + struct.pack(">H", 0))


def meta(name: str, query: bytes = b"base:allocation", code: int = Option.SET_META_CONTEXT) -> bytes:
    raw = name.encode()
    return option(code, struct.pack(">I", len(raw)) + raw + struct.pack(">II", 1, len(query)) + query)


def reply(code: int, kind: int, data: bytes = b"") -> bytes:
    return REPLY_HEAD.pack(REPLY_MAGIC, code, kind, len(data)) + data


HELLO_BYTES = HELLO.pack(MAGIC, OPTION_MAGIC, 3)
CLIENT_FLAGS = (3).to_bytes(4, "big")


class Rig:
    """A filter that admits the export `mine`, fed with whole scripts of both sides."""

    def __init__(self, client: bytes = b"", server: bytes = b"", flags: bytes = CLIENT_FLAGS) -> None:
        self.client, self.server = Side(), Side()
        self.refused: list[tuple[str, str]] = []
        self.client.incoming.feed(flags + client)
        self.server.incoming.feed(HELLO_BYTES + server)

    async def run(self, *, ended: bool = False) -> None:
        async def admits(name: str) -> bool:
            return name == "mine"

        if ended:
            self.client.incoming.end()
            self.server.incoming.end()
        haggling = Haggling(self.client, self.server, admits, lambda what, detail: self.refused.append((what, detail)))
        await asyncio.wait_for(haggling.run(), 2)

    @property
    def reached_server(self) -> bytes:
        assert self.server.sent.startswith(CLIENT_FLAGS)
        return bytes(self.server.sent[4:])

    def replies(self) -> list[tuple[int, int]]:
        """The (option, kind) of each reply that the client got."""
        data, found = bytes(self.client.sent[HELLO.size :]), []
        while data:
            magic, code, kind, length = REPLY_HEAD.unpack_from(data)
            assert magic == REPLY_MAGIC
            found.append((code, kind))
            data = data[REPLY_HEAD.size + length :]
        return found


async def test_leased_export_reaches_transmission_and_nothing_is_lost() -> None:
    script = option(Option.STRUCTURED_REPLY, b"") + meta("mine") + go("mine")
    server = (
        reply(Option.STRUCTURED_REPLY, REPLY_ACK)
        + reply(Option.SET_META_CONTEXT, 4, b"\0\0\0\1base:allocation")
        + reply(Option.SET_META_CONTEXT, REPLY_ACK)
        + reply(Option.GO, 3, b"\0\0" + bytes(10))
        + reply(Option.GO, REPLY_ACK)
    )
    rig = Rig(script + b"first request", server + b"first answer")
    await rig.run()
    assert rig.reached_server == script
    assert bytes(rig.client.sent) == HELLO_BYTES + server
    assert rig.client.incoming.take_rest() == b"first request"
    assert rig.server.incoming.take_rest() == b"first answer"
    assert rig.refused == []


@pytest.mark.parametrize("code", [Option.GO, Option.INFO])
async def test_foreign_export_never_reaches_the_server(code: int) -> None:
    rig = Rig(go("other", code))
    with pytest.raises(StreamEnded):
        await rig.run(ended=True)
    assert rig.reached_server == b""
    assert rig.replies() == [(code, ERROR_POLICY)]
    assert rig.refused[0][0] == f"nbd {Option(code).name}"


async def test_meta_context_of_a_foreign_export_is_refused() -> None:
    rig = Rig(meta("other") + meta("other", code=Option.LIST_META_CONTEXT))
    with pytest.raises(StreamEnded):
        await rig.run(ended=True)
    assert rig.reached_server == b""
    assert rig.replies() == [(Option.SET_META_CONTEXT, ERROR_POLICY), (Option.LIST_META_CONTEXT, ERROR_POLICY)]


async def test_a_failed_go_does_not_open_the_way_to_another_export() -> None:
    rig = Rig(go("mine") + go("other"), reply(Option.GO, ERROR_POLICY, b"not served yet"))
    with pytest.raises(StreamEnded):
        await rig.run(ended=True)
    assert rig.reached_server == go("mine")
    assert rig.replies() == [(Option.GO, ERROR_POLICY), (Option.GO, ERROR_POLICY)]
    assert rig.refused == [("nbd GO", "export 'other' is not leased to this agent")]


async def test_info_does_not_begin_the_transmission() -> None:
    rig = Rig(go("mine", Option.INFO) + go("other"), reply(Option.INFO, REPLY_ACK))
    with pytest.raises(StreamEnded):
        await rig.run(ended=True)
    assert rig.reached_server == go("mine", Option.INFO)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Option.LIST, ERROR_POLICY),
        (Option.STARTTLS, ERROR_UNSUPPORTED),
        (11, ERROR_UNSUPPORTED),
        (99, ERROR_UNSUPPORTED),
    ],
)
async def test_list_starttls_and_unknown_options_are_refused(code: int, error: int) -> None:
    rig = Rig(option(code, b"x"))
    with pytest.raises(StreamEnded):
        await rig.run(ended=True)
    assert rig.reached_server == b""
    assert rig.replies() == [(code, error)]


async def test_export_name_of_a_foreign_export_closes_the_connection() -> None:
    rig = Rig(option(Option.EXPORT_NAME, b"other"))
    with pytest.raises(HagglingEnded):
        await rig.run()
    assert rig.reached_server == b""


async def test_export_name_of_a_leased_export_is_passed_on() -> None:
    rig = Rig(option(Option.EXPORT_NAME, b"mine"))
    await rig.run()
    assert rig.reached_server == option(Option.EXPORT_NAME, b"mine")


async def test_an_endless_option_is_cut_off_unread() -> None:
    rig = Rig(OPTION_HEAD.pack(OPTION_MAGIC, Option.GO, MAX_OPTION_BYTES + 1))
    with pytest.raises(HagglingEnded):
        await rig.run()
    assert rig.replies() == [(Option.GO, ERROR_TOO_BIG)]
    assert rig.reached_server == b""


async def test_a_client_that_haggles_forever_is_cut_off() -> None:
    rig = Rig(option(Option.LIST, b"") * (MAX_OPTIONS + 1))
    with pytest.raises(HagglingEnded):
        await rig.run()


async def test_abort_ends_the_connection_after_the_acknowledgement() -> None:
    rig = Rig(option(Option.ABORT, b""), reply(Option.ABORT, REPLY_ACK))
    with pytest.raises(HagglingEnded):
        await rig.run()
    assert rig.replies() == [(Option.ABORT, REPLY_ACK)]


@pytest.mark.parametrize("flags", [0, 2, 7])
async def test_clients_without_fixed_newstyle_or_with_unknown_flags_are_cut_off(flags: int) -> None:
    rig = Rig(go("mine"), flags=flags.to_bytes(4, "big"))
    with pytest.raises(HagglingEnded):
        await rig.run()
    assert bytes(rig.server.sent) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\4min",
        b"\0\0\0\4mine",
        b"\0\0\0\4mine\0\1",
        b"\0\0\0\4mine\0\0trailing",
        b"\xff\xff\xff\xffmine\0\0",
        b"\0\0\0\0\0\0",
        b"\0\0\0\4mi\ne\0\0",
        b"\0\0\0\4mi\xffe\0\0",
    ],
)
async def test_malformed_go_is_refused_and_not_passed_on(data: bytes) -> None:
    assert export_name(Option.GO, data) is None
    rig = Rig(option(Option.GO, data))
    with pytest.raises(StreamEnded):
        await rig.run(ended=True)
    assert rig.replies() == [(Option.GO, ERROR_INVALID)]
    assert rig.reached_server == b""


@pytest.mark.parametrize("tail", [b"", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\0\0\0\1\0\0\0\x05abc", b"\0\0\0\0x"])
def test_malformed_query_lists_name_no_export(tail: bytes) -> None:
    assert export_name(Option.SET_META_CONTEXT, b"\0\0\0\4mine" + tail) is None


async def test_a_server_that_answers_another_option_is_not_believed() -> None:
    rig = Rig(go("mine"), reply(Option.INFO, REPLY_ACK))
    with pytest.raises(HagglingEnded):
        await rig.run()
