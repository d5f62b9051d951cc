"""The process that runs libguestfs for one mount: boots the micro-VM, mounts its volumes, shows them over FUSE.

`guestfs_backend` starts it as `python -m sendense_restore.guestfs_child` with a request (JSON, on standard input, so
that passphrases are in no argument list) and reads one answer (a line of JSON on standard output); the process then
serves until the FUSE directory is unmounted. A guest's file systems are parsed by the kernel in the micro-VM, and its
answers by this process, which works for this one mount only and holds nothing else.

Request: `images` (disk number and path of the raw image), `volumes` (name, disk, partition, place on the disk,
file_system), `passphrases`, `directory` (the FUSE mount point), `temporary`, `emulate`.
Answer: `mounted` (names), `errors` (name to why not), `made` (volumes made of others), or `failed`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guestfs

from sendense_restore.fuse_server import FuseServer
from sendense_restore.guestfs_blocks import HOLES_ONLY, MAPPED, BlockMaps, Segment
from sendense_restore.guestfs_calls import GuestCalls
from sendense_restore.guestfs_tree import GuestTree, ShownVolume

_WATCH_SECONDS = 0.02
SOCKETS = "sockets"
"""Name of the note about libguestfs' sockets."""
_SOCKET_PREFIX = "/tmp/libguestfs"  # noqa: S108 - it knows no other place for them
_MOST_MADE = 128
_OPTIONS = {"xfs": "ro,nouuid", "btrfs": "ro,subvolid=5"}
_NO_FILES = {
    "LVM2_member": "an LVM physical volume; its logical volumes are volumes of their own",
    "linux_raid_member": "a member of a software RAID; the array is a volume of its own",
    "crypto_LUKS": "encrypted with LUKS",
    "swap": "swap space, which holds no files",
    "BitLocker": "encrypted with BitLocker",
    "": "no file system was recognised",
    "unknown": "no file system was recognised",
}
_ODD = re.compile(r"[^A-Za-z0-9+_.-]+")


