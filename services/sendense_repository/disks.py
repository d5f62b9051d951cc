"""Disk numbers: allotted once to each disk identity of a VM and never used again.

They are kept on the storage itself (`{vm-uuid}/disks.json`), so that a rebuilt catalogue has the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sendense_repository import documents, durable
from sendense_repository.documents import DocumentError
from sendense_repository.errors import RepositoryUnusable
from sendense_repository.layout import DISKS_NAME

_KIND = "disks"


def read_numbers(root: Path, vm_uuid: str) -> dict[str, int]:
    """Returns the number of each disk identity of a VM in this repository.

    Raises:
        RepositoryUnusable: The file is damaged: allotting anew could give a number twice.
    """
    try:
        document = documents.read(root / vm_uuid / DISKS_NAME, _KIND)
        return {str(disk["identity"]): int(disk["disk_id"]) for disk in document["disks"]}
    except FileNotFoundError:
        return {}
    except (DocumentError, KeyError, TypeError, ValueError) as error:
        raise RepositoryUnusable(root, f"the disk numbers of {vm_uuid} are damaged: {error}") from error


def allot_number(root: Path, vm_uuid: str, identity: str, known_elsewhere: Mapping[str, int]) -> int:
    """Returns the number of a disk, allotting one durably when it has none. The caller holds the VM's lock.

    Args:
        root: The repository's root.
        vm_uuid: The VM.
        identity: The disk's stable identity.
        known_elsewhere: Numbers that the VM's disks have in other repositories: the same disk gets the same one.
    """
    numbers = read_numbers(root, vm_uuid)
    if identity in numbers:
        return numbers[identity]
    taken = set(numbers.values())
    number = known_elsewhere.get(identity)
    if number is None or number in taken:
        number = max(taken | set(known_elsewhere.values()), default=-1) + 1
    numbers[identity] = number
    disks = [{"disk_id": each, "identity": name} for name, each in sorted(numbers.items(), key=lambda pair: pair[1])]
    content, _ = documents.encode(_KIND, {"vm_uuid": vm_uuid, "disks": disks})
    durable.make_directories(root, root / vm_uuid)
    durable.replace(root / vm_uuid / DISKS_NAME, content)
    return number
