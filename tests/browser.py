"""A headless Chromium, driven over its DevTools protocol: what a page asks for, how wide it is, how it looks."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_SECONDS = 120.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


@dataclass
class Page:
    """A tab.

    Attributes:
        requests: Every address that pages of this tab asked for, in order.
        errors: What pages of this tab complained of: exceptions, failed loads.
    """

    _socket: aiohttp.ClientWebSocketResponse
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _number: int = 0
    _loaded: int = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Runs one command of the protocol and returns its result."""
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._next()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def open(self, url: str) -> None:
        """Opens a page and waits until it is loaded."""
        before = self._loaded
        await self.call("Page.navigate", url=url)
        while self._loaded == before:
            await self._next()

    async def evaluate(self, expression: str) -> Any:
        """Returns a JavaScript expression's value; a promise's when it is fulfilled."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def resize(self, width: int, height: int) -> None:
        """Makes the window so wide and high, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def screenshot(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(_write, path, base64.b64decode(answer["data"]))

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json(timeout=_SECONDS)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded += 1
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Network.loadingFailed":
                self.errors.append(f"loading failed: {parameters['errorText']}")
            case "Network.responseReceived" if parameters["response"]["status"] >= 400:
                self.errors.append(f"{parameters['response']['status']} for {parameters['response']['url']}")
            case "Runtime.exceptionThrown":
                self.errors.append(str(parameters["exceptionDetails"]))
        return message


@asynccontextmanager
async def browser(profile: Path, *flags: str) -> AsyncIterator[Page]:
    """Runs Chromium with an empty profile and yields its one tab."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *_FLAGS,
        *flags,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(_SECONDS):
            while not (port_file.exists() and port_file.read_text().count("\n")):
                assert process.returncode is None, "Chromium does not start"
                await asyncio.sleep(0.05)
            port = int(port_file.read_text().split()[0])
            async with aiohttp.ClientSession() as session:
                tabs = await (await session.get(f"http://127.0.0.1:{port}/json/list")).json()
                address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                socket = await session.ws_connect(address, max_msg_size=1 << 26)
                page = Page(socket)
                for domain in ("Page", "Network", "Runtime"):
                    await page.call(f"{domain}.enable")
                yield page
                await socket.close()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
