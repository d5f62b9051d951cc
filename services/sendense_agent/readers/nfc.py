"""The reader `nfc`: nbdkit's nfc plugin, an open implementation of VMware's NFC protocol (docs/adr, readers).

It takes the vddk plugin's parameters without library and transports. It was never run by us against a real host, so it
is used only where an administrator asks for it.
"""

from __future__ import annotations

from sendense_agent.readers.description import LARGEST_REQUEST, ReaderKind

NFC = ReaderKind(
    name="nfc",
    plugin="nfc",
    parameters={
        "server": "{host}",
        "port": "{port}",
        "user": "{username}",
        "thumbprint": "{thumbprint}",
        "vm": "moref={vm}",
        "snapshot": "{snapshot}",
        "file": "{file}",
        # Several connections that only read a frozen disk need no flush to agree.
        "multi-conn-mode": "unsafe",
        "maxdata": str(LARGEST_REQUEST),
    },
    secrets={"password": "{password}"},
    filters=("multi-conn", "blocksize"),
    installed="name=nfc",
    automatic=False,
    connections=2,
    depth=4,
)
"""The kind; plugin and the number of connections are settings."""
