"""Where the time of a part went: `perf` samples the cores meanwhile, and a missed floor's own runs are reported.

Without perf (not installed, or not allowed) the processor time by program is what is told.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SAMPLES_A_SECOND = 199
STOP_SECONDS = 20.0
REPORT_SECONDS = 30.0
LINES = 10
_LOOK_SECONDS = 0.5

Interval = tuple[float, float]
"""Start and end of a run, on CLOCK_MONOTONIC."""


class Profile:
    """Samples while it is `watching`; asked afterwards.

    Args:
        data: Where perf writes; removed by `close`.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._shares: Counter[str] = Counter()

    @contextmanager
    def watching(self, cores: Sequence[int]) -> Iterator[None]:
        """Samples these cores until the block ends."""
        perf = self._start_perf(cores)
        ended = threading.Event()
        counting = threading.Thread(target=self._count, args=(ended,), daemon=True)
        counting.start()
        try:
            yield
        finally:
            ended.set()
            counting.join()
            if perf is not None:
                perf.send_signal(signal.SIGINT)
                try:
                    perf.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    perf.kill()
                    perf.wait()

    def _start_perf(self, cores: Sequence[int]) -> subprocess.Popen[bytes] | None:
        if shutil.which("perf") is None:
            return None
        watched = ",".join(map(str, cores))
        command = ["perf", "record", "-q", "-a", "-C", watched, "-F", str(SAMPLES_A_SECOND), "-e", "cpu-clock"]
        command += ["-k", "CLOCK_MONOTONIC", "-o", str(self._data)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _count(self, ended: threading.Event) -> None:
        """Adds up the processor time of each program, for a machine without perf."""
        before = _ticks()
        while not ended.wait(_LOOK_SECONDS):
            now = _ticks()
            for pid, (program, ticks) in now.items():
                known = before.get(pid)
                self._shares[program] += ticks - (known[1] if known is not None else 0)
            before = now

    def top(self, intervals: Sequence[Interval]) -> list[str]:
        """Returns the costliest lines of some runs; of all, when none are given."""
        return self._perf_lines(intervals) or self._programs()

    def _perf_lines(self, intervals: Sequence[Interval]) -> list[str]:
        programs = self._report(intervals, "comm")
        if not programs:
            return []
        return [f"by program: {', '.join(programs[:6])}", *self._report(intervals, "comm,sym")[:LINES]]

    def _report(self, intervals: Sequence[Interval], sort: str) -> list[str]:
        if not self._data.exists():
            return []
        command = ["perf", "report", "-i", str(self._data), "--stdio", "--sort", sort, "--percent-limit", "1"]
        if intervals:
            command += ["--time", " ".join(f"{began:.6f},{ended:.6f}" for began, ended in intervals)]
        try:
            said = subprocess.run(command, capture_output=True, timeout=REPORT_SECONDS, check=True, text=True).stdout
        except (OSError, subprocess.SubprocessError):
            return []
        lines = [" ".join(line.split()) for line in said.splitlines() if line.strip() and not line.startswith("#")]
        return [line for line in lines if "swapper" not in line]

    def _programs(self) -> list[str]:
        total = sum(self._shares.values()) or 1
        most = [(ticks, name) for name, ticks in self._shares.most_common(LINES) if ticks > 0]
        return [f"{100 * ticks / total:5.1f}% {name} (processor time; no perf here)" for ticks, name in most]

    def close(self) -> None:
        """Removes the samples."""
        for path in (self._data, self._data.with_name(self._data.name + ".old")):
            path.unlink(missing_ok=True)


def _ticks() -> dict[int, tuple[str, int]]:
    """Returns program and processor time so far, in clock ticks, of every process."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        try:
            name, _, rest = Path(entry.path, "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended
        fields = rest.split()
        found[int(entry.name)] = (name, int(fields[11]) + int(fields[12]))
    return found
