"""What the backup service refuses or fails with; every reason is in docs/errors.md."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sendense_backup.model import KnownVm, Operation
from sendense_rpc.errors import Kind, SendenseError


class VmNotFound(SendenseError):
    """No connected agent knows such a VM, or it was never backed up."""

    def __init__(self, wanted: str, *, help_text: str) -> None:
        super().__init__(
            f"there is no VM '{wanted}'",
            kind=Kind.NOT_FOUND,
            reason="VM_NOT_FOUND",
            help=help_text,
            metadata={"vm": wanted[:200]},
        )


class AmbiguousVmName(SendenseError):
    """Several VMs have this name; nothing was done."""

    def __init__(self, name: str, candidates: Sequence[tuple[str, str]]) -> None:
        """Lists the candidates.

        Args:
            name: The name.
            candidates: Instance uuid and inventory path (or context id) of each.
        """
        listed = "; ".join(f"{uuid} ({path})" for uuid, path in candidates)
        super().__init__(
            f"{len(candidates)} VMs are called '{name}': {listed}",
            kind=Kind.INVALID_ARGUMENT,
            reason="AMBIGUOUS_VM_NAME",
            help="Ask again with vm_uuid set to the one that is meant, instead of vm_name.",
            metadata={"vm_name": name, **dict(candidates[:20])},
        )


class VmOnSeveralAgents(SendenseError):
    """Two vCenters have a VM with this instance uuid."""

    def __init__(self, uuid: str, found: Sequence[KnownVm]) -> None:
        listed = "; ".join(f"{each.vm.inventory_path} in vCenter {each.vm.ref.vcenter_uuid}" for each in found)
        super().__init__(
            f"instance uuid {uuid} is not unique: {listed}",
            kind=Kind.INVALID_ARGUMENT,
            reason="AMBIGUOUS_VM_UUID",
            help="Give the VMs different instance uuids in vCenter.",
        )


class ExactlyOneVm(SendenseError):
    """A VM was named twice, or not at all."""

    def __init__(self) -> None:
        super().__init__(
            "exactly one of vm_name and vm_uuid must be set",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            help="Set vm_name, or vm_uuid where the name is not unique.",
            metadata={"field": "vm_name"},
        )


class NoAgent(SendenseError):
    """The agent that is needed (or any agent) is not connected."""

    def __init__(self, agent_id: str = "") -> None:
        which = f"agent {agent_id} is" if agent_id else "no agent is"
        super().__init__(
            f"{which} not connected" if agent_id else f"{which} connected",
            kind=Kind.UNAVAILABLE,
            reason="NO_AGENT",
            help="Start the agent at the VMware site and look at its log: it dials the tunnel's port.",
            retryable=True,
            metadata={"agent_id": agent_id} if agent_id else {},
        )


class RepositoryDisabled(SendenseError):
    """The repository takes no new backups."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"repository '{name}' is disabled",
            kind=Kind.FAILED_PRECONDITION,
            reason="REPOSITORY_DISABLED",
            help="Enable it or name another repository.",
            metadata={"repository": name},
        )


class NoFullBackup(SendenseError):
    """An increment was asked for and there is nothing to build on."""

    def __init__(self, vm_name: str, repository: str) -> None:
        super().__init__(
            f"VM '{vm_name}' has no full backup in repository '{repository}' to build on",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_FULL_BACKUP",
            help=f"Take a full backup first: sendense-ctl backup start --vm {shlex.quote(vm_name)} --type full",
            metadata={"vm_name": vm_name, "repository": repository},
        )


class BackupRunning(SendenseError):
    """The VM has a backup that has not ended."""

    def __init__(self, vm_name: str, backup_id: str, *, help_text: str) -> None:
        super().__init__(
            f"job {backup_id} of VM '{vm_name}' has not ended",
            kind=Kind.ABORTED,
            reason="BACKUP_RUNNING",
            help=help_text,
            metadata={"backup_id": backup_id, "vm_name": vm_name},
        )


class BackupMustEnd(SendenseError):
    """What was asked needs a backup that has ended."""

    def __init__(self, backup_id: str) -> None:
        super().__init__(
            f"backup {backup_id} is still running",
            kind=Kind.FAILED_PRECONDITION,
            reason="BACKUP_RUNNING",
            help=f"Cancel it first: sendense-ctl backup cancel --backup-id {backup_id}",
            metadata={"backup_id": backup_id},
        )


