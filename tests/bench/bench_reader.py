"""A slow reader with the copy engine against nbdcopy on the same one: each request takes 5 ms, one a connection.

That is how the reader `https` behaves over a network: nbdkit's curl plugin has one request in flight on each connection
and does not say that several may be opened, so nbdcopy opens one. Here nbdkit's own filters do the same to a file.
"""

from __future__ import annotations

from copy_servers import CopyServers, copy_servers
from figures import GIB, MIB, Goal, Row, in_turns, ratios, run_script

from sendense_agent.readers.https import HTTPS
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import CopyOptions
from sendense_blockio.extents import Extent

SIZE = 96 * MIB
RUNS = 3
FILTERS = ("--filter=multi-conn", "--filter=noparallel", "--filter=delay")
BEHAVIOUR = ("multi-conn-mode=disable", "serialize=requests", "rdelay=5ms")
NBDCOPY = "nbdcopy as it is ← reader, 5 ms a request"
ENGINE = "engine ← reader, 5 ms a request"


def rows() -> list[Row]:
    """Measures all figures."""
    with copy_servers(SIZE) as servers:
        return _measure(servers)


def _measure(servers: CopyServers) -> list[Row]:
    reader = servers.directory / "reader.sock"
    servers.run(
        ["nbdkit", "-f", "-r", "-U", str(reader), *FILTERS, "file", str(servers.directory / "source"), *BEHAVIOUR], {}
    )
    servers.await_socket(reader)
    options = CopyOptions(connections=HTTPS.connections, depth=HTTPS.depth)
    times = in_turns(
        {
            NBDCOPY: lambda: servers.nbdcopy("stock", source=reader),
            ENGINE: lambda: servers.engine(options, [Extent(0, SIZE)], source=Endpoint.unix(reader)),
        },
        RUNS,
    )
    return [
        *(Row.of(name, [SIZE / GIB / each for each in taken], unit="GiB/s") for name, taken in times.items()),
        Row.of(
            "reader like https, 5 ms a request",
            ratios(times[NBDCOPY], times[ENGINE]),
            goal=Goal(10, 20),
            against=NBDCOPY,
            way=ENGINE,
        ),
    ]


if __name__ == "__main__":
    run_script(__doc__, rows)
