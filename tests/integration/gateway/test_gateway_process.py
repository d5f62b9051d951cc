"""The process `sendense-gateway`: says when it listens, ends with Envoy, leaves nothing behind."""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from fakes.gateway_edge import eventually
from sendense_access.keys import SigningKey
from sendense_gateway.tls import ensure_certificate
from sendense_rpc.machine_certificates import make_certificate
from support import free_port


@asynccontextmanager
async def gateway(home: Path, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The started process; killed at the end if it still runs."""
    environment = {**os.environ, "SENDENSE_HOME": str(home), **settings}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sendense_gateway.main"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def endpoint(home: Path, process: asyncio.subprocess.Process) -> str:
    file = home / "endpoint"
    await eventually(lambda: file.exists() or process.returncode is not None)
    return file.read_text().strip()


async def health(address: str, ca: Path) -> int:
    context = ssl.create_default_context(cafile=ca)
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        return (await client.get(address + "/healthz")).status_code


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_endpoint_is_there_while_it_listens_and_the_port_stays_over_restarts(sendense_home):
    seen = []
    for _ in range(2):
        async with gateway(sendense_home) as process:
            address = await endpoint(sendense_home, process)
            assert await health(address, sendense_home / "tls" / "ca.crt") == 200
            seen.append(address)
            (envoy,) = children(process.pid)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 15) == 0
            assert not alive(envoy)
        assert not (sendense_home / "endpoint").exists()
        assert not list((sendense_home / "run").iterdir())
    assert seen[0] == seen[1]
    assert address == f"https://127.0.0.1:{(sendense_home / 'gateway' / 'port').read_text().strip()}"


async def test_a_running_request_is_answered_after_sigterm_and_no_new_one_is_taken(sendense_home):
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def download(request: web.Request) -> web.Response:
        arrived.set()
        await go_on.wait()
        return web.Response(text="whole")

    application = web.Application()
    application.router.add_get("/{path:.*}", download)
    runner = web.AppRunner(application)
    await runner.setup()
    secret = SigningKey.load_or_create(sendense_home / "keys").sign("ann", "restore", 600)
    try:
        async with gateway(sendense_home, SENDENSE_GATEWAY_DRAIN_SECONDS="120") as process:
            address = await endpoint(sendense_home, process)
            await web.UnixSite(runner, str(sendense_home / "run" / "restore-http.sock")).start()
            ca = sendense_home / "tls" / "ca.crt"
            headers = {"Authorization": f"Bearer {secret}"}
            async with httpx.AsyncClient(
                verify=ssl.create_default_context(cafile=ca), trust_env=False, headers=headers, timeout=60
            ) as client:
                slow = asyncio.create_task(client.get(f"{address}/api/v1/restore/m/download?path=/a"))
                await asyncio.wait_for(arrived.wait(), 60)
                process.send_signal(signal.SIGTERM)
                await eventually(lambda: not (sendense_home / "endpoint").exists(), 60)
                await refused_connection(int(address.rpartition(":")[2]))
                assert process.returncode is None
                assert not slow.done()
                go_on.set()
                answer = await slow
            assert (answer.status_code, answer.text) == (200, "whole")
            assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        await runner.cleanup()


async def refused_connection(port: int) -> None:
    """Waits until nothing listens on the port any more."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.05)


async def test_another_port_is_taken_when_the_last_one_is_in_use(sendense_home):
    async with gateway(sendense_home) as process:
        first = await endpoint(sendense_home, process)
    port = int(first.rpartition(":")[2])
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
    async with server, gateway(sendense_home) as process:
        second = await endpoint(sendense_home, process)
        assert second != first
        assert await health(second, sendense_home / "tls" / "ca.crt") == 200


async def test_gateway_ends_with_an_error_when_envoy_dies(sendense_home):
    async with gateway(sendense_home) as process:
        await endpoint(sendense_home, process)
        (envoy,) = children(process.pid)
        os.kill(envoy, signal.SIGKILL)
        _, said = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 1
        assert b"Envoy died" in said
    assert not (sendense_home / "endpoint").exists()


async def test_envoy_ends_when_the_gateway_is_killed(sendense_home):
    async with gateway(sendense_home) as process:
        await endpoint(sendense_home, process)
        (envoy,) = children(process.pid)
        process.kill()
        await process.wait()
        await eventually(lambda: not alive(envoy))


async def test_port_in_use_that_was_asked_for_is_an_error_that_says_so(sendense_home):
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", free_port())
    port = server.sockets[0].getsockname()[1]
    async with server, gateway(sendense_home, SENDENSE_GATEWAY_LISTEN=f"127.0.0.1:{port}") as process:
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert b"Address already in use" in said


async def test_certificate_that_is_missing_is_an_error_that_names_it(sendense_home):
    files = {"SENDENSE_GATEWAY_TLS_CERT": "/nonexistent/a.crt", "SENDENSE_GATEWAY_TLS_KEY": "/nonexistent/a.key"}
    async with gateway(sendense_home, **files) as process:
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert b"/nonexistent/a.crt" in said
    assert not (sendense_home / "endpoint").exists()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"])
async def test_real_certificate_and_any_address(sendense_home, short_tmp, listen):
    given = ensure_certificate(short_tmp / "given", ["127.0.0.1", "::1"])
    settings = {
        "SENDENSE_GATEWAY_LISTEN": listen,
        "SENDENSE_GATEWAY_TLS_CERT": str(given.chain),
        "SENDENSE_GATEWAY_TLS_KEY": str(given.key),
    }
    async with gateway(sendense_home, **settings) as process:
        assert await health(await endpoint(sendense_home, process), short_tmp / "given" / "ca.crt") == 200
        assert not (sendense_home / "tls").exists()


async def test_every_setting_at_once_is_a_configuration_that_envoy_takes(sendense_home, short_tmp):
    make_certificate(short_tmp / "ca", short_tmp / "mtls", ["127.0.0.1"])
    settings = {
        "SENDENSE_GATEWAY_CORS_ORIGINS": "https://gui.example, http://localhost:3000",
        "SENDENSE_PEERS": json.dumps(
            {
                "repository": f"127.0.0.1:{free_port()}",
                "restore": "storage.example:7443",
                "restore-http": "[fd00::2]:7447",
            }
        ),
        "SENDENSE_MTLS_DIR": str(short_tmp / "mtls"),
        "SENDENSE_OIDC_ISSUER": "https://login.example",
        "SENDENSE_OIDC_AUDIENCE": "backup",
    }
    async with gateway(sendense_home, **settings) as process:
        address = await endpoint(sendense_home, process)
        context = ssl.create_default_context(cafile=sendense_home / "tls" / "ca.crt")
        async with httpx.AsyncClient(base_url=address, verify=context, trust_env=False, timeout=60) as client:
            assert {"repository", "restore"} <= set((await client.get("/readyz")).json()["missing"])
            asked = {"Origin": "https://gui.example", "Access-Control-Request-Method": "GET"}
            let_in = await client.options("/api/v1/backup/list", headers=asked)
            assert let_in.status_code == 200
            assert let_in.headers["access-control-allow-origin"] == "https://gui.example"
            assert "authorization" in let_in.headers["access-control-allow-headers"]
            other = await client.options("/api/v1/backup/list", headers={**asked, "Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers


async def test_a_peer_without_a_machine_certificate_is_an_error_that_says_so(sendense_home):
    async with gateway(sendense_home, SENDENSE_PEERS='{"repository": "10.0.0.2:7443"}') as process:
        _, said = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert b"SENDENSE_MTLS_DIR" in said