class BackupNotFound(SendenseError):
    """No backup has this id or prefix."""

    def __init__(self, wanted: str) -> None:
        super().__init__(
            f"there is no backup '{wanted}'",
            kind=Kind.NOT_FOUND,
            reason="BACKUP_NOT_FOUND",
            help="List the backups: sendense-ctl backup list",
            metadata={"backup_id": wanted[:200]},
        )


class JobNotFound(SendenseError):
    """No job has this id or prefix."""

    def __init__(self, wanted: str) -> None:
        super().__init__(
            f"there is no job '{wanted}'",
            kind=Kind.NOT_FOUND,
            reason="JOB_NOT_FOUND",
            help="List the jobs: sendense-ctl job list",
            metadata={"job_id": wanted[:200]},
        )


class AmbiguousBackupId(SendenseError):
    """Several backups begin with this prefix."""

    def __init__(self, prefix: str, candidates: Sequence[str]) -> None:
        super().__init__(
            f"several backups begin with '{prefix}': {', '.join(candidates)}",
            kind=Kind.INVALID_ARGUMENT,
            reason="AMBIGUOUS_BACKUP_ID",
            help="Give more of the id.",
            metadata={"candidates": ",".join(candidates)},
        )


class BadPageToken(SendenseError):
    """The page token is not one of ours."""

    def __init__(self) -> None:
        super().__init__(
            "page_token is not one that an earlier answer gave",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            help="Begin again with an empty page_token.",
            metadata={"field": "page_token"},
        )


class CannotBackUp(SendenseError):
    """The VM, as it is now, must not or cannot be backed up."""

    def __init__(self, message: str, *, reason: str, help_text: str, metadata: dict[str, str] | None = None) -> None:
        super().__init__(message, kind=Kind.FAILED_PRECONDITION, reason=reason, help=help_text, metadata=metadata)


class CaptureStalled(SendenseError):
    """A capture reported nothing for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the capture reported nothing for {seconds:g} seconds",
            kind=Kind.DEADLINE_EXCEEDED,
            reason="CAPTURE_STALLED",
            help="Look at the agent's log and at the link between agent and tunnel.",
            retryable=True,
        )


class Cancelled(SendenseError):
    """Somebody asked the job to stop."""

    def __init__(self, backup_id: str) -> None:
        super().__init__(f"backup {backup_id} was cancelled", kind=Kind.CANCELLED, reason="CANCELLED", metadata={})


class Superseded(SendenseError):
    """A newer execution of the job has taken over: this one stops and undoes nothing."""

    def __init__(self, backup_id: str, attempt: int) -> None:
        super().__init__(
            f"attempt {attempt} of backup {backup_id} was taken over",
            kind=Kind.ABORTED,
            reason="STALE_ATTEMPT",
            metadata={"backup_id": backup_id, "attempt": str(attempt)},
        )


class LostSnapshot(SendenseError):
    """The job's own rows know of no snapshot any more."""

    def __init__(self, backup_id: str) -> None:
        super().__init__(
            f"backup {backup_id} holds no snapshot any more",
            kind=Kind.INTERNAL,
            reason="SNAPSHOT_LOST",
            help="Start the backup again.",
        )


class CaptureEndedEarly(SendenseError):
    """The agent's stream ended without saying that the copy is complete."""

    def __init__(self) -> None:
        super().__init__(
            "the capture ended without saying that it is complete",
            kind=Kind.ABORTED,
            reason="CAPTURE_FAILED",
            help="Look at the agent's log.",
            retryable=True,
        )


class OperationStalled(SendenseError):
    """What another service does for an operation was not heard of for too long."""

    def __init__(self, operation_id: str, seconds: float) -> None:
        super().__init__(
            f"nothing was heard of {operation_id} for {seconds:g} seconds",
            kind=Kind.DEADLINE_EXCEEDED,
            reason="OPERATION_STALLED",
            help="Look at the repository service's log, then start it again.",
            metadata={"job_id": operation_id},
        )


class PointCorrupt(SendenseError):
    """A restore point is not as it was written."""

    def __init__(self, backup_id: str, damages: Sequence[str]) -> None:
        super().__init__(
            f"restore point {backup_id} is damaged: {'; '.join(damages)}",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_CORRUPT",
            help="Restore from an older point; the next backup of the VM is full. Then look at the repository's disks.",
            metadata={"backup_id": backup_id},
        )


