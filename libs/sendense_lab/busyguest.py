"""A guest that goes on writing by itself, so that a capture has to do with a disk that does not hold still."""

from __future__ import annotations

import random
import threading

import structlog

from sendense_lab import guest
from sendense_lab.errors import InvalidRequestError, LabError
from sendense_lab.machine import Machine

log = structlog.get_logger(__name__)


class BusyGuests:
    """The VMs whose guests write by themselves; a restart of the lab ends that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: dict[Machine, _Writer] = {}

    def start(self, machine: Machine, *, seed: int, length: int, pause: float) -> None:
        """Lets a guest write.

        Args:
            machine: The VM.
            seed: Of places and bytes.
            length: Most bytes of one write.
            pause: Seconds between two writes.

        Raises:
            InvalidRequestError: It does so already, or the arguments make no sense.
        """
        if length < 1 or pause < 0:
            raise InvalidRequestError("A guest writes at least one byte, and cannot pause for less than nothing")
        with self._lock:
            if machine in self._writers:
                raise InvalidRequestError(f"The guest of {machine.record.name} is busy already")
            self._writers[machine] = writer = _Writer(machine, seed, length, pause)
            writer.thread.start()

    def stop(self, machine: Machine) -> int:
        """Lets a guest rest again; returns how many writes it did, 0 when it did rest."""
        with self._lock:
            writer = self._writers.pop(machine, None)
        return writer.end() if writer else 0

    def stop_all(self) -> None:
        """Lets all guests rest."""
        for machine in list(self._writers):
            self.stop(machine)


class _Writer:
    def __init__(self, machine: Machine, seed: int, length: int, pause: float) -> None:
        self._machine = machine
        self._random = random.Random(seed)
        self._length = length
        self._pause = pause
        self._stop = threading.Event()
        self._writes = 0
        self.thread = threading.Thread(target=self._run, name=f"busy-{machine.record.moref}", daemon=True)

    def end(self) -> int:
        self._stop.set()
        self.thread.join()
        return self._writes

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                self._write()
            except LabError as err:  # it is off, or the disk has just been removed: later, then
                log.debug("the busy guest could not write", vm=self._machine.record.name, error=err.message)
            except OSError as err:
                log.warning("the busy guest stops", vm=self._machine.record.name, error=str(err))
                return

    def _write(self) -> None:
        blank = [disk for disk in self._machine.record.disks if disk.filesystem is None]
        if not blank:
            return
        disk = self._random.choice(blank)
        length = self._random.randint(1, min(self._length, disk.capacity))
        offset = self._random.randrange(disk.capacity - length + 1)
        guest.write_bytes(self._machine, disk.uuid, offset, None, self._random.getrandbits(32), length)
        self._writes += 1
