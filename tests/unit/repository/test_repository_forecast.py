"""When a repository will be full, and who is warned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sendense_repository.forecast import Forecast, Sample, forecast, warning

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
GIB = 1 << 30


def steady(days: int, each_day: int, start: int = 0) -> list[Sample]:
    return [Sample(NOW - DAY * (days - number), start + each_day * number) for number in range(days + 1)]


def test_a_steady_growth_tells_the_day() -> None:
    found = forecast(steady(10, 5 * GIB), 50 * GIB, NOW)
    assert found.bytes_per_day == 5 * GIB
    assert found.full_at == NOW + 10 * DAY


def test_too_little_is_known_to_say_anything() -> None:
    assert forecast([], GIB, NOW) == Forecast(0, None)
    assert forecast(steady(1, GIB), GIB, NOW) == Forecast(0, None)


def test_what_shrinks_or_stays_is_never_full() -> None:
    assert forecast(steady(10, 0, GIB), GIB, NOW).full_at is None
    assert forecast(steady(10, -GIB, 100 * GIB), GIB, NOW).full_at is None


def test_one_large_backup_does_not_decide_alone() -> None:
    samples = steady(29, GIB)
    samples[-1] = Sample(samples[-1].moment, samples[-1].stored_bytes + 60 * GIB)
    assert forecast(samples, 100 * GIB, NOW).bytes_per_day < 7 * GIB


def test_warnings_name_the_date() -> None:
    soon = Forecast(GIB, NOW + 5 * DAY)
    assert "full on 2026-11-28" in warning("local", 1000 * GIB, 500 * GIB, soon, NOW)
    assert "5 % left; at the present rate" in warning("local", 1000 * GIB, 50 * GIB, soon, NOW)
    assert "is full" in warning("local", 1000 * GIB, 0, Forecast(0, None), NOW)
    assert not warning("local", 1000 * GIB, 500 * GIB, Forecast(GIB, NOW + 300 * DAY), NOW)
    assert not warning("local", 1000 * GIB, 500 * GIB, Forecast(0, None), NOW)
