"""`sendense-ctl auth …` and `audit …`: why a call is let in or refused, who did what, and that the record is whole."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sendense.access.v1 import access_pb2, access_pb2_grpc, audit_pb2, audit_pb2_grpc
from sendense_client import NotAllowed
from sendense_ctl.connection import Gateway, open_gateway
from sendense_ctl.failures import ExitCode
from sendense_ctl.output import console, moment, print_error, print_json, print_table, printable
from sendense_ctl.own_token import what_is_wrong

auth = typer.Typer(no_args_is_help=True, help="Why calls are let in or refused.")
audit = typer.Typer(no_args_is_help=True, help="Who did what.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]


@auth.command()
def explain(
    rpc: Annotated[str, typer.Argument(help="The call: BackupService.StartBackup, or 'POST /api/v1/backup/start'.")],
    vm: Annotated[str, typer.Option("--vm", help="The VM that it is about.")] = "",
    repository: Annotated[str, typer.Option("--repository", help="The repository that it is about.")] = "",
    token_id: Annotated[str, typer.Option("--token-id", help="Another's token (administrators only).")] = "",
    json_: Json = False,
) -> None:
    """Say why a call would be let in or refused. Nothing is called."""
    gateway = open_gateway()
    request = access_pb2.ExplainAccessRequest(rpc=rpc, vm=vm, repository=repository, token_id=token_id)
    try:
        answer = _explained(gateway, request)
    except NotAllowed as refusal:
        # Who is not known is told nothing by the server; what the token says about itself may be the reason.
        print_error(refusal.message, what_is_wrong(gateway.token) or refusal.help, refusal.reason)
        sys.exit(ExitCode.NOT_ALLOWED)
    if json_:
        print_json(answer)
    else:
        _print_explanation(answer)
    if not answer.allowed:
        sys.exit(ExitCode.NOT_ALLOWED)


def _explained(gateway: Gateway, request: access_pb2.ExplainAccessRequest) -> access_pb2.ExplainAccessResponse:
    with gateway.channel() as channel:
        answer: access_pb2.ExplainAccessResponse = gateway.call(
            access_pb2_grpc.AccessServiceStub(channel).ExplainAccess, request
        )
    return answer


def _print_explanation(answer: access_pb2.ExplainAccessResponse) -> None:
    decision = "would be let in" if answer.allowed else f"would be refused ({answer.reason})"
    console.print(f"{answer.rpc} {decision}: {printable(answer.message)}.", markup=False)
    console.print(f"Needed: the role '{answer.role_needed}'.", markup=False)
    until = f", until {moment(answer.expires_at)}" if answer.HasField("expires_at") else ""
    console.print(
        f"Token: {answer.token_id} of {printable(answer.subject)}, role '{answer.role_held}'{until}.", markup=False
    )
    for kind, names in (("VMs", answer.vms), ("repositories", answer.repositories)):
        if names:
            console.print(f"Limited to the {kind} {printable(', '.join(names))}.", markup=False)


@audit.command("list")
def list_entries(
    actor: Annotated[str, typer.Option("--actor", help="Only by this subject.")] = "",
    action: Annotated[str, typer.Option("--action", help="Only this action.")] = "",
    result: Annotated[str, typer.Option("--result", help="Only with this result: ok, ROLE_MISSING, …")] = "",
    target: Annotated[str, typer.Option("--target", help="Only where the target holds this text.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most this many.")] = 50,
    json_: Json = False,
) -> None:
    """List what was asked for and what became of it, newest first."""
    gateway = open_gateway()
    request = audit_pb2.ListAuditEntriesRequest(
        page_size=limit, actor=actor, action=action, result=result, target=target
    )
    with gateway.channel() as channel:
        answer = gateway.call(audit_pb2_grpc.AuditServiceStub(channel).ListAuditEntries, request)
    if json_:
        print_json(answer)
        return
    rows = [
        [str(e.sequence), moment(e.created_at), e.actor, e.action, e.target, e.result, e.source or "–"]
        for e in answer.entries
    ]
    print_table(["NO>", "WHEN", "WHO", "WHAT", "TO", "RESULT", "FROM"], rows, "Nothing was recorded.")


@audit.command()
def verify(json_: Json = False) -> None:
    """Walk the hash chain of the whole log: was an entry edited, removed or put in?"""
    gateway = open_gateway()
    with gateway.channel() as channel:
        answer = gateway.call(audit_pb2_grpc.AuditServiceStub(channel).VerifyAudit, audit_pb2.VerifyAuditRequest())
    if json_:
        print_json(answer)
    elif answer.intact:
        console.print(f"The audit log is whole: {answer.entries} entries, head {answer.head_hash}.", markup=False)
    else:
        print_error(
            f"the audit log is broken at entry {answer.broken_sequence}: {answer.problem}",
            "Entries before it are good. Compare with a copy of the database from before.",
        )
    if not answer.intact:
        sys.exit(ExitCode.FAILED)
