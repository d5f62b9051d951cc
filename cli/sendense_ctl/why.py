"""`sendense-ctl backup why`: why each backup of a VM is full, why it is still there, and why others are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from sendense.backup.v1 import (
    backup_pb2,
    backup_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)
from sendense_ctl.connection import Gateway
from sendense_ctl.output import moment

REMOVING_KINDS = ("delete", "retention", "consolidate")


@dataclass(frozen=True)
class Answer:
    """What is known of one backup.

    Attributes:
        backup_id: The backup.
        state: Its status, or `deleted`.
        why_so: Why each disk was read fully or not; empty for a deleted one.
        why_here: Why it is there, goes soon, or is gone.
    """

    backup_id: str
    state: str
    why_so: str
    why_here: str


def explain(gateway: Gateway, vm_name: str) -> list[Answer]:
    """Asks for all backups of a VM and what was and will be done to them; newest first."""
    with gateway.channel() as channel:
        goes = _planned_removals(gateway, channel, vm_name)
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        there = []
        for listed in _backups(gateway, channel, vm_name):  # lists have no disks
            request = backup_pb2.GetBackupRequest(backup_id=listed.backup_id)
            there.append(_explained(gateway.call(stub.GetBackup, request), goes))
        gone = list(_removed(gateway, channel, vm_name))
    known = {answer.backup_id for answer in there}
    return there + [answer for answer in gone if answer.backup_id not in known]


def _explained(backup: backup_pb2.Backup, goes: dict[str, list[str]]) -> Answer:
    if backup.status in ("pending", "running"):
        return Answer(backup.backup_id, backup.status, "", "it is not yet a restore point")
    if backup.status != "completed":
        why = f"{backup.error_message} [{backup.error_reason}]" if backup.error_reason else ""
        return Answer(backup.backup_id, backup.status, why, "it is no restore point")
    reasons: dict[str, list[str]] = defaultdict(list)
    for disk in backup.disks:
        reasons[f"{disk.backup_type}: {disk.reason}"].append(disk.label or f"disk {disk.disk_id}")
    alike = len(reasons) == 1
    why_so = "; ".join(reason if alike else f"{', '.join(disks)} {reason}" for reason, disks in reasons.items())
    policies = goes.get(backup.backup_id, [])
    here = f"goes at the next run of {', '.join(policies)}" if policies else "stays: no policy's retention removes it"
    return Answer(backup.backup_id, backup.backup_type, why_so, here)


def _backups(gateway: Gateway, channel: grpc.Channel, vm_name: str) -> Iterator[backup_pb2.Backup]:
    stub = backup_pb2_grpc.BackupServiceStub(channel)
    token = ""
    while True:
        request = backup_pb2.ListBackupsRequest(vm_name=vm_name, page_size=1000, page_token=token)
        page = gateway.call(stub.ListBackups, request)
        yield from page.backups
        token = page.next_page_token
        if not token:
            return


def _planned_removals(gateway: Gateway, channel: grpc.Channel, vm_name: str) -> dict[str, list[str]]:
    """Returns the policies that would remove a backup at their next run, by backup id."""
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    goes: dict[str, list[str]] = defaultdict(list)
    for policy in gateway.call(stub.ListPolicies, policy_pb2.ListPoliciesRequest(page_size=1000)).policies:
        if policy.spec.disabled:
            continue
        request = policy_pb2.PlanPolicyRequest(policy_id=policy.policy_id, vm_name=vm_name)
        for vm in gateway.call(stub.PlanPolicy, request).vms:
            for backup_id in vm.retention_removes:
                goes[backup_id].append(f"policy {policy.spec.name}")
    return goes


def _removed(gateway: Gateway, channel: grpc.Channel, vm_name: str) -> Iterator[Answer]:
    """Yields what jobs have removed."""
    stub = job_pb2_grpc.JobServiceStub(channel)
    for kind in REMOVING_KINDS:
        request = job_pb2.ListJobsRequest(kind=kind, vm_name=vm_name, status="completed", page_size=1000)
        for job in gateway.call(stub.ListJobs, request).jobs:
            by = f"policy {job.policy_id}" if job.policy_id else "a person"
            for backup_id in _texts(job.result, "backup_ids"):
                yield Answer(backup_id, "deleted", "", f"{kind} by {by}, {moment(job.completed_at)}: {job.job_id}")


def _texts(struct: Any, name: str) -> list[str]:
    if name not in struct.fields:
        return []
    return [value.string_value for value in struct.fields[name].list_value.values]
