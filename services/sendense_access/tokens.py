"""Issues, lists and revokes tokens. The token itself is returned once and stored nowhere.

Revocation works through `keys/revoked.json`, which every service's verifier reads again when it changes: it is written
after the row, and once more from the rows at every start, so a crash between the two heals itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import structlog

from sendense_access.audit import Event
from sendense_access.errors import InvalidRequest, TokenNotFound
from sendense_access.keys import SigningKey, write_private
from sendense_access.paging import decode_page, encode_page, page_limit
from sendense_access.store import AccessStore, Token, TokenFilter
from sendense_db.columns import utc_now
from sendense_rpc.limits import MOST as MOST_LIMITS
from sendense_rpc.limits import Limits
from sendense_rpc.repeats import RequestIdReused

log = structlog.get_logger()

DAY = 24 * 3600
DEFAULT_LIFETIME = 30 * DAY
LONGEST_LIFETIME = 365 * DAY
SELF = "service:access"
"""The actor of what the service does by itself."""
WORKLOAD_PREFIX = "service:"


class TokenIssuer:
    """The use cases of tokens.

    Args:
        store: The tables.
        key: Signs.
        revoked_file: Where verifiers look for revoked ids.
    """

    def __init__(self, store: AccessStore, key: SigningKey, revoked_file: Path) -> None:
        self._store = store
        self._key = key
        self._revoked_file = revoked_file

    async def create(
        self,
        subject: str,
        role: str,
        lifetime_seconds: int,
        *,
        actor: str,
        limits: Limits | None = None,
        request_id: str = "",
    ) -> tuple[Token, str]:
        """Signs a token and returns what was recorded with the token itself.

        Asked again with the same request id it signs the same facts again, which gives the same token: so the token
        is kept nowhere, and still comes back to a caller that did not hear the first answer.

        Args:
            subject: Who it is for.
            role: `viewer`, `restore`, `operator` or `admin`.
            lifetime_seconds: Its life; 0 means 30 days.
            actor: Who asks.
            limits: What it is limited to.
            request_id: The caller's; empty for none.

        Raises:
            InvalidRequest: It would live longer than a year, or be taken for one of Sendense's own processes, or
                has too many limits.
            RequestIdReused: The request id came with another request.
        """
        limits = limits or Limits()
        if lifetime_seconds > LONGEST_LIFETIME:
            raise InvalidRequest("lifetime_seconds", f"is more than a year ({LONGEST_LIFETIME} s)")
        if subject.startswith(WORKLOAD_PREFIX):
            raise InvalidRequest(
                "subject", f"must not begin with '{WORKLOAD_PREFIX}', which names Sendense's processes"
            )
        for name, entries in (("vms", limits.vms), ("repositories", limits.repositories)):
            if len(entries) > MOST_LIMITS:
                raise InvalidRequest(name, f"has more than {MOST_LIMITS} entries")
            if "" in entries:
                raise InvalidRequest(name, "has an empty entry, which names nothing")
        lifetime = lifetime_seconds or DEFAULT_LIFETIME
        token_id = _repeatable_id(actor, request_id) if request_id else uuid.uuid4().hex
        now = utc_now()
        asked = Token(token_id, subject, role, now, now + timedelta(seconds=lifetime), limits=limits)
        event = Event(actor, "token.create", token_id, detail=_facts(asked))
        token = await self._store.add_token(asked, event)
        if _asked_for(token) != _asked_for(asked):
            raise RequestIdReused(request_id)
        issued_at = int(token.created_at.timestamp())
        secret = self._key.sign(subject, role, lifetime, token_id, limits=limits, issued_at=issued_at)
        return token, secret

    async def get(self, token_id: str) -> Token:
        """Returns a token.

        Raises:
            TokenNotFound: It was never issued here.
        """
        token = await self._store.token(token_id)
        if token is None:
            raise TokenNotFound(token_id)
        return token

    async def find(self, token_id: str) -> Token | None:
        """Returns a token, or None when it was never issued here."""
        return await self._store.token(token_id)

    async def list(self, page_size: int, page_token: str, chosen: TokenFilter | None = None) -> tuple[list[Token], str]:
        """Returns a page of tokens, newest first, and the next page's token (empty on the last page).

        Raises:
            InvalidRequest: The page token was not made here, or the size is negative.
        """
        limit = page_limit(page_size)
        found = await self._store.tokens(limit + 1, decode_page(page_token), chosen)
        page = found[:limit]
        more = len(found) > limit
        return page, encode_page(page[-1].created_at, page[-1].token_id) if more else ""

    async def revoke(self, token_id: str, *, actor: str) -> Token:
        """Makes a token worthless; again for a revoked one is no error.

        Raises:
            TokenNotFound: It was never issued here.
        """
        token = await self._store.revoke_token(token_id, Event(actor, "token.revoke", token_id))
        if token is None:
            refusal = TokenNotFound(token_id)
            await self._store.record(Event(actor, "token.revoke", token_id[:191], refusal.reason))
            raise refusal
        await self.write_revoked()
        return token

    async def revoked_ids(self) -> Sequence[str]:
        """Returns the ids of revoked tokens that have not expired."""
        return await self._store.revoked_ids(utc_now())

    async def write_revoked(self) -> None:
        """Writes the ids that verifiers refuse, from the table."""
        ids = await self.revoked_ids()
        write_private(self._revoked_file, json.dumps(ids).encode())

    async def ensure_administrator(self, token_file: Path, lifetime_seconds: int) -> None:
        """Sees to it that a new installation has a token to begin with.

        Makes one when the file is missing, has expired or was signed by another key. One that was put there by somebody
        who holds the signing key is recorded, so that it can be listed and revoked. A revoked one stays: making another
        would undo what an administrator did on purpose.
        """
        secret = await asyncio.to_thread(_read_if_there, token_file)
        if secret:
            try:
                claims = self._key.read(secret)
            except jwt.PyJWTError as error:
                log.warning("administrator's token is replaced", file=str(token_file), why=str(error))
            else:
                await self._adopt(claims)
                return
        token, secret = await self.create("administrator", "admin", lifetime_seconds, actor=SELF)
        write_private(token_file, secret.encode())
        log.info("administrator's token written", file=str(token_file), token_id=token.token_id)

    async def _adopt(self, claims: dict[str, Any]) -> None:
        token_id = str(claims["jti"])
        if await self._store.token(token_id):
            return
        token = Token(
            token_id,
            str(claims["sub"]),
            str(claims["role"]),
            datetime.fromtimestamp(claims["iat"], UTC),
            datetime.fromtimestamp(claims["exp"], UTC),
        )
        await self._store.add_token(
            token, Event(SELF, "token.adopt", token_id, detail=f"{token.role} for {token.subject}")
        )


def _repeatable_id(actor: str, request_id: str) -> str:
    return hashlib.sha256("\0".join((actor, request_id)).encode()).hexdigest()[:32]


def _asked_for(token: Token) -> tuple[object, ...]:
    return token.subject, token.role, token.limits, token.expires_at - token.created_at


def _facts(token: Token) -> str:
    limited = [
        f"{kind} {', '.join(sorted(names))}"
        for kind, names in (("VMs", token.limits.vms), ("repositories", token.limits.repositories))
        if names
    ]
    return "; limited to ".join([f"{token.role} for {token.subject}", *limited])


def _read_if_there(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
