"""What a merge must hold, against a flat array: of each byte the entry of the topmost layer that has it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sendense_blockio.extents import Extent, merge, total
from sendense_blockio.journal import Entry
from sendense_qemu.img import MapExtent
from sendense_repository.image_data import same_places
from sendense_repository.merged_manifest import merge_manifests

SIZE = 40
DIGEST = bytes(32)


@st.composite
def manifests(draw: st.DrawFn) -> list[list[Entry]]:
    """Layers from the top down; a layer's entries do not overlap, and come in any order."""
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        cuts = sorted(draw(st.sets(st.integers(0, SIZE), max_size=12)))
        entries = [
            Entry(start, end - start, draw(st.sampled_from((None, DIGEST))))
            for start, end in itertools.pairwise(cuts)
            if draw(st.booleans())
        ]
        layers.append(draw(st.permutations(entries)))
    return layers


@given(manifests())
def test_each_byte_is_that_of_the_topmost_layer_that_has_it(layers: list[list[Entry]]) -> None:
    expected: list[tuple[int, Entry] | None] = [None] * SIZE
    for depth, entries in reversed(list(enumerate(layers))):
        for entry in entries:
            expected[entry.offset : entry.end] = [(depth, entry)] * entry.length

    merged = merge_manifests(layers)

    found: list[tuple[int, Entry] | None] = [None] * SIZE
    for each in merged.visible:
        for piece in each.pieces:
            assert found[piece.offset : piece.end] == [None] * piece.length
            found[piece.offset : piece.end] = [(each.depth, each.entry)] * piece.length
        assert each.is_whole == (total(each.pieces) == each.entry.length)
    assert found == expected
    assert merged.areas == merge(Extent(at, 1) for at in range(SIZE) if expected[at])
    upper = {at for entries in layers[:-1] for entry in entries for at in range(entry.offset, entry.end)}
    assert merged.upper_areas == merge(Extent(at, 1) for at in upper)


def data(start: int, length: int, offset: int, depth: int = 0) -> MapExtent:
    return MapExtent(start, length, depth, zero=False, data=True, present=True, offset=offset)


def test_only_data_of_the_images_own_at_the_same_place_is_shared() -> None:
    hole = MapExtent(400, 100, 0, zero=True, data=False, present=True)
    one = [data(0, 100, 1000), data(100, 100, 5000), data(200, 200, 2000, depth=1), hole]
    other = [data(0, 150, 1000), data(150, 50, 5050), data(200, 200, 2000), hole]

    assert same_places(one, other) == [Extent(0, 100), Extent(150, 50)]
