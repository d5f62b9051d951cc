"""A program that copies a disk and keeps its journal: a fresh process for each line of its input, killed when asked.

Input: one JSON object a line (`source`, `target`, `export`, `journal`, `size`, `batch_bytes`, and `kill_after`: seconds
after which the process gets SIGKILL, or null). Output: its exit status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import CopyOptions, copy
from sendense_blockio.extents import Extent, subtract
from sendense_blockio.journal import JournalWriter, entry_extents, read_journal


def move(order: dict[str, object]) -> None:
    """Copies what the journal lacks."""
    journal_path = Path(str(order["journal"]))
    whole = [Extent(0, int(str(order["size"])))]
    with JournalWriter.open(journal_path) as journal:
        copy(
            Endpoint.unix(Path(str(order["source"]))),
            Endpoint.unix(Path(str(order["target"])), str(order["export"])),
            subtract(whole, entry_extents(read_journal(journal_path).entries)),
            CopyOptions(chunk_size=64 << 10, batch_bytes=int(str(order["batch_bytes"])), source_holes=False),
            lambda batch: journal.append_batch(batch.sequence, batch.entries) and None,
            first_sequence=journal.next_sequence,
        )


def main() -> None:
    """Forks a mover for each line."""
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            move(order)
            os._exit(0)
        if order["kill_after"] is not None:
            handle = os.pidfd_open(pid)
            if not select.select([handle], [], [], order["kill_after"])[0]:
                os.kill(pid, signal.SIGKILL)  # not yet reaped: the id is still this process's
            os.close(handle)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
