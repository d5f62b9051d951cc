"""What belongs to the whole lab, saved as `lab.json`."""

from __future__ import annotations

from pydantic import Field

from sendense_lab.faults import AnyFault
from sendense_lab.records import DATASTORE, HOST, Place, Record


class ActiveFault(Record):
    """A fault that was asked for."""

    id: int
    fault: AnyFault
    seen: int = 0
    """Occasions so far."""
    spoiled: int = 0
    """Occasions on which it happened."""
    sent: int = 0
    """Bytes of disks in its scope that were read since it was set, where it waits for some."""
    last: str = ""
    """What it did last, for people."""

    @property
    def spent(self) -> bool:
        """Whether it has happened as often as it should."""
        return self.fault.times is not None and self.spoiled >= self.fault.times


class LabRecord(Record):
    """The lab's identity and what it was told."""

    instance_uuid: str
    port: int = 0
    next_id: int = 1000
    folders: dict[str, str] = Field(default_factory=dict)
    """Folders below the datacenter's VM folder: name to managed object id."""
    hosts: tuple[Place, ...] = (HOST,)
    datastores: tuple[Place, ...] = (DATASTORE,)
    attributes: tuple[str, ...] = ()
    """Names of custom attributes, in the order of their keys."""
    faults: tuple[ActiveFault, ...] = ()
    faults_made: int = 0
