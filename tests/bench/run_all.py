"""Runs every `bench_*.py` on two cores, prints one table, and writes `build/bench/results.json` and `figures.svg`.

`make bench` calls it. What a benchmark prints goes to `build/bench/<subject>.log`. One that fails or takes too long is
named below the table and does not keep the others from running; the exit status is then 1. Below the table stands each
goal with its floor, met or missed; for a missed one, what the cores did meanwhile (`sampling`).
"""

# ruff: noqa: T201 - a benchmark prints

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from figures import Row, decode, encode, goals, table
from sampling import Interval, Profile
from svg_plot import plot

HERE = Path(__file__).resolve().parent
CORES = 2
ALL_SECONDS = 600.0
"""What all together may take."""
FIRST = ("machine", "engine", "tunnel", "whole", "reader", "depth", "exports", "cli", "restore", "repository", "api")
"""What the others are compared with comes first; on a slow machine the last ones may find no time."""
LAST = ("clusters",)
"""What has no goal: an ADR was written with it."""
ONE_SECONDS = 200.0
"""What one benchmark may take."""
END_SECONDS = 15.0
LEAST_SECONDS = 10.0
"""With less time left a benchmark is not begun."""


def main() -> int:
    """Runs what is asked for and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="subjects, such as `engine`; all when left out")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "bench")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, _idlest_cores(CORES))
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    load = os.getloadavg()[0]
    measured: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    causes: dict[str, list[str]] = {}
    subjects = sorted(script.stem.removeprefix("bench_") for script in HERE.glob("bench_*.py"))
    for subject in sorted(subjects, key=_turn):
        if arguments.only and subject not in arguments.only:
            continue
        left = ALL_SECONDS - (time.monotonic() - began)
        since = time.monotonic()
        if left < LEAST_SECONDS:
            failed[subject] = f"no time left of {ALL_SECONDS:.0f} s"
            continue
        profile = Profile(arguments.out / f"{subject}.perf")
        try:
            with profile.watching(sorted(os.sched_getaffinity(0))):
                rows, intervals = _run(HERE / f"bench_{subject}.py", arguments.out / f"{subject}.json", left)
            measured[subject] = rows
            for row in rows:
                if row.goal is not None and row.goal.judge(row.median) == "missed":
                    causes[row.name] = profile.top(intervals.get(row.way, []))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            failed[subject] = str(error)
        finally:
            profile.close()
        print(f"{subject}: {time.monotonic() - since:.0f} s{' (failed)' * (subject in failed)}", flush=True)
    everything = [row for part in measured.values() for row in part]
    cores = len(os.sched_getaffinity(0))
    title = f"Sendense on {cores} cores of {platform.machine()}, {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    print(f"\n{title}, {time.monotonic() - began:.0f} s, load {load:.1f} before\n{table(everything)}")
    print(f"\nGoals\n{goals(everything)}")
    told: dict[str, str] = {}
    for name, lines in causes.items():
        text = "\n".join(f"  {line}" for line in lines) or "  nothing is known"
        print(f"\nmissed: {name}; where the cores' time went meanwhile:")
        print(f"  the same runs as of: {told[text]}" if text in told else text)
        told.setdefault(text, name)
    for subject, why in failed.items():
        print(f"\nno figures of {subject}: {why}{_last_words(arguments.out / f'{subject}.log')}")
    document = {
        "title": title,
        "kernel": platform.release(),
        "cores": cores,
        "load_before": load,
        "failed": failed,
        "missed": causes,
        "rows": {subject: encode(part) for subject, part in measured.items()},
    }
    (arguments.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (arguments.out / "figures.svg").write_text(plot(everything, title))
    print(f"\nwritten: {arguments.out}/results.json, figures.svg")
    return 1 if failed else 0


def _turn(subject: str) -> tuple[int, str]:
    """Says when a benchmark's turn is: as in FIRST, then by name, those in LAST at the end."""
    if subject in FIRST:
        return FIRST.index(subject), subject
    return len(FIRST) + (subject in LAST), subject


def _last_words(log: Path) -> str:
    """Returns the last line that a benchmark printed."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    words = [line.strip() for line in lines if line.strip()]
    return f" ({words[-1][:200]})" if words else ""


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


def _run(script: Path, result: Path, left: float) -> tuple[list[Row], dict[str, list[Interval]]]:
    """Runs one benchmark in a session of its own, which is ended whole when it takes too long.

    Raises:
        subprocess.SubprocessError: It failed or took too long.
        OSError: It wrote no result.
        ValueError: It wrote another one.
    """
    result.unlink(missing_ok=True)
    command = [sys.executable, str(script), "--json", str(result)]
    with result.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=HERE.parents[1], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(min(left, ONE_SECONDS))
        except subprocess.TimeoutExpired:
            _end(process)
            raise
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)
    said = json.loads(result.read_text())
    return decode(said["rows"]), said["intervals"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Lets a benchmark remove its servers and files, then ends what is left of its session."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
