"""When a repository will be full at the present rate. Pure.

The rate is the slope of a straight line through the daily samples of the last 30 days (least squares), so that one
large full backup, or one deletion, does not decide alone. Less than two days of samples tell nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

WINDOW = timedelta(days=30)
"""How far back the present rate is measured."""

_LEAST = timedelta(days=2)
_DAY = 86_400.0
_FAR = 36_500
"""Days; what is further away is never."""
SOON = timedelta(days=14)
"""Who is full within this time is warned."""
NEARLY_FULL = 0.1
"""Whoever has less than this share of the file system free is warned."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a repository held at a moment."""

    moment: datetime
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a repository grows.

    Attributes:
        bytes_per_day: The rate; 0 when it is not known.
        full_at: When nothing is left at this rate; None when that is not to be expected.
    """

    bytes_per_day: int
    full_at: datetime | None


def forecast(samples: Sequence[Sample], available_bytes: int, now: datetime) -> Forecast:
    """Returns how a repository grows and when it will be full."""
    if len(samples) < 2 or samples[-1].moment - samples[0].moment < _LEAST:
        return Forecast(0, None)
    days = [(sample.moment - samples[0].moment).total_seconds() / _DAY for sample in samples]
    sizes = [sample.stored_bytes for sample in samples]
    mean_day, mean_size = sum(days) / len(days), sum(sizes) / len(sizes)
    spread = sum((day - mean_day) ** 2 for day in days)
    together = sum((day - mean_day) * (size - mean_size) for day, size in zip(days, sizes, strict=True))
    rate = together / spread
    left = available_bytes / rate if rate > 0 else float("inf")
    return Forecast(round(rate), now + timedelta(days=left) if left < _FAR else None)


def warning(name: str, total_bytes: int, available_bytes: int, found: Forecast, now: datetime) -> str:
    """Returns what an administrator should know of a repository's room; empty when there is nothing."""
    when = f"; at the present rate it is full on {found.full_at:%Y-%m-%d}" if found.full_at is not None else ""
    if not available_bytes:
        return f"repository '{name}' is full: no backup can be written"
    if total_bytes and available_bytes < NEARLY_FULL * total_bytes:
        return f"repository '{name}' has {available_bytes * 100 // total_bytes} % left{when}"
    if found.full_at is not None and found.full_at - now < SOON:
        return f"repository '{name}' fills{when}"
    return ""
