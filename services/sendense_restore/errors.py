"""What can go wrong with mounts and the files in them; reasons are those of docs/errors.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sendense_rpc.errors import Kind, SendenseError


class MountNotFound(SendenseError):
    """No such mount; it may have been idle for too long. Mount the backup again."""

    def __init__(self, mount_id: str) -> None:
        self.mount_id = mount_id
        super().__init__(
            f"there is no mount {mount_id}",
            kind=Kind.NOT_FOUND,
            reason="MOUNT_NOT_FOUND",
            help="It may have been unmounted after its idle time; mount the backup again.",
            metadata={"mount_id": mount_id},
        )


class MountNotReady(SendenseError):
    """The mount is being made or undone, or its storage was lost."""

    def __init__(self, mount_id: str, state: str) -> None:
        self.mount_id = mount_id
        self.state = state
        super().__init__(
            f"{mount_id} is {state}",
            kind=Kind.FAILED_PRECONDITION,
            reason="MOUNT_NOT_READY",
            help="Wait while it is mounting; otherwise mount the backup again.",
            retryable=state == "mounting",
            metadata={"mount_id": mount_id, "state": state},
        )


class MountBusy(SendenseError):
    """Somebody still uses the mount; nothing was changed."""

    def __init__(self, mount_id: str, users: Sequence[str]) -> None:
        self.mount_id = mount_id
        self.users = tuple(users)
        super().__init__(
            f"{mount_id} is in use by {', '.join(users)}",
            kind=Kind.FAILED_PRECONDITION,
            reason="MOUNT_BUSY",
            help="Wait for them, or unmount with force, which cuts them off.",
            retryable=True,
            metadata={"mount_id": mount_id},
        )


class UnmountFailed(SendenseError):
    """Something of the mount could not be undone; the mount is failed, and unmounting can be tried again."""

    def __init__(self, mount_id: str, problem: str) -> None:
        self.mount_id = mount_id
        super().__init__(
            f"{mount_id} cannot be unmounted: {problem}",
            kind=Kind.INTERNAL,
            reason="UNMOUNT_FAILED",
            help="Try again with force; a restart of the restore service cleans up what is left.",
            retryable=True,
            metadata={"mount_id": mount_id},
        )


class ServiceStopping(SendenseError):
    """The restore service is about to end and mounts nothing more."""

    def __init__(self) -> None:
        super().__init__(
            "the restore service is stopping",
            kind=Kind.UNAVAILABLE,
            reason="SERVICE_UNAVAILABLE",
            help="Try again when it has been restarted.",
            retryable=True,
        )


class TooManyMounts(SendenseError):
    """The limit of mounts is reached."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"{limit} restore points are mounted, which is the limit",
            kind=Kind.RESOURCE_EXHAUSTED,
            reason="TOO_MANY_MOUNTS",
            help="Unmount one that is no longer needed, or raise SENDENSE_RESTORE_MAX_MOUNTS.",
            metadata={"limit": str(limit)},
        )


class MountFailed(SendenseError):
    """The restore point could not be mounted; nothing of the attempt is left."""

    def __init__(self, backup_id: str, problem: str, *, help: str = "") -> None:  # noqa: A002 - as in SendenseError
        self.backup_id = backup_id
        super().__init__(
            f"{backup_id} cannot be mounted: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="MOUNT_FAILED",
            help=help or "The restore service's log says more; `qemu-img check` tells whether the layers are sound.",
            metadata={"backup_id": backup_id},
        )


class NoFileSystem(SendenseError):
    """No volume of the restore point could be mounted."""

    def __init__(self, backup_id: str, findings: Sequence[str]) -> None:
        self.backup_id = backup_id
        self.findings = tuple(findings)
        found = "; ".join(findings) or "its disks are empty"
        super().__init__(
            f"no file system of {backup_id} can be mounted: {found}",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_FILE_SYSTEM",
            help="The layers are plain QCOW2: attach them to a virtual machine to get at the data.",
            metadata={"backup_id": backup_id},
        )


