"""The first hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from hundred_backups import assert_a_hundred, run_hundred_backups

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("uncounted")]


def test_every_disk_of_a_hundred_backups_is_the_snapshot(memory_home: Path, short_tmp: Path) -> None:
    assert_a_hundred(run_hundred_backups(1, memory_home, short_tmp))
