"""The copy engine with hashing and journal against nbdcopy, and what hashing, scatter and cutting requests cost.

Data lies in /dev/shm and its pages are resident before the first measured run, so what is measured is the copying.
All ratios are of pairs of one round.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from unittest import mock

from copy_servers import CopyServers, copy_servers
from figures import GIB, MIB, Goal, Row, in_turns, ratios, run_script

from sendense_agent.plan import make_plan
from sendense_blockio import lane
from sendense_blockio.engine import CopyOptions
from sendense_blockio.extents import Extent, total

SIZE = GIB
RUNS = 5
CLUSTER = 64 * 1024

STOCK = "nbdcopy as it is → stock daemon"
BEST = "nbdcopy at its best → tuned daemon"
ENGINE = "engine → tuned daemon"
CONVERT = "qemu-img convert → tuned daemon"
NO_HASH = "engine without BLAKE3 → tuned daemon"
SCATTER = "increment: 5 % in 64K pieces at random places"
RUNS_OF_1M = "increment: 5 % in runs of 1M"
NOTHING = "increment of nothing (engine alone)"


class _NoHash:
    """Stands in for BLAKE3 to see what hashing costs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def digest(self) -> bytes:
        return bytes(32)


def scatter(size: int, share: float, run: int) -> list[Extent]:
    """Returns changed areas of `run` bytes at random places, a share of the disk in all."""
    places = random.Random(5).sample(range(size // run), int(size * share) // run)
    return [Extent(place * run, run) for place in sorted(places)]


def rows() -> list[Row]:
    """Measures all figures."""
    with copy_servers(SIZE) as servers:
        return _measure(servers)


def _measure(servers: CopyServers) -> list[Row]:
    options = CopyOptions()
    whole = [Extent(0, SIZE)]
    changed = {SCATTER: scatter(SIZE, 0.05, CLUSTER), RUNS_OF_1M: scatter(SIZE, 0.05, MIB)}
    plans = {name: list(make_plan(areas, CLUSTER, SIZE).areas) for name, areas in changed.items()}

    def without_hash() -> None:
        with mock.patch.object(lane, "blake3", _NoHash):
            servers.engine(options, whole)

    times, cpu = _in_turns(
        servers,
        {
            STOCK: lambda: servers.nbdcopy("stock"),
            BEST: lambda: servers.nbdcopy("tuned", "-C2", f"--request-size={MIB}", f"--queue-size={4 * MIB}"),
            CONVERT: servers.qemu_img,
            ENGINE: lambda: servers.engine(options, whole),
            NO_HASH: without_hash,
            SCATTER: lambda: servers.engine(options, plans[SCATTER]),
            RUNS_OF_1M: lambda: servers.engine(options, plans[RUNS_OF_1M]),
            NOTHING: lambda: servers.engine(options, []),
        },
    )
    measured = [
        Row.of(name, [SIZE / GIB / each for each in times[name]], unit="GiB/s")
        for name in (STOCK, BEST, CONVERT, ENGINE, NO_HASH)
    ]
    measured += [
        Row.of(f"processor time a GiB: {name}", [each * GIB / SIZE for each in cpu[name]], unit="s")
        for name in (STOCK, BEST, CONVERT, ENGINE)
    ]
    measured += [
        Row.of(f"processor time: {name} ÷ engine", ratios(cpu[name], cpu[ENGINE]), against=name)
        for name in (STOCK, BEST)
    ]
    measured += [
        Row.of(
            "engine with hashing and journal",
            ratios(times[STOCK], times[ENGINE]),
            goal=Goal(2.0, 2.6),
            against=STOCK,
            way=ENGINE,
        ),
        Row.of(
            "engine with hashing and journal, same tuned servers",
            ratios(times[BEST], times[ENGINE]),
            goal=Goal(1.05, 1.35),
            against=BEST,
            way=ENGINE,
        ),
        Row.of(
            "co-located full (engine, in memory)",
            [SIZE / GIB / each for each in times[ENGINE]],
            unit="GiB/s",
            goal=Goal(2.5, 3.2),
            way=ENGINE,
        ),
        Row.of(
            "cost of BLAKE3",
            [100 * (1 - plain / hashed) for plain, hashed in zip(times[NO_HASH], times[ENGINE], strict=True)],
            unit="%",
            goal=Goal(20, 12, "lower"),
            against=NO_HASH,
            way=ENGINE,
        ),
    ]
    for name, areas in changed.items():
        expected = [each * total(areas) / SIZE for each in times[ENGINE]]
        measured.append(
            Row.of(
                name,
                ratios(times[name], expected),
                goal=Goal(1.7, 1.2, "lower") if name == SCATTER else None,
                against="changed bytes ÷ the full's rate",
                way=name,
            )
        )
    measured.append(Row.of(NOTHING, [1000 * each for each in times[NOTHING]], unit="ms"))
    return measured


def _in_turns(
    servers: CopyServers, ways: dict[str, Callable[[], None]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Runs all ways in turns.

    Returns:
        Seconds, and processor seconds of all processes together, which a busy neighbour changes less.
    """
    cpu: dict[str, list[float]] = {name: [] for name in ways}

    def counted(name: str, work: Callable[[], None]) -> None:
        before = servers.cpu_seconds()
        work()
        cpu[name].append(servers.cpu_seconds() - before)

    times = in_turns({name: functools.partial(counted, name, work) for name, work in ways.items()}, RUNS)
    return times, {name: each[1:] for name, each in cpu.items()}


if __name__ == "__main__":
    run_script(__doc__, rows)
