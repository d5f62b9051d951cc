"""Moments in identifiers: always UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(moment: datetime) -> datetime:
    """Returns a moment in UTC.

    Raises:
        ValueError: It has no time zone, so it names no second.
    """
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone names no second")
    return moment.astimezone(UTC)
