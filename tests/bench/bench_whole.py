"""The whole system of `whole_system.py` in a size that fits into `make bench`; `make bench-whole` has the full one."""

from __future__ import annotations

import os

from figures import Row, run_script
from whole_system import Sizes, measure

WRITTEN_GIB = int(os.environ.get("SENDENSE_BENCH_WRITTEN_GIB", "2"))
VM_MIB = 256


def rows() -> list[Row]:
    """Measures all figures."""
    return measure(Sizes(data_path="tunnel", written_gib=WRITTEN_GIB, vm_mib=VM_MIB))


if __name__ == "__main__":
    run_script(__doc__, rows)
