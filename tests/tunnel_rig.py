"""A running tunnel with an NBD server behind it, and what is needed to dial in, with OpenSSH's own client too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from fakes.nbd_server import make_qcow2, storage_daemon
from fakes.tunnel_peers import AgentRegistryFake, ExportCatalogueFake
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.main import open_tunnel
from support import serving

MIB = 1 << 20


@dataclass
class Rig:
    """A running tunnel with an enrolled agent `lab`, an NBD server, and what is needed to dial in."""

    settings: TunnelSettings
    registry: AgentRegistryFake
    exports: ExportCatalogueFake
    key: Path
    known_hosts: Path

    @property
    def port(self) -> int:
        return int(self.settings.port_file.read_text())

    def ssh(self, *arguments: str, user: str = "lab", key: Path | None = None) -> list[str]:
        options = {
            "UserKnownHostsFile": str(self.known_hosts),
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ExitOnForwardFailure": "yes",
            "StreamLocalBindUnlink": "yes",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(key or self.key), *flags, "-p", str(self.port), "-l", user, *arguments]

    async def run_ssh(self, *arguments: str, user: str = "lab", key: Path | None = None) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *self.ssh(*arguments, user=user, key=key),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={k: v for k, v in os.environ.items() if k != "SSH_AUTH_SOCK"},
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        return process.returncode or 0, output.decode(errors="replace")

    @asynccontextmanager
    async def lane(self, destination: str = "nbd:10809") -> AsyncIterator[Path]:
        """OpenSSH's client listening on a Unix socket that leads to `destination`."""
        path = self.settings.root / f"lane-{os.urandom(3).hex()}.sock"
        process = await asyncio.create_subprocess_exec(*self.ssh("-N", "-L", f"{path}:{destination}", "127.0.0.1"))
        try:
            async with asyncio.timeout(10):
                while not path.exists():
                    assert process.returncode is None
                    await asyncio.sleep(0.02)
            yield path
        finally:
            process.kill()  # OpenSSH may take note of SIGTERM only when the next packet comes
            await process.wait()

    async def connect(self, **options: object) -> asyncssh.SSHClientConnection:
        """An asyncssh client, as the agent uses it."""
        return await asyncssh.connect(
            "127.0.0.1",
            self.port,
            config=None,
            username="lab",
            client_keys=[str(self.key)],
            agent_path=None,
            known_hosts=str(self.known_hosts),
            **options,  # type: ignore[arg-type]
        )


def make_key(path: Path) -> str:
    """Writes a new agent key; returns its public half."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    path.write_bytes(key.export_private_key())
    path.chmod(0o600)
    return key.export_public_key().decode().strip()


@asynccontextmanager
async def tunnel_rig(sendense_home: Path) -> AsyncIterator[Rig]:
    """Runs the tunnel in a state directory with keys to which `SENDENSE_HOME` points."""
    settings = TunnelSettings()
    registry, exports = AgentRegistryFake(), ExportCatalogueFake()
    key = sendense_home / "agent-key"
    registry.enroll("lab", make_key(key))
    exports.leases = {"mine": "lab", "theirs": "other", "nobodys": ""}
    images = {name: make_qcow2(sendense_home / f"{name}.qcow2", 64 * MIB) for name in exports.leases}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(registry.service(), settings))
        await stack.enter_async_context(serving(exports.service(), settings))
        await stack.enter_async_context(storage_daemon(settings.nbd_socket, images))
        service = await stack.enter_async_context(open_tunnel(settings))
        await stack.enter_async_context(serving(service, settings))
        known_hosts = sendense_home / "known_hosts"
        public = settings.host_key_file.with_name("host_key.pub").read_text().split()
        port = settings.port_file.read_text().strip()
        known_hosts.write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
        yield Rig(settings, registry, exports, key, known_hosts)
