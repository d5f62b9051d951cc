"""The trusted clock: nothing that was set forward counts, and waiting always helps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from sendense_repository.trusted_clock import Reached, Reading, advance, read_machine, trusted

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def test_the_first_look_believes_the_clock() -> None:
    assert advance(None, Reading(NOW, "boot", 100)).moment == NOW


def test_a_clock_that_runs_is_followed() -> None:
    reached = advance(Reached(NOW, "boot", 100), Reading(NOW + DAY, "boot", 100 + 86_400))
    assert reached.moment == NOW + DAY


def test_row_19_a_clock_set_forward_a_year_gains_nothing() -> None:
    jumped = Reading(NOW + 365 * DAY, "boot", 160)
    reached = advance(Reached(NOW, "boot", 100), jumped)
    assert timedelta(seconds=60) <= reached.moment - NOW <= timedelta(seconds=61)
    assert trusted(reached, jumped).in_doubt
    assert trusted(reached, jumped).now == reached.moment


def test_row_19_setting_the_clock_forward_and_restarting_the_machine_gains_two_days() -> None:
    reached = advance(Reached(NOW, "boot", 10**6), Reading(NOW + 365 * DAY, "other boot", 60))
    assert reached.moment - NOW <= 2 * DAY + timedelta(minutes=4)


def test_a_clock_set_back_is_used_and_what_was_reached_stays() -> None:
    back = Reading(NOW - DAY, "boot", 200)
    reached = advance(Reached(NOW, "boot", 100), back)
    assert reached.moment == NOW
    assert trusted(reached, back).now == NOW - DAY
    assert not trusted(reached, back).in_doubt


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(-(10**8), 10**8)), max_size=30))
def test_looking_often_gains_no_more_than_what_passed(looks: list[tuple[int, int]]) -> None:
    reached = Reached(NOW, "boot", 0)
    passed = 0
    for seconds, wall in looks:
        passed += seconds
        before = reached
        reached = advance(reached, Reading(NOW + timedelta(seconds=wall), "boot", passed))
        assert reached.moment >= before.moment
    assert reached.moment - NOW <= timedelta(seconds=passed * 1.001 + 0.001)


def test_the_machine_can_be_read() -> None:
    one, other = read_machine(), read_machine()
    assert one.boot_id == other.boot_id
    assert other.boot_seconds >= one.boot_seconds > 0
