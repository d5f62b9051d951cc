"""What the backup service measures is what happened."""

from __future__ import annotations

from backup_service import Client
from backup_world import World
from prometheus_client.parser import text_string_to_metric_families

from sendense_backup.config import BackupSettings
from sendense_rpc.metrics import read_metrics

pytest_plugins = ("backup_fixtures",)


async def measured(settings: BackupSettings) -> dict[str, dict[tuple[str, ...], float]]:
    text = await read_metrics(settings.metrics_socket("backup"))
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = tuple(value for name, value in sorted(sample.labels.items()) if name != "service")
            found.setdefault(sample.name, {})[key] = sample.value
    return found


async def test_jobs_ages_room_and_exports_are_measured(settings: BackupSettings, client: Client, world: World) -> None:
    vm = world.add_vm("web")
    backup = await client.run("web")
    template = world.add_vm("tpl")
    template.template = True
    await client.run("tpl")
    now = await measured(settings)
    assert now["sendense_metrics_complete"] == {(): 1}
    assert now["sendense_jobs"][("backup", "", "completed")] == 1
    assert now["sendense_jobs"][("backup", "VM_IS_TEMPLATE", "failed")] == 1
    assert now["sendense_backup_moved_bytes"] == {(): backup.bytes_transferred}
    assert list(now["sendense_vm_last_good_point_age_seconds"]) == [("web", vm.uuid)]
    assert now["sendense_repository_available_bytes"] == {("local",): world.room}
    assert now["sendense_exports"] == {(): 0}
    assert now["sendense_workflow_seconds_count"][("backup", "completed")] == 1
    started = now["sendense_calls_total"]
    assert any(method == "sendense.backup.v1.BackupService/StartBackup" for _, method, _ in started)
