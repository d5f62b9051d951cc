"""The audit log's chain shows every edit, removal and insertion before its end."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sendense_access.audit import GENESIS, BrokenChain, Entry, Event, chained, verify_chain

AT = datetime(2025, 10, 4, 12, tzinfo=UTC)


def chain(length: int) -> list[Entry]:
    entries: list[Entry] = []
    for sequence in range(1, length + 1):
        previous = entries[-1].entry_hash if entries else GENESIS
        entries.append(chained(sequence, AT, Event("anna", "token.create", f"t{sequence}"), previous))
    return entries


def test_untouched_chain_is_good():
    assert verify_chain(chain(5)) == 5
    assert verify_chain([]) == 0


@pytest.mark.parametrize("field", ["actor", "action", "target", "result", "detail"])
def test_edited_entry_is_found_at_its_place(field):
    entries = chain(5)
    entries[2] = replace(entries[2], event=replace(entries[2].event, **{field: "other"}))
    with pytest.raises(BrokenChain) as broken:
        verify_chain(entries)
    assert broken.value.sequence == 3


def test_removed_entry_is_found():
    entries = chain(5)
    del entries[1]
    with pytest.raises(BrokenChain) as broken:
        verify_chain(entries)
    assert broken.value.sequence == 2


def test_entry_edited_with_a_fresh_hash_breaks_the_next_link():
    entries = chain(5)
    entries[2] = chained(3, AT, Event("mallory", "token.create", "t3"), entries[1].entry_hash)
    with pytest.raises(BrokenChain) as broken:
        verify_chain(entries)
    assert broken.value.sequence == 4


def test_text_cannot_move_between_fields_unseen():
    one = chained(1, AT, Event("a", "b", "cd", "ok", ""), GENESIS)
    other = chained(1, AT, Event("a", "b", "c", "dok", ""), GENESIS)
    assert one.entry_hash != other.entry_hash
