"""How an agent on another machine joins a node: from one file, made by `sendense-ctl agent enroll`.

The file holds a one-time code, where the tunnel is, its host key, and what callers are verified with. The agent keeps
the last three, makes its own key, shows the code to the tunnel (whose host key it has pinned by then) and so gets its
key enrolled. Then the file is removed; further starts need nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import asyncssh
import stamina
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sendense_agent.config import AgentSettings
from sendense_agent.link import CIPHERS, CONNECT_SECONDS, Dialling
from sendense_agent.own_key import load_or_create_key

log = structlog.get_logger()

ENROLLING = "enroll:"
JOIN_SECONDS = 300.0
"""How long a tunnel that does not answer is tried."""


class JoinFile(BaseModel):
    """The file, as `CreateEnrollment` answers it; `expires_at` is for people."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    agent_id: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    code: str = Field(min_length=1, max_length=200, repr=False)
    tunnel_address: str = Field(pattern=r"^.+:[0-9]{1,5}$")
    tunnel_host_key: str = Field(pattern=r"^ssh-[a-z0-9-]+ [A-Za-z0-9+/=]+$")
    jwks_json: str = Field(min_length=2)


class JoinFailed(Exception):
    """The agent could not join; the message says why and what to do."""


def settings_of_node(settings: AgentSettings) -> AgentSettings:
    """Returns the settings with what the agent was told when it joined; a setting that is given comes first."""
    if not settings.node_file.exists():
        return settings
    told = json.loads(settings.node_file.read_text())
    known = {"id": told["agent_id"], "tunnel": told["tunnel_address"], "tunnel_host_key": settings.pinned_key_file}
    given = settings.model_fields_set
    return settings.model_copy(update={name: value for name, value in known.items() if name not in given})


async def join(settings: AgentSettings) -> AgentSettings:
    """Joins the node of the enrolment file, if there is one, and returns the settings to go on with.

    Raises:
        JoinFailed: The file is malformed, the code is refused, the tunnel shows another host key or does not answer.
    """
    path = settings.enrollment_file
    if not path.exists():
        return settings_of_node(settings)
    file = _read(path)
    _keep(settings, file)
    joined = settings_of_node(settings)
    key = load_or_create_key(joined.key_file, f"sendense-agent-{file.agent_id}")
    dialling = Dialling(file.agent_id, key, joined.host_key_file, joined.tunnel_address)
    try:
        await _enrol(dialling, file)
    except asyncssh.HostKeyNotVerifiable as error:
        raise JoinFailed(f"{file.tunnel_address} does not show the host key of {path}: not joined") from error
    except (OSError, asyncssh.Error) as error:
        raise JoinFailed(f"the tunnel at {file.tunnel_address} cannot be reached: {error}") from error
    path.unlink()
    log.info("joined", agent=file.agent_id, tunnel=file.tunnel_address)
    return joined


def _read(path: Path) -> JoinFile:
    try:
        return JoinFile.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise JoinFailed(f"{path} is no enrolment file: {error}") from None


def _keep(settings: AgentSettings, file: JoinFile) -> None:
    """Keeps what the agent must know at every start."""
    settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.jwks_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _replace(settings.pinned_key_file, file.tunnel_host_key + "\n")
    _replace(settings.jwks_file, file.jwks_json)
    told = {"agent_id": file.agent_id, "tunnel_address": file.tunnel_address}
    _replace(settings.node_file, json.dumps(told, indent=1))


def _replace(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)


async def _enrol(dialling: Dialling, file: JoinFile) -> None:
    """Shows the code; of a run that died after the tunnel had taken it, the key is good already."""
    async for attempt in stamina.retry_context(
        on=_is_passing, attempts=None, timeout=JOIN_SECONDS, wait_initial=0.5, wait_max=10.0
    ):
        with attempt:
            try:
                await _show_code(dialling, file)
            except asyncssh.PermissionDenied:
                await _require_enrolled(dialling, file)


def _is_passing(error: Exception) -> bool:
    return isinstance(error, OSError) or (
        isinstance(error, asyncssh.Error)
        and not isinstance(error, (asyncssh.HostKeyNotVerifiable, asyncssh.PermissionDenied))
    )


async def _show_code(dialling: Dialling, file: JoinFile) -> None:
    host, port = dialling.address()
    public_key = " ".join(dialling.key.export_public_key().decode().split()[:2])
    connection = await asyncssh.connect(
        host,
        port,
        config=None,
        username=ENROLLING + file.agent_id,
        password=f"{file.code} {public_key}",
        client_keys=None,
        known_hosts=([asyncssh.read_public_key(dialling.host_key_file)], [], []),
        agent_path=None,
        gss_host=None,
        preferred_auth="password",
        encryption_algs=CIPHERS,
        compression_algs=None,
        connect_timeout=CONNECT_SECONDS,
        login_timeout=CONNECT_SECONDS,
    )
    connection.close()
    await connection.wait_closed()


async def _require_enrolled(dialling: Dialling, file: JoinFile) -> None:
    try:
        connection = await dialling.connect()
    except asyncssh.PermissionDenied as error:
        raise JoinFailed(
            f"the one-time code for '{file.agent_id}' is refused: it was used, has expired, or a newer one was made. "
            f"Make a new file: sendense-ctl agent enroll --agent-id {file.agent_id}"
        ) from error
    connection.close()
    await connection.wait_closed()


def run_join(settings: AgentSettings) -> AgentSettings:
    """Joins, for a program that has no event loop yet.

    Raises:
        SystemExit: It could not join; the log says why.
    """
    try:
        return asyncio.run(join(settings))
    except JoinFailed as error:
        log.error("not joined", why=str(error))  # noqa: TRY400  # the chain says nothing more to a person
        raise SystemExit(1) from error