class _Appliance:
    """One micro-VM with one mount's disks."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self.guest = guestfs.GuestFS(python_return_dict=True, close_on_exit=False)
        self.guest.set_tmpdir(request["temporary"])
        self.guest.set_backend("direct")
        self.guest.set_backend_settings(["force_tcg"] if request["emulate"] else [])
        self.guest.set_network(False)
        self.mounted: list[str] = []
        self.errors: dict[str, str] = {}
        self.made: list[dict[str, Any]] = []
        self._devices: dict[int, str] = {}
        self._kinds: dict[str, str] = {}

    def boot(self) -> None:
        booted = threading.Event()
        watch = threading.Thread(target=_note_sockets, args=(Path(self._request["temporary"]) / SOCKETS, booted))
        watch.start()
        try:
            self._boot()
        finally:
            booted.set()
            watch.join()

    def _boot(self) -> None:
        for image in self._request["images"]:
            self.guest.add_drive_opts(
                image["path"], format="raw", readonly=False, cachemode="unsafe", discard="disable"
            )
        self.guest.launch()
        found = self.guest.list_devices()
        for image, device in zip(self._request["images"], found, strict=True):
            self._devices[image["disk_id"]] = device

    def mount_all(self) -> None:
        self._unlock()
        self.guest.lvm_scan(activate=True)
        for volume in self._request["volumes"]:
            if volume["error"]:
                continue
            kind = volume["file_system"]
            if kind in _NO_FILES:
                self.errors.setdefault(volume["name"], _NO_FILES[kind])
                continue
            self._mount(volume["name"], self._device_of(volume), kind)
        for name, device in self._devices_made()[:_MOST_MADE]:
            self._mount_made(name, device)

    def _device_of(self, volume: dict[str, Any]) -> str:
        disk = self._devices[volume["disk_id"]]
        return f"{disk}{volume['partition']}" if volume["partition"] else disk

    def _unlock(self) -> None:
        for volume in self._request["volumes"]:
            if volume["file_system"] != "crypto_LUKS" or volume["error"]:
                continue
            device, name = self._device_of(volume), f"luks-{volume['name']}"
            if not self._request["passphrases"]:
                self.errors[volume["name"]] = "encrypted with LUKS, and no passphrase was given"
            elif self._opens(device, name):
                self.errors[volume["name"]] = "encrypted with LUKS, and opened: its content is a volume of its own"
            else:
                self.errors[volume["name"]] = "encrypted with LUKS, and no passphrase given opens it"

    def _opens(self, device: str, name: str) -> bool:
        for passphrase in self._request["passphrases"]:
            try:
                self.guest.cryptsetup_open(device, passphrase, name)
            except RuntimeError:
                continue
            return True
        return False

    def _devices_made(self) -> list[tuple[str, str]]:
        """Names and devices of what is made of other volumes: arrays, unlocked volumes, logical volumes."""
        found = [(f"md-{_plain(device.rpartition('/md')[2])}", device) for device in self.guest.list_md_devices()]
        for device in self.guest.list_dm_devices():
            name = _plain(device.removeprefix("/dev/mapper/"))
            found.append((name if name.startswith("luks-") else f"dm-{name}", device))
        for device in self.guest.lvs():
            _, _, group, volume = device.split("/", 3)
            found.append((f"lv-{_plain(group)}-{_plain(volume)}", device))
        return found

    def _mount_made(self, name: str, device: str) -> None:
        kind = self._ask(self.guest.vfs_type, device)
        self.made.append(
            {
                "name": name,
                "device": device,
                "file_system": kind,
                "label": self._ask(self.guest.vfs_label, device),
                "uuid": self._ask(self.guest.vfs_uuid, device),
                "size_bytes": int(self.guest.blockdev_getsize64(device)),
            }
        )
        if kind in _NO_FILES:
            self.errors[name] = _NO_FILES[kind]
        else:
            self._mount(name, device, kind)

    def _mount(self, name: str, device: str, kind: str) -> None:
        self.guest.mkmountpoint(f"/{name}")
        try:
            self.guest.mount_options(_OPTIONS.get(kind, "ro"), device, f"/{name}")
        except RuntimeError as error:
            self.guest.rmmountpoint(f"/{name}")
            self.errors[name] = str(error)
        else:
            self.mounted.append(name)
            self._kinds[name] = kind

    def tree(self) -> GuestTree:
        """Returns what is mounted, for showing it; to be used in this thread only."""
        self.guest.sync()  # what the journals held is on the disks before these are read past the micro-VM
        images = {image["disk_id"]: os.open(image["path"], os.O_RDONLY) for image in self._request["images"]}
        calls = GuestCalls(self.guest)
        disks = {device.removeprefix("/dev/"): images[disk_id] for disk_id, device in self._devices.items()}
        maps = BlockMaps(calls, disks)
        places = {
            volume["name"]: [Segment(0, volume["size_bytes"], images[volume["disk_id"]], volume["offset_bytes"])]
            for volume in self._request["volumes"]
        }
        devices = {made["name"]: made["device"] for made in self.made}
        shown = []
        for name in self.mounted:
            kind, segments = self._kinds[name], []
            if kind in MAPPED:
                segments = places[name] if name in places else maps.segments_of(devices[name])
            shown.append(ShownVolume(name, segments, tells_holes=kind in MAPPED | HOLES_ONLY))
        return GuestTree(calls, maps, shown)

    def _ask(self, question: Callable[[str], Any], device: str) -> str:
        try:
            return str(question(device))
        except RuntimeError:
            return ""


def _note_sockets(note: Path, booted: threading.Event) -> None:
    """Notes, as soon as it is there, where libguestfs keeps its sockets: after a SIGKILL nobody else knows."""
    while not booted.wait(_WATCH_SECONDS):
        own = set()
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(str(link.readlink()))
        for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines():
            fields = line.split()
            if len(fields) == 8 and fields[7].startswith(_SOCKET_PREFIX) and f"socket:[{fields[6]}]" in own:
                note.write_text(str(Path(fields[7]).parent))
                return


def _plain(name: str) -> str:
    return _ODD.sub("_", name)


def main() -> None:
    """Reads the request, answers it, and serves until the directory is unmounted or the micro-VM ends."""
    request = json.loads(sys.stdin.buffer.read())
    appliance = _Appliance(request)
    server = None
    try:
        appliance.boot()
        appliance.mount_all()
        if appliance.mounted:
            server = FuseServer(appliance.tree(), Path(request["directory"]))
    except (RuntimeError, OSError) as error:
        _answer({"failed": str(error)})
        return
    _answer({"mounted": appliance.mounted, "errors": appliance.errors, "made": appliance.made})
    if server is not None:
        server.serve(os.pidfd_open(appliance.guest.get_pid()))
        server.close()
    appliance.guest.close()


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Nobody listens any more: what libguestfs might print must not fill a pipe.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    main()
