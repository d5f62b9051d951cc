"""What is known of the soundness of layers and restore points, as plain values.

A check counts for a layer or points file exactly as it was when it was read: it is bound to the digest of the sidecar
or of the points file. A layer that was merged since has another digest, and is unverified again. A restore point is
only as sound as every layer that it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

IntegrityState = Literal["unverified", "verified", "corrupt"]

MAX_SHOWN_DAMAGES = 100


@dataclass(frozen=True, slots=True)
class Damage:
    """One range that is not as it was written; see the protos' `Damage`.

    Attributes:
        backup_id: The restore point that holds the file.
        layer_id: The layer, empty for a points file.
        disk_id: Number of the disk, -1 for a points file.
        part: What is damaged, such as `data` or `L2 table`.
        file: Below the repository's root.
        file_offset: First bad byte of the file; -1 when only the range of the disk is known.
        file_length: Bytes of the file.
        offset: First byte of the disk that cannot be trusted.
        length: Bytes of the disk; 0 when what is read does not change.
        finding: In words.
    """

    backup_id: str
    layer_id: str
    disk_id: int
    part: str
    file: str
    file_offset: int
    file_length: int
    offset: int
    length: int
    finding: str

    def as_json(self) -> dict[str, Any]:
        """Returns it for the catalogue."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.length} bytes of the disk at {self.offset}" if self.length else "no byte of the disk"
        place = f", {self.file_length} bytes of the file at {self.file_offset}" if self.file_offset >= 0 else ""
        return f"{self.part} of {self.file} ({where}{place}): {self.finding}"


@dataclass(frozen=True, slots=True)
class Check:
    """What reading a layer or points file back found.

    Attributes:
        subject_id: The layer's id, or the backup's for a points file.
        repository_id: Where it lies.
        digest: Of the sidecar or points file as the catalogue had it then.
        checked_at: When the reading ended.
        damages: What was found, empty when it is sound.
    """

    subject_id: str
    repository_id: str
    digest: str
    checked_at: datetime
    damages: Sequence[Damage]


@dataclass(frozen=True, slots=True)
class Integrity:
    """What is known of a restore point; `suspicion` says why it may be wrong although its bytes are as written."""

    state: IntegrityState
    checked_at: datetime | None
    damages: Sequence[Damage]
    suspicion: str = ""


def judge(needed: Mapping[str, str], checks: Iterable[Check]) -> Integrity:
    """Judges a restore point.

    Args:
        needed: For each layer of the point's chains, and for the point itself, its digest now.
        checks: What is known, also of other things.
    """
    known = {check.subject_id: check for check in checks if needed.get(check.subject_id) == check.digest}
    damages = [damage for check in known.values() for damage in check.damages]
    complete = len(known) == len(needed)
    oldest = min((check.checked_at for check in known.values()), default=None) if complete else None
    if damages:
        return Integrity("corrupt", oldest, damages)
    return Integrity("verified" if complete else "unverified", oldest, ())
