"""All that readers may need to know of a snapshot's disk and of the server that has it."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

from sendense_agent.accounts import Account
from sendense_agent.certificate import CONNECT_SECONDS, Pin
from sendense_agent.errors import VCenterCertificateRefused, VCenterUnavailable
from sendense_agent.inventory import datacenter_path, find_vm
from sendense_agent.model import Disk, VmRef
from sendense_agent.properties import moref_of, read_some
from sendense_agent.snapshots import snapshot_disk

_FILE_NAME = re.compile(r"\[(?P<datastore>[^\]]+)\] (?P<path>.+)\.vmdk")


@dataclass(frozen=True)
class Place:
    """A snapshot's disk in its vCenter.

    Attributes:
        disk: The disk, as the snapshot froze it.
        vm_moref: The VM.
        vm_uuid: Its instance uuid.
        vm_name: Its name.
        running: Whether it is powered on.
        snapshot_moref: The snapshot.
        datacenter: Path of the VM's datacenter.
        storage: Kind of the disk's datastore, such as `VMFS`, `vsan` or `VVOL`; empty when unknown.
        encrypted: Whether the disk's file holds ciphertext.
    """

    disk: Disk
    vm_moref: str
    vm_uuid: str
    vm_name: str
    running: bool
    snapshot_moref: str
    datacenter: str
    storage: str = ""
    encrypted: bool = False


@dataclass(frozen=True)
class DiskSource:
    """A snapshot's disk, and how to log in to the server that has it.

    Attributes:
        place: The disk.
        host: vCenter's address.
        port: TCP port.
        username: The account.
        password: Its password.
        pin: The certificate that is trusted.
        thumbprint: SHA-1 of the certificate that the server shows, `AA:BB:…`, as VMware's library wants it.
    """

    place: Place
    host: str
    port: int
    username: str
    password: str = field(repr=False)
    pin: Pin = field(repr=False)
    thumbprint: str = ""

    @property
    def disk(self) -> Disk:
        """The disk."""
        return self.place.disk

    @property
    def flat_extent(self) -> str:
        """Path and query of the disk's flat extent in the datastore's folder; empty when its backing is no VMDK."""
        match = _FILE_NAME.fullmatch(self.disk.file_name)
        if match is None:
            return ""
        query = urllib.parse.urlencode(
            {"dcPath": self.place.datacenter, "dsName": match["datastore"]}, quote_via=urllib.parse.quote
        )
        return f"/folder/{urllib.parse.quote(match['path'] + '-flat.vmdk')}?{query}"

    def facts(self) -> dict[str, str]:
        """Returns what the templates of a reader's parameters may name."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {
            "host": self.host,
            "port": str(self.port),
            "username": self.username,
            "password": self.password,
            "certificate": self.pin.pem,
            "thumbprint": self.thumbprint,
            "vm": self.place.vm_moref,
            "snapshot": self.place.snapshot_moref,
            "file": self.disk.file_name,
            "extent_url": f"https://{host}:{self.port}{self.flat_extent}",
        }


def find_place(service: Any, ref: VmRef, snapshot_moref: str, device_key: int) -> Place:
    """Returns where a snapshot's disk is.

    Raises:
        VmNotFound: The VM is gone.
        SnapshotNotFound: The snapshot is gone.
        DiskNotFound: It has no such disk.
    """
    disk = snapshot_disk(service, snapshot_moref, device_key)
    vm = find_vm(service, ref)
    facts = read_some(service, [vm], ("name", "runtime.powerState", "config.keyId")).get(moref_of(vm), {})
    storage = ""
    if disk.datastore_moref:
        datastore = vim.Datastore(disk.datastore_moref, service._stub)  # noqa: SLF001  # how pyVmomi makes objects
        storage = (
            read_some(service, [datastore], ("summary.type",)).get(disk.datastore_moref, {}).get("summary.type", "")
        )
    return Place(
        disk=disk,
        vm_moref=moref_of(vm),
        vm_uuid=ref.vm_uuid,
        vm_name=str(facts.get("name", "")),
        running=facts.get("runtime.powerState") == "poweredOn",
        snapshot_moref=snapshot_moref,
        datacenter=datacenter_path(service, vm),
        storage=str(storage),
        encrypted=facts.get("config.keyId") is not None,
    )


def source_of(account: Account, pin: Pin, place: Place) -> DiskSource:
    """Returns a disk with how to log in; shakes hands with the server once, for its thumbprint. Blocking.

    Raises:
        VCenterFileInvalid: The password cannot be read.
        VCenterCertificateRefused: The server shows another certificate than the pinned one.
        VCenterUnavailable: It cannot be reached.
    """
    return DiskSource(
        place=place,
        host=account.host,
        port=account.port,
        username=account.username,
        password=account.read_password(),
        pin=pin,
        thumbprint=thumbprint(account, pin),
    )


def thumbprint(account: Account, pin: Pin) -> str:
    """Returns the SHA-1 of the certificate that the server shows, once the pinned one has vouched for it.

    VMware's library pins by SHA-1 and nothing else; here the same certificate has passed the pin before.

    Raises:
        VCenterCertificateRefused: The server shows another certificate than the pinned one.
        VCenterUnavailable: It cannot be reached.
    """
    try:
        with (
            socket.create_connection((account.host, account.port), timeout=CONNECT_SECONDS) as plain,
            pin.context().wrap_socket(plain, server_hostname=account.host) as secured,
        ):
            certificate = secured.getpeercert(binary_form=True) or b""
    except ssl.SSLCertVerificationError as error:
        raise VCenterCertificateRefused(account.name, error.verify_message) from error
    except OSError as error:
        raise VCenterUnavailable(account.name, str(error)) from error
    return hashlib.sha1(certificate, usedforsecurity=False).digest().hex(":").upper()
