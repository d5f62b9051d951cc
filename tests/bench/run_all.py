"""Runs every `bench_*.py` on two cores, prints one table, and writes `build/bench/results.json` and `figures.svg`.

`make bench` calls it. What a benchmark prints goes to `build/bench/<subject>.log`. One that fails or takes too long is
named below the table and does not keep the others from running; the exit status is then 1.
"""

# ruff: noqa: T201 - a benchmark prints

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from figures import Row, decode, encode, table
from svg_plot import plot

HERE = Path(__file__).resolve().parent
CORES = 2
ALL_SECONDS = 600.0
"""What all together may take."""
FIRST = ("machine", "engine", "tunnel")
"""What the others are compared with comes first; on a slow machine the last ones may find no time."""
ONE_SECONDS = 240.0
"""What one benchmark may take."""


def main() -> int:
    """Runs what is asked for and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="subjects, such as `engine`; all when left out")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "bench")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, _idlest_cores(CORES))
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    measured: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    subjects = sorted(script.stem.removeprefix("bench_") for script in HERE.glob("bench_*.py"))
    for subject in sorted(subjects, key=lambda each: FIRST.index(each) if each in FIRST else len(FIRST)):
        script = HERE / f"bench_{subject}.py"
        if arguments.only and subject not in arguments.only:
            continue
        left = ALL_SECONDS - (time.monotonic() - began)
        since = time.monotonic()
        try:
            measured[subject] = _run(script, arguments.out / f"{subject}.json", min(left, ONE_SECONDS))
        except (subprocess.SubprocessError, FileNotFoundError) as error:
            failed[subject] = str(error)
        print(f"{subject}: {time.monotonic() - since:.0f} s", flush=True)
    rows = [row for part in measured.values() for row in part]
    cores = len(os.sched_getaffinity(0))
    title = f"Sendense on {cores} cores of {platform.machine()}, {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    print(f"\n{title}, {time.monotonic() - began:.0f} s\n{table(rows)}")
    for subject, why in failed.items():
        print(f"no figures of {subject}: {why}")
    document = {
        "title": title,
        "kernel": platform.release(),
        "cores": cores,
        "load_before": os.getloadavg()[0],
        "failed": failed,
        "rows": {subject: encode(part) for subject, part in measured.items()},
    }
    (arguments.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (arguments.out / "figures.svg").write_text(plot(rows, title))
    print(f"written: {arguments.out}/results.json, figures.svg")
    return 1 if failed else 0


def _idlest_cores(count: int) -> set[int]:
    """Returns the allowed cores that were busy least during half a second."""

    def busy() -> dict[int, int]:
        found = {}
        for line in Path("/proc/stat").read_text().splitlines():
            name, *ticks = line.split()
            if name.startswith("cpu") and name != "cpu":
                found[int(name[3:])] = sum(map(int, ticks[:3]))
        return found

    before = busy()
    time.sleep(0.5)
    after = busy()
    allowed = sorted(os.sched_getaffinity(0))
    return set(sorted(allowed, key=lambda core: after[core] - before[core])[:count])


def _run(script: Path, result: Path, limit: float) -> list[Row]:
    """Runs one benchmark in a process group of its own, which is ended whole when it takes too long."""
    result.unlink(missing_ok=True)
    command = [sys.executable, str(script), "--json", str(result)]
    with result.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=HERE.parents[1], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)
    return decode(json.loads(result.read_text()))


if __name__ == "__main__":
    sys.exit(main())
