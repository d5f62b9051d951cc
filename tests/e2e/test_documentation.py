"""The guides' commands, run as they stand: every block that is marked as bash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sendense_lab.client import LabClient
from whole_node import fresh_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("quick-start.md", "user-guide.md")
BIN = Path(sys.executable).parent


def blocks(guide: str) -> list[str]:
    """Returns a guide's bash blocks, in order."""
    return re.findall(r"^```bash\n(.*?)^```", (DOCS / guide).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guides_commands_work_as_they_stand(guide: str, tmp_path: Path) -> None:
    """One shell runs a guide from its first block to its last, as its reader does; the first failure ends it."""
    found = blocks(guide)
    assert found, f"{guide} has no block of bash"
    with fresh_node() as node:
        if guide != "quick-start.md":  # which makes its own
            LabClient(node.home).create_vm("pgtest2", ["96M:ext4"], small_files=20)
        (tmp_path / "var").symlink_to(node.home)
        _run("\n".join(found), tmp_path)


def _run(commands: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
    }
    script = "set -euo pipefail\n" + commands
    done = subprocess.run(
        ["bash", "-xc", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
