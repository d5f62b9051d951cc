"""Watches an NBD client negotiate: through the tunnel an agent reaches exports that are leased to it, and no others.

Sits between the agent and the NBD server during the option haggling of the fixed newstyle handshake
(https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md) and passes on one option at a time, after looking
at it. The server's replies are read as well, since only they say whether an option moved the connection into the
transmission phase: a client whose GO failed is still haggling, and its next option must be looked at too.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

HELLO = struct.Struct(">8s8sH")
OPTION_HEAD = struct.Struct(">8sII")
REPLY_HEAD = struct.Struct(">QIII")

MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9
FLAG_FIXED_NEWSTYLE = 1
CLIENT_FLAGS_KNOWN = 3

MAX_OPTION_BYTES = 4096 + 1024
"""Longest option that is read: the protocol's longest name, and some queries beside it."""
MAX_REPLY_BYTES = 64 << 10
MAX_OPTIONS = 64
"""Options that a client may send before it must have chosen an export; libnbd needs fewer than ten."""
MAX_NAME_BYTES = 255

REPLY_ACK = 1
_ERROR_BIT = 1 << 31
ERROR_UNSUPPORTED = _ERROR_BIT + 1
ERROR_POLICY = _ERROR_BIT + 2
ERROR_INVALID = _ERROR_BIT + 3
ERROR_TOO_BIG = _ERROR_BIT + 9


class Option(enum.IntEnum):
    """Options that a client can ask for."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


_NAMES_AN_EXPORT = frozenset(
    {Option.EXPORT_NAME, Option.INFO, Option.GO, Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT}
)
_PASSED_ON = _NAMES_AN_EXPORT | {Option.ABORT, Option.STRUCTURED_REPLY}


class HagglingEnded(Exception):
    """The connection must be closed: a side broke the protocol, or asked for what cannot be refused politely."""


class Wire(Protocol):
    """One side of the negotiation."""

    async def read(self, length: int) -> bytes:
        """Returns exactly `length` bytes that the side sent."""

    def send(self, data: bytes) -> None:
        """Sends bytes to the side."""


class Haggling:
    """One client's negotiation.

    Args:
        client: The agent's side.
        server: The NBD server's side.
        admits: Tells whether the agent may use an export.
        refused: Told of everything that was refused, as (what, detail).
    """

    def __init__(
        self,
        client: Wire,
        server: Wire,
        admits: Callable[[str], Awaitable[bool]],
        refused: Callable[[str, str], object],
    ) -> None:
        self._client = client
        self._server = server
        self._admits = admits
        self._refused = refused

    async def run(self) -> None:
        """Returns when the transmission phase begins; from then on bytes may be piped.

        Raises:
            HagglingEnded: The connection must be closed.
            StreamEnded: A side ended.
        """
        await self._greet()
        for _ in range(MAX_OPTIONS):
            if await self._one_option():
                return
        raise HagglingEnded("too many options")

    async def _greet(self) -> None:
        hello = await self._server.read(HELLO.size)
        magic, option_magic, flags = HELLO.unpack(hello)
        if magic != MAGIC or option_magic != OPTION_MAGIC or not flags & FLAG_FIXED_NEWSTYLE:
            raise HagglingEnded("the NBD server does not speak fixed newstyle")
        self._client.send(hello)
        client_flags = await self._client.read(4)
        number = int.from_bytes(client_flags, "big")
        if not number & FLAG_FIXED_NEWSTYLE or number & ~CLIENT_FLAGS_KNOWN:
            raise HagglingEnded("the client does not speak fixed newstyle")
        self._server.send(client_flags)

    async def _one_option(self) -> bool:
        """Deals with the client's next option; returns whether the transmission phase begins."""
        head = await self._client.read(OPTION_HEAD.size)
        magic, code, length = OPTION_HEAD.unpack(head)
        if magic != OPTION_MAGIC:
            raise HagglingEnded("no option")
        if length > MAX_OPTION_BYTES:
            self._refuse(code, ERROR_TOO_BIG, f"option of {length} bytes")
            raise HagglingEnded("an option is too long")
        data = await self._client.read(length)
        if code not in _PASSED_ON:
            self._refuse(code, ERROR_POLICY if code == Option.LIST else ERROR_UNSUPPORTED, "not offered here")
            return False
        if code in _NAMES_AN_EXPORT:
            name = export_name(code, data)
            if name is None:
                self._refuse(code, ERROR_INVALID, "malformed")
                return False
            if not await self._admits(name):
                self._refuse(code, ERROR_POLICY, f"export {name!r} is not leased to this agent")
                return False
        self._server.send(head + data)
        if code == Option.EXPORT_NAME:
            # The old way to choose: the server answers with the export's size, or closes the connection.
            return True
        return await self._pass_replies_on(code) and code == Option.GO

    async def _pass_replies_on(self, code: int) -> bool:
        """Passes the server's replies to one option on; returns whether the last one is an acknowledgement."""
        while True:
            head = await self._server.read(REPLY_HEAD.size)
            magic, option, kind, length = REPLY_HEAD.unpack(head)
            if magic != REPLY_MAGIC or option != code or length > MAX_REPLY_BYTES:
                raise HagglingEnded("the NBD server answered out of turn")
            self._client.send(head + await self._server.read(length))
            if kind == REPLY_ACK or kind & _ERROR_BIT:
                if code == Option.ABORT:
                    raise HagglingEnded("the client is done")
                return bool(kind == REPLY_ACK)

    def _refuse(self, code: int, error: int, detail: str) -> None:
        what = Option(code).name if code in Option.__members__.values() else f"option {code}"
        self._refused(f"nbd {what}", detail)
        if code == Option.EXPORT_NAME:
            raise HagglingEnded("EXPORT_NAME has no error reply")
        message = b"refused by the tunnel"
        self._client.send(REPLY_HEAD.pack(REPLY_MAGIC, code, error, len(message)) + message)


def export_name(code: int, data: bytes) -> str | None:
    """Returns the export that an option names, or None when the option is malformed.

    Args:
        code: An option that names an export.
        data: Its data, checked to its last byte: what the server might read differently is not passed on.
    """
    if code == Option.EXPORT_NAME:
        return _decoded(data)
    if len(data) < 4:
        return None
    name_length = int.from_bytes(data[:4], "big")
    rest = data[4 + name_length :]
    name = data[4 : 4 + name_length]
    if len(name) != name_length:
        return None
    well_formed = _is_info_list(rest) if code in (Option.INFO, Option.GO) else _is_query_list(rest)
    return _decoded(name) if well_formed else None


def _decoded(name: bytes) -> str | None:
    if not 0 < len(name) <= MAX_NAME_BYTES:
        return None
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _is_info_list(data: bytes) -> bool:
    return len(data) >= 2 and len(data) == 2 + 2 * int.from_bytes(data[:2], "big")


def _is_query_list(data: bytes) -> bool:
    if len(data) < 4:
        return False
    count, position = int.from_bytes(data[:4], "big"), 4
    if count > len(data) // 4:
        return False
    for _ in range(count):
        if position + 4 > len(data):
            return False
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    return position == len(data)
