"""Fixtures that every kind of test may use."""

from __future__ import annotations

import faulthandler
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from coverage import Coverage
from hypothesis import settings

from sendense_access.keys import SigningKey, write_workload_identities

pytest_plugins = ["whole_node"]

# No test depends on how fast the machine is; hypothesis alone would fail an example that takes 200 ms.
settings.register_profile("sendense", deadline=None)
settings.load_profile("sendense")

CLEAN_UP_SECONDS = 300.0

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 48 << 20
"""Containers may have 64 MiB there; a home needs a few."""


def _end_process_after(seconds: float, config: pytest.Config) -> None:
    # Standard error as it was before pytest captured it.
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[fault_handler_stderr_fd_key])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Ends the process (xdist starts another one) when a test outlives even its time-out.

    pytest-timeout raises once, in the main thread: a C call there, or a clean-up that waits for ever, as the end of an
    event loop does for a thread that is stuck, would hold the whole run.
    """
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker is not None else item.config.getini("timeout"))
    if limit:
        _end_process_after(limit + CLEAN_UP_SECONDS, item.config)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Sets the clock again: pytest stops it when a test has failed."""
    _end_process_after(CLEAN_UP_SECONDS, item.config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets the tests that may take long begin first, so that no worker is alone with one at the end."""

    def allowance(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker is not None else 0

    longest: dict[Path, float] = {}
    for item in items:
        longest[item.path] = max(allowance(item), longest.get(item.path, 0))
    items.sort(key=lambda item: -longest[item.path])


def _worker_killers(controller_pid: int) -> Path:
    """The file that names the tests of this run that took a worker process with them, a line each."""
    return Path(tempfile.gettempdir()) / f"sendense-worker-killers.{controller_pid}"


def pytest_handlecrashitem(crashitem: str) -> None:
    """Notes what a worker was running when it died; xdist would give it to the next worker, and so on for ever."""
    with _worker_killers(os.getpid()).open("a") as killers:
        killers.write(f"{crashitem}\n")


def pytest_unconfigure() -> None:
    _worker_killers(os.getpid()).unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    killers = _worker_killers(os.getppid())
    if killers.exists() and item.nodeid in killers.read_text().splitlines():
        pytest.fail("another worker died while it ran this test", pytrace=False)


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measures no coverage while a test does hundreds of times what others do too: half of its time would go there."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # nor in processes that it starts
    measuring = Coverage.current()
    if measuring is not None:
        measuring.stop()
    yield
    if measuring is not None:
        measuring.start()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's address holds 107 bytes, pytest's tmp_path is longer."""
    path = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def sendense_home(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with a signing key and workload identities; `SENDENSE_HOME` points to it."""
    return _state_directory(short_tmp, monkeypatch)


@pytest.fixture
def memory_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same in memory, for tests that kill processes but not the machine: what was written is there afterwards.

    Some write thousands of transactions, each synchronised, for which a slow disk needs minutes.
    """
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    path = Path(tempfile.mkdtemp(prefix="s-", dir=MEMORY if roomy else "/tmp"))
    yield _state_directory(path, monkeypatch)
    shutil.rmtree(path)


def _state_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENDENSE_HOME", str(path))
    keys = path / "keys"
    write_workload_identities(SigningKey.load_or_create(keys), keys)
    return path
