"""Watches a starting node until it can do its work, and connects the machine's own agent."""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense_node.config import NodeSettings
from sendense_rpc.channel import unix_peer
from sendense_rpc.errors import SendenseError

POLL_SECONDS = 0.1
SERVICES = ("access", "repository", "exports", "backup", "restore", "tunnel")


Check = Callable[[], Awaitable[str]]
"""Says what is missing, or nothing."""


class NotReadyError(Exception):
    """Something is not ready; the message names it and says what was seen last."""


async def wait_until_ready(settings: NodeSettings) -> str:
    """Waits for every process of this machine and returns the gateway's address; empty where it is elsewhere.

    Raises:
        NotReadyError: Not everything was ready within `ready_seconds`; names what was not.
    """
    try:
        async with asyncio.timeout(settings.ready_seconds):
            await asyncio.gather(*(_until(check) for check in _soon(settings)))
            for check in _last(settings):
                await _until(check)
    except TimeoutError as error:
        raise NotReadyError(await _what_is_missing(settings)) from error
    return settings.endpoint_file.read_text().strip() if settings.runs("gateway") else ""


def _soon(settings: NodeSettings) -> Iterator[Check]:
    if settings.runs("agent") and settings.runs("access"):
        # Enrolled as early as can be: a refused agent waits longer before each new try.
        yield functools.partial(_enrolled, settings)
    if settings.runs("lab"):
        yield functools.partial(_there, "the lab", settings.root / "lab", "lab.sock")
    if settings.runs("agent"):
        yield functools.partial(_there, "the agent", settings.run_dir / "agent", "*.sock")
    for name in SERVICES:
        if settings.runs(name):
            yield functools.partial(_serving, settings, name)


def _last(settings: NodeSettings) -> Iterator[Check]:
    """Yields what needs the others; of several machines each is ready by itself, so that they start in any order."""
    if settings.runs("gateway"):
        yield functools.partial(_listening, settings) if settings.others else functools.partial(_vms_listed, settings)


async def _until(check: Check) -> None:
    while await check():  # noqa: ASYNC110  # other processes cannot set an event of ours
        await asyncio.sleep(POLL_SECONDS)


async def _what_is_missing(settings: NodeSettings) -> str:
    problems = [await check() for check in (*_soon(settings), *_last(settings))]
    return next((problem for problem in problems if problem), "it became ready just now")


async def _serving(settings: NodeSettings, name: str) -> str:
    """Returns what is wrong with a service, or nothing."""
    socket = settings.socket(name)
    if not socket.exists():
        return f"{name} does not listen yet"
    try:
        async with aio.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")]) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=3
            )
    except aio.AioRpcError as error:
        return f"{name} does not answer: {error.details()}"
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else f"{name} says that it cannot serve"


async def _enrolled(settings: NodeSettings) -> str:
    """Enrols this machine's own agent as soon as it has made its key."""
    public_key = settings.root / "agent" / "id_ed25519.pub"
    if not public_key.exists():
        return "the agent has not made its key yet"
    peer = unix_peer(settings.socket("access"), settings.admin_token_file)
    try:
        registry = access_pb2_grpc.AgentRegistryServiceStub(peer.channel)
        request = access_pb2.EnrollAgentRequest(agent_id=settings.agent_id, public_key=public_key.read_text().strip())
        await peer.call(registry.EnrollAgent, request)
    except SendenseError as error:
        return f"the agent could not be enrolled: {error.message}"
    finally:
        await peer.close()
    return ""


async def _there(who: str, folder: Path, pattern: str) -> str:
    found = await asyncio.to_thread(lambda: list(folder.glob(pattern)))
    return "" if found else f"{who} does not listen yet"


async def _listening(settings: NodeSettings) -> str:
    return "" if settings.endpoint_file.exists() else "the gateway does not listen yet"


async def _vms_listed(settings: NodeSettings) -> str:
    """Lists the VMs through gateway, backup service, tunnel, agent and vCenter: the longest way that there is."""
    if not settings.endpoint_file.exists():
        return "the gateway does not listen yet"
    endpoint = settings.endpoint_file.read_text().strip()
    token = settings.admin_token_file.read_text().strip()
    try:
        async with httpx.AsyncClient(verify=_trust(settings.root), timeout=10) as client:
            answer = await client.get(f"{endpoint}/api/v1/vms", headers={"Authorization": f"Bearer {token}"})
    except httpx.HTTPError as error:
        return f"the gateway at {endpoint} does not answer: {error or type(error).__name__}"
    if answer.status_code == httpx.codes.OK:
        return ""
    try:
        message = answer.json().get("message", answer.text)
    except json.JSONDecodeError:
        message = answer.text
    return f"the VMs cannot be listed: {message}"


def _trust(root: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=root / "tls" / "ca.crt")
