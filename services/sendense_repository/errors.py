"""What the repository refuses, each with the facts that tell the caller what to do next.

Over 400 lines: every refusal of the service stands in this one list.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from sendense_blockio.errors import CopyError
from sendense_qemu.errors import QemuImgError, StorageDaemonError
from sendense_rpc.errors import Kind, SendenseError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_SPACE_TEXT = "No space left on device"


class RepositoryNotFound(SendenseError):
    """No repository has that id or name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"there is no repository '{name}'; known are: {', '.join(known) or 'none'}",
            kind=Kind.NOT_FOUND,
            reason="REPOSITORY_NOT_FOUND",
            help="Use one of the known names, or register the repository first.",
            metadata={"repository": name, "known": ",".join(known)},
        )


class RepositoryExists(SendenseError):
    """The name, the directory or the repository in it is registered already."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(
            f"{what} is already registered as repository '{name}'",
            kind=Kind.ALREADY_EXISTS,
            reason="REPOSITORY_EXISTS",
            help=f"Use repository '{name}', or choose another name and directory.",
            metadata={"repository": name},
        )


class RepositoryUnusable(SendenseError):
    """The root is not what it must be; nothing was written to it."""

    def __init__(self, root: Path, finding: str, *, help: str = "") -> None:  # noqa: A002
        super().__init__(
            f"the repository at {root} cannot be used: {finding}",
            kind=Kind.FAILED_PRECONDITION,
            reason="REPOSITORY_UNUSABLE",
            help=help or "Check that the file system is mounted and writable for Sendense.",
            metadata={"path": str(root), "finding": finding},
        )
        self.root = root
        self.finding = finding


class RepositoryDisabled(SendenseError):
    """The repository takes no new backups."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"repository '{name}' is disabled",
            kind=Kind.FAILED_PRECONDITION,
            reason="REPOSITORY_DISABLED",
            help="Enable it, or choose another repository.",
            metadata={"repository": name},
        )


