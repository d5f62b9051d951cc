"""The doctor's look at the server: is it reached and trusted, are all services there, and is what they keep well."""

from __future__ import annotations

import base64
import json
import shlex
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import grpc
import httpx

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.repository.v1 import repository_pb2, repository_pb2_grpc
from sendense_ctl.connection import Gateway
from sendense_ctl.findings import Finding
from sendense_ctl.output import size
from sendense_rpc.errors import Kind, SendenseError

_SECONDS = 10.0
_CLOCK_SECONDS = 60.0
"""Tokens are checked with a minute's leeway; a clock that is further off makes good ones bad."""
_TOKEN_DAYS = 7
_OLD_DAYS = 2
"""A VM that is backed up every night has missed one at least."""
_BACKUPS_LOOKED_AT = 1000


def check_gateway(gateway: Gateway) -> Iterator[Finding]:
    """Looks at address, certificate, services, clock and token."""
    try:
        trust = ssl.create_default_context(cafile=gateway.ca_file)
        with httpx.Client(verify=trust, timeout=_SECONDS) as client:
            answer = client.get(f"{gateway.endpoint}/readyz")
    except (httpx.HTTPError, OSError) as error:
        yield _unreachable(gateway, error)
        return
    yield Finding("gateway", "ok", f"{gateway.endpoint} answers, and its certificate is trusted")
    yield from _services(answer)
    yield from _clock(answer)
    yield from _token(gateway)


def _unreachable(gateway: Gateway, error: Exception) -> Finding:
    wrong_certificate = "CERTIFICATE_VERIFY_FAILED" in str(error)
    return Finding(
        "gateway",
        "error",
        f"{gateway.endpoint}: {error}",
        cause="its certificate does not descend from the one that is trusted here"
        if wrong_certificate
        else "it does not run, or a firewall or a wrong address is in the way",
        risk="somebody else may answer there: do not send your token" if wrong_certificate else "no command works",
        command="sendense-ctl config explain" if wrong_certificate else "sendense-node up",
    )


def _services(answer: httpx.Response) -> Iterator[Finding]:
    try:
        states: dict[str, str] = answer.json()["services"]
    except (ValueError, KeyError, TypeError):
        yield Finding(
            "services",
            "error",
            f"/readyz answered {answer.status_code} without saying which services there are",
            cause="what answers there is no Sendense gateway, or its own pages are down",
            risk="nothing is known about the services",
            command="sendense-ctl config explain",
        )
        return
    for name, state in states.items():
        if state == "serving":
            yield Finding(f"service {name}", "ok", state)
        else:
            yield Finding(
                f"service {name}",
                "error",
                state,
                cause="its process is down or still starting",
                risk="the others go on; what needs it waits or fails",
                command=f"tail -n 50 $SENDENSE_HOME/log/{name}.log",
            )


def _clock(answer: httpx.Response) -> Iterator[Finding]:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return
    off = abs(theirs - time.time())
    if off < _CLOCK_SECONDS:
        yield Finding("clock", "ok", "within a minute of the server's")
    else:
        yield Finding(
            "clock",
            "error",
            f"{off:.0f} s away from the server's",
            cause="this machine or the server does not keep time",
            risk="tokens are refused as expired or not yet valid; ages are shown wrong",
            command="timedatectl status",
        )


def _token(gateway: Gateway) -> Iterator[Finding]:
    try:
        body = gateway.token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        expires = datetime.fromtimestamp(float(claims["exp"]), UTC)
    except (IndexError, ValueError, KeyError, TypeError):
        yield Finding(
            "token",
            "error",
            "it is no token",
            cause="the file holds something else",
            risk="every call is refused",
            command="sendense-ctl config explain",
        )
        return
    left = expires - datetime.now(UTC)
    role = claims.get("role", "")
    until = f"role {role}, good until {expires:%Y-%m-%d}"
    if left.days >= _TOKEN_DAYS:
        yield Finding("token", "ok", until)
    else:
        yield Finding(
            "token",
            "warning" if left.total_seconds() > 0 else "error",
            until,
            cause="tokens are given for a time",
            risk="every call is refused from then on",
            command=f"sendense-ctl token create --subject {shlex.quote(str(claims.get('sub', 'NAME')))} --role {role}",
        )


def check_inventory(gateway: Gateway) -> Iterator[Finding]:
    """Looks at agents, VMs, repositories and the newest backups."""
    with gateway.channel() as channel:
        for subject, check in (
            ("agents", _agents),
            ("repositories", _repositories),
            ("backups", _backups),
        ):
            try:
                yield from check(gateway, channel)
            except SendenseError as error:
                yield _refused(subject, error)


