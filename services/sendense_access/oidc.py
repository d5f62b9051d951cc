"""Fetches the public keys of a further issuer, for all verifiers of this installation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import jwt
import structlog

from sendense_access.keys import write_private

log = structlog.get_logger()

FETCH_SECONDS = 300.0
RETRY_SECONDS = 15.0
_TIMEOUT = 10.0
_MOST_BYTES = 1 << 20
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


async def fetch(url: str, file: Path) -> None:
    """Fetches a JWK set once and writes its public keys.

    Raises:
        httpx.HTTPError: It cannot be fetched.
        ValueError: It is no JWK set, or too large.
    """
    async with httpx.AsyncClient(timeout=_TIMEOUT) as http:
        answer = await http.get(url)
        answer.raise_for_status()
    if len(answer.content) > _MOST_BYTES:
        raise ValueError(f"{url} gives more than {_MOST_BYTES} bytes")
    try:
        said = json.loads(answer.content)
        jwt.PyJWKSet.from_dict(said)
        # Only public parts: a private key in the set, by mistake, goes no further than here.
        keys = [{name: part for name, part in key.items() if name not in _PRIVATE} for key in said["keys"]]
    except (jwt.PyJWTError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{url} gives no JWK set: {error}") from error
    shared = [key for key in keys if key.get("kty") == "oct"]
    content = {"keys": [key for key in keys if key not in shared and key.get("kid")]}
    await asyncio.to_thread(write_private, file, json.dumps(content).encode())


async def keep_fetching(url: str, file: Path) -> None:
    """Fetches for ever; what was fetched last stays while the issuer does not answer."""
    while True:
        try:
            await fetch(url, file)
        except (httpx.HTTPError, ValueError, OSError) as error:
            log.warning("the OIDC issuer's keys cannot be fetched", why=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            await asyncio.sleep(FETCH_SECONDS)


def fetch_in_background(url: str, file: Path) -> asyncio.Task[None] | None:
    """Starts fetching an issuer's keys, if it has an address; the caller cancels the task at its end."""
    return asyncio.create_task(keep_fetching(url, file)) if url else None
