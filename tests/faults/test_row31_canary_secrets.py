"""Row 31, vCenter's credentials: in the agent's file, and in no command line, environment, log, database or sidecar.

A backup runs through every real part, slowly enough to look at all processes while it reads; then all that it left in
its state directory, and all that was logged, is searched for the password as it is and as it may have been encoded.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture_node import capture_node, write_vcenters
from sendense_lab.client import LabClient
from sendense_rpc.errors import RemoteError

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
WRONG = "wr0ng-canary/+%&"


def spellings(secret: str) -> list[bytes]:
    """Returns a secret as it may stand somewhere: plain, percent-encoded, in JSON or XML, in base64 at any offset."""
    raw = secret.encode()
    encoded = {
        raw,
        urllib.parse.quote(secret).encode(),
        urllib.parse.quote(secret, safe="").encode(),
        urllib.parse.quote_plus(secret).encode(),
        raw.replace(b"&", b"&amp;").replace(b"<", b"&lt;"),
        raw.hex().encode(),
    }
    # The middle of the base64 is the same whatever stands before, for each of the three offsets.
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + raw).rstrip(b"=")
        encoded.add(coded[4 if shift else 0 : -2])
    return sorted(encoded)


def in_processes(secrets: list[bytes]) -> list[str]:
    """Returns where a command line or an environment of any process holds one of the secrets."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for part in ("cmdline", "environ"):
                with contextlib.suppress(OSError):  # it has ended, or is not ours
                    content = (process / part).read_bytes()
                    found += [f"{process.name} {part}" for secret in secrets if secret in content]
    return found


def in_files(root: Path, secrets: list[bytes], but: set[Path]) -> list[str]:
    """Returns the files below a directory that hold one of the secrets."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if path in but or not stat.S_ISREG(path.lstat().st_mode):
                continue
            with contextlib.suppress(FileNotFoundError):  # a journal of the database comes and goes
                content = path.read_bytes()
                found += [str(path) for secret in secrets if secret in content]
    return found


def readers_files(root: Path) -> list[Path]:
    """Returns the private files of readers that run now."""
    return [path for path in (root / "run" / "agent" / "lab-readers").rglob("*") if path.is_file()]


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabClient]:
    """A vCenter whose own files are not below the node's state directory."""
    home = Path(f"/tmp/canary-{tmp_path_factory.getbasetemp().name}")  # a socket needs a short path
    home.mkdir(mode=0o700)
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


async def test_the_password_is_in_the_agents_file_and_nowhere_else(
    lab: LabClient, sendense_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    accounts = sendense_home / "agent" / "vcenters.json"
    account = lab.credentials()
    secrets = spellings(account["password"]) + spellings(WRONG)
    async with capture_node(sendense_home, lab) as node:
        lab.create_vm("web", ["8M:blank"])
        lab.guest_write("web", 0, 0, seed=1, length=8 * MIB)
        lab.set_fault("read-slow", bytes_per_second=2 * MIB, times=None)
        started = await node.start("web", "full")
        private: set[Path] = set()
        while (backup := await node.get(started.backup_id)).status in ("pending", "running"):
            for path in await asyncio.to_thread(readers_files, sendense_home):
                private.add(path)
                with contextlib.suppress(FileNotFoundError):
                    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
            assert await asyncio.to_thread(in_processes, secrets) == []
            await asyncio.sleep(0.1)
        assert backup.status == "completed", backup.error_message
        assert private, "no reader was seen while it ran"
        lab.clear_faults()

        write_vcenters(accounts, account | {"password": WRONG})
        with pytest.raises(RemoteError) as refused:
            await node.start("web", "full")
        assert refused.value.reason == "VCENTER_LOGIN_REFUSED"
        told = f"{backup}{refused.value!r}{await node.log(backup.backup_id)}".encode()
        assert [secret for secret in secrets if secret in told] == []
    assert not any(path.exists() for path in private)
    assert in_files(sendense_home, secrets, {accounts}) == []
    written = "".join(capfd.readouterr()).encode()
    assert b"VCENTER_LOGIN_REFUSED" in written  # the log of this process was looked at
    assert [secret for secret in secrets if secret in written] == []
