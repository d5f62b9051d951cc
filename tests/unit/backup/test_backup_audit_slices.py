"""How much of a disk an audit compares whole with each restore point."""

from __future__ import annotations

import pytest

from sendense_backup.config import BackupSettings
from sendense_backup.workflows.audit import slices_of

GIB = 1 << 30


@pytest.mark.parametrize(("capacity", "slices"), [(1, 365), (182 * GIB, 365), (500 * 10**9, 932), (2048 * GIB, 4096)])
def test_a_slice_is_bounded_and_the_slices_are_the_whole_disk(capacity: int, slices: int) -> None:
    settings = BackupSettings()
    assert slices_of(settings, capacity) == slices
    assert slices * settings.audit_slice_bytes >= capacity


def test_no_slices_stay_none() -> None:
    assert slices_of(BackupSettings(audit_runs=0), 500 * GIB) == 0
