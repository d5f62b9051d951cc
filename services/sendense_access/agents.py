"""Which agents may connect: by their SSH public keys, kept in one canonical form.

The canonical form is the type and the base64 of the key's wire encoding, so that a comment, padding or a second
spelling never makes another key of the same one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Awaitable, Callable

from sendense_access.audit import Event
from sendense_access.errors import AgentExists, AgentNotFound, InvalidRequest, KeyInUse
from sendense_access.paging import decode_name, encode_name, page_limit
from sendense_access.store import AccessStore, Agent
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError

KEY_TYPE = "ssh-ed25519"
_KEY_BYTES = 32


def canonical_key(line: str) -> tuple[str, str]:
    """Returns an OpenSSH public key line without its comment, and the SHA-256 of its wire form in hex.

    Raises:
        InvalidRequest: It is no Ed25519 key in OpenSSH's one-line form.
    """
    kind, _, rest = line.strip().partition(" ")
    encoded = rest.split(" ", 1)[0]
    try:
        wire = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise InvalidRequest("public_key", "is not base64") from error
    name = KEY_TYPE.encode()
    expected = struct.pack(">I", len(name)) + name + struct.pack(">I", _KEY_BYTES)
    if kind != KEY_TYPE or wire[: len(expected)] != expected or len(wire) != len(expected) + _KEY_BYTES:
        raise InvalidRequest("public_key", "is not an ssh-ed25519 key", help="Make one with `ssh-keygen -t ed25519`.")
    return f"{KEY_TYPE} {base64.b64encode(wire).decode()}", hashlib.sha256(wire).hexdigest()


class AgentRegistry:
    """Enrols, lists, removes and recognises agents.

    Args:
        store: The tables.
        cut_off: Ends the connections of a removed agent.
    """

    def __init__(self, store: AccessStore, cut_off: Callable[[str], Awaitable[None]]) -> None:
        self._store = store
        self._cut_off = cut_off

    async def enrol(self, agent_id: str, public_key: str, *, actor: str) -> Agent:
        """Records an agent's key; the same key for the same agent again changes nothing.

        Raises:
            InvalidRequest: The key is none.
            AgentExists: The name is taken by an agent with another key.
            KeyInUse: The key is taken by an agent with another name.
        """
        key, fingerprint = canonical_key(public_key)
        event = Event(actor, "agent.enrol", agent_id, detail=f"sha256:{fingerprint}")
        found = await self._store.enrol_agent(Agent(agent_id, key, fingerprint, utc_now()), event)
        refusal: SendenseError | None = None
        if found.agent_id != agent_id:
            refusal = KeyInUse(found.agent_id)
        elif found.fingerprint != fingerprint:
            refusal = AgentExists(agent_id)
        if refusal:
            await self._store.record(Event(actor, "agent.enrol", agent_id, refusal.reason, event.detail))
            raise refusal
        return found

    async def list(self, page_size: int = 0, page_token: str = "") -> tuple[list[Agent], str]:
        """Returns a page of enrolled agents, by name, and the next page's token (empty on the last page)."""
        limit = page_limit(page_size)
        found = await self._store.agents(limit + 1, decode_name(page_token))
        return found[:limit], encode_name(found[limit - 1].agent_id) if len(found) > limit else ""

    async def get(self, agent_id: str) -> Agent:
        """Returns an enrolled agent.

        Raises:
            AgentNotFound: No such agent is enrolled.
        """
        agent = await self._store.agent(agent_id)
        if agent is None:
            raise AgentNotFound(f"the name '{agent_id}'")
        return agent

    async def remove(self, agent_id: str, *, actor: str) -> Agent:
        """Forgets an agent's key and ends its connections.

        Raises:
            AgentNotFound: No such agent is enrolled.
        """
        removed = await self._store.remove_agent(agent_id, Event(actor, "agent.remove", agent_id))
        if removed is None:
            refusal = AgentNotFound(f"the name '{agent_id}'")
            await self._store.record(Event(actor, "agent.remove", agent_id[:191], refusal.reason))
            raise refusal
        await self._cut_off(agent_id)
        return removed

    async def authenticate(self, public_key: str) -> Agent:
        """Returns the agent that owns a key.

        Raises:
            AgentNotFound: Nobody does.
        """
        _, fingerprint = canonical_key(public_key)
        agent = await self._store.agent_with_key(fingerprint)
        if agent is None:
            raise AgentNotFound(f"the key sha256:{fingerprint}")
        return agent
