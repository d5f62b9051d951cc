"""The first hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from hundred_backups import run_hundred_backups

pytestmark = pytest.mark.timeout(900)


def test_every_disk_of_a_hundred_backups_is_the_snapshot(sendense_home: Path) -> None:
    happened = run_hundred_backups(sendense_home, 1)
    assert happened["backups"] >= 100
    assert happened["incremental"] > 100
