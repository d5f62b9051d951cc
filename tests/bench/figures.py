"""The one shape of every benchmark's figures, how they are sampled, and how a script prints them.

A benchmark is a script `tests/bench/bench_<subject>.py` with a function `rows() -> list[Row]`, which ends with

    if __name__ == "__main__":
        run_script(__doc__, rows)

`make bench` finds it by its name, gives it two cores (as taskset does: all that it starts inherits them) and at most
200 s of the ten minutes that all may take, and puts its rows into one table, `build/bench/results.json` and
`build/bench/figures.svg`. Alone: `.venv/bin/python tests/bench/bench_<subject>.py [--json FILE]`. It asserts nothing.

    in_turns({"ours": f, "theirs": g}, runs=5)      seconds of each by name; each is run once before, uncounted
    Row.of("name", [ratio, ...], unit="×", goal=Goal(2.0, 2.6), against="stock nbdcopy")      median and spread
"""

# ruff: noqa: T201 - a benchmark prints

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

MIB = 1 << 20
GIB = 1 << 30
INTERVALS: dict[str, list[tuple[float, float]]] = {}
"""When each way of `in_turns` ran, on the monotonic clock: a missed floor's profile is of these runs only."""
TUNED = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}
"""The environment that `sendense_qemu.storage_daemon` gives to the daemon."""


@dataclass(frozen=True)
class Goal:
    """What a figure should reach, from the goals table (docs/performance.md).

    Attributes:
        floor: What it must reach.
        wanted: What it should reach.
        better: Whether higher or lower figures are better.
    """

    floor: float
    wanted: float | None = None
    better: Literal["higher", "lower"] = "higher"

    def judge(self, figure: float) -> Literal["wanted", "floor", "missed"]:
        """Says which of the two a figure reaches."""

        def reaches(mark: float) -> bool:
            return figure >= mark if self.better == "higher" else figure <= mark

        if self.wanted is not None and reaches(self.wanted):
            return "wanted"
        return "floor" if reaches(self.floor) else "missed"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: What was done.
        median: Median of the samples.
        spread: Half the distance between the quartiles: half of all samples lie within median ± spread.
        unit: `×` for a ratio, else `s`, `ms`, `GiB/s`, `MiB`, `%`.
        samples: How many.
        goal: What it should reach, if it has a goal.
        against: What a ratio compares with, measured in the same run.
        way: Which way of `in_turns` it is about; empty for the whole benchmark.
    """

    name: str
    median: float
    spread: float
    unit: str
    samples: int
    goal: Goal | None = None
    against: str = ""
    way: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        samples: Sequence[float],
        *,
        unit: str = "×",
        goal: Goal | None = None,
        against: str = "",
        way: str = "",
    ) -> Row:
        """Returns the row of some samples (at least one)."""
        spread = 0.0
        if len(samples) > 1:
            low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
            spread = (high - low) / 2
        return cls(name, statistics.median(samples), spread, unit, len(samples), goal, against, way)


def seconds(work: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def in_turns(ways: Mapping[str, Callable[[], object]], runs: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Runs all ways one after the other, all over again in each round: a busy neighbour hits all alike.

    Args:
        ways: What to do, by name.
        runs: Rounds that count.
        warm_up: Whether each way is done once before, uncounted.

    Returns:
        Seconds by name, one for each round.
    """
    if warm_up:
        for work in ways.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, work in ways.items():
            began = time.monotonic()
            work()
            INTERVALS.setdefault(name, []).append((began, time.monotonic()))
            times[name].append(INTERVALS[name][-1][1] - began)
    return times


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Returns the ratio of each pair of one round."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """Returns rows as aligned text."""
    lines = [f"{'figure':58} {'median':>9} {'±':>7} {'unit':6} {'floor':>7} {'wanted':>7} {'reached':8} against"]
    for row in rows:
        goal = row.goal
        sign = "" if goal is None else ("≥" if goal.better == "higher" else "≤")
        floor = "" if goal is None else f"{sign}{goal.floor:g}"
        wanted = "" if goal is None or goal.wanted is None else f"{sign}{goal.wanted:g}"
        reached = "" if goal is None else goal.judge(row.median)
        lines.append(
            f"{row.name:58} {_short(row.median):>9} {_short(row.spread):>7} {row.unit:6} {floor:>7} {wanted:>7}"
            f" {reached:8} {row.against}".rstrip()
        )
    return "\n".join(lines)


def goals(rows: Sequence[Row]) -> str:
    """Returns the rows that have a goal: floor, figure, and whether it was met."""
    lines = []
    for row in rows:
        if row.goal is not None:
            sign = "≥" if row.goal.better == "higher" else "≤"
            verdict = {"wanted": "met, as wanted", "floor": "met", "missed": "MISSED"}[row.goal.judge(row.median)]
            figure = f"{_short(row.median)} {row.unit}"
            lines.append(f"{row.name:62} floor {sign}{row.goal.floor:<7g} figure {figure:14} {verdict}")
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def encode(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Returns rows for JSON."""
    return [asdict(row) for row in rows]


def decode(documents: Sequence[Mapping[str, object]]) -> list[Row]:
    """Returns rows from JSON."""
    rows = []
    for document in documents:
        values = dict(document)
        goal = values.pop("goal")
        rows.append(Row(goal=Goal(**goal) if isinstance(goal, dict) else None, **values))  # type: ignore[arg-type]
    return rows


def run_script(description: str | None, rows: Callable[[], list[Row]]) -> None:
    """Measures, prints the table, and writes the rows as JSON where `--json` says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    arguments = parser.parse_args()
    measured = rows()
    print(table(measured), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": encode(measured), "intervals": INTERVALS}, indent=1))
