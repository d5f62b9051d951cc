"""Row 8, vCenter's part: another certificate than the pinned one is a hard stop, also in the middle of a job's life.

The SSH host key is in tests/integration/agent/test_agent_uplink.py, the leases of exports in tests/integration/tunnel.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from rehearsal import rehearsal
from sendense_agent.certificate import Pin
from sendense_lab.client import LabClient

pytestmark = pytest.mark.timeout(120)


def change_certificate(lab: LabClient) -> None:
    """Lets the vCenter show another certificate; what the agent has pinned does not follow by itself."""
    file = Path(lab.credentials()["certificate"])
    pinned = file.read_text()
    lab.change_certificate()
    file.write_text(pinned)


async def test_a_changed_certificate_stops_before_a_password_is_sent(sendense_home: Path) -> None:
    with LabClient.start(sendense_home) as lab:
        lab.create_vm("web", ["1M:blank"])
        async with rehearsal(sendense_home, lab) as node:
            ref = await node.ref("web")
            assert (await node.back_up("web", ref)).status == "completed"
            change_certificate(lab)
            lab.set_fault("api-drop", times=2)  # its connections are gone: it must connect anew
            lab.calls(reset=True)
            job = await node.back_up("web", ref)
            assert (job.status, job.error_reason) == ("failed", "VCENTER_CERTIFICATE_CHANGED")
            assert "Login" not in {each["method"] for each in lab.calls()}
            lab.clear_faults()


def test_an_old_tls_is_not_spoken(sendense_home: Path) -> None:
    with LabClient.start(sendense_home) as lab:
        context = Pin(Path(lab.credentials()["certificate"]).read_text(), exact=False).context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
