"""Fixtures that every kind of test may use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sendense_access.keys import SigningKey, write_workload_identities

pytest_plugins = ["whole_node"]

# No test depends on how fast the machine is; hypothesis alone would fail an example that takes 200 ms.
settings.register_profile("sendense", deadline=None)
settings.load_profile("sendense")


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's address holds 107 bytes, pytest's tmp_path is longer."""
    path = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def sendense_home(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with a signing key and workload identities; `SENDENSE_HOME` points to it."""
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    keys = short_tmp / "keys"
    write_workload_identities(SigningKey.load_or_create(keys), keys)
    return short_tmp