class NoRoom(SendenseError):
    """What would be written does not fit, or the file system ran full; nothing committed was changed.

    Args:
        root: The repository's root.
        needed_bytes: What is needed, with what running jobs may still write and the reserve.
        free_bytes: What is free.
    """

    def __init__(self, root: Path, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"no room in {root}: {needed_bytes} bytes are needed (the reserve included), {free_bytes} are free",
            kind=Kind.FAILED_PRECONDITION,
            reason="NO_ROOM",
            help="Delete restore points, or use another repository.",
            metadata={"path": str(root), "needed_bytes": str(needed_bytes), "free_bytes": str(free_bytes)},
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class StaleAttempt(SendenseError):
    """A newer execution of the job has taken over; this one must end without undoing anything."""

    def __init__(self, job_id: str, attempt: int, latest: int) -> None:
        super().__init__(
            f"attempt {attempt} of {job_id} was overtaken by attempt {latest}",
            kind=Kind.ABORTED,
            reason="STALE_ATTEMPT",
            help="Stop this execution; undo nothing, for the newer one uses it.",
            metadata={"job_id": job_id, "attempt": str(attempt), "latest_attempt": str(latest)},
        )


class InvalidValue(SendenseError):
    """A value of the request cannot be used."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(
            f"{field}: {problem}",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            help="See the API reference for what the field must look like.",
            metadata={"field": field},
        )


class LayerNotFound(SendenseError):
    """No such layer, or it was removed."""

    def __init__(self, layer_id: str) -> None:
        super().__init__(
            f"there is no layer {layer_id}",
            kind=Kind.NOT_FOUND,
            reason="LAYER_NOT_FOUND",
            help="Create the layer again.",
            metadata={"layer_id": layer_id},
        )


class _LayerRefused(SendenseError):
    """Base of refusals that name one layer."""

    def __init__(
        self,
        layer_id: str,
        message: str,
        reason: str,
        help: str,  # noqa: A002
        *,
        retryable: bool = False,
        **metadata: str,
    ) -> None:
        super().__init__(
            f"layer {layer_id}: {message}",
            kind=Kind.FAILED_PRECONDITION,
            reason=reason,
            help=help,
            retryable=retryable,
            metadata={"layer_id": layer_id, **metadata},
        )
        self.layer_id = layer_id


class ForeignLayer(_LayerRefused):
    """The layer belongs to another job."""

    def __init__(self, layer_id: str, owner: str, job_id: str) -> None:
        super().__init__(
            layer_id, f"it belongs to {owner}, not to {job_id}", "FOREIGN_LAYER", "Name an own layer.", owner=owner
        )


class LayerMismatch(_LayerRefused):
    """The job has a layer for this disk already, made for something else."""

    def __init__(self, layer_id: str, field: str, has: object, wanted: object) -> None:
        super().__init__(
            layer_id,
            f"it was made with {field} {has!r}, now {wanted!r} is wanted",
            "LAYER_MISMATCH",
            "Discard the layer and create it again.",
            field=field,
        )


class StaleParent(SendenseError):
    """The named parent is not the disk's layer in the VM's latest restore point: an increment on it would be wrong."""

    def __init__(self, disk_identity: str, parent_layer_id: str, latest_layer_id: str | None) -> None:
        super().__init__(
            f"layer {parent_layer_id or '(none)'} is not the latest restore point's layer of disk '{disk_identity}'"
            f" (that is {latest_layer_id or 'none'})",
            kind=Kind.FAILED_PRECONDITION,
            reason="STALE_PARENT",
            help="Ask for the latest restore point and plan the disk again.",
            metadata={"parent_layer_id": parent_layer_id, "latest_layer_id": latest_layer_id or ""},
        )


class SizeChanged(_LayerRefused):
    """The disk has another size than its parent layer."""

    def __init__(self, layer_id: str, parent_bytes: int, wanted_bytes: int) -> None:
        super().__init__(
            layer_id,
            f"its disk had {parent_bytes} bytes and has {wanted_bytes} now",
            "DISK_RESIZED",
            "Back this disk up fully.",
            parent_bytes=str(parent_bytes),
            wanted_bytes=str(wanted_bytes),
        )


class AreasFixed(_LayerRefused):
    """Other areas were fixed for the layer before."""

    def __init__(self, layer_id: str, fixed: str, wanted: str) -> None:
        super().__init__(
            layer_id,
            "other areas are fixed for it",
            "AREAS_FIXED",
            "Go on with the fixed areas, or discard the layer.",
            fixed_digest=fixed,
            wanted_digest=wanted,
        )


class AreasNotSet(_LayerRefused):
    """The layer has no areas yet."""

    def __init__(self, layer_id: str) -> None:
        super().__init__(layer_id, "its areas are not fixed yet", "AREAS_NOT_SET", "Call SetAreas first.")


class LayerNotSealed(_LayerRefused):
    """The layer is not sealed."""

    def __init__(self, layer_id: str) -> None:
        super().__init__(layer_id, "it is not sealed", "LAYER_NOT_SEALED", "Seal it first.")


class LayerSealed(_LayerRefused):
    """The layer is sealed: it is never changed again."""

    def __init__(self, layer_id: str) -> None:
        super().__init__(layer_id, "it is sealed", "LAYER_SEALED", "Nothing can be added to it.")


class LayerBusy(_LayerRefused):
    """Another process has the layer open."""

    def __init__(self, layer_id: str, by: str = "a qemu process") -> None:
        super().__init__(
            layer_id, f"{by} has it open", "LAYER_BUSY", "Remove its export, then try again.", retryable=True
        )


class LayerInUse(_LayerRefused):
    """A restore point holds the layer."""

    def __init__(self, layer_id: str, backup_id: str) -> None:
        super().__init__(
            layer_id,
            f"restore point {backup_id} holds it",
            "LAYER_IN_USE",
            "Delete the restore point instead.",
            backup_id=backup_id,
        )


class LayerDamaged(_LayerRefused):
    """The layer's file is not what it must be; it is never used."""

    def __init__(self, layer_id: str, finding: str) -> None:
        super().__init__(
            layer_id,
            f"damaged: {finding}",
            "LAYER_DAMAGED",
            "Discard it and back the disk up fully.",
            finding=finding,
        )
        self.finding = finding


class LayerPoisoned(_LayerRefused):
    """A write or fsync of the layer failed once; a later success would prove nothing."""

    def __init__(self, layer_id: str, finding: str) -> None:
        super().__init__(
            layer_id,
            f"unusable for good: {finding}",
            "LAYER_POISONED",
            "Discard it and start again.",
            finding=finding,
        )


class MergeFailed(_LayerRefused):
    """The layers below could not be merged into the layer; nothing was changed."""

    def __init__(self, layer_id: str, finding: str) -> None:
        super().__init__(
            layer_id,
            f"the layers below could not be merged into it: {finding}",
            "MERGE_FAILED",
            "Try again; if it goes on failing, verify the restore point, or delete with `cascade`.",
            retryable=True,
            finding=finding,
        )


class JournalIncomplete(_LayerRefused):
    """The journal does not cover the areas exactly."""

    def __init__(self, layer_id: str, missing_bytes: int, surplus_bytes: int, first_offset: int) -> None:
        super().__init__(
            layer_id,
            f"its journal lacks {missing_bytes} bytes and has {surplus_bytes} too many, first at {first_offset}",
            "JOURNAL_INCOMPLETE",
            "Copy the remaining areas, then seal again.",
            missing_bytes=str(missing_bytes),
            surplus_bytes=str(surplus_bytes),
            first_offset=str(first_offset),
        )


class JournalRefused(_LayerRefused):
    """A batch does not fit the journal: wrong number, damaged entries, or bytes outside of the areas."""

    def __init__(self, layer_id: str, finding: str, last_sequence: int) -> None:
        super().__init__(
            layer_id,
            f"the batch was refused: {finding}",
            "JOURNAL_REFUSED",
            "Ask for the remaining areas and copy them with `last_sequence + 1`.",
            last_sequence=str(last_sequence),
        )


class PointNotFound(SendenseError):
    """No committed restore point."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"there is no restore point {what}",
            kind=Kind.NOT_FOUND,
            reason="POINT_NOT_FOUND",
            help="List the VM's backups.",
            metadata={"point": what},
        )


class PointConflict(SendenseError):
    """A restore point of that name exists with other content."""

    def __init__(self, backup_id: str, finding: str) -> None:
        super().__init__(
            f"restore point {backup_id} cannot be committed: {finding}",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_CONFLICT",
            help="Use a new backup id.",
            metadata={"backup_id": backup_id, "finding": finding},
        )


class OperationNotFound(SendenseError):
    """No operation of that id since the service started."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"there is no operation {operation_id}",
            kind=Kind.NOT_FOUND,
            reason="OPERATION_NOT_FOUND",
            help="Start it again: what was done stays done.",
            metadata={"operation_id": operation_id},
        )


