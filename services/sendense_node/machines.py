"""A node over several machines: which processes run here, where the others are, and what a new machine is given.

Each machine runs `sendense-node up` with three settings: its processes, its address, and the others' addresses with
their processes. Each service that can be called from elsewhere has one port, the same on every machine.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from sendense_access.keys import WORKLOADS
from sendense_node.config import NodeSettings
from sendense_rpc.machine_certificates import make_certificate

PORTS = {
    "access": 7441,
    "backup": 7442,
    "repository": 7443,
    "exports": 7444,
    "restore": 7445,
    "tunnel": 7446,
}
DOWNLOADS_PORT = 7447


class MachineNotReady(Exception):
    """This machine cannot run what it is told to; the message says what is missing and where it comes from."""


def machine_environment(settings: NodeSettings) -> dict[str, str]:
    """Returns what the processes of this machine are told about it and the others; nothing when it is the only one.

    A variable that is set already stays.
    """
    if not settings.address:
        return {}
    host = f"[{settings.address}]" if ":" in settings.address else settings.address
    told = {"SENDENSE_MTLS_DIR": str(settings.machine_certificate.absolute())}
    for service, port in PORTS.items():
        if settings.runs(service):
            told[f"SENDENSE_{service.upper()}_RPC_LISTEN"] = f"{host}:{port}"
    if settings.runs("restore"):
        told["SENDENSE_RESTORE_HTTP_LISTEN"] = f"{host}:{DOWNLOADS_PORT}"
    told["SENDENSE_PEERS"] = json.dumps(peers_of(settings))
    return {name: value for name, value in told.items() if name not in os.environ}


def peers_of(settings: NodeSettings) -> dict[str, str]:
    """Returns `address:port` of each service that runs on another machine."""
    peers: dict[str, str] = {}
    for address, services in settings.others.items():
        host = f"[{address}]" if ":" in address else address
        for service in services.split():
            if service in PORTS:
                peers[service] = f"{host}:{PORTS[service]}"
            if service == "restore":
                peers["restore-http"] = f"{host}:{DOWNLOADS_PORT}"
    return peers


def require_machine(settings: NodeSettings) -> None:
    """Makes or checks what this machine proves itself with.

    Raises:
        MachineNotReady: It was not given its certificate or its processes' identities.
    """
    certificate = settings.machine_certificate
    has_peers = settings.address and any(settings.runs(service) for service in PORTS)
    if has_peers and not (certificate / "node.crt").exists():
        if not settings.runs("access"):
            raise MachineNotReady(f"there is no {certificate / 'node.crt'}: {_HOW}")
        make_certificate(settings.machine_ca, certificate, [settings.address])
    if has_peers and settings.others and not settings.database_url:
        raise MachineNotReady("several machines share a PostgreSQL: set SENDENSE_DATABASE_URL, the same on each")
    for service in PORTS:
        if settings.runs(service) and not settings.identity_file(service).exists():
            raise MachineNotReady(f"there is no {settings.identity_file(service)}: {_HOW}")


_HOW = "make it with `sendense-node machine` where the access service runs, and copy it into $SENDENSE_HOME here"


def make_machine(settings: NodeSettings, names: list[str], services: list[str], out: Path) -> None:
    """Writes what a new machine is given: its certificate, and the identities of its processes; never the signing key.

    Args:
        settings: Of the machine where the access service runs.
        names: The new machine's addresses and host names, the address that the others use first.
        services: Its processes.
        out: Directory to be copied into its `SENDENSE_HOME`.

    Raises:
        MachineNotReady: The access service has never run here.
    """
    made = [service for service in services if service in WORKLOADS]
    missing = [service for service in made if not settings.identity_file(service).exists()]
    if missing:
        raise MachineNotReady(f"there are no identities in {settings.identity_file(missing[0]).parent}: start it first")
    make_certificate(settings.machine_ca, out / "mtls", names)
    identities = out / "keys" / "identities"
    identities.mkdir(parents=True, exist_ok=True, mode=0o700)
    for service in made:
        shutil.copy(settings.identity_file(service), identities)
