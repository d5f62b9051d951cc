"""Public identifiers stay within their limits and never meet by accident."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_naming.identifiers import backup_id, export_name, slug, vm_context_id

MOMENT = datetime(2025, 10, 5, 12, 0, 0, tzinfo=UTC)
NAMES = st.text(min_size=1, max_size=300)
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def test_the_specs_own_examples_come_out() -> None:
    assert backup_id("pgtest2", MOMENT) == "backup-pgtest2-20251005120000"
    assert vm_context_id("pgtest2", MOMENT) == "ctx-pgtest2-20251005-120000"
    context = "ctx-pgtest2-20251005-120000"
    assert export_name(context, 0, "full", MOMENT) == f"backup-{context}-disk0-full-20251005T120000"
    assert export_name(context, 1, "incremental", MOMENT) == f"backup-{context}-disk1-incr-20251005T120000"


def test_the_moment_is_told_in_utc() -> None:
    there = MOMENT.astimezone(timezone(timedelta(hours=9)))
    assert backup_id("a", there) == backup_id("a", MOMENT)
    with pytest.raises(ValueError, match="time zone"):
        backup_id("a", MOMENT.replace(tzinfo=None))


@given(NAMES, st.sampled_from([0, 2, 9999]))
def test_identifiers_are_safe_and_short_for_any_name(name: str, suffix: int) -> None:
    for identifier in (backup_id(name, MOMENT, suffix), vm_context_id(name, MOMENT, suffix)):
        assert len(identifier) <= 64
        assert SAFE.fullmatch(identifier)


@given(NAMES, st.integers(0, 99), st.sampled_from(["full", "incremental"]))
def test_export_names_are_safe_and_below_64_for_any_name(name: str, disk: int, kind: str) -> None:
    name = export_name(vm_context_id(name, MOMENT), disk, kind, MOMENT)
    assert len(name) <= 63
    assert SAFE.fullmatch(name)


@given(NAMES, NAMES)
def test_two_names_never_share_an_identifier(one: str, other: str) -> None:
    if one != other:
        assert backup_id(one, MOMENT) != backup_id(other, MOMENT)
        first, second = (export_name(vm_context_id(name, MOMENT), 0, "full", MOMENT) for name in (one, other))
        assert first != second


def test_long_names_with_one_beginning_stay_apart() -> None:
    names = [f"{'x' * 200}{n}" for n in range(50)]
    assert len({slug(name) for name in names}) == 50
    contexts = [vm_context_id(name, MOMENT) for name in names]
    assert len({export_name(context, 7, "incremental", MOMENT) for context in contexts}) == 50


@pytest.mark.parametrize("name", ["../../etc", "--help;$(x)", "a/b", "тест", " ", "a\nb", "."])
def test_a_hostile_name_becomes_harmless(name: str) -> None:
    made = slug(name)
    assert SAFE.fullmatch(made)
    assert ".." not in made
    assert made != name


def test_a_disk_without_a_number_gets_no_export_name() -> None:
    with pytest.raises(ValueError, match="no number"):
        export_name("ctx-a-20251005-120000", -1, "full", MOMENT)
