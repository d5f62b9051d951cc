"""Format 1 on disk: documents that show damage, names, numbers, files that a crash cannot tear."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sendense_blockio.extents import Extent, areas_digest
from sendense_blockio.journal import Entry
from sendense_repository import documents, durable
from sendense_repository.areas import AreaIndex, AreasDamaged, read_areas, write_areas
from sendense_repository.disks import allot_number, read_numbers
from sendense_repository.documents import DocumentError
from sendense_repository.errors import InvalidValue, RepositoryUnusable
from sendense_repository.layout import check_backup_id, check_vm_uuid, free_layer_name, layer_name
from sendense_repository.qcow2_metadata import MetadataError, metadata_digest
from sendense_repository.root import probe, read_marker, require_marker, write_marker

VM = "564d8a2c-1111-2222-3333-0123456789ab"


def test_any_flipped_bit_of_a_document_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    content, digest = documents.encode("layer", {"name": "größe", "n": 1})
    path.write_bytes(content)
    assert documents.read(path, "layer")["digest"] == digest
    original = documents.read(path, "layer")
    for position in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            # White space between members may change: it is not content.
            assert documents.read(path, "layer") == original
        except DocumentError:
            continue


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"format": 2}, "knows 1"),
        ({"format": "1"}, "format is '1'"),
        ({"kind": "point"}, "kind 'layer'"),
        ({"n": 2}, "digest"),
    ],
)
def test_other_documents_are_refused_by_name(tmp_path: Path, change: dict[str, object], finding: str) -> None:
    path = tmp_path / "d.json"
    content, _ = documents.encode("layer", {"n": 1})
    path.write_text(json.dumps(json.loads(content) | change))
    with pytest.raises(DocumentError, match=finding):
        documents.read(path, "layer")


def test_a_cut_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    content, _ = documents.encode("layer", {"n": 1})
    for length in range(len(content) - 2):
        path.write_bytes(content[:length])
        with pytest.raises(DocumentError):
            documents.read(path, "layer")


def test_new_files_never_replace_and_moves_finish(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    durable.write_new(first, b"1")
    with pytest.raises(FileExistsError):
        durable.write_new(first, b"2")
    durable.write_new(second, b"2")
    with pytest.raises(FileExistsError):
        durable.move_new(first, second)
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    second.unlink()
    second.hardlink_to(first)
    durable.move_new(first, second)
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_disk_numbers_stay_and_agree_with_other_repositories(tmp_path: Path) -> None:
    assert [allot_number(tmp_path, VM, name, {}) for name in ("a", "b", "a")] == [0, 1, 0]
    assert allot_number(tmp_path, VM, "c", {"c": 7, "d": 1}) == 7
    assert allot_number(tmp_path, VM, "d", {"c": 7, "d": 1}) == 8
    assert read_numbers(tmp_path, VM) == {"a": 0, "b": 1, "c": 7, "d": 8}
    (tmp_path / VM / "disks.json").write_text("{")
    with pytest.raises(RepositoryUnusable):
        allot_number(tmp_path, VM, "e", {})


def test_names_are_utc_and_free() -> None:
    moment = datetime(2025, 10, 4, 23, 59, 59, tzinfo=UTC)
    assert layer_name("full", moment) == "full-20251004-235959.qcow2"
    taken = frozenset({"incr-20251004-235959.qcow2", "incr-20251005-000000.qcow2"})
    assert free_layer_name("incremental", moment, taken) == "incr-20251005-000001.qcow2"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", "-x", "ü", "x" * 65])
def test_ids_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue):
        check_backup_id(name)
    with pytest.raises(InvalidValue):
        check_vm_uuid(name)


def test_areas_survive_and_damage_shows(tmp_path: Path) -> None:
    path = tmp_path / "areas"
    areas = [Extent(0, 512), Extent(4096, 8192)]
    digest = areas_digest(areas, 1 << 20)
    write_areas(path, areas)
    assert read_areas(path, digest, 1 << 20) == areas
    path.write_bytes(path.read_bytes()[:17])
    with pytest.raises(AreasDamaged):
        read_areas(path, digest, 1 << 20)
    index = AreaIndex(areas)
    assert index.first_outside([Entry(0, 512, None), Entry(8192, 4096, None)]) is None
    for offset, length in ((512, 512), (0, 513), (12287, 2), (4095, 2)):
        assert index.first_outside([Entry(offset, length, None)]) == Entry(offset, length, None)


def test_a_marker_is_written_once_into_an_empty_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "lost+found").mkdir()
    probe(root, 0)
    marker = write_marker(root, "local")
    assert read_marker(root) == marker
    require_marker(root, marker.repository_id)
    with pytest.raises(RepositoryUnusable, match="belongs to"):
        require_marker(root, "another")
    with pytest.raises(RepositoryUnusable, match="not empty"):
        write_marker(root, "again")
    with pytest.raises(RepositoryUnusable, match="reserve"):
        probe(root, 1 << 62)
    assert {path.name for path in root.iterdir()} == {"lost+found", ".sendense-repository.json"}


def test_metadata_digest_sees_every_table_and_no_data(tmp_path: Path) -> None:
    image = tmp_path / "i.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    writes = [argument for place in ("0", "600M") for argument in ("-c", f"write -q -P 5 {place} 128k")]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, image], check=True)
    digest = metadata_digest(image)
    content = image.read_bytes()
    clusters = [content[start : start + 65536] for start in range(0, len(content), 65536)]
    found = 0
    for number, cluster in enumerate(clusters):
        position = number * 65536 + random.Random(number).randrange(8, 16)  # an L1 table of two entries is no longer
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        image.write_bytes(damaged)
        is_data = cluster.count(5) == len(cluster)
        try:
            changed = metadata_digest(image) != digest
        except MetadataError:
            changed = True
        assert changed is not is_data, f"cluster {number}"
        found += changed
    assert found == 6  # header, refcount table, refcount block, L1, two L2 tables
