"""What can go wrong when a disk's bytes are read from the datastore's folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

from sendense_lab import faults
from sendense_lab.folder import ByteRange, Extent, FolderError
from sendense_lab.lab import Lab
from sendense_lab.sessions import Sessions

_ReadFault = TypeVar("_ReadFault", bound=faults.OfRead)


@dataclass(frozen=True)
class Spoiled:
    """How an answer differs from a good one.

    Attributes:
        missing: Bytes that it holds too few, and says so.
        sent: Bytes of the body after which the connection is cut; None for all.
    """

    missing: int = 0
    sent: int | None = None


class ReadFaults:
    """Asks the fault board about every read."""

    def __init__(self, lab: Lab, sessions: Sessions) -> None:
        self._lab = lab
        self._sessions = sessions

    def knows_ranges(self, extent: Extent) -> bool:
        """Whether the folder looks at Range at all."""
        return self._take(faults.ReadNoRange, extent, ByteRange(0, 1)) is None

    def require_readable(self, extent: Extent) -> None:
        """Raises unless the host lets the extent be read.

        Raises:
            FolderError: The VM runs, and the host was told to refuse then.
        """
        if extent.vm.power_state == "poweredOn":
            refused = self._take(faults.ReadRefused, extent, ByteRange(0, 1))
            if refused:
                raise FolderError(refused.status, "The host does not let the extent of a running VM be read")

    def spoil(self, extent: Extent, wanted: ByteRange) -> Spoiled:
        """Takes its time, and says how the answer to a read is to be spoiled.

        Raises:
            FolderError: It is not answered with bytes.
        """
        slow = self._take(faults.ReadSlow, extent, wanted)
        if slow:
            time.sleep(slow.ms / 1000 + (wanted.length / slow.bytes_per_second if slow.bytes_per_second else 0))
        if self._take(faults.ReadSessionExpired, extent, wanted):
            self._sessions.close_all()
            raise FolderError(401, "Log in first")
        error = self._take(faults.ReadError, extent, wanted)
        if error:
            raise FolderError(error.status, "The lab was told to fail here")
        cut = self._take(faults.ReadCut, extent, wanted)
        if cut:
            return Spoiled(sent=cut.sent)
        short = self._take(faults.ReadShort, extent, wanted)
        return Spoiled(missing=min(short.missing, wanted.length - 1)) if short else Spoiled()

    def count(self, extent: Extent, length: int) -> None:
        """Notes that bytes of a disk were sent."""
        self._lab.faults.count_bytes(extent.vm.instance_uuid, extent.disk, length)

    def _take(self, kind: type[_ReadFault], extent: Extent, wanted: ByteRange) -> _ReadFault | None:
        def fits(fault: _ReadFault) -> bool:
            return fault.offset is None or wanted.start <= fault.offset < wanted.start + wanted.length

        return self._lab.faults.take(kind, vm=extent.vm.instance_uuid, disk=extent.disk, fits=fits)
