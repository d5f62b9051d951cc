"""The doctor's look at this machine: the token's file and, where a node runs here, its tools, rights and room."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from sendense_ctl.configuration import Configuration
from sendense_ctl.findings import Finding, Level
from sendense_ctl.output import size

_TOOLS = {
    "qemu-img": "no layer can be made or checked",
    "qemu-storage-daemon": "nothing can be backed up or mounted",
    "nbdkit": "this machine's agent can read no disk",
    "envoy": "nobody reaches the services",
}
_OPTIONAL_TOOLS = {
    "guestfish": "LVM, LUKS and other volumes that the kernel back end does not open cannot be browsed",
    "ntfs-3g": "NTFS volumes cannot be browsed by the kernel back end",
}
_LEAST_FREE = 1 << 30
_GROUP_OR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_token_file(settings: Configuration) -> Iterator[Finding]:
    """Looks whether others can read the token."""
    if not settings.token_file.value:
        return
    path = Path(settings.token_file.value)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield Finding(
            "token file",
            "error",
            f"{path}: {error.strerror}",
            cause=f"{settings.token_file.origin} names a file that cannot be read",
            risk="no command that asks the server works",
            command="sendense-ctl config explain",
        )
        return
    if mode & _GROUP_OR_OTHERS:
        yield Finding(
            "token file",
            "warning",
            f"{path} has mode {stat.S_IMODE(mode):04o}",
            cause="it can be read by more users than its owner",
            risk="whoever reads it can do all that you may",
            command=f"chmod 600 {path}",
        )
    else:
        yield Finding("token file", "ok", f"{path}, readable by its owner only")


def check_node(settings: Configuration) -> Iterator[Finding]:
    """Looks at the node of this machine; nothing where none runs."""
    home = Path(settings.home.value)
    if not (home / "endpoint").is_file():
        return
    for tool, risk in (_TOOLS | _OPTIONAL_TOOLS).items():
        yield _tool(tool, risk, optional=tool in _OPTIONAL_TOOLS)
    yield _rights()
    yield from _devices()
    yield _room(home)


def _tool(name: str, risk: str, *, optional: bool) -> Finding:
    # Envoy and our own programs are in the environment's bin, which is not on every user's PATH.
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found:
        return Finding(name, "ok", found)
    level: Level = "warning" if optional else "error"
    return Finding(name, level, "not found", cause="the package is not installed", risk=risk, command="make setup")


def _rights() -> Finding:
    if os.geteuid() == 0:
        return Finding("rights", "ok", "root")
    return Finding(
        "rights",
        "warning",
        f"user id {os.geteuid()}",
        cause="the kernel lets only root mount",
        risk="restore points can be mounted by the guestfs back end only, which is slower",
        command="sudo make up",
    )


def _devices() -> Iterator[Finding]:
    fuse = Path("/dev/fuse")
    if os.access(fuse, os.R_OK | os.W_OK):
        yield Finding("FUSE", "ok", str(fuse))
    else:
        yield Finding(
            "FUSE",
            "warning",
            f"{fuse} is not usable",
            cause="the module is not loaded, or this is a container without the device",
            risk="the kernel back end can mount nothing",
            command="modprobe fuse",
        )
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        yield Finding(
            "KVM",
            "warning",
            "/dev/kvm is not usable",
            cause="no hardware virtualization here, or no right to it",
            risk="guestfs mounts are emulated: 6 to 9 s instead of under one",
            command="ls -l /dev/kvm",
        )


def _room(home: Path) -> Finding:
    free = shutil.disk_usage(home).free
    if free >= _LEAST_FREE:
        return Finding("state directory", "ok", f"{home}: {size(free)} free")
    return Finding(
        "state directory",
        "error",
        f"{home}: {size(free)} free",
        cause="its file system is full",
        risk="catalogue, logs and journals cannot be written: backups fail",
        command=f"du -xh --max-depth=2 {home} | sort -h | tail",
    )
