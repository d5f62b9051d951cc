"""Readers on the lab: both give the same layers, each failure is a failed read with its reason, nothing is guessed.

The vddk reader runs on a stand-in plugin of our own (tests/fakes/vddk), compiled here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from agent_rig import (
    AgentRig,
    Copied,
    assert_secret_in_no_process,
    children_running,
    node_with_agent,
    same_content,
    write_vcenters,
)

from fakes.nbd_server import make_qcow2
from fakes.vddk.host import VddkHost, build_library, build_plugin, real_plugin
from sendense.agent.v1 import agent_pb2
from sendense_blockio.extents import Extent, subtract
from sendense_blockio.journal import decode_entries, entry_extents
from sendense_lab.client import LabClient
from sendense_rpc.errors import RemoteError

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
DISK_BYTES = 48 * MIB
SLOW_NS = 400_000_000
"""A read that takes so long lets several reports of progress come before the disk is copied."""


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("vddk"))


@pytest.fixture
def vm(lab: LabClient) -> Iterator[str]:
    name = f"web-{os.urandom(3).hex()}x"  # with six digits at its end a disk's file looks like a delta's
    lab.create_vm(name, ["48M:ext4"], small_files=40)
    yield name
    lab.delete_vm(name)


@pytest.fixture(params=["stand-in plugin", "real plugin"])
def vddk(request: pytest.FixtureRequest, lab: LabClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[VddkHost]:
    """VDDK, installed as the agent's settings say: a plugin of ours, or nbdkit's own with a library of ours."""
    real = request.param == "real plugin"
    plugin = real_plugin() if real else str(request.getfixturevalue("plugin"))
    with tempfile.TemporaryDirectory(prefix="vddk-", dir="/tmp") as made:
        libdir = Path(made)
        if real:
            build_library(libdir)
        monkeypatch.setenv("SENDENSE_AGENT_VDDK_PLUGIN", plugin)
        monkeypatch.setenv("SENDENSE_AGENT_VDDK_LIBDIR", made)
        with VddkHost(lab, libdir, plugin).running() as host:
            yield host


@asynccontextmanager
async def running(lab: LabClient, home: Path, *names: str) -> AsyncIterator[AgentRig]:
    images = {name: (make_qcow2(home / f"{name}.qcow2", DISK_BYTES), "lab") for name in names}
    async with node_with_agent(lab, home, images) as rig:
        yield rig


async def captured(rig: AgentRig, vm: agent_pb2.VmRef, snapshot: agent_pb2.Snapshot, export: str) -> Copied:
    target = rig.target(vm, snapshot.moref, snapshot.disks[0].device_key, export)
    return await rig.capture(target, [Extent(0, DISK_BYTES)])


class _Kept:
    """The batches of a capture that broke off.

    Args:
        at_progress: Called when the first bytes were copied.
    """

    def __init__(self, at_progress: Callable[[], None]) -> None:
        self._at_progress = at_progress
        self._batches: list[bytes] = []

    async def take(self, events: AsyncIterator[agent_pb2.CaptureEvent]) -> None:
        async for event in events:
            if event.HasField("batch"):
                self._batches.append(event.batch.entries)
            if event.HasField("batch") or event.progress.done_bytes:
                self._at_progress()

    def missing(self) -> Sequence[Extent]:
        done = entry_extents(entry for batch in self._batches for entry in decode_entries(batch))
        return subtract([Extent(0, DISK_BYTES)], done)


def reader_of(copied: Copied) -> str:
    assert copied.done is not None
    return copied.done.reader


async def test_both_readers_give_identical_layers_for_one_snapshot(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(lab, sendense_home, "by-vddk", "by-https") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        assert reader_of(await captured(rig, ref, snapshot, "by-vddk")) == "vddk", "the default for a running VM"
        lab.guest_write(vm, 0, 0, seed=9, length=8 * MIB)
    monkeypatch.setenv("SENDENSE_AGENT_READER", "https")
    async with running(lab, sendense_home, "by-https") as rig:
        assert reader_of(await captured(rig, ref, snapshot, "by-https")) == "https"
        raw = sendense_home / "snapshot.raw"
        lab.export(vm, 0, raw, snapshot=snapshot.moref)
        await rig.remove_snapshot(ref)
    for name in ("by-vddk", "by-https"):
        same_content(sendense_home / f"{name}.qcow2", raw)


async def test_fact_13_the_vddk_plugin_is_told_everything_and_guesses_nothing(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path
) -> None:
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        await captured(rig, ref, snapshot, "disk")
        await rig.remove_snapshot(ref)
    asked = vddk.asked[-1]
    (listed,) = [each for each in lab.vms() if each["name"] == vm]
    assert asked["snapshot"] == snapshot.moref
    assert asked["vm"] == f"moref={listed['moref']}"
    assert asked["file"] == snapshot.disks[0].file_name
    assert asked["transports"] == "nbdssl:nbd"
    assert asked["thumbprint"] == lab.credentials()["sha1"]


async def test_fact_16_a_delta_is_read_by_vddk_and_refused_by_https(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.create_snapshot(vm, "by hand")
    lab.guest_write(vm, 0, 3 * MIB, seed=5, length=2 * MIB)
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        assert reader_of(await captured(rig, ref, snapshot, "disk")) == "vddk"
        raw = sendense_home / "snapshot.raw"
        lab.export(vm, 0, raw, snapshot=snapshot.moref)
    same_content(sendense_home / "disk.qcow2", raw)
    monkeypatch.setenv("SENDENSE_AGENT_READER_OF_VM", f'{{"{vm}": "https"}}')
    async with running(lab, sendense_home, "disk") as rig:
        with pytest.raises(RemoteError, match="itself a delta") as failed:
            await captured(rig, ref, snapshot, "disk")
        assert failed.value.reason == "READER_UNSUITABLE"
        await rig.remove_snapshot(ref)


async def test_fact_16_a_host_that_refuses_a_running_vms_extent_makes_the_choice_fall_through(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path
) -> None:
    lab.power_off(vm)
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        assert reader_of(await captured(rig, ref, snapshot, "disk")) == "https", "first for a VM that is off"
        with lab.fault("read-error", status=403, times=None):
            assert reader_of(await captured(rig, ref, snapshot, "disk")) == "vddk"
        (vddk.libdir / "host.sock").unlink()
        with lab.fault("read-error", status=403, times=None), pytest.raises(RemoteError) as failed:
            await captured(rig, ref, snapshot, "disk")
        assert failed.value.reason == "READER_UNSUITABLE"
        assert "answers 403" in str(failed.value)
        assert "Cannot connect to host" in str(failed.value)
        await rig.remove_snapshot(ref)


async def test_a_reader_that_is_asked_for_and_not_installed_is_refused(
    lab: LabClient, vm: str, sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_AGENT_VDDK_PLUGIN", "/nowhere/nbdkit-vddk-plugin.so")
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        assert reader_of(await captured(rig, ref, snapshot, "disk")) == "https", "what is not there is not tried"
        monkeypatch.setenv("SENDENSE_AGENT_READER", "vddk")
        await rig.remove_snapshot(ref)
    async with running(lab, sendense_home, "disk") as rig:
        snapshot = await rig.create_snapshot(ref)
        with pytest.raises(RemoteError, match="not installed") as failed:
            await captured(rig, ref, snapshot, "disk")
        assert failed.value.reason == "READER_UNSUITABLE"
        await rig.remove_snapshot(ref)


async def test_nfc_is_a_description_and_no_new_code(
    lab: LabClient, vm: str, plugin: Path, short_tmp: Path, sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nfc plugin takes the vddk plugin's parameters; a copy of the stand-in that knows its host plays its part."""
    place = short_tmp / "nfc"
    text = (Path(__file__).parents[2] / "fakes/vddk/plugin.c").read_text()
    text = text.replace('.name = "vddk"', '.name = "nfc"').replace("VM, SNAPSHOT, TRANSPORTS };", "VM, SNAPSHOT };")
    place.mkdir()
    (place / "nfc.c").write_text(text.replace('values[LIBDIR] ? values[LIBDIR] : ""', f'"{place}"'))
    nfc = build_plugin(place, place / "nfc.c", "nbdkit-nfc-plugin.so")
    monkeypatch.setenv("SENDENSE_AGENT_NFC_PLUGIN", str(nfc))
    monkeypatch.setenv("SENDENSE_AGENT_READER", "nfc")
    with VddkHost(lab, place, nfc).running() as host:
        async with running(lab, sendense_home, "disk") as rig:
            ref = await rig.ref(vm)
            snapshot = await rig.create_snapshot(ref)
            assert reader_of(await captured(rig, ref, snapshot, "disk")) == "nfc"
            lab.export(vm, 0, sendense_home / "snapshot.raw", snapshot=snapshot.moref)
            await rig.remove_snapshot(ref)
    same_content(sendense_home / "disk.qcow2", sendense_home / "snapshot.raw")
    assert host.asked[-1]["snapshot"] == snapshot.moref
    assert "transports" not in host.asked[-1]


