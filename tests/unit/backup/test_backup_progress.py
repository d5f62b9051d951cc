"""Progress tells the truth: never above 100 percent, a rate that follows, an honest 'not known'."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sendense_backup.progress import RATE_WINDOW, RateMeter, eta_seconds, percent

SIZES = st.integers(0, 1 << 60)


@given(SIZES, SIZES)
def test_percent_stays_between_0_and_100(done: int, total: int) -> None:
    assert 0.0 <= percent(done, total) <= 100.0


@given(SIZES, SIZES, st.integers(-5, 1 << 40))
def test_time_left_is_enough_or_not_known(done: int, total: int, rate: int) -> None:
    eta = eta_seconds(done, total, rate)
    if total <= 0 or rate <= 0:
        assert eta == -1
    else:
        assert done + eta * rate >= total
        assert eta == 0 or done + (eta - 1) * rate < total


def test_the_rate_is_that_of_the_last_seconds_only() -> None:
    meter = RateMeter()
    for second in range(60):
        meter.add(float(second), second * 1000)
    done = 59 * 1000
    for second in range(60, 60 + int(RATE_WINDOW) + 1):
        done += 5000
        rate = meter.add(float(second), done)
    assert rate == 5000


def test_a_stopped_copy_has_no_rate_and_a_resumed_one_begins_anew() -> None:
    meter = RateMeter()
    assert meter.add(0.0, 0) == 0
    assert meter.add(1.0, 1000) == 1000
    for second in range(2, 14):
        rate = meter.add(float(second), 1000)
    assert rate == 0
    assert meter.add(14.0, 400) == 0
    assert meter.add(15.0, 900) == 500
