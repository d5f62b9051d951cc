"""Every way in which the lab can be told to misbehave: one class a kind, its fields are what can be chosen.

`fault kinds` shows these docstrings, so they are written for the person who rehearses.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter

from sendense_lab.records import Record


class Fault(Record):
    """What all kinds have in common."""

    vm: str | None = None
    """Instance uuid of the one VM it is about; None for all."""
    disk: str | None = None
    """uuid of the one disk it is about; None for all."""
    after: int = Field(default=0, ge=0)
    """How many occasions pass unharmed first."""
    times: int | None = Field(default=None, ge=1)
    """How many occasions it spoils then; None until it is cleared."""


class Once(Fault):
    """A fault that happens once unless it is told otherwise."""

    times: int | None = Field(default=1, ge=1)


class OfMethod(Once):
    """A fault of the API; an occasion is a call of the method."""

    method: str = "*"
    """wsdl name of the method, as CreateSnapshot_Task; `*` and `?` stand for others. Property reads are `Fetch`."""

    def fits(self, method: str) -> bool:
        """Whether it is about this method."""
        return fnmatchcase(method, self.method)


class ApiError(OfMethod):
    """The call fails with a fault of the API, as NoPermission or HostCommunication, and nothing is done."""

    kind: Literal["api-error"] = "api-error"
    error: str = "HostCommunication"


class ApiSessionExpired(OfMethod):
    """The session of the call is closed, and the call fails with NotAuthenticated."""

    kind: Literal["api-session-expired"] = "api-session-expired"


class ApiDrop(OfMethod):
    """The connection is cut and nothing is done."""

    kind: Literal["api-drop"] = "api-drop"


class ApiDropAnswer(OfMethod):
    """The call is carried out, but the connection is cut before the answer."""

    kind: Literal["api-drop-answer"] = "api-drop-answer"


class ApiHttp(OfMethod):
    """The call is answered with an HTTP error that is no fault of the API, as a proxy would."""

    kind: Literal["api-http"] = "api-http"
    status: int = Field(default=503, ge=400, le=599)


class ApiDelay(OfMethod):
    """The call takes longer."""

    kind: Literal["api-delay"] = "api-delay"
    times: int | None = Field(default=None, ge=1)
    ms: int = Field(default=1000, ge=0)


class TaskError(OfMethod):
    """The task that the call starts fails, and nothing is done."""

    kind: Literal["task-error"] = "task-error"
    error: str = "GenericVmConfigFault"


class TaskDelay(OfMethod):
    """The task that the call starts takes longer."""

    kind: Literal["task-delay"] = "task-delay"
    times: int | None = Field(default=None, ge=1)
    ms: int = Field(default=1000, ge=0)


class SnapshotCreate(Once):
    """A snapshot cannot be created."""

    kind: Literal["snapshot-create"] = "snapshot-create"
    error: str = "SnapshotFault"


class SnapshotRemove(Fault):
    """A snapshot cannot be removed, and stays."""

    kind: Literal["snapshot-remove"] = "snapshot-remove"
    error: str = "FileLocked"


class Consolidation(Fault):
    """A snapshot is removed but its files cannot be merged: consolidationNeeded, and consolidating fails."""

    kind: Literal["consolidation"] = "consolidation"
    error: str = "FileLocked"


class Quiesce(Fault):
    """The guest cannot be quiesced: creating a quiesced snapshot fails."""

    kind: Literal["quiesce"] = "quiesce"
    error: str = "ApplicationQuiesceFault"


class CbtPageAreas(Fault):
    """An answer of QueryChangedDiskAreas holds few areas."""

    kind: Literal["cbt-page-areas"] = "cbt-page-areas"
    areas: int = Field(ge=1)


class CbtEmptyId(Once):
    """A disk has no change id in the next snapshot; an occasion is a disk in a snapshot."""

    kind: Literal["cbt-empty-id"] = "cbt-empty-id"


class CbtError(Once):
    """QueryChangedDiskAreas fails; `query` chooses between changed areas and allocated ones (`*`)."""

    kind: Literal["cbt-error"] = "cbt-error"
    error: str = "FileFault"
    query: Literal["any", "changed", "allocated"] = "any"


class CbtLie(Fault):
    """QueryChangedDiskAreas leaves out changed blocks: the same ones for as long as the changes are the same.

    `blocks` says how many blocks of 64 KiB are left out, all within one area; 0 leaves the whole area out. `seed`
    chooses which. `fault list` shows what the last lie hid.
    """

    kind: Literal["cbt-lie"] = "cbt-lie"
    blocks: int = Field(default=1, ge=0)
    seed: int = 0


class CbtZeroLength(Once):
    """An answer of QueryChangedDiskAreas describes no byte: whoever trusts it asks for ever."""

    kind: Literal["cbt-zero-length"] = "cbt-zero-length"


class CbtWrongStart(Once):
    """An answer of QueryChangedDiskAreas begins 64 KiB behind what was asked."""

    kind: Literal["cbt-wrong-start"] = "cbt-wrong-start"


class CbtPastEnd(Once):
    """An answer of QueryChangedDiskAreas goes 64 KiB further than the disk."""

    kind: Literal["cbt-past-end"] = "cbt-past-end"


class OfRead(Once):
    """A fault of the datastore's folder; an occasion is a GET of a disk's bytes that fits."""

    offset: int | None = Field(default=None, ge=0)
    """Only requests that want this byte of the disk."""
    after_bytes: int = Field(default=0, ge=0)
    """Only once so many bytes of the disk (or of all) were sent."""


class ReadError(OfRead):
    """The host answers with an HTTP error."""

    kind: Literal["read-error"] = "read-error"
    status: int = Field(default=500, ge=400, le=599)


class ReadCut(OfRead):
    """The connection is cut after `sent` bytes of the body."""

    kind: Literal["read-cut"] = "read-cut"
    sent: int = Field(default=1000, ge=0)


class ReadShort(OfRead):
    """The answer is complete HTTP, but holds `missing` bytes less than was asked for."""

    kind: Literal["read-short"] = "read-short"
    missing: int = Field(default=512, ge=1)


class ReadSessionExpired(OfRead):
    """All sessions are closed; the request is answered with 401."""

    kind: Literal["read-session-expired"] = "read-session-expired"


class ReadSlow(OfRead):
    """Reads are slow: `ms` for each request, and no more than `bytes_per_second` for each connection."""

    kind: Literal["read-slow"] = "read-slow"
    times: int | None = Field(default=None, ge=1)
    ms: int = Field(default=0, ge=0)
    bytes_per_second: int | None = Field(default=None, ge=1)


class ReadNoRange(OfRead):
    """The folder knows no Range: each answer is the whole file, as a host's own folder is said to do."""

    kind: Literal["read-no-range"] = "read-no-range"
    times: int | None = Field(default=None, ge=1)


