"""A pace bounds what all who share it begin, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_blockio.pace import BURST_SECONDS, Pace


@given(st.lists(st.integers(1, 4 << 20), min_size=1, max_size=200), st.integers(1 << 16, 1 << 28))
def test_never_more_than_the_limit_and_one_burst_beyond(lengths: list[int], rate: int) -> None:
    now = 100.0
    pace = Pace(rate, lambda: now)
    begun = 0
    for length in lengths:
        while wait := pace.take(length):
            now += wait
        # The last request is begun whole: what is ahead of the clock is that one.
        assert begun <= rate * (now - 100.0) * (1 + 1e-9) + rate * BURST_SECONDS + 1
        begun += length


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    now = 0.0
    pace = Pace(1000, lambda: now)
    now = 1000.0
    went = 0
    while pace.take(10) == 0:
        went += 10
    assert went <= 1000 * BURST_SECONDS + 10


@pytest.mark.parametrize("rate", [0, -1])
def test_a_pace_of_nothing_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pace(rate)