class VolumeLocked(SendenseError):
    """All that the restore point holds is encrypted, and nothing that was given opens it."""

    def __init__(self, backup_id: str, volumes: Sequence[str], *, tried: bool) -> None:
        self.backup_id = backup_id
        self.volumes = tuple(volumes)
        what = "no passphrase that was given opens" if tried else "a passphrase is needed for"
        super().__init__(
            f"{backup_id} is encrypted: {what} {', '.join(volumes)}",
            kind=Kind.FAILED_PRECONDITION,
            reason="VOLUME_LOCKED",
            help="Mount it with the volume's passphrase; it is used once and never stored.",
            metadata={"backup_id": backup_id, "volumes": ",".join(volumes)[:256]},
        )


class BackendNotAllowed(SendenseError):
    """The administrator requires another back end."""

    def __init__(self, asked: str, required: str) -> None:
        self.asked = asked
        self.required = required
        super().__init__(
            f"the back end {asked} is not allowed here: {required} is required",
            kind=Kind.FAILED_PRECONDITION,
            reason="BACKEND_NOT_ALLOWED",
            help="Leave the back end out of the request, or have SENDENSE_RESTORE_BACKEND changed.",
            metadata={"required": required},
        )


class PointDamaged(SendenseError):
    """The restore point's last verification found damage."""

    def __init__(self, backup_id: str, finding: str) -> None:
        self.backup_id = backup_id
        super().__init__(
            f"{backup_id} is known to be damaged: {finding or 'its verification failed'}",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_DAMAGED",
            help="Choose another restore point, or use force to read what can be read; files may be wrong.",
            metadata={"backup_id": backup_id},
        )


class PointSuspect(SendenseError):
    """An audit found later that change tracking had not told of all that the restore point should hold."""

    def __init__(self, backup_id: str, suspicion: str) -> None:
        self.backup_id = backup_id
        super().__init__(
            f"{backup_id} may differ from the guest's disks as they were: {suspicion}",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_SUSPECT",
            help="Choose another restore point, or use force to restore what was copied; some blocks may be older.",
            metadata={"backup_id": backup_id},
        )


class DiskMissing(SendenseError):
    """The restore point has no disk of that number."""

    def __init__(self, backup_id: str, disk_id: int, present: Sequence[int]) -> None:
        self.backup_id = backup_id
        self.disk_id = disk_id
        super().__init__(
            f"{backup_id} has no disk {disk_id}; its disks are {', '.join(map(str, present))}",
            kind=Kind.NOT_FOUND,
            reason="DISK_NOT_FOUND",
            help="Leave the disk out for all disks; `sendense-ctl backup get` shows them.",
            metadata={"backup_id": backup_id, "disk_id": str(disk_id)},
        )


class NoRoom(SendenseError):
    """The file system of temporary files is too full."""

    def __init__(self, directory: Path, needed: int, free: int) -> None:
        self.directory = directory
        super().__init__(
            f"{directory} has {free >> 20} MiB free, and {needed >> 20} MiB are needed",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_ROOM",
            help="Make room there, or move SENDENSE_HOME; disk exports that are no longer needed can be deleted.",
            metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
        )


class DiskExportNotFound(SendenseError):
    """No such disk export; it may have been removed after its time."""

    def __init__(self, export_id: str) -> None:
        self.export_id = export_id
        super().__init__(
            f"there is no disk export {export_id}",
            kind=Kind.NOT_FOUND,
            reason="DISK_EXPORT_NOT_FOUND",
            help="It may have been removed after its time, or by a restart; start it again.",
            metadata={"export_id": export_id},
        )


class DiskExportNotReady(SendenseError):
    """The disk export's file is not whole."""

    def __init__(self, export_id: str, state: str) -> None:
        self.export_id = export_id
        self.state = state
        super().__init__(
            f"{export_id} is {state}",
            kind=Kind.FAILED_PRECONDITION,
            reason="DISK_EXPORT_NOT_READY",
            help="Wait until it is completed; a failed one says why.",
            retryable=state == "running",
            metadata={"export_id": export_id, "state": state},
        )


class DiskExportFailed(SendenseError):
    """The disk could not be written into a file."""

    def __init__(self, export_id: str, problem: str) -> None:
        self.export_id = export_id
        super().__init__(
            f"{export_id} failed: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="DISK_EXPORT_FAILED",
            help="The message says what qemu-img met; a verification of the backup tells whether its layers are sound.",
            metadata={"export_id": export_id},
        )


