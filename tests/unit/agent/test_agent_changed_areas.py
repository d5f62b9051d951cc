"""QueryChangedDiskAreas: all pages, nothing believed that cannot be (cbt-facts 1 to 5)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_agent.changed_areas import all_pages, require_same_epoch
from sendense_agent.errors import AreasQueryFailed, ChangeTrackingReset
from sendense_agent.model import Disk
from sendense_agent.plan import make_plan
from sendense_blockio.extents import Extent, normalize, subtract, total

KIB = 1 << 10
DISK = Disk(2000, "uuid/2000", "Hard disk 1", 64 << 20, "[ds] vm/vm.vmdk", "52 aa/7", "")


@dataclass
class Area:
    start: int
    length: int


@dataclass
class Page:
    startOffset: int  # noqa: N815  # vSphere's name
    length: int
    changedArea: list[Area] = field(default_factory=list)  # noqa: N815


class Pager:
    """Answers as vCenter does: at most `limit` areas a page, and never a question at the capacity."""

    def __init__(self, areas: list[Extent], capacity: int, limit: int) -> None:
        self.areas, self.capacity, self.limit = areas, capacity, limit
        self.asked: list[int] = []

    def __call__(self, start: int) -> Page:
        assert start < self.capacity, "asking at the capacity raises InvalidArgument"
        self.asked.append(start)
        rest = [area for area in self.areas if area.end > start]
        shown, left = rest[: self.limit], rest[self.limit :]
        end = left[0].offset if left else self.capacity
        return Page(start, end - start, [Area(area.offset, area.length) for area in shown])


@st.composite
def area_lists(draw: st.DrawFn) -> list[Extent]:
    edges = sorted(draw(st.sets(st.integers(0, 1024), max_size=60)))
    return [Extent(a * 64 * KIB, (b - a) * 64 * KIB) for a, b in zip(edges[::2], edges[1::2], strict=False)]


@given(areas=area_lists(), limit=st.integers(1, 7))
def test_fact_01_all_pages_are_asked_whatever_their_size(areas: list[Extent], limit: int) -> None:
    pager = Pager(areas, DISK.capacity_bytes, limit)
    assert all_pages(pager, DISK) == normalize(areas)
    assert pager.asked[0] == 0


@pytest.mark.parametrize(
    "page",
    [
        Page(0, 0),
        Page(0, -1),
        Page(512, DISK.capacity_bytes - 512),
        Page(0, DISK.capacity_bytes + 1),
        Page(0, 1024, [Area(1024, 512)]),
        Page(0, 1024, [Area(512, 1024)]),
        Page(0, DISK.capacity_bytes, [Area(0, 0)]),
        Page(0, DISK.capacity_bytes, [Area(0, 1024), Area(512, 1024)]),
    ],
    ids=["no length", "negative", "elsewhere", "too long", "behind", "across", "empty area", "overlap"],
)
def test_fact_01_answers_that_cannot_be_ask_for_a_full(page: Page) -> None:
    def ask(start: int) -> Page:
        return page if start == 0 else Page(start, DISK.capacity_bytes - start)

    with pytest.raises(AreasQueryFailed) as failed:
        all_pages(ask, DISK)
    assert failed.value.reason == "AREAS_QUERY_FAILED"


@pytest.mark.parametrize(
    ("parent", "current"),
    [
        ("52 bb/7", "52 aa/7"),
        ("52 aa", "52 aa/7"),
        ("52 aa/", "52 aa/7"),
        ("/7", "/7"),
        ("52 aa/7", ""),
        ("*", "52 aa/7"),
    ],
)
def test_fact_03_and_02_another_or_no_epoch_is_a_reset(parent: str, current: str) -> None:
    with pytest.raises(ChangeTrackingReset):
        require_same_epoch(replace(DISK, change_id=current), parent)


def test_fact_03_a_count_that_went_back_is_a_reset() -> None:
    """A storage array that went back to a copy of its own took the disk's tracking with it."""
    with pytest.raises(ChangeTrackingReset):
        require_same_epoch(replace(DISK, change_id="52 aa/6"), "52 aa/7")


def test_fact_03_the_same_epoch_is_followed() -> None:
    require_same_epoch(replace(DISK, change_id="52 aa/900"), "52 aa/7")


@given(areas=area_lists(), alignment=st.sampled_from([512, 4096, 65536, 1 << 20]))
def test_a_plan_covers_every_change_and_stays_within_its_share(areas: list[Extent], alignment: int) -> None:
    areas = normalize(areas)
    plan = make_plan(areas, alignment, DISK.capacity_bytes)
    assert plan.changed_bytes == total(areas)
    assert subtract(areas, plan.areas) == []
    assert all(area.offset % alignment == 0 for area in plan.areas)
    if alignment <= 65536:  # the areas are aligned to it: only gaps can add
        assert total(plan.areas) <= 1.10 * plan.changed_bytes
