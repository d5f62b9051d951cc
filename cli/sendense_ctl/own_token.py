"""What a token says about itself, without any key: enough to tell why it was refused."""

from __future__ import annotations

import base64
import binascii
import json
import time
from datetime import UTC, datetime
from typing import Any


def claims_of(token: str) -> dict[str, Any] | None:
    """Returns a token's claims, unverified; None when it is no token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None


def what_is_wrong(token: str) -> str:
    """Returns what is visibly wrong with a token, as a sentence; empty when nothing is."""
    claims = claims_of(token)
    if claims is None:
        return "The file holds no token: it should be three parts with dots between them, from `token create`."
    now = time.time()
    ends, begins = claims.get("exp"), claims.get("nbf")
    if isinstance(ends, int | float) and ends <= now:
        return f"The token expired at {_words(ends)}. Make another with `sendense-ctl token create`."
    if isinstance(begins, int | float) and begins > now:
        return f"The token is good only from {_words(begins)}. Is this machine's clock right?"
    who, role = claims.get("sub", "nobody"), claims.get("role", "none")
    return (
        f"The token says that it is '{who}' with the role '{role}', and is in its time: it was revoked, or signed with "
        "another installation's key."
    )


def _words(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
