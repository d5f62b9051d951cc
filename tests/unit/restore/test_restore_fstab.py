"""A guest's fstab is read as the guest would, and nothing in it can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_restore.fstab import Entry, find_volume, parse_fstab
from sendense_restore.volume import Volume

ROOT = Volume(0, 1, 0, 1, uuid="AAAA-1", label="root", part_uuid="1234-01", part_label="first")
DATA = Volume(3, 2, 0, 1, uuid="bbbb-2", label="data")
WHOLE = Volume(7, 0, 0, 1, uuid="cccc-3", label="data2")
VOLUMES = [ROOT, DATA, WHOLE]


def test_entries_come_parents_first_with_their_options() -> None:
    text = b"""
# comment
LABEL=data /srv/my\\040data//x/ xfs defaults 0 2
UUID=aaaa-1 / ext4 rw,subvol=/@ 0 1
none swap swap sw 0 0
broken
proc /proc proc
"""
    assert parse_fstab(text) == [
        Entry("UUID=aaaa-1", b"/", b"@"),
        Entry("proc", b"/proc", b""),
        Entry("LABEL=data", b"/srv/my data/x", b""),
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("UUID=aaaa-1", ROOT),
        ('UUID="AAAA-1"', ROOT),
        ("LABEL=data", DATA),
        ("PARTUUID=1234-01", ROOT),
        ("PARTLABEL=first", ROOT),
        ("/dev/disk/by-uuid/bbbb-2", DATA),
        ("/dev/sda1", ROOT),
        ("/dev/sdb2", DATA),
        ("/dev/vdc", WHOLE),
        ("/dev/nvme1n1p2", DATA),
        ("/dev/sdd1", None),
        ("/dev/sdaa1", None),
        ("LABEL=", None),
        ("UUID=", None),
        ("/dev/mapper/vg-root", None),
        ("server:/export", None),
    ],
)
def test_specs_name_volumes(spec: str, expected: Volume | None) -> None:
    assert find_volume(spec, VOLUMES) == expected


def test_a_label_that_two_volumes_have_names_none() -> None:
    twins = [Volume(0, 1, 0, 1, label="x"), Volume(1, 1, 0, 1, label="x")]
    assert find_volume("LABEL=x", twins) is None


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_without_an_error(text: bytes) -> None:
    for entry in parse_fstab(text):
        assert entry.target.startswith(b"/")
        find_volume(entry.spec, VOLUMES)
