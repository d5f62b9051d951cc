"""`sendense-ctl vm|agent|token …`: what there is, and who may use it."""

from __future__ import annotations

from typing import Annotated

import typer

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_ctl.connection import open_gateway
from sendense_ctl.output import console, moment, print_json, print_table, printable

vm = typer.Typer(no_args_is_help=True, help="The VMs that agents know.")
token = typer.Typer(no_args_is_help=True, help="Access tokens.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]


@vm.command("list")
def list_vms(json_: Json = False) -> None:
    """List the VMs of all connected agents."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.VmServiceStub(channel)
        answer = gateway.call(stub.ListVms, backup_pb2.ListVmsRequest())
        while answer.next_page_token:
            further = gateway.call(stub.ListVms, backup_pb2.ListVmsRequest(page_token=answer.next_page_token))
            answer.vms.extend(further.vms)
            answer.next_page_token = further.next_page_token
    if json_:
        print_json(answer)
        return
    rows = [[v.vm_name, v.power_state, v.latest_backup_id or "–", v.inventory_path] for v in answer.vms]
    print_table(["VM", "POWER", "LATEST BACKUP", "INVENTORY"], rows, "No VMs are known.")


@token.command("create")
def create_token(
    subject: Annotated[str, typer.Option("--subject", help="Who it is for.")],
    role: Annotated[str, typer.Option("--role", help="viewer, restore, operator or admin.")],
    days: Annotated[int, typer.Option("--days", min=1, max=365, help="How long it is good.")] = 30,
    vms: Annotated[list[str] | None, typer.Option("--vm", help="Only for this VM (name or uuid); repeatable.")] = None,
    repositories: Annotated[
        list[str] | None, typer.Option("--repository", help="Only for this repository; repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make a token. It is printed once and stored nowhere."""
    gateway = open_gateway()
    request = access_pb2.CreateTokenRequest(
        subject=subject, role=role, lifetime_seconds=days * 24 * 3600, vms=vms or [], repositories=repositories or []
    )
    with gateway.channel() as channel:
        answer = gateway.call(access_pb2_grpc.AccessServiceStub(channel).CreateToken, request)
    if json_:
        print_json(answer)
    else:
        typer.echo(answer.secret)


@token.command("list")
def list_tokens(json_: Json = False) -> None:
    """List tokens, newest first."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = access_pb2_grpc.AccessServiceStub(channel)
        answer = gateway.call(stub.ListTokens, access_pb2.ListTokensRequest(page_size=1000))
    if json_:
        print_json(answer)
        return
    rows = [
        [
            t.token_id,
            t.subject,
            t.role,
            ", ".join([*t.vms, *t.repositories]) or "all",
            moment(t.expires_at),
            moment(t.revoked_at) if t.HasField("revoked_at") else "good",
        ]
        for t in answer.tokens
    ]
    print_table(["TOKEN", "SUBJECT", "ROLE", "LIMITED TO", "UNTIL", "REVOKED"], rows, "No tokens were issued.")


@token.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument(help="The token's id.")]) -> None:
    """Make a token worthless."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = access_pb2_grpc.AccessServiceStub(channel)
        gateway.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id=token_id))
    console.print(f"Token {printable(token_id)} is revoked.", markup=False)
