"""What the access service refuses, and why; the reasons are in docs/errors.md."""

from __future__ import annotations

from sendense_rpc.errors import Kind, SendenseError


class InvalidRequest(SendenseError):
    """A field's value that no rule of the proto can describe is wrong."""

    def __init__(self, field: str, problem: str, *, reason: str = "INVALID_FIELD", help: str = "") -> None:  # noqa: A002
        super().__init__(
            f"{field}: {problem}", kind=Kind.INVALID_ARGUMENT, reason=reason, help=help, metadata={"field": field}
        )


class TokenNotFound(SendenseError):
    """No token with this id was issued here."""

    def __init__(self, token_id: str) -> None:
        super().__init__(
            f"no token '{token_id}' was issued",
            kind=Kind.NOT_FOUND,
            reason="TOKEN_NOT_FOUND",
            help="List the tokens with `sendense-ctl token list`.",
            metadata={"token_id": token_id},
        )


class RpcNotFound(SendenseError):
    """There is no such call."""

    def __init__(self, asked: str) -> None:
        super().__init__(
            f"there is no call '{asked}'",
            kind=Kind.NOT_FOUND,
            reason="RPC_NOT_FOUND",
            help="Name it as in 'BackupService.StartBackup' or 'POST /api/v1/backup/start'.",
        )


class AgentNotFound(SendenseError):
    """No enrolled agent has this name, or this key."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"no agent is enrolled with {what}",
            kind=Kind.NOT_FOUND,
            reason="AGENT_NOT_FOUND",
            help="List the agents with GET /api/v1/agents; enrol one with POST /api/v1/agents.",
        )


class AgentExists(SendenseError):
    """An agent of this name is enrolled with another key."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"agent '{agent_id}' is enrolled with another key",
            kind=Kind.ALREADY_EXISTS,
            reason="AGENT_EXISTS",
            help="Remove the agent first when its key was replaced, or choose another name.",
            metadata={"agent_id": agent_id},
        )


class EnrollmentRefused(SendenseError):
    """A one-time code is wrong, was used, or has expired; which one is told to nobody."""

    REASON = "ENROLLMENT_REFUSED"

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"the one-time code for agent '{agent_id}' is not good (any more)",
            kind=Kind.FAILED_PRECONDITION,
            reason="ENROLLMENT_REFUSED",
            help="Make a new one: sendense-ctl agent enroll --agent-id NAME --output FILE",
            metadata={"agent_id": agent_id},
        )


class KeyInUse(SendenseError):
    """Another agent is enrolled with this key."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"this key belongs to agent '{agent_id}'",
            kind=Kind.ALREADY_EXISTS,
            reason="AGENT_KEY_IN_USE",
            help="Give each agent a key of its own.",
            metadata={"agent_id": agent_id},
        )
