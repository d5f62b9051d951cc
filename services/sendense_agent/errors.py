"""The agent's errors: each names the vCenter, VM, disk or snapshot, and what to do next."""

from __future__ import annotations

from sendense_rpc.errors import Kind, SendenseError


class NoVCenter(SendenseError):
    """The agent's file names no vCenter."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"no vCenter is configured in {file}",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_VCENTER",
            help='Write a list of {"name", "host", "username", "password", "certificate"} into it, with mode 0600.',
        )


class VCenterFileInvalid(SendenseError):
    """The vCenters' file cannot be used: others can read it, or it is malformed."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(
            f"{file}: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="VCENTER_FILE_INVALID",
            help="Correct the file on the agent's machine; it is read again at the next call.",
        )


class VCenterUnavailable(SendenseError):
    """A vCenter could not be reached, or did not answer."""

    def __init__(self, vcenter: str, problem: str) -> None:
        super().__init__(
            f"vCenter '{vcenter}' is not available: {problem}",
            kind=Kind.UNAVAILABLE,
            reason="VCENTER_UNAVAILABLE",
            help="Check that the agent's machine reaches it and that it runs.",
            retryable=True,
            metadata={"vcenter": vcenter},
        )


class VCenterLoginRefused(SendenseError):
    """A vCenter refused the account."""

    def __init__(self, vcenter: str, username: str) -> None:
        super().__init__(
            f"vCenter '{vcenter}' refused the user '{username}'",
            kind=Kind.FAILED_PRECONDITION,
            reason="VCENTER_LOGIN_REFUSED",
            help="Correct user name and password in the agent's vcenters.json.",
            metadata={"vcenter": vcenter},
        )


class VCenterCertificateRefused(SendenseError):
    """A vCenter showed another certificate than the pinned one."""

    def __init__(self, vcenter: str, problem: str) -> None:
        super().__init__(
            f"vCenter '{vcenter}' does not show the pinned certificate: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="VCENTER_CERTIFICATE_CHANGED",
            help="If the change was intended, pin the new certificate in the agent's vcenters.json.",
            metadata={"vcenter": vcenter},
        )


class VCenterFault(SendenseError):
    """A vCenter answered with a fault that has no reason of its own here."""

    def __init__(self, vcenter: str, action: str, fault: str, message: str) -> None:
        super().__init__(
            f"vCenter '{vcenter}' refused to {action}: {fault}: {message}",
            kind=Kind.ABORTED,
            reason="VCENTER_FAULT",
            help="See the task in vCenter; privileges missing there show as NoPermission.",
            metadata={"vcenter": vcenter, "fault": fault},
        )


class VmNotFound(SendenseError):
    """No vCenter of this agent knows the VM."""

    def __init__(self, vcenter_uuid: str, vm_uuid: str) -> None:
        super().__init__(
            f"no VM with instance uuid {vm_uuid} at the vCenter {vcenter_uuid}",
            kind=Kind.NOT_FOUND,
            reason="VM_NOT_FOUND",
            help="`sendense-ctl vm list` shows the VMs that agents know.",
            metadata={"vcenter_uuid": vcenter_uuid, "vm_uuid": vm_uuid},
        )


class VmAmbiguous(SendenseError):
    """Two VMs have one instance uuid: nothing is done to either."""

    def __init__(self, vm_uuid: str, morefs: list[str]) -> None:
        super().__init__(
            f"{len(morefs)} VMs have the instance uuid {vm_uuid}: {', '.join(morefs)}",
            kind=Kind.FAILED_PRECONDITION,
            reason="VM_AMBIGUOUS",
            help="Give one of them a new instance uuid in vCenter.",
            metadata={"morefs": ",".join(morefs)},
        )


class ChangeTrackingUnsupported(SendenseError):
    """The VM's hardware cannot track changes."""

    def __init__(self, vm: str, hardware_version: str) -> None:
        super().__init__(
            f"VM '{vm}' has hardware {hardware_version}, which cannot track changed blocks",
            kind=Kind.FAILED_PRECONDITION,
            reason="CBT_UNSUPPORTED",
            help="Upgrade the VM's hardware to version 7 or later; until then every backup of it is a full.",
        )


class ChangeTrackingNeedsNoSnapshot(SendenseError):
    """Change tracking can be enabled only while the VM has no snapshot."""

    def __init__(self, vm: str, count: int) -> None:
        super().__init__(
            f"VM '{vm}' has {count} snapshots: change tracking can be enabled only when it has none",
            kind=Kind.FAILED_PRECONDITION,
            reason="CBT_NEEDS_NO_SNAPSHOT",
            help="Remove the VM's snapshots, or make fulls until they are gone.",
        )