async def test_fact_13_wrong_thumbprint_and_password_have_their_reasons_and_no_fall_back(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VixDiskLib says "Unknown error" for a certificate and the reader cannot know more: the agent looks again."""
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        monkeypatch.setattr("sendense_agent.readers.source.thumbprint", lambda *_: "00:" * 19 + "00")
        monkeypatch.setattr("sendense_agent.vcenter.check_server", _refuse_certificate)
        with pytest.raises(RemoteError) as failed:
            await captured(rig, ref, snapshot, "disk")
        assert failed.value.reason == "VCENTER_CERTIFICATE_CHANGED"
        monkeypatch.undo()
        account = lab.credentials()
        monkeypatch.setattr("sendense_agent.accounts.Account.read_password", lambda _: "wrong")
        with pytest.raises(RemoteError) as failed:
            await captured(rig, ref, snapshot, "disk")
        assert failed.value.reason == "VCENTER_LOGIN_REFUSED"
        assert account["password"] not in str(failed.value)
        monkeypatch.undo()
        await rig.remove_snapshot(ref)


def _refuse_certificate(account: object, context: object) -> None:
    from sendense_agent.errors import VCenterCertificateRefused

    raise VCenterCertificateRefused("lab", "it is another one")


async def test_fact_15_a_reader_that_aborts_in_the_middle_is_a_failed_read_and_the_rest_is_resumed(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path
) -> None:
    lab.guest_write(vm, 0, 0, seed=1, length=40 * MIB)
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        target = rig.target(ref, snapshot.moref, snapshot.disks[0].device_key, "disk")
        vddk.dies_after = 20 * MIB
        kept = _Kept(lambda: None)
        with pytest.raises(RemoteError) as failed:
            await kept.take(rig.events(target, [Extent(0, DISK_BYTES)]))
        assert failed.value.reason == "CAPTURE_FAILED"
        assert failed.value.metadata["cause"] in {"READER_DIED", "CONNECTION_LOST"}
        assert failed.value.retryable
        assert failed.value.metadata["poisons"] == "false"
        vddk.dies_after = 0
        await rig.capture(target, kept.missing())
        lab.export(vm, 0, sendense_home / "snapshot.raw", snapshot=snapshot.moref)
        await rig.remove_snapshot(ref)
    same_content(sendense_home / "disk.qcow2", sendense_home / "snapshot.raw")


@pytest.mark.parametrize("reader", ["vddk", "https"])
async def test_fact_15_a_killed_reader_is_a_failed_read_and_never_zeros(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    lab.guest_write(vm, 0, 0, seed=2, length=40 * MIB)
    monkeypatch.setenv("SENDENSE_AGENT_READER", reader)
    vddk.slow_ns = SLOW_NS
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        target = rig.target(ref, snapshot.moref, snapshot.disks[0].device_key, "disk")
        password = lab.credentials()["password"]

        def kill() -> None:
            for pid in children_running("nbdkit", str(rig.home)):
                assert_secret_in_no_process(password, pid)
                files = [path for path in rig.settings.sockets_dir.rglob("*") if path.is_file()]
                assert not any(password in path.read_text() for path in files)
                os.kill(pid, signal.SIGKILL)

        kept = _Kept(kill)
        with lab.fault("read-slow", ms=SLOW_NS // 1_000_000), pytest.raises(RemoteError) as failed:
            await kept.take(rig.events(target, [Extent(0, DISK_BYTES)]))
        assert failed.value.reason == "CAPTURE_FAILED"
        assert failed.value.metadata["cause"] in {"READER_DIED", "CONNECTION_LOST"}
        assert failed.value.retryable
        vddk.slow_ns = 0
        await rig.capture(target, kept.missing())
        lab.export(vm, 0, sendense_home / "snapshot.raw", snapshot=snapshot.moref)
        await rig.remove_snapshot(ref)
    same_content(sendense_home / "disk.qcow2", sendense_home / "snapshot.raw")


async def test_fact_15_a_stopped_reader_does_not_hold_the_caller_who_leaves(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path
) -> None:
    vddk.slow_ns = SLOW_NS
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        target = rig.target(ref, snapshot.moref, snapshot.disks[0].device_key, "disk")
        async with aclosing(rig.events(target, [Extent(0, DISK_BYTES)])) as events:
            async for _ in events:
                (pid,) = children_running("nbdkit", str(rig.home))
                os.kill(pid, signal.SIGSTOP)
                break
        async with asyncio.timeout(60):
            while children_running("nbdkit", str(rig.home)):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
        await rig.remove_snapshot(ref)


async def test_another_certificate_of_the_vcenter_is_a_hard_stop_for_every_reader(
    lab: LabClient, vm: str, vddk: VddkHost, sendense_home: Path, short_tmp: Path
) -> None:
    async with running(lab, sendense_home, "disk") as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        pinned = short_tmp / "pinned.pem"
        account = lab.credentials()
        shutil.copy(account["certificate"], pinned)
        write_vcenters(rig.settings.vcenters_file, {**account, "certificate": str(pinned)})
        lab.change_certificate()
        asked = len(vddk.asked)
        with pytest.raises(RemoteError) as failed:
            await captured(rig, ref, snapshot, "disk")
        assert failed.value.reason == "VCENTER_CERTIFICATE_CHANGED"
        assert len(vddk.asked) == asked, "no reader was started"
        write_vcenters(rig.settings.vcenters_file, lab.credentials())
        await rig.remove_snapshot(ref)
