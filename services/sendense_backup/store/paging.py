"""Pages of what is listed newest first: a token holds the moment and the id of the last entry that was given."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime

from sqlalchemy import Column, ColumnElement, Table, and_, literal, tuple_

from sendense_backup.errors import BadPageToken
from sendense_db.columns import UtcDateTime


def token_of(created_at: datetime, identifier: str) -> str:
    """Returns the token of the page after an entry."""
    return base64.urlsafe_b64encode(json.dumps([created_at.isoformat(), identifier]).encode()).decode()


def older_than(table: Table, token: str) -> ColumnElement[bool]:
    """Returns the condition for the entries after a token, by `created_at` and `id`.

    Raises:
        BadPageToken: It is not one of ours.
    """
    try:
        moment, identifier = json.loads(base64.urlsafe_b64decode(token.encode()))
        created_at = datetime.fromisoformat(moment).astimezone(UTC)
    except (ValueError, TypeError, binascii.Error) as error:
        raise BadPageToken from error
    # Compared as a pair: an index finds its place, where it would read all newer entries for `a < x OR (a = x AND …)`.
    after = tuple_(literal(created_at, UtcDateTime), literal(str(identifier)))
    return tuple_(table.c.created_at, table.c.id) < after


def begins_with(column: Column[str], prefix: str, dialect: str) -> ColumnElement[bool]:
    """Returns the condition that a text begins with a prefix, in a form that an index answers.

    LIKE would not do: PostgreSQL plans a prepared statement without its values, and then reads a million rows; SQLite's
    ignores the case of letters. The indexes with `varchar_pattern_ops` serve these operators.
    """
    after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    if dialect == "postgresql":
        return and_(column.op("~>=~", is_comparison=True)(prefix), column.op("~<~", is_comparison=True)(after))
    return and_(column >= prefix, column < after)