def _refused(subject: str, error: SendenseError) -> Finding:
    forbidden = error.kind in (Kind.PERMISSION_DENIED, Kind.UNAUTHENTICATED)
    return Finding(
        subject,
        "error" if not forbidden else "warning",
        f"{error.message} [{error.reason}]",
        cause="your token may not look there" if forbidden else "the service that knows did not answer as it should",
        risk="they were not checked",
        command="sendense-ctl config explain" if forbidden else "sendense-ctl doctor",
    )


def _ask(gateway: Gateway, method: Callable[..., Any], request: Any) -> Any:
    return gateway.call(method, request, timeout=_SECONDS)


def _vms(gateway: Gateway, channel: grpc.Channel) -> Iterator[backup_pb2.Vm]:
    stub = backup_pb2_grpc.VmServiceStub(channel)
    token = ""
    while True:
        answer = _ask(gateway, stub.ListVms, backup_pb2.ListVmsRequest(page_token=token))
        yield from answer.vms
        token = answer.next_page_token
        if not token:
            return


def _agents(gateway: Gateway, channel: grpc.Channel) -> Iterator[Finding]:
    registry = access_pb2_grpc.AgentRegistryServiceStub(channel)
    agents = _ask(gateway, registry.ListAgents, access_pb2.ListAgentsRequest()).agents
    vms = list(_vms(gateway, channel))
    if not agents:
        yield Finding(
            "agents",
            "error",
            "none is enrolled",
            cause="no machine at the VMware site was let in yet",
            risk="nothing can be backed up",
            command="sendense-ctl agent enroll --help",
        )
    for agent in agents:
        known = sum(vm.agent_id == agent.agent_id for vm in vms)
        if known:
            yield Finding(f"agent {agent.agent_id}", "ok", f"connected, knows {known} VMs")
        else:
            yield Finding(
                f"agent {agent.agent_id}",
                "warning",
                "no VM is known through it",
                cause="it is not connected, or its vCenter shows it none",
                risk="its VMs cannot be backed up",
                command="sendense-ctl agent list",
            )
    never = [vm.vm_name for vm in vms if not vm.latest_backup_id]
    if never:
        shown = ", ".join(never[:5]) + (f" and {len(never) - 5} more" if len(never) > 5 else "")
        yield Finding(
            "VMs",
            "warning",
            f"never backed up: {shown}",
            cause="no policy and nobody has asked for a backup of them",
            risk="a loss of them is final",
            command=f"sendense-ctl backup start --vm {shlex.quote(never[0])}",
        )
    for vm in vms:
        if vm.latest_backup_id and time.time() - vm.latest_backup_at.seconds > _OLD_DAYS * 86400:
            days = (time.time() - vm.latest_backup_at.seconds) / 86400
            yield Finding(
                f"VM {vm.vm_name}",
                "warning",
                f"its newest restore point is {days:.0f} days old",
                cause="no policy includes it, or its backups fail",
                risk="everything since would be lost",
                command=f"sendense-ctl backup list --vm {shlex.quote(vm.vm_name)}",
            )


def _repositories(gateway: Gateway, channel: grpc.Channel) -> Iterator[Finding]:
    stub = repository_pb2_grpc.RepositoryServiceStub(channel)
    for each in _ask(gateway, stub.ListRepositories, repository_pb2.ListRepositoriesRequest()).repositories:
        subject, show = f"repository {each.name}", f"sendense-ctl repository get --name {shlex.quote(each.name)}"
        if each.problem:
            yield Finding(
                subject,
                "error",
                each.problem,
                cause=f"{each.path} cannot be used as it is",
                risk="no backup is written there and none is restored from there",
                command=show,
            )
        elif each.warning:
            yield Finding(
                subject,
                "warning",
                each.warning,
                cause="it grows faster than retention frees",
                risk="backups will be refused for lack of room",
                command=show,
            )
        else:
            state = "" if each.enabled else ", disabled"
            yield Finding(
                subject, "ok", f"{size(each.available_size_bytes)} of {size(each.total_size_bytes)} free{state}"
            )


def _backups(gateway: Gateway, channel: grpc.Channel) -> Iterator[Finding]:
    stub = backup_pb2_grpc.BackupServiceStub(channel)
    request = backup_pb2.ListBackupsRequest(page_size=_BACKUPS_LOOKED_AT)
    newest: dict[str, backup_pb2.Backup] = {}
    for each in _ask(gateway, stub.ListBackups, request).backups:
        newest.setdefault(each.vm_name, each)
    failed = [each for each in newest.values() if each.status == "failed"]
    for each in failed:
        yield Finding(
            f"VM {each.vm_name}",
            "error",
            f"its latest backup failed: {each.error_message} [{each.error_reason}]",
            cause="see docs/errors.md for the reason",
            risk="its newest restore point is older than you think",
            command=f"sendense-ctl backup log --backup-id {each.backup_id}",
        )
    if not failed:
        yield Finding("backups", "ok", f"the latest of each of {len(newest)} VMs is well" if newest else "none yet")
