"""Fixtures that every kind of test may use."""

from __future__ import annotations

import faulthandler
import os
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

_STACKS = os.dup(2)
"""Standard error as it is before that of a test is captured."""
CLEAN_UP_SECONDS = 120.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Ends the process (xdist starts another one) when a test outlives even its time-out.

    pytest-timeout raises once, in the main thread: a C call there, or a clean-up that waits for ever, as the end of an
    event loop does for a thread that is stuck, would hold the whole run.
    """
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker is not None else item.config.getini("timeout"))
    if limit:
        faulthandler.dump_traceback_later(limit + CLEAN_UP_SECONDS, exit=True, file=_STACKS)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Sets the clock again: pytest stops it when a test has failed."""
    faulthandler.dump_traceback_later(CLEAN_UP_SECONDS, exit=True, file=_STACKS)


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
