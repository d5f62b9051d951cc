"""What a log line may show of an error: where it happened, never the values that local variables had."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from sendense_rpc.logs import configure_logs

configure_logs("test", {log_format!r})

def fail(secret):
    held = secret * 1
    raise ValueError("it failed")

try:
    fail("canary-" + "password")
except ValueError:
    structlog.get_logger().exception("unexpected error")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_in_the_log_shows_no_local_variable(log_format: str) -> None:
    program = PROGRAM.format(log_format=log_format)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "it failed" in done.stderr
    assert "Traceback" in done.stderr
    assert "canary-password" not in done.stderr