class OperationConflict(SendenseError):
    """An operation of that id runs and does something else."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"operation {operation_id} runs already, with other points",
            kind=Kind.FAILED_PRECONDITION,
            reason="OPERATION_CONFLICT",
            help="Use another job id.",
            metadata={"operation_id": operation_id},
        )


class OperationStopped(SendenseError):
    """The service ended while the operation ran; nothing was changed, or it is finished at the next start."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"operation {operation_id} was stopped with the service",
            kind=Kind.UNAVAILABLE,
            reason="OPERATION_STOPPED",
            help="Start it again under the same id.",
            retryable=True,
            metadata={"operation_id": operation_id},
        )


class PointLeased(SendenseError):
    """Somebody reads the restore point, or a running backup builds on it."""

    def __init__(self, backup_id: str, holders: Sequence[str]) -> None:
        super().__init__(
            f"restore point {backup_id} is in use by {', '.join(holders)}",
            kind=Kind.FAILED_PRECONDITION,
            reason="POINT_LEASED",
            help="Unmount it or wait for the holder to end, then try again.",
            retryable=True,
            metadata={"backup_id": backup_id, "holders": ",".join(holders)},
        )
        self.holders = tuple(holders)


def is_no_space(error: BaseException | None) -> bool:
    """Tells whether an error, or one that caused it, says that the file system is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError | CopyError) and error.errno in _NO_SPACE:
            return True
        if isinstance(error, QemuImgError) and _NO_SPACE_TEXT in error.stderr:
            return True
        if isinstance(error, StorageDaemonError) and _NO_SPACE_TEXT in error.detail:
            return True
        error = error.__cause__ or error.__context__
    return False
