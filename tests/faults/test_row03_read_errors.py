"""Row 3: a read error in the middle of a copy fails the job; zeros never take the place of data (CVE-2022-0485)."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture_node import capture_node
from sendense_lab.client import LabClient

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


def content(layer: str) -> dict[str, bytes]:
    """Returns all files of a layer's directory."""
    return {path.name: path.read_bytes() for path in Path(layer).parent.iterdir()}


async def test_a_read_error_fails_the_job_and_zeros_take_no_data_s_place(sendense_home: Path) -> None:
    with LabClient.start(sendense_home, SENDENSE_LAB_KEEP_SNAPSHOTS="1") as lab:
        async with capture_node(sendense_home, lab) as node:
            lab.create_vm("sick", ["16M:blank"])
            lab.guest_write("sick", 0, 0, seed=1, length=16 * MIB)
            first = await node.back_up("sick", "full")
            kept = content(first.disks[0].path)
            lab.guest_write("sick", 0, 0, seed=2, length=16 * MIB)
            lab.set_fault("read-error", offset=9 * MIB, times=None)
            failed = await node.ended((await node.start("sick", "incremental")).backup_id)
            lab.clear_faults()
            assert failed.status == "failed"
            assert failed.error_reason in {"CAPTURE_FAILED", "READER_UNSUITABLE"}, failed.error_message
            assert [each for each in lab.snapshots("sick") if not each["kept"]] == []
            assert content(first.disks[0].path) == kept  # with no partial file beside it
            node.assert_equal(lab, "sick", await node.back_up("sick"))
            node.assert_equal(lab, "sick", first)
