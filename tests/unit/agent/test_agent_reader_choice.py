"""Which reader is tried first, and what a description makes of a disk: pure, on facts of our own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from sendense_agent.audit import LARGEST_READ, runs
from sendense_agent.certificate import Pin
from sendense_agent.config import AgentSettings
from sendense_agent.model import Disk
from sendense_agent.readers.choice import ReaderChoice, Readers, configured
from sendense_agent.readers.description import describe
from sendense_agent.readers.https import HTTPS
from sendense_agent.readers.nbdkit import _command
from sendense_agent.readers.nfc import NFC
from sendense_agent.readers.source import DiskSource, Place
from sendense_agent.readers.vddk import VDDK
from sendense_blockio.extents import Extent

DISK = Disk(2000, "u/2000", "Hard disk 1", 1 << 30, "[ds] web/web.vmdk", "", "")
PLACE = Place(DISK, "vm-7", "uuid-7", "web", True, "snapshot-9", "DC", "VMFS")
SOURCE = DiskSource(PLACE, "vc", 443, "u@vsphere.local", "canary-password", Pin("PEM", exact=False), "AA:BB")
OFF = replace(SOURCE, place=replace(PLACE, running=False))
ALWAYS = replace(VDDK, installed=None)


async def order(choice: ReaderChoice, source: DiskSource, directory: Path) -> list[str]:
    return [kind.name for kind in await Readers(choice, directory)._candidates(source, [])]


async def test_the_library_is_first_for_a_running_vm_and_the_folder_for_one_that_is_off(tmp_path: Path) -> None:
    choice = ReaderChoice((ALWAYS, HTTPS, replace(NFC, installed=None)))
    assert await order(choice, SOURCE, tmp_path) == ["vddk", "https"], "nfc only when it is asked for"
    assert await order(choice, OFF, tmp_path) == ["https", "vddk"]


async def test_a_choice_for_a_vm_comes_before_the_agents_by_uuid_and_by_name(tmp_path: Path) -> None:
    kinds = (ALWAYS, HTTPS)
    assert await order(ReaderChoice(kinds, "https"), SOURCE, tmp_path) == ["https"]
    assert await order(ReaderChoice(kinds, "https", {"web": "vddk"}), SOURCE, tmp_path) == ["vddk"]
    assert await order(ReaderChoice(kinds, "https", {"uuid-7": "auto"}), SOURCE, tmp_path) == ["vddk", "https"]
    assert await order(ReaderChoice(kinds, "https", {"other": "vddk"}), SOURCE, tmp_path) == ["https"]


def test_fact_13_the_vddk_command_names_snapshot_transports_and_thumbprint_and_no_password(tmp_path: Path) -> None:
    kind = configured(VDDK, plugin="/opt/vddk.so", connections=3, libdir="/opt/vddk", transports="hotadd")
    description = describe(kind, SOURCE)
    command = _command(description, tmp_path, tmp_path / "s.sock")
    assert {
        "libdir=/opt/vddk",
        "server=vc",
        "port=443",
        "user=u@vsphere.local",
        "thumbprint=AA:BB",
        "vm=moref=vm-7",
        "snapshot=snapshot-9",
        "transports=hotadd",
        "file=[ds] web/web.vmdk",
        "--filter=multi-conn",
        "--filter=blocksize",
        "maxdata=2097152",
        f"password=+{tmp_path / 'password'}",
    } <= set(command)
    assert description.connections == 3
    assert "canary-password" not in " ".join(command) + repr(description) + repr(SOURCE)
    assert (tmp_path / "password").read_text() == "canary-password"


def test_a_parameter_without_facts_is_left_out_and_braces_in_facts_are_no_templates() -> None:
    assert "libdir" not in describe(VDDK, SOURCE).parameters
    odd = replace(
        SOURCE, password="{thumbprint}", place=replace(PLACE, disk=replace(DISK, file_name="[d] {port}.vmdk"))
    )
    description = describe(VDDK, odd)
    assert description.secrets["password"] == "{thumbprint}"
    assert description.parameters["file"] == "[d] {port}.vmdk"
    assert describe(HTTPS, SOURCE).parameters["cookiefile"] == ""


def test_unknown_readers_and_transports_are_refused_by_the_settings() -> None:
    for wrong in ({"reader": "ftp"}, {"reader_of_vm": {"web": "ftp"}}, {"vddk_transports": "nbd;rm"}):
        with pytest.raises(ValidationError):
            AgentSettings(**wrong)  # type: ignore[arg-type]


def test_neighbouring_blocks_are_read_together_up_to_the_longest_request() -> None:
    blocks = [Extent(each << 16, 1 << 16) for each in (*range(20), 30, 31, 40)]
    found = list(runs(blocks))
    assert [block for run in found for block in run] == blocks
    assert [len(run) for run in found] == [16, 4, 2, 1]
    assert all(run[-1].end - run[0].offset <= LARGEST_READ for run in found)
    assert all(left.end == right.offset for run in found for left, right in pairwise(run))
