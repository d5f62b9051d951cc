"""Row 8, the tunnel's and the readers' part: another SSH host key, certificate or disk behind a socket: hard stops.

Nothing is sent to whoever shows another identity, nothing is read from it, and the error names the identity. Changing
the pin (by a person) is the only way on.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
import structlog

from fakes.tunnel_peers import AgentRegistryFake, ExportCatalogueFake
from sendense_agent.accounts import Account
from sendense_agent.config import AgentSettings
from sendense_agent.errors import ReaderUnsuitable, TunnelDown, VCenterCertificateRefused
from sendense_agent.link import Dialling
from sendense_agent.model import Disk
from sendense_agent.own_key import load_or_create_key
from sendense_agent.readers.description import ReaderDescription
from sendense_agent.readers.nbdkit import running_reader
from sendense_agent.readers.source import thumbprint
from sendense_agent.uplink import Uplink
from sendense_agent.vcenter import VCenter
from sendense_lab.client import LabClient
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.main import open_tunnel
from support import serving

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def settings(sendense_home: Path) -> AsyncIterator[TunnelSettings]:
    found = TunnelSettings()
    registry = AgentRegistryFake()
    registry.enroll("lab", load_or_create_key(AgentSettings().key_file, "x").export_public_key().decode())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(registry.service(), found))
        await stack.enter_async_context(serving(ExportCatalogueFake().service(), found))
        yield found


async def test_a_tunnel_that_comes_back_with_another_host_key_gets_no_agent_and_no_data(
    settings: TunnelSettings, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense_agent.uplink.LANE_WAIT_SECONDS", 1.0)
    agent = AgentSettings(carrier="asyncssh")
    agent.sockets_dir.mkdir(parents=True, exist_ok=True)
    agent.socket("agent").touch()
    pinned = short_tmp / "pinned.pub"
    async with open_tunnel(settings):
        shutil.copy(agent.host_key_file, pinned)
    key = load_or_create_key(agent.key_file, "x")
    uplink = Uplink(Dialling("lab", key, pinned, agent.tunnel_address), agent.socket("agent"), 1, agent.sockets_dir)
    door = settings.agents_dir / "lab.sock"
    with structlog.testing.capture_logs() as logs:
        async with uplink.running():
            async with open_tunnel(settings):
                await asyncio.wait_for(uplink.control.up.wait(), 60)
            settings.host_key_file.unlink()
            settings.host_key_file.with_name("host_key.pub").unlink()
            async with open_tunnel(settings):
                async with asyncio.timeout(60):
                    while not any("not the pinned one" in str(entry["event"]) for entry in logs):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                with pytest.raises(TunnelDown):
                    async with uplink.lane():
                        pass
                assert not door.exists()
                assert not uplink.control.up.is_set()
    assert not any(entry["event"] == "agent connected" for entry in logs[-5:])


async def test_a_dialled_stranger_learns_no_key_and_no_name(settings: TunnelSettings, short_tmp: Path) -> None:
    """The host key is judged before the user is named: who poses as the tunnel sees a handshake and no more."""
    seen: list[str] = []

    class Stranger(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            seen.append(username)
            return False

    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Stranger, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")]
    )
    pinned = short_tmp / "pinned.pub"
    pinned.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    key = load_or_create_key(AgentSettings().key_file, "x")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await Dialling("lab", key, pinned, lambda: ("127.0.0.1", server.get_port())).connect()
    server.close()
    await server.wait_closed()
    assert seen == []


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


@pytest.mark.parametrize("how", ["certificate", "fingerprint"])
async def test_another_certificate_of_the_vcenter_is_refused_at_login_and_in_the_middle(
    lab: LabClient, short_tmp: Path, how: str
) -> None:
    known = lab.credentials()
    pem = short_tmp / "pinned.pem"
    shutil.copy(known["certificate"], pem)
    account = Account.model_validate({**known, "certificate": str(pem) if how == "certificate" else None})
    vcenter = VCenter(account)
    uuid = await vcenter.uuid()
    pin = await vcenter.pin()
    lab.change_certificate()
    with pytest.raises(VCenterCertificateRefused) as refused:
        await vcenter.check_account()
    assert refused.value.reason == "VCENTER_CERTIFICATE_CHANGED"
    with pytest.raises(VCenterCertificateRefused):
        await asyncio.to_thread(thumbprint, account, pin)
    fresh = VCenter(account)
    with pytest.raises(VCenterCertificateRefused):
        await fresh.uuid()
    await asyncio.to_thread(fresh.close)
    renewed = VCenter(Account.model_validate(lab.credentials()))
    assert await renewed.uuid() == uuid, "with the new pin, set by a person, it goes on"
    await asyncio.to_thread(renewed.close)
    await asyncio.to_thread(vcenter.close)


async def test_a_reader_that_serves_another_disk_is_refused(short_tmp: Path) -> None:
    raw = short_tmp / "disk.raw"
    raw.write_bytes(bytes(1 << 20))
    disk = Disk(2000, "u/2000", "Hard disk 1", 2 << 20, "[ds] web/web.vmdk", "", "")
    description = ReaderDescription("file", "file", {"file": str(raw)})
    with pytest.raises(ReaderUnsuitable, match="serves 1048576 bytes, the disk has 2097152"):
        async with running_reader(description, short_tmp / "readers", disk):
            pass
    async with running_reader(description, short_tmp / "readers", replace(disk, capacity_bytes=1 << 20)) as reader:
        assert not reader.ended
