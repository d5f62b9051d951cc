"""Column types that read the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import CheckConstraint, DateTime, Dialect, TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with a time zone; stored as UTC, read back as UTC. SQLite has no zones, so it is added there."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses a time without zone and stores UTC."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Returns UTC."""
        del dialect
        if value is None:
            return None
        moment: datetime = value
        if moment.tzinfo is UTC:  # as asyncpg gives it; lists convert a thousand of them
            return moment
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def one_of(column: str, *values: str) -> CheckConstraint:
    """Returns the constraint that stands for the spec's ENUM: checked text."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def utc_now() -> datetime:
    """Returns the present moment, in UTC."""
    return datetime.now(UTC)
