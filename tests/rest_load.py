"""Many REST clients at once, on list, get and watch: for the benchmark, and for a short test without figures."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

LONGEST = 120.0
"""Seconds after which a request counts as an error."""


@dataclass
class Load:
    """What came of it.

    Attributes:
        seconds: For each kind of request how long each took.
        errors: What went wrong, with its words.
        resident: Bytes of memory of the node's processes, looked at once a second.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


async def load(home: Path, backup_ids: Sequence[str], clients: int, duration: float) -> Load:
    """Runs so many clients, each with a connection of its own, for so many seconds.

    Args:
        home: State directory of the node.
        backup_ids: What `get` and `watch` ask for.
        clients: How many.
        duration: How long, in seconds.
    """
    came = Load()
    endpoint = (home / "endpoint").read_text().strip()
    headers = {"Authorization": "Bearer " + (home / "admin.token").read_text().strip()}
    context = ssl.create_default_context(cafile=home / "tls" / "ca.crt")
    until = time.monotonic() + duration

    async def one(number: int) -> None:
        async with httpx.AsyncClient(
            base_url=f"{endpoint}/api/v1", verify=context, headers=headers, timeout=LONGEST, trust_env=False
        ) as http:
            turn = number
            while time.monotonic() < until:
                backup_id = backup_ids[turn % len(backup_ids)]
                kind = ("list", "get", "watch")[turn % 3]
                turn += 1
                began = time.monotonic()
                try:
                    if kind == "list":
                        answer = await http.get("/backup/list", params={"page_size": "20"})
                    elif kind == "get":
                        answer = await http.get(f"/backup/{backup_id}")
                    else:
                        answer = await _first_event(http, backup_id)
                except (httpx.HTTPError, TimeoutError) as error:
                    came.errors.append(f"{kind}: {type(error).__name__} {error}")
                    continue
                came.seconds[kind].append(time.monotonic() - began)
                if answer.status_code != httpx.codes.OK:
                    came.errors.append(f"{kind}: {answer.status_code} {answer.text[:200]}")

    async def look() -> None:
        while time.monotonic() < until:
            came.resident.append(await asyncio.to_thread(resident, home))
            await asyncio.sleep(1)

    await asyncio.gather(look(), *(one(number) for number in range(clients)))
    return came


async def _first_event(http: httpx.AsyncClient, backup_id: str) -> httpx.Response:
    """Watches until the first event has come, then leaves: what a page does that is closed soon."""
    # Heartbeats keep a stream alive that tells nothing: the time-out of a read would not end it.
    async with asyncio.timeout(LONGEST), http.stream("GET", f"/backup/{backup_id}/watch") as answer:
        if answer.status_code == httpx.codes.OK:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    break
        else:
            await answer.aread()
        return answer


def resident(home: Path) -> int:
    """Returns the resident bytes of all processes of a node but the lab and the disks' servers."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"SENDENSE_HOME={home}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes()
            if any(name in command for name in (b"qemu", b"nbdkit", b"sendense-lab")):
                continue
            total += int((entry / "statm").read_text().split()[1]) * 4096
        except (OSError, IndexError):
            continue
    return total


def percentile(seconds: Sequence[float], share: float) -> float:
    """Returns what this share of the requests did not exceed, in seconds."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
