"""Change ids: what a query may ask, and when tracking is true."""

from __future__ import annotations

import pytest

from sendense_lab import tracking
from sendense_lab.areas import GRANULARITY
from sendense_lab.records import DiskRecord
from sendense_lab.tracking import ChangeIdError, TrackingResetError

BLOCK = GRANULARITY


@pytest.fixture
def disk() -> DiskRecord:
    plain = DiskRecord(
        key=2000, unit=0, label="Hard disk 1", uuid="u", capacity=64 * 1024**2, base="web", top="web-flat.vmdk"
    )
    return tracking.follow_setting(plain, enabled=True)


def written(disk: DiskRecord, block: int) -> DiskRecord:
    return tracking.record_changes(disk, ((block * BLOCK, block * BLOCK + 1),))


def snapshot(disk: DiskRecord) -> tuple[DiskRecord, str]:
    raised = tracking.next_sequence(disk)
    change_id = tracking.change_id(raised.tracking)
    assert change_id is not None
    return raised, change_id


def test_changes_between_two_snapshots_are_those_written_between_them(disk: DiskRecord) -> None:
    disk, first = snapshot(written(disk, 1))
    disk, second = snapshot(written(disk, 5))
    disk = written(disk, 9)
    assert tracking.changes_since(disk, first, second) == ((5 * BLOCK, 6 * BLOCK),)
    assert tracking.changes_since(disk, second, None) == ((9 * BLOCK, 10 * BLOCK),)
    assert tracking.changes_since(disk, first, None) == ((5 * BLOCK, 6 * BLOCK), (9 * BLOCK, 10 * BLOCK))
    assert tracking.changes_since(disk, second, second) == ()


def test_a_change_id_of_another_tracking_is_refused(disk: DiskRecord) -> None:
    disk, first = snapshot(disk)
    off = tracking.follow_setting(disk, enabled=False)
    again, now = snapshot(tracking.follow_setting(off, enabled=True))
    with pytest.raises(TrackingResetError):
        tracking.changes_since(again, first, now)
    with pytest.raises(TrackingResetError):
        tracking.changes_since(off, first, now)


def test_a_change_id_newer_than_the_snapshot_is_refused(disk: DiskRecord) -> None:
    disk, first = snapshot(disk)
    disk, second = snapshot(disk)
    with pytest.raises(TrackingResetError):
        tracking.changes_since(disk, second, first)


def test_a_reset_begins_anew_and_forgets(disk: DiskRecord) -> None:
    disk, first = snapshot(written(disk, 1))
    again = tracking.reset(disk)
    assert tracking.change_id(again.tracking) not in (None, tracking.change_id(disk.tracking))
    with pytest.raises(TrackingResetError):
        tracking.changes_since(again, first, None)
    off = tracking.follow_setting(disk, enabled=False)
    assert tracking.reset(off) == off


@pytest.mark.parametrize("text", ["", "*", "no slash", "/3", "uuid/", "uuid/x", "uuid/-1", "uuid/٣"])
def test_a_malformed_change_id_is_refused(disk: DiskRecord, text: str) -> None:
    with pytest.raises(ChangeIdError):
        tracking.changes_since(disk, text, None)
