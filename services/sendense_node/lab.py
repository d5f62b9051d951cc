"""Joins the lab's simulated vCenter to this node: its address is chosen before it starts and the agent is told."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sendense_access.keys import write_private
from sendense_lab import credentials

HOST = "127.0.0.1"


def introduce(root: Path) -> int:
    """Writes the lab into `agent/vcenters.json`, beside vCenters that are there already.

    Args:
        root: The state directory.

    Returns:
        The port on which the lab must listen: that of the last run where it is free.
    """
    lab = root / "lab"
    lab.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, _ = credentials.ensure_certificate(lab, HOST)
    port = _free_port(_port_of_last_run(lab))
    account = credentials.save(lab, HOST, port, certificate)
    vcenters_file = root / "agent" / "vcenters.json"
    vcenters: list[dict[str, Any]] = json.loads(vcenters_file.read_text()) if vcenters_file.exists() else []
    others = [vcenter for vcenter in vcenters if vcenter.get("name") != account.name]
    write_private(vcenters_file, json.dumps([*others, asdict(account)], indent=1).encode())
    return port


def _port_of_last_run(lab: Path) -> int:
    path = lab / "credentials.json"
    return int(json.loads(path.read_text())["port"]) if path.exists() else 0


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise OSError(f"no free port on {HOST}")
