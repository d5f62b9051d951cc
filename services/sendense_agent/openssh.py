"""A data lane that OpenSSH's client carries: a process of its own, measured to take less processor time.

The server end stays ours, the host key is the pinned one and nothing else is trusted; no configuration file of the
machine or the user is read, nothing is asked, no agent, no shell. The lane is up when ssh has made its socket, which it
does only after it was let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path

import asyncssh
import stamina
import structlog

from sendense_agent.link import (
    CIPHERS,
    CONNECT_SECONDS,
    FIRST_WAIT_SECONDS,
    KEEPALIVE_MISSES,
    KEEPALIVE_SECONDS,
    LONGEST_WAIT_SECONDS,
    SHORT_LIFE_SECONDS,
    Dialling,
    LinkLost,
)

log = structlog.get_logger()

HOST_ALIAS = "sendense-tunnel"
END_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_LAST_WORDS_BYTES = 2000
_ACCEPTS_CONNECTIONS = 1 << 16
"""`__SO_ACCEPTCON` in the flags of /proc/net/unix: listen() was called, not only bind()."""


def openssh_client() -> str | None:
    """Returns the path of OpenSSH's client, or None where there is none."""
    return shutil.which("ssh")


class OpenSshLink:
    """Keeps one ssh process up until it is closed.

    Args:
        name: For logs, such as `lane-0`.
        dialling: How to dial.
        key_file: The agent's private key.
        socket: Where libnbd connects; ssh makes it.
        destination: Host and port that the tunnel knows as the NBD server.
    """

    def __init__(
        self, name: str, dialling: Dialling, key_file: Path, socket: Path, destination: tuple[str, int]
    ) -> None:
        self._name = name
        self._dialling = dialling
        self._key_file = key_file
        self._socket = socket
        self._destination = destination
        self._known_hosts = socket.with_suffix(".known_hosts")
        self._process: asyncio.subprocess.Process | None = None
        self.up = asyncio.Event()

    def replace(self) -> None:
        """Ends the connection, and with it what it carries; it is dialled again."""
        self.up.clear()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def keep_up(self) -> None:
        """Dials, and dials again whenever the connection ends; returns only when cancelled."""
        while True:
            async for attempt in stamina.retry_context(
                on=(OSError, ValueError, asyncssh.KeyImportError, LinkLost),
                attempts=None,
                timeout=None,
                wait_initial=FIRST_WAIT_SECONDS,
                wait_max=LONGEST_WAIT_SECONDS,
                wait_jitter=1.0,
            ):
                with attempt:
                    await self._one_life()

    async def _one_life(self) -> None:
        began = time.monotonic()
        command = await asyncio.to_thread(self._command)
        self._socket.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # no terminal to ask anything
        )
        self._process = process
        words = asyncio.create_task(_last_words(process))
        try:
            await self._await_socket(process)
            self.up.set()
            log.info("connected to the tunnel", link=self._name, agent=self._dialling.agent_id, carrier="openssh")
            await process.wait()
        finally:
            self.up.clear()
            await _end(process)
            said = await words
        log.warning("the connection to the tunnel ended", link=self._name, said=said)
        if time.monotonic() - began < SHORT_LIFE_SECONDS:
            raise LinkLost(f"{self._name} ended soon after it was made: {said}")

    async def _await_socket(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + 2 * CONNECT_SECONDS
        while not _listens(self._socket):
            if process.returncode is not None:
                raise LinkLost(f"{self._name}: ssh ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise LinkLost(f"{self._name}: not let in within {2 * CONNECT_SECONDS} s")
            await asyncio.sleep(_LOOK_SECONDS)  # ssh tells nobody when it listens

    def _command(self) -> list[str]:
        """Returns the command; writes the pinned host key where ssh looks for it.

        Raises:
            OSError, ValueError: There is no tunnel on this machine, or no pinned key.
            asyncssh.KeyImportError: The pinned key is none.
        """
        host, port = self._dialling.address()
        pinned = asyncssh.read_public_key(self._dialling.host_key_file).export_public_key().decode()
        self._known_hosts.write_text(f"{HOST_ALIAS} {pinned}")
        options = {
            "BatchMode": "yes",
            "Ciphers": ",".join(CIPHERS),
            "Compression": "no",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ControlMaster": "no",
            "ControlPath": "none",
            "ExitOnForwardFailure": "yes",
            "ForwardAgent": "no",
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": HOST_ALIAS,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "LogLevel": "ERROR",
            "PermitLocalCommand": "no",
            "PreferredAuthentications": "publickey",
            "ServerAliveCountMax": str(KEEPALIVE_MISSES),
            "ServerAliveInterval": str(KEEPALIVE_SECONDS),
            "StreamLocalBindMask": "0177",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "UserKnownHostsFile": str(self._known_hosts),
        }
        target, target_port = self._destination
        command = ["setpriv", "--pdeathsig", "KILL", "--", "ssh", "-F", "none", "-N", "-T"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        command += ["-i", str(self._key_file), "-L", f"{self._socket}:{target}:{target_port}"]
        return [*command, "-p", str(port), "-l", self._dialling.agent_id, "--", host]


def _listens(path: Path) -> bool:
    """Tells whether somebody listens there, without connecting: a connection would be carried to the tunnel."""
    if not path.is_socket():
        return False
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & _ACCEPTS_CONNECTIONS:
            return True
    return False


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """Returns the end of what ssh complained about, once it has ended."""
    if process.stderr is None:
        return ""
    said = b""
    while data := await process.stderr.read(_LAST_WORDS_BYTES):
        said = (said + data)[-_LAST_WORDS_BYTES:]
    return said.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends ssh, also while this task is being cancelled."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
