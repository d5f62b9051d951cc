"""Why a call is let in or refused: the same rules as the door's, told instead of enforced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from sendense_access.errors import RpcNotFound
from sendense_access.store import Token
from sendense_access.tokens import TokenIssuer
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError
from sendense_rpc.identity import Caller, TokenLimited, Unauthenticated, require_role
from sendense_rpc.limits import Limits


class Rpc(Protocol):
    """What is asked about each RPC; `sendense_rpc.methods.Method` is one."""

    @property
    def path(self) -> str:
        """GRPC path."""

    @property
    def role(self) -> str:
        """The role that it needs."""

    @property
    def limitable(self) -> bool:
        """Whether limited tokens may call it."""

    @property
    def rest(self) -> tuple[str, str] | None:
        """Its REST verb and path."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what it stands on; `reason` is empty when the call would be let in."""

    reason: str
    message: str
    rpc: str
    role_needed: str
    role_held: str
    subject: str
    token_id: str
    expires_at: datetime | None
    limits: Limits


class Explainer:
    """Explains calls.

    Args:
        rpcs: All RPCs of the system.
        tokens: The issued tokens.
    """

    def __init__(self, rpcs: Sequence[Rpc], tokens: TokenIssuer) -> None:
        self._rpcs = rpcs
        self._tokens = tokens

    async def explain(self, caller: Caller, rpc: str, token_id: str, vm: str, repository: str) -> Explanation:
        """Explains a call with the caller's own token, or, for administrators, with any other.

        Raises:
            RpcNotFound: There is no such call.
            TokenNotFound: The token was never issued here.
            SendenseError: ROLE_MISSING, when somebody who is no administrator asks about another's token.
        """
        method = self._find(rpc)
        if token_id and token_id != caller.token_id:
            require_role(caller, "admin", "explaining another's token")
            token: Token | None = await self._tokens.get(token_id)
        else:
            token = await self._tokens.find(caller.token_id)
        asked = (
            caller
            if token is None
            else replace(caller, subject=token.subject, role=token.role, token_id=token.token_id, limits=token.limits)
        )
        reason, message = "", f"a token with the role '{asked.role}' may call it"
        try:
            _check(asked, token, method, vm, repository)
        except SendenseError as refusal:
            reason, message = refusal.reason, refusal.message
        return Explanation(
            reason=reason,
            message=message,
            rpc=method.path.lstrip("/"),
            role_needed=method.role,
            role_held=asked.role,
            subject=asked.subject,
            token_id=asked.token_id,
            expires_at=token.expires_at if token else None,
            limits=asked.limits,
        )

    def _find(self, asked: str) -> Rpc:
        verb, _, path = asked.strip().partition(" ")
        name = asked.strip().lstrip("/").replace("/", ".")
        for rpc in sorted(self._rpcs, key=lambda each: each.rest[1].count("{") if each.rest else 0):
            full = rpc.path.lstrip("/").replace("/", ".")
            if full == name or full.endswith(f".{name}"):
                return rpc
            if path and rpc.rest and rpc.rest[0] == verb.upper() and _matches(rpc.rest[1], path.partition("?")[0]):
                return rpc
        raise RpcNotFound(asked)


def _matches(template: str, path: str) -> bool:
    parts = re.split(r"\{[a-z0-9_]+\}", template)
    return path == template or re.fullmatch("[^/]+".join(map(re.escape, parts)), path) is not None


def _check(caller: Caller, token: Token | None, rpc: Rpc, vm: str, repository: str) -> None:
    if token and token.revoked_at:
        raise Unauthenticated(f"the token was revoked at {token.revoked_at:%Y-%m-%d %H:%M:%S} UTC")
    if token and token.expires_at <= utc_now():
        raise Unauthenticated(f"the token has expired at {token.expires_at:%Y-%m-%d %H:%M:%S} UTC")
    require_role(caller, rpc.role, rpc.path.lstrip("/"))
    if caller.limits and not rpc.limitable:
        raise TokenLimited(rpc.path.lstrip("/"))
    if vm:
        caller.limits.require_vm(vm, vm)
    if repository:
        caller.limits.require_repository(repository, repository)
