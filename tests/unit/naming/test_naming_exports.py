"""Export names: at most 63 bytes, parseable back, never the same for different inputs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_naming import identifiers
from sendense_naming.exports import export_name, parse_export_name

WHEN = datetime(2025, 10, 5, 12, 0, 0, tzinfo=UTC)
contexts = st.one_of(
    st.text(min_size=1, max_size=300),
    st.text(alphabet="abc.-_0-disk", min_size=1, max_size=80),
    st.from_regex(r"[a-z]{0,20}\.[a-z2-7]{12}", fullmatch=True),
)
disks = st.integers(0, 9999)
types: st.SearchStrategy[str] = st.sampled_from(["full", "incremental"])
EARLIEST = datetime(1, 1, 3, tzinfo=UTC).replace(tzinfo=None)  # what hypothesis wants; east of it there is no UTC
times = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=9))]), min_value=EARLIEST)


@pytest.mark.parametrize(
    ("disk", "backup_type", "name"),
    [
        (0, "full", "backup-ctx-pgtest2-20251005-120000-disk0-full-20251005T120000"),
        (1, "incremental", "backup-ctx-pgtest2-20251005-120000-disk1-incr-20251005T120000"),
    ],
)
def test_the_specs_examples(disk: int, backup_type: str, name: str) -> None:
    assert export_name("ctx-pgtest2-20251005-120000", disk, backup_type, WHEN) == name


@given(contexts, disks, types, times)
def test_every_name_fits_is_plain_and_is_parsed_back(context: str, disk: int, backup_type: str, when: datetime) -> None:
    name = export_name(context, disk, backup_type, when)
    assert len(name.encode()) <= 63
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    parsed = parse_export_name(name)
    assert parsed is not None
    assert parsed.names_context(context)
    assert (parsed.disk_id, parsed.backup_type) == (disk, backup_type)
    assert parsed.moment == when.astimezone(UTC).replace(microsecond=0)
    if not parsed.is_hashed:
        assert parsed.context == context


@given(st.tuples(contexts, disks, types, times), st.tuples(contexts, disks, types, times))
def test_different_inputs_have_different_names(
    one: tuple[str, int, str, datetime], two: tuple[str, int, str, datetime]
) -> None:
    def second(inputs: tuple[str, int, str, datetime]) -> tuple[str, int, str, datetime]:
        return (*inputs[:3], inputs[3].astimezone(UTC).replace(microsecond=0))

    same = export_name(*one) == export_name(*two)
    assert same == (second(one) == second(two))


@given(contexts)
def test_an_id_that_looks_like_a_cut_one_does_not_meet_it(context: str) -> None:
    long = context + "x" * 80
    parsed = parse_export_name(export_name(long, 0, "full", WHEN))
    assert parsed is not None
    assert parsed.is_hashed
    assert export_name(parsed.context, 0, "full", WHEN) != export_name(long, 0, "full", WHEN)


@pytest.mark.parametrize(
    "name",
    [
        "migration-vm-a1b2c3d4-e5f6-7890-abcd-ef1234567890-disk0",
        "backup-ctx-disk0-full",
        "backup-ctx-disk00-full-20251005T120000",
        "backup-ctx-disk0-full-20251399T120000",
        "backup-ctx-disk0-full-20251005T120000\n",
        "backup-a/b-disk0-full-20251005T120000",
        f"backup-{'x' * 40}-disk0-full-20251005T120000",
        "",
    ],
)
def test_other_names_are_not_taken_for_a_backups(name: str) -> None:
    assert parse_export_name(name) is None


def test_inputs_out_of_range_are_refused() -> None:
    for arguments in (
        ("", 0, "full", WHEN),
        ("ctx", -1, "full", WHEN),
        ("ctx", 10_000, "full", WHEN),
        ("ctx", 0, "incr", WHEN),
        ("ctx", 0, "full", WHEN.replace(tzinfo=None)),
    ):
        with pytest.raises(ValueError, match=r"."):
            export_name(*arguments)


def test_there_is_one_rule() -> None:
    assert identifiers.export_name is export_name
