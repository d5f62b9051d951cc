"""The journal file: what is committed stays, what is torn is cut, what is damaged is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sendense_blockio.errors import (
    EntryFormatError,
    JournalCorruptError,
    JournalLockedError,
    JournalMismatchError,
    JournalSequenceError,
    JournalVersionError,
    OverlappingExtentsError,
)
from sendense_blockio.extents import Extent
from sendense_blockio.journal import (
    Entry,
    JournalHeader,
    JournalWriter,
    coverage,
    covers_exactly,
    decode_entries,
    encode_entries,
    iterate_batches,
    read_journal,
)
from sendense_blockio.journal_format import encode_header

HEADER = JournalHeader("layer-1", 1, "52 3c/4", "ab" * 32, 1 << 30)

entry_lists = st.lists(
    st.builds(
        Entry,
        st.integers(0, 2**62),
        st.integers(1, 2**61),
        st.one_of(st.none(), st.binary(min_size=32, max_size=32)),
    ),
    min_size=1,
    max_size=20,
)


def batch(number: int, count: int = 3) -> list[Entry]:
    base = number * 1000
    return [
        Entry(base + index * 10, 10, bytes([number, index]) * 16 if index % 2 == 0 else None) for index in range(count)
    ]


def written(path: Path, batches: int) -> list[int]:
    """Writes a journal and returns the file's size after the header and after each batch."""
    sizes = []
    with JournalWriter.create(path, HEADER) as writer:
        sizes.append(path.stat().st_size)
        for number in range(1, batches + 1):
            assert writer.append_batch(number, batch(number))
            sizes.append(path.stat().st_size)
    return sizes


@given(entry_lists)
def test_entries_survive_their_encoding(entries: list[Entry]) -> None:
    assert decode_entries(encode_entries(entries)) == entries


@given(entry_lists, st.data())
def test_cut_entries_are_refused(entries: list[Entry], data: st.DataObject) -> None:
    encoded = encode_entries(entries)
    cut = data.draw(st.integers(1, len(encoded)))
    try:
        decoded = decode_entries(encoded[:-cut])
    except EntryFormatError:
        return
    assert decoded == entries[: len(decoded)], "a cut between entries is no damage of entries"
    assert len(decoded) < len(entries)


@pytest.mark.parametrize("data", [b"\0" * 16 + b"\x00", b"\xff" * 17, (1).to_bytes(8, "little") * 2 + b"\x07"], ids=str)
def test_impossible_entries_are_refused(data: bytes) -> None:
    with pytest.raises(EntryFormatError):
        decode_entries(data)


def test_a_wrong_digest_length_is_refused() -> None:
    with pytest.raises(EntryFormatError):
        encode_entries([Entry(0, 1, b"short")])


def test_committed_batches_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 3)
    journal = read_journal(path, HEADER)
    assert journal.entries == batch(1) + batch(2) + batch(3)
    assert (journal.last_sequence, journal.torn_bytes, journal.header) == (3, 0, HEADER)
    assert [found.sequence for found in iterate_batches(path)] == [1, 2, 3]
    with JournalWriter.open(path, HEADER) as writer:
        assert (writer.next_sequence, writer.covered_bytes) == (4, 90)
        assert writer.checksum == journal.checksum


def test_the_same_batch_again_is_accepted_once(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 2)
    size = path.stat().st_size
    with JournalWriter.open(path) as writer:
        assert writer.append_batch(1, batch(1)) is False
        assert writer.append_batch(2, batch(2)) is False
        with pytest.raises(JournalSequenceError):
            writer.append_batch(2, batch(3))
        with pytest.raises(JournalSequenceError) as caught:
            writer.append_batch(4, batch(4))
        assert (caught.value.sequence, caught.value.expected) == (4, 3)
        with pytest.raises(JournalSequenceError):
            writer.append_batch(0, batch(1))
        with pytest.raises(EntryFormatError):
            writer.append_batch(3, [])
        assert path.stat().st_size == size
        assert writer.append_batch(3, batch(3)) is True


def test_every_torn_tail_is_cut_to_the_last_whole_batch(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = written(path, 2)
    whole = path.read_bytes()
    for size in range(sizes[1] + 1, sizes[2]):
        path.write_bytes(whole[:size])
        assert read_journal(path).torn_bytes == size - sizes[1]
        with JournalWriter.open(path, HEADER) as writer:
            assert writer.cut_bytes == size - sizes[1]
            assert writer.last_sequence == 1
            assert writer.append_batch(2, batch(2))
        assert path.read_bytes() == whole


def test_a_tail_that_was_never_written_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = written(path, 2)
    with path.open("r+b") as stream:
        stream.truncate(sizes[2] + 5000)
    with JournalWriter.open(path, HEADER) as writer:
        assert (writer.last_sequence, writer.cut_bytes) == (2, 5000)
    assert path.stat().st_size == sizes[2]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = written(path, 3)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(JournalCorruptError) as caught:
            read_journal(path)
        starts = [0, *sizes[:-1]]
        assert caught.value.path == path
        assert caught.value.offset <= position
        assert caught.value.offset >= max(start for start in starts if start <= position) or position < sizes[0]
        with pytest.raises(JournalCorruptError):
            JournalWriter.open(path)
        assert path.read_bytes() == bytes(damaged), "a damaged journal is left as it is"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.permutations([1, 2, 3]))
def test_batches_cannot_change_places(tmp_path: Path, order: list[int]) -> None:
    path = tmp_path / f"journal-{''.join(map(str, order))}"
    path.unlink(missing_ok=True)
    sizes = written(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: sizes[0]] + b"".join(whole[sizes[n - 1] : sizes[n]] for n in order))
    if order == [1, 2, 3]:
        assert read_journal(path).last_sequence == 3
    else:
        with pytest.raises(JournalCorruptError):
            read_journal(path)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(JournalHeader)])
def test_a_journal_of_something_else_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "journal"
    written(path, 1)
    other = dataclasses.replace(HEADER, **{field: 7 if field in {"attempt", "virtual_size"} else "other"})
    for refuse in (lambda: read_journal(path, other), lambda: JournalWriter.open(path, other)):
        with pytest.raises(JournalMismatchError) as caught:
            refuse()
        assert (caught.value.field, caught.value.path) == (field, path)


def test_a_newer_format_is_refused_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    monkeypatch.setattr("sendense_blockio.journal_format.FORMAT_VERSION", 2)
    path.write_bytes(encode_header(HEADER))
    monkeypatch.undo()
    with pytest.raises(JournalVersionError) as caught:
        read_journal(path)
    assert (caught.value.found, caught.value.known) == (2, 1)


def test_two_writers_are_refused_and_create_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with JournalWriter.create(path, HEADER):
        with pytest.raises(JournalLockedError):
            JournalWriter.open(path)
        with pytest.raises(FileExistsError):
            JournalWriter.create(path, HEADER)
    JournalWriter.open(path).close()
    assert list(tmp_path.iterdir()) == [path]


def test_coverage_names_what_is_missing_and_what_is_too_much() -> None:
    areas = [Extent(0, 100), Extent(200, 100)]
    whole = [Entry(250, 50, None), Entry(0, 60, b"x" * 32), Entry(60, 40, None), Entry(200, 50, b"y" * 32)]
    assert covers_exactly(whole, areas)
    found = coverage([*whole[1:], Entry(150, 10, None)], areas)
    assert not found.exact
    assert (list(found.missing), list(found.surplus)) == ([Extent(250, 50)], [Extent(150, 10)])
    with pytest.raises(OverlappingExtentsError):
        covers_exactly([*whole, Entry(99, 1, None)], areas)