class ReadRefused(OfRead):
    """The host does not let a running VM's extent be read, snapshot or not."""

    kind: Literal["read-refused"] = "read-refused"
    times: int | None = Field(default=None, ge=1)
    status: int = Field(default=500, ge=400, le=599)


class DatastoreFree(Fault):
    """The datastore has so many bytes left; with 0 no snapshot of a VM with a disk there can be created."""

    kind: Literal["datastore-free"] = "datastore-free"
    bytes: int = Field(ge=0)
    datastore: str = "*"
    """Name of the datastore; `*` for all."""

    def fits(self, datastore: str) -> bool:
        """Whether it is about this datastore."""
        return fnmatchcase(datastore, self.datastore)


AnyFault = Annotated[
    ApiError
    | ApiSessionExpired
    | ApiDrop
    | ApiDropAnswer
    | ApiHttp
    | ApiDelay
    | TaskError
    | TaskDelay
    | SnapshotCreate
    | SnapshotRemove
    | Consolidation
    | Quiesce
    | CbtPageAreas
    | CbtEmptyId
    | CbtError
    | CbtLie
    | CbtZeroLength
    | CbtWrongStart
    | CbtPastEnd
    | ReadError
    | ReadCut
    | ReadShort
    | ReadSessionExpired
    | ReadSlow
    | ReadNoRange
    | ReadRefused
    | DatastoreFree,
    Field(discriminator="kind"),
]
ADAPTER: TypeAdapter[AnyFault] = TypeAdapter(AnyFault)
KINDS: dict[str, type[Fault]] = {
    str(kind.model_fields["kind"].default): kind for kind in get_args(get_args(AnyFault)[0])
}
