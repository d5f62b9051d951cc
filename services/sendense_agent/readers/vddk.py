"""The reader `vddk`: nbdkit's vddk plugin, where VMware's VixDiskLib (VDDK) is installed.

Reads any snapshot's disk, deltas, vSAN, vVol and encrypted ones too. What always holds (cbt-facts 13): snapshot and
transports are given, never guessed; the password is in a file; the server is pinned by the SHA-1 of its certificate,
which the agent takes from a connection that the real pin has vouched for; no request is longer than 2 MiB; each NBD
connection is one handle, and so one NFC session at the host.
"""

from __future__ import annotations

from sendense_agent.readers.description import LARGEST_REQUEST, ReaderKind

VDDK = ReaderKind(
    name="vddk",
    plugin="vddk",
    parameters={
        "libdir": "{libdir}",
        "server": "{host}",
        "port": "{port}",
        "user": "{username}",
        "thumbprint": "{thumbprint}",
        "vm": "moref={vm}",
        "snapshot": "{snapshot}",
        "transports": "{transports}",
        "file": "{file}",
        # Several connections that only read a frozen disk need no flush to agree.
        "multi-conn-mode": "unsafe",
        "maxdata": str(LARGEST_REQUEST),
    },
    secrets={"password": "{password}"},
    filters=("multi-conn", "blocksize"),
    options={"libdir": "", "transports": "nbdssl:nbd"},
    installed="vddk_library_version=",
    for_running_vms=True,
    # Reads of one handle are asynchronous: a second connection costs an NFC session and gains less than depth does.
    connections=2,
    depth=4,
)
"""The kind; plugin, libdir, transports and the number of connections are settings."""
