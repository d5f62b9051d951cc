"""Who calls: tokens are JWTs that every service verifies itself, with the keys of a JWKS file.

Sendense's own issuer signs with EdDSA. Further issuers (OIDC) are a setting: their keys are another JWKS file, and a
claim of theirs says the role. Files are read again when they change, so keys are rotated without a restart.

Roles are not a ladder: an operator starts and deletes backups but sees no content, `restore` sees content but starts
nothing. `internal` is the role of workload identities and never comes through the gateway.
"""

from __future__ import annotations

import contextvars
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jwt
from jwt.types import Options

from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.limits import Limits

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
        limits: What the token is limited to; that of the person whom a workload works for, when it is a workload's.
        source: Address that the request came from, as the gateway saw it; empty on this machine.
        request_id: The request's id in the logs.
    """

    subject: str
    role: str
    token_id: str
    limits: Limits = field(default_factory=Limits)
    source: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are taken.

    Attributes:
        name: What `iss` says.
        audience: What `aud` must hold.
        jwks_file: Its public keys.
        algorithms: Signatures that are taken.
        role_claim: The claim that names the role.
        workloads: Whether it may issue workload identities (role `internal`).
        prefix: Put before its subjects, so that no other issuer can make a token for one of ours.
    """

    name: str
    audience: str
    jwks_file: Path
    algorithms: tuple[str, ...] = (ALGORITHM,)
    role_claim: str = "role"
    workloads: bool = False
    prefix: str = ""


_current: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("sendense_caller", default=None)


def current_caller() -> Caller | None:
    """Returns who made the call that is being served, or None outside of one."""
    return _current.get()


def current_limits() -> Limits:
    """Returns what the current call's token is limited to; no limits outside of a call."""
    caller = _current.get()
    return caller.limits if caller else Limits()


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


_REMEMBERED = 1024
"""Good tokens whose signature is not computed again with each call."""


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token that was good.

    Attributes:
        caller: Whom it proves.
        keys: Where its key is from; the very key is looked for again, so that a rotation ends what was remembered.
        kid: The key's id.
        key: The key that its signature was checked with.
        expires_at: Unix time of its end.
    """

    caller: Caller
    keys: _Keys
    kid: str
    key: jwt.PyJWK
    expires_at: float


class TokenVerifier:
    """Verifies bearer tokens against JWKS files and a list of revoked ids; all are read again when they change.

    A good token's signature is computed once; its end, its key and the list of revoked ids are looked at each time.

    Args:
        jwks_file: Public keys of Sendense's own issuer.
        revoked_file: Ids of revoked tokens.
        further: Other issuers whose tokens are taken.
    """

    def __init__(self, jwks_file: Path, revoked_file: Path, further: Sequence[Issuer] = ()) -> None:
        own = Issuer(ISSUER, AUDIENCE, jwks_file, workloads=True)
        self._issuers = {each.name: (each, _Keys(each.jwks_file)) for each in (own, *further)}
        self._revoked_file = revoked_file
        self._revoked: frozenset[str] = frozenset()
        self._revoked_stamp = -1
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

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
        caller = self._remembered(token) or self._caller(token)
        if caller.token_id in self._revoked_ids():
            raise Unauthenticated("the token was revoked")
        return caller

    def _remembered(self, token: str) -> Caller | None:
        known = self._verified.get(token)
        if known is None or known.expires_at <= time.time() or known.keys.key(known.kid) is not known.key:
            return None
        self._verified.move_to_end(token)
        return known.caller

    def _remember(self, token: str, verified: _Verified) -> None:
        self._verified[token] = verified
        self._verified.move_to_end(token)
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)

    def _claims(self, token: str) -> tuple[Issuer, dict[str, Any], _Keys, str, jwt.PyJWK]:
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
            # Only to choose the keys: the signature is checked with the keys of exactly this issuer.
            said = jwt.decode(token, options={"verify_signature": False}).get("iss")
            if said not in self._issuers:
                raise Unauthenticated("the token is from an unknown issuer")
            issuer, keys = self._issuers[said]
            needed = ["exp", "iat", "sub", issuer.role_claim, *(["jti"] if issuer.workloads else [])]
            options: Options = {"require": needed}
            key = keys.key(kid)
            claims = jwt.decode(
                token,
                key,
                algorithms=list(issuer.algorithms),
                audience=issuer.audience,
                issuer=issuer.name,
                options=options,
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the token has expired") from error
        except jwt.ImmatureSignatureError as error:
            raise Unauthenticated("the token is not yet valid") from error
        except jwt.InvalidAudienceError as error:
            raise Unauthenticated("the token is for another audience") from error
        except (jwt.PyJWTError, TypeError) as error:
            raise Unauthenticated("the token is not valid") from error
        return issuer, claims, keys, kid, key

    def _caller(self, token: str) -> Caller:
        issuer, claims, keys, kid, key = self._claims(token)
        role = claims[issuer.role_claim]
        if not isinstance(role, str) or role not in GRANTS or (role == "internal" and not issuer.workloads):
            raise Unauthenticated("the token's role is not known")
        try:
            limits = Limits.of(claims.get("vms"), claims.get("repositories"))
        except ValueError as error:
            raise Unauthenticated("the token's limits cannot be understood") from error
        caller = Caller(f"{issuer.prefix}{claims['sub']}", role, str(claims.get("jti", "")), limits)
        self._remember(token, _Verified(caller, keys, kid, key, float(claims["exp"])))
        return caller

    def _revoked_ids(self) -> frozenset[str]:
        try:
            stamp = self._revoked_file.stat().st_mtime_ns
        except FileNotFoundError:
            return frozenset()
        if stamp != self._revoked_stamp:
            self._revoked = frozenset(json.loads(self._revoked_file.read_text()))
            self._revoked_stamp = stamp
        return self._revoked


class _Keys:
    """A JWKS file's keys by their ids."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys: dict[str, jwt.PyJWK] = {}
        self._stamp = -1

    def key(self, kid: str) -> jwt.PyJWK:
        try:
            stamp = self._file.stat().st_mtime_ns
        except FileNotFoundError as error:
            raise Unauthenticated("the issuer's keys are not known here yet") from error
        if stamp != self._stamp:
            keys = jwt.PyJWKSet.from_json(self._file.read_text()).keys
            self._keys = {key.key_id: key for key in keys if key.key_id}
            self._stamp = stamp
        if kid not in self._keys:
            raise Unauthenticated("the token was signed with an unknown key")
        return self._keys[kid]


class TokenLimited(SendenseError):
    """A limited token may not call this."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{method} is not for tokens that are limited to some VMs or repositories",
            kind=Kind.PERMISSION_DENIED,
            reason="TOKEN_LIMITED",
            help="Ask an administrator for a token without limits.",
        )


def on_behalf(caller: Caller, limits_header: str | None) -> Caller:
    """Returns a workload with the limits of the person that it works for; anybody else as they are.

    Raises:
        Unauthenticated: The limits that it names cannot be understood.
    """
    if caller.role != "internal" or not limits_header:
        return caller
    try:
        return replace(caller, limits=Limits.from_header(limits_header))
    except ValueError as error:
        raise Unauthenticated("the limits that came with the call cannot be understood") from error


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