class TooManyDiskExports(SendenseError):
    """The limit of disk exports is reached."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"{limit} disk exports exist, which is the limit",
            kind=Kind.RESOURCE_EXHAUSTED,
            reason="TOO_MANY_DISK_EXPORTS",
            help="Delete one that is no longer needed, or raise SENDENSE_RESTORE_MAX_DISK_EXPORTS.",
            metadata={"limit": str(limit)},
        )


class ServedPointNotFound(SendenseError):
    """No such offer; it may have ended after its time."""

    def __init__(self, served_id: str) -> None:
        self.served_id = served_id
        super().__init__(
            f"there is no served point {served_id}",
            kind=Kind.NOT_FOUND,
            reason="SERVED_POINT_NOT_FOUND",
            help="It may have ended after its time, or by a restart; serve the backup again.",
            metadata={"served_id": served_id},
        )


class BackupNotCompleted(SendenseError):
    """Only a completed backup has a restore point."""

    def __init__(self, backup_id: str, status: str) -> None:
        self.backup_id = backup_id
        self.status = status
        super().__init__(
            f"{backup_id} is {status}, not completed",
            kind=Kind.FAILED_PRECONDITION,
            reason="BACKUP_NOT_COMPLETED",
            help="Choose a completed backup; `sendense-ctl backup list` shows them.",
            metadata={"backup_id": backup_id, "status": status},
        )


class RequestIdReused(SendenseError):
    """The request id has mounted another backup before."""

    def __init__(self, request_id: str, backup_id: str) -> None:
        self.request_id = request_id
        super().__init__(
            f"request id '{request_id}' was used to mount {backup_id}",
            kind=Kind.INVALID_ARGUMENT,
            reason="REQUEST_ID_REUSED",
            help="Make up a new request id for each mount.",
            metadata={"backup_id": backup_id},
        )


class InvalidPath(SendenseError):
    """A path in a request is malformed."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(
            f"path '{path}': {problem}",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_PATH",
            help=r"Paths are absolute, such as /var/www; bytes that are no UTF-8 are written \xNN, a backslash \\.",
            metadata={"path": path},
        )


class PathOutsideMount(SendenseError):
    """A path in a request leads above the guest's root."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"path '{path}' leads out of the mount",
            kind=Kind.INVALID_ARGUMENT,
            reason="PATH_OUTSIDE_MOUNT",
            help="Paths start at the guest's root, which '..' cannot leave.",
            metadata={"path": path},
        )


class FileMissing(SendenseError):
    """The restore point has no such file."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"there is no {path} in the restore point",
            kind=Kind.NOT_FOUND,
            reason="FILE_NOT_FOUND",
            help="List the directory above it.",
            metadata={"path": path},
        )


class NotADirectory(SendenseError):
    """A directory is wanted where something else is."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is no directory",
            kind=Kind.INVALID_ARGUMENT,
            reason="NOT_A_DIRECTORY",
            help="List the directory above it, or download it.",
            metadata={"path": path},
        )


class NotAFile(SendenseError):
    """Only regular files and directories have content that can be downloaded."""

    def __init__(self, path: str, kind_of_file: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is a {kind_of_file}, which has no content to download",
            kind=Kind.INVALID_ARGUMENT,
            reason="NOT_A_FILE",
            help="A download of the directory above it holds it too, as tar.",
            metadata={"path": path},
        )


class UnknownArchive(SendenseError):
    """A directory cannot be sent in that form."""

    def __init__(self, archive: str, known: Sequence[str]) -> None:
        self.archive = archive
        super().__init__(
            f"'{archive}' is no form of archive",
            kind=Kind.INVALID_ARGUMENT,
            reason="UNKNOWN_ARCHIVE",
            help=f"Use one of {', '.join(known)}.",
        )


class FileUnreadable(SendenseError):
    """The guest's file system does not give the file: it is damaged, or its storage was lost."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(
            f"{path} cannot be read: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="FILE_UNREADABLE",
            help="Try another restore point; the guest's file system may have been damaged in this one.",
            metadata={"path": path},
        )


class InvalidPageToken(SendenseError):
    """The page token is not one that this directory's listing gave."""

    def __init__(self) -> None:
        super().__init__(
            "page_token is not from a listing of this directory",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_PAGE_TOKEN",
            help="Leave it empty for the first page.",
        )
