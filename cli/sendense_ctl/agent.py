"""`sendense-ctl agent …`: the capture agents, how one joins, and how one is sent away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from google.protobuf.json_format import MessageToJson

from sendense.access.v1 import access_pb2, access_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from sendense_ctl.connection import open_gateway
from sendense_ctl.failures import LocalError
from sendense_ctl.output import console, moment, print_json, print_table, printable

app = typer.Typer(no_args_is_help=True, help="Capture agents.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]


@app.command("list")
def list_agents(json_: Json = False) -> None:
    """List the enrolled agents."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = access_pb2_grpc.AgentRegistryServiceStub(channel)
        answer = gateway.call(stub.ListAgents, access_pb2.ListAgentsRequest(page_size=1000))
    if json_:
        print_json(answer)
        return
    print_table(
        ["AGENT", "ENROLLED", "PUBLIC KEY"],
        [[a.agent_id, moment(a.created_at), a.public_key] for a in answer.agents],
        "No agents are enrolled.",
    )


@app.command("enroll")
def enroll(
    agent_id: Annotated[str, typer.Option("--agent-id", help="Name of the agent.")],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Its public key file; without, a file to join with is made.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Where that file goes; AGENT.json here.")] = None,
    tunnel_address: Annotated[
        str, typer.Option("--tunnel-address", help="host[:port] at which the agent reaches this node's tunnel.")
    ] = "",
    hours: Annotated[int, typer.Option("--hours", min=1, max=168, help="How long the file is good.")] = 1,
) -> None:
    """Let an agent connect: by its public key, or by a file that it joins with."""
    if public_key is None:
        _make_file(agent_id, output or Path(f"{agent_id}.json"), tunnel_address, hours)
        return
    gateway = open_gateway()
    request = access_pb2.EnrollAgentRequest(agent_id=agent_id, public_key=public_key.read_text().strip())
    with gateway.channel() as channel:
        gateway.call(access_pb2_grpc.AgentRegistryServiceStub(channel).EnrollAgent, request)
    console.print(f"Agent {printable(agent_id)} may connect now.", markup=False)


@app.command("remove")
def remove(agent_id: Annotated[str, typer.Argument(help="Name of the agent.")]) -> None:
    """Forget an agent's key and end its connections. What it backs up just now fails."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = access_pb2_grpc.AgentRegistryServiceStub(channel)
        gateway.call(stub.RemoveAgent, access_pb2.RemoveAgentRequest(agent_id=agent_id))
    console.print(f"Agent {printable(agent_id)} is removed and disconnected.", markup=False)


def _make_file(agent_id: str, output: Path, tunnel_address: str, hours: int) -> None:
    gateway = open_gateway()
    request = enrollment_pb2.CreateEnrollmentRequest(
        agent_id=agent_id,
        tunnel_address=tunnel_address or str(urlsplit(gateway.endpoint).hostname),
        lifetime_seconds=hours * 3600,
    )
    if output.exists():
        raise LocalError(f"{output} is there already", "Name another file with --output.")
    with gateway.channel() as channel:
        made = gateway.call(enrollment_pb2_grpc.EnrollmentServiceStub(channel).CreateEnrollment, request)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(MessageToJson(made, preserving_proto_field_name=True))
    console.print(
        f"{printable(str(output))} is good once, until {moment(made.expires_at)}, for an agent that reaches this node"
        f" at {printable(made.tunnel_address)}. Put it at agent/enrollment.json in the agent's state directory"
        " and start sendense-agent there.",
        markup=False,
    )
