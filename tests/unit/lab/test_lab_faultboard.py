"""Faults happen as often as they should, to whom they should, and lies hide what they say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sendense_lab import areas, faults, lying
from sendense_lab.areas import GRANULARITY
from sendense_lab.faultboard import FaultBoard
from sendense_lab.labrecord import ActiveFault, LabRecord


class Saved:
    """What a board was told to save last."""

    def __init__(self) -> None:
        self.active: tuple[ActiveFault, ...] = ()
        self.made = 0

    def __call__(self, active: tuple[ActiveFault, ...], made: int) -> None:
        self.active, self.made = active, made


@given(after=st.integers(0, 5), times=st.one_of(st.none(), st.integers(1, 5)), occasions=st.integers(0, 15))
def test_a_fault_passes_some_occasions_and_spoils_the_next(after: int, times: int | None, occasions: int) -> None:
    board = FaultBoard((), 0, Saved())
    board.set(faults.CbtZeroLength(after=after, times=times))
    spoiled = [board.take(faults.CbtZeroLength) is not None for _ in range(occasions)]
    last = occasions if times is None else after + times
    assert spoiled == [after <= number < last for number in range(occasions)]


def test_a_fault_of_one_vm_or_disk_counts_no_other() -> None:
    board = FaultBoard((), 0, Saved())
    board.set(faults.CbtEmptyId(vm="a", disk="1"))
    for vm, disk in (("b", "1"), ("a", "2"), (None, "1"), ("a", None)):
        assert board.take(faults.CbtEmptyId, vm=vm, disk=disk) is None
    assert board.all()[0].seen == 0
    assert board.take(faults.CbtEmptyId, vm="a", disk="1") is not None


def test_an_occasion_is_spoiled_by_the_first_fault_that_fits_and_seen_by_no_later_one() -> None:
    board = FaultBoard((), 0, Saved())
    board.set(faults.ApiError(method="Create*", error="NoPermission"))
    board.set(faults.ApiError(error="InvalidState"))
    assert board.take(faults.ApiError, fits=lambda fault: fault.fits("Fetch")).error == "InvalidState"  # type: ignore[union-attr]
    assert board.take(faults.ApiError, fits=lambda fault: fault.fits("CreateX")).error == "NoPermission"  # type: ignore[union-attr]
    assert board.take(faults.ApiError, fits=lambda fault: fault.fits("CreateX")) is None


def test_a_read_fault_waits_for_bytes_of_its_own_disk() -> None:
    board = FaultBoard((), 0, Saved())
    board.set(faults.ReadError(disk="1", after_bytes=100))
    board.count_bytes("a", "2", 1000)
    assert board.take(faults.ReadError, vm="a", disk="1") is None
    board.count_bytes("a", "1", 99)
    assert board.take(faults.ReadError, vm="a", disk="1") is None
    board.count_bytes("a", "1", 1)
    assert board.take(faults.ReadError, vm="a", disk="1") is not None


def test_what_is_saved_goes_on_where_it_was() -> None:
    saved = Saved()
    board = FaultBoard((), 0, saved)
    board.set(faults.CbtZeroLength(times=2))
    board.set(faults.CbtLie())
    board.take(faults.CbtZeroLength)
    record = LabRecord(instance_uuid="i", faults=saved.active, faults_made=saved.made)
    loaded = LabRecord.model_validate_json(record.model_dump_json())
    again = FaultBoard(loaded.faults, loaded.faults_made, saved)
    assert [active.fault for active in again.all()] == [active.fault for active in board.all()]
    assert again.take(faults.CbtZeroLength) is not None
    assert again.take(faults.CbtZeroLength) is None
    assert again.set(faults.ApiDrop()).id == 3


def test_faults_are_cleared_by_id_by_kind_and_all() -> None:
    board = FaultBoard((), 0, Saved())
    for fault in (faults.ApiDrop(), faults.CbtLie(), faults.ApiDrop()):
        board.set(fault)
    assert [active.id for active in board.clear(1)] == [1]
    assert [active.id for active in board.clear("api-drop")] == [3]
    assert board.clear("api-drop") == ()
    assert [active.id for active in board.clear(None)] == [2]


changed = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1).map(
    lambda pieces: areas.merge((start * GRANULARITY, (start + length) * GRANULARITY) for start, length in pieces)
)


@given(changed, st.integers(0, 4), st.integers(0, 10))
def test_a_lie_hides_blocks_of_one_changed_area(found: tuple[areas.Area, ...], blocks: int, seed: int) -> None:
    start, end = hidden = lying.hide(found, blocks=blocks, seed=seed)
    around = next(area for area in found if area[0] <= start and end <= area[1])
    assert start < end
    assert end - start == min(around[1] - around[0], blocks * GRANULARITY or around[1])
    assert lying.hide(found, blocks=blocks, seed=seed) == hidden
    if not blocks:
        assert hidden == around
