"""One-time codes with which agents on other machines join.

What always holds: of a code only its SHA-256 is kept; it is good once, for one agent, for a limited time; a newer one
for the same agent makes it worthless.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sendense_access.agents import AgentRegistry
from sendense_access.audit import Event
from sendense_access.clients import Tunnel
from sendense_access.errors import AgentExists, EnrollmentRefused, InvalidRequest
from sendense_access.store import AccessStore, Agent, EnrollmentStore
from sendense_db.columns import utc_now

HOUR = 3600
DEFAULT_LIFETIME = HOUR
LONGEST_LIFETIME = 7 * 24 * HOUR
_CODE_BYTES = 20
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Enrollment:
    """What an agent starts from; see the protos' `Enrollment`."""

    agent_id: str
    code: str
    expires_at: datetime
    tunnel_address: str
    tunnel_host_key: str
    jwks_json: str


class EnrollmentDesk:
    """Makes and redeems codes.

    Args:
        access: The enrolled agents.
        store: The codes.
        registry: Enrols agents.
        describe_tunnel: Tells what agents must know to dial.
        jwks_json: What agents verify their callers with.
    """

    def __init__(
        self,
        access: AccessStore,
        store: EnrollmentStore,
        registry: AgentRegistry,
        describe_tunnel: Callable[[], Awaitable[Tunnel]],
        jwks_json: str,
    ) -> None:
        self._access = access
        self._store = store
        self._registry = registry
        self._describe_tunnel = describe_tunnel
        self._jwks_json = jwks_json

    async def create(self, agent_id: str, tunnel_address: str, lifetime_seconds: int, *, actor: str) -> Enrollment:
        """Makes an agent's code, in place of an earlier one.

        Raises:
            InvalidRequest: The code would live longer than a week, or the address has no sound port.
            AgentExists: An agent of this name is enrolled.
            RemoteError: The tunnel does not answer.
        """
        if lifetime_seconds > LONGEST_LIFETIME:
            raise InvalidRequest("lifetime_seconds", f"is more than a week ({LONGEST_LIFETIME} s)")
        if await self._access.agent(agent_id) is not None:
            raise AgentExists(agent_id)
        tunnel = await self._describe_tunnel()
        address = with_port(tunnel_address, tunnel.port)
        code = secrets.token_urlsafe(_CODE_BYTES)
        expires_at = utc_now() + timedelta(seconds=lifetime_seconds or DEFAULT_LIFETIME)
        event = Event(actor, "agent.enrollment", agent_id, detail=f"good until {expires_at:%Y-%m-%dT%H:%M:%SZ}")
        await self._store.put(agent_id, _digest(code), expires_at, event)
        return Enrollment(agent_id, code, expires_at, address, tunnel.host_key, self._jwks_json)

    async def redeem(self, agent_id: str, code: str, public_key: str) -> Agent:
        """Records the key of whoever shows the code.

        Raises:
            EnrollmentRefused: The code is wrong, was used, or has expired.
            InvalidRequest: The key is none.
            AgentExists: An agent of this name is enrolled with another key.
            KeyInUse: The key is another agent's.
        """
        actor = f"agent:{agent_id}"
        if not await self._store.spend(agent_id, _digest(code), utc_now()):
            await self._access.record(Event(actor, "agent.enrol", agent_id[:191], EnrollmentRefused.REASON))
            raise EnrollmentRefused(agent_id)
        return await self._registry.enrol(agent_id, public_key, actor=actor)


def with_port(address: str, default: int) -> str:
    """Returns an address as `host:port`.

    Raises:
        InvalidRequest: Its port is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]") or (":" in host and not host.startswith("[")):
        # No port; of a bare IPv6 address the last colon is none of a port.
        plain = address.strip("[]")
        return f"[{plain}]:{default}" if ":" in plain else f"{plain}:{default}"
    if not host or not port.isdecimal() or not 0 < int(port) <= _LARGEST_PORT:
        raise InvalidRequest("tunnel_address", "is neither host nor host:port")
    return address


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
