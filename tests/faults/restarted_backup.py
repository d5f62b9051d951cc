"""In a node's Procfile in the backup service's place: runs it, and starts it again when it was killed.

The service is the real one, except that jobs hang where `plan.json` in the state directory says, to be killed there.
Its process id is in `backup.pid`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

SERVICE = Path(__file__).parents[1] / "integration" / "backup" / "hanging_service.py"


def main() -> int:
    """Runs until the service ends otherwise than by SIGKILL; returns its status."""
    home = Path(os.environ["SENDENSE_HOME"])
    marks = home / "marks"
    marks.mkdir(exist_ok=True)
    while True:
        plan = home / "plan.json"
        hang_at = plan.read_text() if plan.exists() else "{}"
        environment = {**os.environ, "HANG_AT": hang_at, "HANG_MARKS": str(marks)}
        process = subprocess.Popen([sys.executable, str(SERVICE)], env=environment)
        (home / "backup.pid").write_text(str(process.pid))
        signal.signal(signal.SIGTERM, lambda *_, process=process: process.terminate())
        signal.signal(signal.SIGINT, lambda *_, process=process: process.terminate())
        status = process.wait()
        if status != -signal.SIGKILL:
            return status


if __name__ == "__main__":
    sys.exit(main())