class BadPolicy(SendenseError):
    """Something in a policy is wrong, or can never work; nothing was changed."""

    def __init__(self, field: str, message: str, help_text: str, *, reason: str = "INVALID_FIELD") -> None:
        super().__init__(message, kind=Kind.INVALID_ARGUMENT, reason=reason, help=help_text, metadata={"field": field})


class PolicyNotFound(SendenseError):
    """There is no such policy."""

    def __init__(self, wanted: str) -> None:
        super().__init__(
            f"there is no policy '{wanted}'",
            kind=Kind.NOT_FOUND,
            reason="POLICY_NOT_FOUND",
            help="List the policies: sendense-ctl policy list",
            metadata={"policy": wanted[:200]},
        )


class PolicyExists(SendenseError):
    """Another policy has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is a policy '{name}' already",
            kind=Kind.ALREADY_EXISTS,
            reason="POLICY_EXISTS",
            help="Choose another name, or change that one: sendense-ctl policy update",
            metadata={"policy": name},
        )


class JobNotFailed(SendenseError):
    """Only a job that failed or was cancelled can be tried again."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(
            f"job {job_id} is {status}",
            kind=Kind.FAILED_PRECONDITION,
            reason="JOB_NOT_FAILED",
            help="Only a job that failed or was cancelled can be tried again; start a new one instead.",
            metadata={"job_id": job_id, "status": status},
        )


class NoRestorePoint(SendenseError):
    """The backup made no restore point."""

    def __init__(self, backup_id: str, status: str) -> None:
        super().__init__(
            f"backup {backup_id} is {status}: it has no restore point",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_RESTORE_POINT",
            help="Name a completed backup: sendense-ctl backup list --status completed",
            metadata={"backup_id": backup_id},
        )


class NotOneVm(SendenseError):
    """Restore points that were named together do not form a run."""

    def __init__(self, first: str, last: str) -> None:
        super().__init__(
            f"{first} and {last} are no run of one VM's restore points in one repository",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            help="Name the oldest and the newest of a VM's points: sendense-ctl backup chain",
            metadata={"field": "last_backup_id"},
        )


class PointHeld(SendenseError):
    """Somebody reads a restore point that is concerned."""

    def __init__(self, backup_id: str, holders: Sequence[str]) -> None:
        super().__init__(
            f"{backup_id}, or a restore point that builds on it, is held by {', '.join(holders)}",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_LEASED",
            help="Unmount it, or wait for the job that reads it.",
            retryable=True,
            metadata={"backup_id": backup_id, "holders": ",".join(holders)},
        )


class ChangeTrackingWrong(SendenseError):
    """Blocks changed that vCenter called unchanged: this backup, and earlier ones, would lack the change."""

    def __init__(self, disk: str, count: int, offset: int, suspects: Sequence[str]) -> None:
        points = f"restore points that may lack it: {', '.join(suspects)}" if suspects else "no restore point is older"
        super().__init__(
            f"change tracking wrong: {count} blocks of {disk} changed without it having told, the first at {offset};"
            f" {points}",
            kind=Kind.FAILED_PRECONDITION,
            reason="CHANGE_TRACKING_WRONG",
            help="Start the backup again: it is full. The user guide says what the marked restore points are worth.",
            metadata={"disk": disk, "blocks": str(count), "offset": str(offset), "suspects": ",".join(suspects)},
        )


class OperationFailed(SendenseError):
    """A job that the answer waited for has failed; carries the job's reason."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(
            f"job {operation.operation_id} failed: {operation.error_message}",
            kind=Kind.ABORTED,
            reason=operation.error_reason or "INTERNAL",
            help=f"Look at its log: sendense-ctl job log --job-id {operation.operation_id}",
            metadata={"job_id": operation.operation_id},
        )


class PointNotImportable(SendenseError):
    """Storage has no whole restore point of that id, and the catalogue does not know it."""

    def __init__(self, backup_id: str, repository: str) -> None:
        super().__init__(
            f"repository '{repository}' holds no whole restore point '{backup_id}'",
            kind=Kind.NOT_FOUND,
            reason="POINT_NOT_FOUND",
            help="Look what a scan says of it: sendense-ctl repository scan",
            metadata={"backup_id": backup_id, "repository": repository},
        )
