"""Jobs that go well: full, increment, several disks, and what the API tells about them."""

from __future__ import annotations

import asyncio

from backup_service import Client, cleaned
from backup_world import CLUSTER, World

from sendense.backup.v1 import backup_pb2

pytest_plugins = ("backup_fixtures",)


async def test_full_then_increment_are_byte_identical_and_move_only_changes(client: Client, world: World) -> None:
    vm = world.add_vm("web", disks=2)
    first = await client.run("web")
    assert (first.status, first.backup_type) == ("completed", "full"), first.error_message
    assert [disk.reason for disk in first.disks] == ["first backup"] * 2
    assert world.point_contents(first.backup_id) == [bytes(disk.content) for disk in vm.disks]
    assert first.bytes_transferred == first.total_bytes == 2 * 8 * CLUSTER

    vm.write(0, 3, b"x")
    vm.write(0, 4, b"y")
    second = await client.run("web", "incremental")
    assert (second.status, second.backup_type) == ("completed", "incremental"), second.error_message
    assert second.parent_backup_id == first.backup_id
    assert [disk.reason for disk in second.disks] == [f"changed since {first.backup_id}"] * 2
    assert [disk.bytes_transferred for disk in second.disks] == [2 * CLUSTER, 0]
    assert world.point_contents(second.backup_id) == [bytes(disk.content) for disk in vm.disks]
    assert world.clean, world.left()


async def test_chain_and_vm_list_know_the_backups(client: Client, world: World) -> None:
    world.add_vm("web", disks=2)
    first = await client.run("web")
    second = await client.run("web", "incremental")
    chain = await client.peer.call(client.backups.GetChain, backup_pb2.GetChainRequest(vm_name="web"))
    assert [each.full_backup_id for each in chain.chains] == [first.backup_id] * 2
    assert [layer.parent_backup_id for layer in chain.chains[0].layers] == ["", first.backup_id]
    assert chain.total_size_bytes == 4000
    vms = await client.peer.call(client.vms.ListVms, backup_pb2.ListVmsRequest())
    assert [vm.latest_backup_id for vm in vms.vms] == [second.backup_id]


async def test_log_has_a_line_for_each_step(client: Client, world: World) -> None:
    world.add_vm("web")
    backup = await client.run("web")
    steps = [entry.step for entry in await client.log(backup.backup_id)]
    wanted = ["start", "inspect", "snapshot", "decide", "layer", "plan", "export", "capture", "seal", "commit", "end"]
    assert [step for step in wanted if step not in steps] == []


async def test_watch_tells_changes_and_ends_with_the_final_status(client: Client, world: World) -> None:
    world.add_vm("web")
    world.batch_pause = 1.5  # the watch looks twice a second: each batch is seen, on a busy machine too
    backup = await client.start("web")
    assert backup.status == "pending"
    request = backup_pb2.WatchBackupRequest(backup_id=backup.backup_id)
    seen = [each async for each in client.peer.stream(client.backups.WatchBackup, request, timeout=120)]
    assert seen[-1].status == "completed"
    assert not seen[-1].HasField("progress")
    middle = [each for each in seen if each.status == "running" and each.progress.phase == "capture"]
    assert any(0 < each.progress.percent < 100 for each in middle)
    assert any(each.progress.rate_bytes_per_second > 0 for each in middle)


async def test_changes_after_the_snapshot_are_not_in_the_backup(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    before = bytes(vm.disks[0].content)
    world.holds["Capture"] = asyncio.Event()
    backup = await client.start("web")
    await asyncio.wait_for(world.held.wait(), 20)
    vm.write(0, 0, b"later")
    world.holds.pop("Capture").set()
    assert (await client.ended(backup.backup_id)).status == "completed"
    assert world.point_contents(backup.backup_id) == [before]
    await client.run("web", "incremental")
    assert world.point_contents(world.points[-1].backup_id) == [bytes(vm.disks[0].content)]


async def test_cancel_in_the_middle_of_a_copy_undoes_everything(client: Client, world: World) -> None:
    world.add_vm("web")
    world.batch_pause = 0.2
    backup = await client.start("web")
    await client.copied_something(backup.backup_id)
    await client.peer.call(client.backups.CancelBackup, backup_pb2.CancelBackupRequest(backup_id=backup.backup_id))
    ended = await client.ended(backup.backup_id)
    assert (ended.status, ended.error_reason) == ("cancelled", "CANCELLED")
    await cleaned(world)
    assert world.points == []
    again = await client.peer.call(
        client.backups.CancelBackup, backup_pb2.CancelBackupRequest(backup_id=backup.backup_id)
    )
    assert again.status == "cancelled"
    world.batch_pause = 0.0
    assert (await client.run("web")).status == "completed"
