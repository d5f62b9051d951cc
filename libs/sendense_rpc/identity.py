"""Who calls: tokens are JWTs (EdDSA) that every service verifies itself, with the keys of a JWKS file.

Roles are not a ladder: an operator starts and deletes backups but sees no content, `restore` sees content but starts
nothing. `internal` is the role of workload identities and never comes through the gateway.
"""

from __future__ import annotations

import contextvars
import json
from dataclasses import dataclass
from pathlib import Path

import jwt
from jwt.types import Options

from sendense_rpc.errors import Kind, SendenseError

ISSUER = "sendense"
AUDIENCE = "sendense"
ALGORITHM = "EdDSA"

GRANTS: dict[str, frozenset[str]] = {
    "viewer": frozenset({"viewer"}),
    "restore": frozenset({"viewer", "restore"}),
    "operator": frozenset({"viewer", "operator"}),
    "admin": frozenset({"viewer", "restore", "operator", "admin"}),
    "internal": frozenset({"viewer", "restore", "operator", "internal"}),
}
"""For each role that a token can carry, the roles of RPCs that it may call."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made the current call.

    Attributes:
        subject: Person or workload, such as `service:backup`.
        role: The token's role, a key of `GRANTS`.
        token_id: The token's `jti`.
    """

    subject: str
    role: str
    token_id: str


_current: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("sendense_caller", default=None)


def current_caller() -> Caller | None:
    """Returns who made the call that is being served, or None outside of one."""
    return _current.get()


def set_caller(caller: Caller | None) -> contextvars.Token[Caller | None]:
    """Makes `caller` the current one; used by the interceptors."""
    return _current.set(caller)


class Unauthenticated(SendenseError):
    """No token, or one that is not good; the message says which."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            kind=Kind.UNAUTHENTICATED,
            reason="UNAUTHENTICATED",
            help="Send 'Authorization: Bearer <token>' with a valid token; `sendense-ctl token create` makes one.",
        )


class TokenVerifier:
    """Verifies bearer tokens against a JWKS file and a list of revoked ids; both are read again when they change."""

    def __init__(self, jwks_file: Path, revoked_file: Path) -> None:
        self._jwks_file = jwks_file
        self._revoked_file = revoked_file
        self._keys: dict[str, jwt.PyJWK] = {}
        self._keys_stamp = -1
        self._revoked: frozenset[str] = frozenset()
        self._revoked_stamp = -1

    def verify(self, authorization: str | None) -> Caller:
        """Returns the caller that an `Authorization` header's value proves.

        Raises:
            Unauthenticated: Nothing was sent, or the token is malformed, unknown, expired or revoked.
        """
        if not authorization:
            raise Unauthenticated("no token was sent")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("the Authorization header is not 'Bearer <token>'")
        try:
            key = self._key(str(jwt.get_unverified_header(token).get("kid", "")))
            options: Options = {"require": ["exp", "iat", "sub", "jti", "role"]}
            claims = jwt.decode(
                token, key.key, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options=options
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the token has expired") from error
        except jwt.PyJWTError as error:
            raise Unauthenticated("the token is not valid") from error
        if claims["jti"] in self._revoked_ids():
            raise Unauthenticated("the token was revoked")
        if claims["role"] not in GRANTS:
            raise Unauthenticated("the token's role is not known")
        return Caller(subject=str(claims["sub"]), role=str(claims["role"]), token_id=str(claims["jti"]))

    def _key(self, kid: str) -> jwt.PyJWK:
        stamp = self._jwks_file.stat().st_mtime_ns
        if stamp != self._keys_stamp:
            keys = jwt.PyJWKSet.from_json(self._jwks_file.read_text()).keys
            self._keys = {key.key_id: key for key in keys if key.key_id}
            self._keys_stamp = stamp
        if kid not in self._keys:
            raise Unauthenticated("the token was signed with an unknown key")
        return self._keys[kid]

    def _revoked_ids(self) -> frozenset[str]:
        try:
            stamp = self._revoked_file.stat().st_mtime_ns
        except FileNotFoundError:
            return frozenset()
        if stamp != self._revoked_stamp:
            self._revoked = frozenset(json.loads(self._revoked_file.read_text()))
            self._revoked_stamp = stamp
        return self._revoked


def require_role(caller: Caller, role: str, method: str) -> None:
    """Raises unless the caller's role grants `role`.

    Args:
        caller: Who calls.
        role: The role that the RPC names.
        method: Full name of the RPC, for the message.

    Raises:
        SendenseError: PERMISSION_DENIED, with the role held and the role needed.
    """
    if role not in GRANTS[caller.role]:
        raise SendenseError(
            f"{method} needs the role '{role}', and this token has '{caller.role}'",
            kind=Kind.PERMISSION_DENIED,
            reason="ROLE_MISSING",
            help=f"Ask an administrator for a token with the role '{role}'.",
            metadata={"role_needed": role, "role_held": caller.role},
        )
