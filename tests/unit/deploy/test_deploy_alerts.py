"""The example alert rules: promtool takes them, each fires when it must and not before, each metric is one of ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sendense_backup.metrics  # noqa: F401  # registers what the rules ask for
from sendense_rpc.metrics import REGISTRY

RULES = Path(__file__).parents[3] / "deploy" / "alerts.yml"
MADE_WHEN_READ = {"sendense_up", "sendense_metrics_complete"}

HOUR = 60
"""In samples, one a minute."""

FIRES = {
    "SendenseServiceDown": ['sendense_up{service="exports"} 0'],
    "SendenseNoRecentBackup": ['sendense_vm_last_good_point_age_seconds{vm_name="web",vm_uuid="u"} 100000'],
    "SendenseBackupsFail": ['sendense_jobs{kind="backup",status="failed",reason="NO_ROOM"} 0+1'],
    "SendensePointCorrupt": ['sendense_jobs{kind="verify",status="failed",reason="POINT_CORRUPT"} 1'],
    "SendenseNotVerified": ['sendense_vm_last_verification_age_seconds{vm_name="web",vm_uuid="u"} 4000000'],
    "SendenseRepositoryFull": [
        'sendense_repository_available_bytes{repository="local"} 5',
        'sendense_repository_size_bytes{repository="local"} 100',
    ],
    "SendenseRepositoryFillsSoon": ['sendense_repository_full_in_seconds{repository="local"} 3600'],
    "SendenseLeftBehind": ["sendense_jobs_left_behind 2"],
    "SendenseSchedulerStands": ["sendense_scheduler_last_tick_seconds 0"],
    "SendenseJobsWait": ["sendense_jobs_waiting 3", "sendense_backup_bytes_per_second 0"],
}
"""For each alert the series, with value (and growth a minute), that make it fire within three hours."""

QUIET = [
    'sendense_up{service="exports"} 1',
    'sendense_vm_last_good_point_age_seconds{vm_name="web",vm_uuid="u"} 3600',
    'sendense_jobs{kind="backup",status="failed",reason="NO_ROOM"} 4',
    'sendense_vm_last_verification_age_seconds{vm_name="web",vm_uuid="u"} 3600',
    'sendense_repository_available_bytes{repository="local"} 50',
    'sendense_repository_size_bytes{repository="local"} 100',
    "sendense_jobs_left_behind 0",
    "sendense_scheduler_last_tick_seconds 0+60",
    "sendense_jobs_waiting 3",
    "sendense_backup_bytes_per_second 100",
]


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (make test installs it)")
    return found


def names() -> list[str]:
    return re.findall(r"alert: (\w+)", RULES.read_text())


def test_promtool_takes_the_rules() -> None:
    done = subprocess.run([promtool(), "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_in_the_rules_is_one_that_a_service_has() -> None:
    known = {sample.name for family in REGISTRY.collect() for sample in family.samples} | MADE_WHEN_READ
    known |= {family.name for family in REGISTRY.collect()}
    asked = set(re.findall(r"\bsendense_\w+", " ".join(re.findall(r"expr: (.*)", RULES.read_text()))))
    assert asked - known == set()
    assert set(FIRES) == set(names())


def fired(tmp_path: Path, series: list[str], alert: str, *, expected: bool) -> subprocess.CompletedProcess[str]:
    """Asks promtool whether an alert fires at the end of three hours of these series."""
    lines = [f"rule_files: [{RULES}]", "evaluation_interval: 1m", "tests:", "  - interval: 1m", "    input_series:"]
    for each in series:
        name, _, value = each.rpartition(" ")
        start, _, growth = value.partition("+")
        lines += [f"      - series: '{name}'", f"        values: '{start}+{growth or 0}x{4 * HOUR}'"]
    sign = "> 0" if expected else "== 0"
    count = f"count(ALERTS{{alertname='{alert}',alertstate='firing'}}) or vector(0)"
    lines += ["    promql_expr_test:", f'      - expr: "({count}) {sign}"', "        eval_time: 3h"]
    lines += ["        exp_samples: [{value: " + ("1" if expected else "0") + "}]"]
    file = tmp_path / "test.yml"
    file.write_text("\n".join(lines) + "\n")
    return subprocess.run([promtool(), "test", "rules", str(file)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("alert", sorted(FIRES))
def test_each_alert_fires_when_it_must_and_not_when_all_is_well(tmp_path: Path, alert: str) -> None:
    loud = fired(tmp_path, FIRES[alert], alert, expected=True)
    assert loud.returncode == 0, loud.stdout + loud.stderr
    quiet = fired(tmp_path, QUIET, alert, expected=False)
    assert quiet.returncode == 0, quiet.stdout + quiet.stderr
