"""The third hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from hundred_backups import assert_a_hundred, run_hundred_backups

pytestmark = pytest.mark.timeout(900)


def test_every_disk_of_a_hundred_backups_is_the_snapshot(sendense_home: Path) -> None:
    assert_a_hundred(run_hundred_backups(sendense_home, 3))