class ChangeTrackingReset(SendenseError):
    """The parent's change id is of another tracking epoch: the disk needs a full."""

    def __init__(self, disk: str, parent: str, current: str) -> None:
        super().__init__(
            f"change tracking of {disk} was reset since the parent: '{parent}' is not of the epoch of '{current}'",
            kind=Kind.FAILED_PRECONDITION,
            reason="CBT_RESET",
            help="Take a full backup of this disk.",
            metadata={"parent_change_id": parent, "change_id": current},
        )


class AreasQueryFailed(SendenseError):
    """The changed areas could not be asked, or the answer cannot be trusted: the disk needs a full."""

    def __init__(self, disk: str, problem: str) -> None:
        super().__init__(
            f"the changed areas of {disk} are not known: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="AREAS_QUERY_FAILED",
            help="Take a full backup of this disk.",
        )


class SnapshotNotFound(SendenseError):
    """The snapshot is gone."""

    def __init__(self, moref: str) -> None:
        super().__init__(
            f"the snapshot {moref} does not exist (any more)",
            kind=Kind.NOT_FOUND,
            reason="SNAPSHOT_NOT_FOUND",
            help="Start the backup again; it makes a new snapshot.",
            metadata={"moref": moref},
        )


class SnapshotNotOurs(SendenseError):
    """The snapshot was not made by this installation and job: it is left alone."""

    def __init__(self, moref: str, name: str) -> None:
        super().__init__(
            f"the snapshot {moref} ('{name}') was not made by this job: it is left alone",
            kind=Kind.FAILED_PRECONDITION,
            reason="SNAPSHOT_NOT_OURS",
            metadata={"moref": moref},
        )


class ConsolidationNeeded(SendenseError):
    """A snapshot was removed, but its disks could not be merged."""

    def __init__(self, vm: str) -> None:
        super().__init__(
            f"the disks of VM '{vm}' need consolidation, and vCenter could not do it",
            kind=Kind.ABORTED,
            reason="CONSOLIDATION_NEEDED",
            help="Consolidate the VM's disks in vCenter; look for locks and for room on its datastores.",
            retryable=True,
        )


class DiskNotFound(SendenseError):
    """The snapshot has no such disk."""

    def __init__(self, moref: str, device_key: int) -> None:
        super().__init__(
            f"the snapshot {moref} has no disk with device key {device_key}",
            kind=Kind.NOT_FOUND,
            reason="DISK_NOT_FOUND",
            metadata={"moref": moref, "device_key": str(device_key)},
        )


class StaleAttempt(SendenseError):
    """A newer execution of the job has been seen."""

    def __init__(self, job_id: str, attempt: int, newest: int) -> None:
        super().__init__(
            f"attempt {attempt} of {job_id} is over: attempt {newest} has taken it",
            kind=Kind.ABORTED,
            reason="STALE_ATTEMPT",
            metadata={"job_id": job_id, "attempt": str(attempt), "newest": str(newest)},
        )


class ReaderUnsuitable(SendenseError):
    """A reader cannot read this disk; the message says why."""

    def __init__(self, reader: str, disk: str, problem: str, *, retryable: bool = False) -> None:
        self.reader = reader
        self.problem = problem
        super().__init__(
            f"the reader '{reader}' cannot read {disk}: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="READER_UNSUITABLE",
            help="See docs/troubleshooting: readers, and what each of them needs.",
            retryable=retryable,
            metadata={"reader": reader},
        )


class TunnelDown(SendenseError):
    """The agent has no data connection to the tunnel."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"no data connection to the tunnel within {seconds:g} s",
            kind=Kind.UNAVAILABLE,
            reason="TUNNEL_DOWN",
            help="The agent's log says why it cannot connect.",
            retryable=True,
        )


class CaptureFailed(SendenseError):
    """A capture ended early; batches reported before remain valid unless it poisons the target.

    Args:
        message: What failed.
        side: `source`, `target` or empty.
        cause: Reason of the error behind it.
        retryable: Whether a resume may succeed.
        poisons: Whether the target may have lost acknowledged data.
        offset: First byte of the failed request, if there is one.
        length: Bytes of the failed request, if there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        side: str = "",
        cause: str = "",
        retryable: bool = False,
        poisons: bool = False,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        place = {"offset": offset, "length": length}
        super().__init__(
            f"the capture failed: {message}",
            kind=Kind.ABORTED,
            reason="CAPTURE_FAILED",
            retryable=retryable,
            metadata={
                "side": side,
                "cause": cause,
                "poisons": "true" if poisons else "false",
                **{key: str(value) for key, value in place.items() if value is not None},
            },
        )


class CaptureInvalid(SendenseError):
    """A capture was asked for that makes no sense."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, kind=Kind.INVALID_ARGUMENT, reason="CAPTURE_INVALID")
