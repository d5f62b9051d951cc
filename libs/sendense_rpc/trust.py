"""Keys and revoked tokens on a machine without the access service: fetched from it, over mTLS, every few seconds.

What was fetched last stays while the access service does not answer: its absence must not stop restores elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from pathlib import Path

import structlog

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense_rpc.channel import Peer
from sendense_rpc.errors import SendenseError
from sendense_rpc.settings import ServiceSettings

log = structlog.get_logger()

REFRESH_SECONDS = 15.0
"""So a revocation is effective everywhere within a minute, even when one refresh fails."""
_TIMEOUT = 10.0


async def refresh(peer: Peer, settings: ServiceSettings) -> None:
    """Fetches the keys and the revoked ids once and writes what changed.

    Raises:
        RemoteError: The access service does not answer.
        OSError: The files cannot be written.
    """
    stub = access_pb2_grpc.AccessServiceStub(peer.channel)
    trust: access_pb2.Trust = await peer.call(stub.GetTrust, access_pb2.GetTrustRequest(), timeout=_TIMEOUT)
    await asyncio.to_thread(_replace, settings.jwks_file, trust.jwks_json)
    await asyncio.to_thread(_replace, settings.revoked_file, json.dumps(sorted(trust.revoked_token_ids)))


async def keep_fresh(peer: Peer, settings: ServiceSettings) -> None:
    """Refreshes for ever."""
    while True:
        try:
            await refresh(peer, settings)
        except (SendenseError, OSError) as error:
            log.warning("keys and revoked tokens are not refreshed", why=str(error))
        await asyncio.sleep(REFRESH_SECONDS)


def _replace(file: Path, content: str) -> None:
    if file.exists() and file.read_text() == content:
        return
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(content)
    temporary.rename(file)
