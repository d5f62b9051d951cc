"""Commands about what the guest of a VM does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sendense_lab import guest, guestchanges
from sendense_lab.commanded import Arguments, Command
from sendense_lab.content import MIB
from sendense_lab.errors import NotFoundError
from sendense_lab.lab import Lab


class GuestCommands:
    """`guest/…`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def commands(self) -> dict[str, Command]:
        """Returns the commands by their names."""
        return {
            "guest/write": self.write,
            "guest/put": self.put,
            "guest/rm": self.rm,
            "guest/cat": self.cat,
            "guest/run": self.run,
            "guest/start-writing": self.start_writing,
            "guest/stop-writing": self.stop_writing,
        }

    def write(self, arguments: Arguments) -> Any:
        """Writes a byte range of a disk."""
        machine = self._lab.find(arguments["vm"])
        written = guest.write_bytes(
            machine,
            arguments["disk"],
            int(arguments["offset"]),
            _local(arguments["file"]) if arguments.get("file") else None,
            int(arguments.get("seed") or 0),
            int(arguments.get("length") or 0),
            zero=bool(arguments.get("zero")),
        )
        return {"vm": machine.record.moref, "disk": arguments["disk"], "bytes": written}

    def put(self, arguments: Arguments) -> Any:
        """Puts a file into the guest."""
        machine = self._lab.find(arguments["vm"])
        return {"path": arguments["path"], "bytes": guest.put(machine, _local(arguments["local"]), arguments["path"])}

    def rm(self, arguments: Arguments) -> Any:
        """Removes a file or directory of the guest."""
        count = guest.remove(self._lab.find(arguments["vm"]), arguments["path"])
        return {"path": arguments["path"], "files": count}

    def cat(self, arguments: Arguments) -> Any:
        """Copies a file of the guest to `output`."""
        count = guest.read(self._lab.find(arguments["vm"]), arguments["path"], Path(arguments["output"]))
        return {"path": arguments["path"], "bytes": count}

    def run(self, arguments: Arguments) -> Any:
        """Random changes."""
        machine = self._lab.find(arguments["vm"])
        changes = guestchanges.run_changes(machine, float(arguments["share"]), int(arguments.get("seed") or 0))
        return {
            "vm": machine.record.moref,
            "files_changed": changes.files_changed,
            "bytes_changed": changes.bytes_changed,
            "file_bytes": changes.file_bytes,
            "share": changes.bytes_changed / max(changes.file_bytes, 1),
            "operations": changes.operations,
        }

    def start_writing(self, arguments: Arguments) -> Any:
        """Lets the guest write by itself from now on, on its blank disks."""
        machine = self._lab.find(arguments["vm"])
        self._lab.busy.start(
            machine,
            seed=int(arguments.get("seed") or 0),
            length=int(arguments.get("length") or MIB),
            pause=float(arguments.get("pause_ms") or 0) / 1000,
        )
        return {"vm": machine.record.moref, "writing": True}

    def stop_writing(self, arguments: Arguments) -> Any:
        """Lets the guest rest again."""
        machine = self._lab.find(arguments["vm"])
        return {"vm": machine.record.moref, "writing": False, "writes": self._lab.busy.stop(machine)}


def _local(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}")
    return path
