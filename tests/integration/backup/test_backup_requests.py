"""What the API accepts, refuses and lists; each refusal names its reason and changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from backup_service import Client, cleaned, running
from backup_world import World

from sendense.backup.v1 import backup_pb2
from sendense_backup.config import BackupSettings
from sendense_backup.workflows.executor import AlreadyRunning
from sendense_rpc.errors import Kind, RemoteError

pytest_plugins = ("backup_fixtures",)


async def refused(awaitable: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return caught.value


async def test_bad_starts_are_refused_with_the_reason_and_leave_no_job(client: Client, world: World) -> None:
    world.add_vm("web")
    world.add_vm("twin", path="/DC/vm/a/twin")
    world.add_vm("twin", path="/DC/vm/b/twin")
    unknown = await refused(client.start("nobody"))
    assert (unknown.kind, unknown.reason) == (Kind.NOT_FOUND, "VM_NOT_FOUND")
    twins = await refused(client.start("twin"))
    assert (twins.kind, twins.reason) == (Kind.INVALID_ARGUMENT, "AMBIGUOUS_VM_NAME")
    for vm in world.vms[1:]:
        assert vm.uuid in twins.message
        assert vm.path in twins.message
    repository = await refused(client.start("web", repository="nowhere"))
    assert (repository.kind, repository.reason) == (Kind.NOT_FOUND, "REPOSITORY_NOT_FOUND")
    first = await refused(client.start("web", "incremental"))
    assert (first.kind, first.reason) == (Kind.FAILED_PRECONDITION, "NO_FULL_BACKUP")
    assert "sendense-ctl backup start --vm web --type full" in first.help
    both = await refused(client.start("web", vm_uuid=world.vms[0].uuid))
    assert (both.kind, both.reason) == (Kind.INVALID_ARGUMENT, "INVALID_FIELD")
    assert (await refused(client.start(""))).reason == "INVALID_FIELD"
    assert (await refused(client.start("web", "differential"))).reason == "INVALID_FIELD"
    world.enabled = False
    assert (await refused(client.start("web"))).reason == "REPOSITORY_DISABLED"
    world.agent_connected = False
    gone = await refused(client.start("web"))
    assert (gone.kind, gone.reason) == (Kind.UNAVAILABLE, "NO_AGENT")
    listed = await client.peer.call(client.backups.ListBackups, backup_pb2.ListBackupsRequest())
    assert list(listed.backups) == []
    assert "CreateSnapshot" not in world.calls


async def test_a_twin_starts_by_its_uuid(client: Client, world: World) -> None:
    world.add_vm("twin", path="/DC/vm/a/twin")
    chosen = world.add_vm("twin", path="/DC/vm/b/twin")
    backup = await client.run("", vm_uuid=chosen.uuid.upper())
    assert backup.status == "completed"
    assert backup.repository_path == f"/backups/{chosen.uuid}"
    assert [point.vm_uuid for point in world.points] == [chosen.uuid]


async def test_a_second_start_is_refused_naming_the_first(client: Client, world: World) -> None:
    world.add_vm("web")
    world.holds["Capture"] = asyncio.Event()
    first = await client.start("web")
    second = await refused(client.start("web"))
    assert (second.kind, second.reason) == (Kind.ABORTED, "BACKUP_RUNNING")
    assert second.metadata["backup_id"] == first.backup_id
    busy = await refused(
        client.peer.call(client.backups.DeleteBackup, backup_pb2.DeleteBackupRequest(backup_id=first.backup_id))
    )
    assert (busy.kind, busy.reason) == (Kind.FAILED_PRECONDITION, "BACKUP_RUNNING")
    world.holds.pop("Capture").set()
    assert (await client.ended(first.backup_id)).status == "completed"
    assert (await client.run("web", "incremental")).status == "completed"


async def test_the_same_request_id_returns_the_same_backup(client: Client, world: World) -> None:
    world.add_vm("web")
    started = await asyncio.gather(*(client.start("web", request_id="mine") for _ in range(5)))
    assert len({each.backup_id for each in started}) == 1
    ended = await client.ended(started[0].backup_id)
    again = await client.start("web", request_id="mine")
    assert (again.backup_id, again.status) == (ended.backup_id, "completed")
    assert len(world.points) == 1


async def test_backups_of_one_second_have_ids_of_their_own_and_a_prefix_finds_one(client: Client, world: World) -> None:
    for number in range(3):
        world.add_vm("same", path=f"/DC/vm/{number}")
    started = await asyncio.gather(*(client.start("", vm_uuid=vm.uuid) for vm in world.vms))
    backups = await client.all_ended(started)
    ids = {each.backup_id for each in backups}
    assert len(ids) == 3
    ambiguous = await refused(client.get("backup-same-"))
    assert (ambiguous.kind, ambiguous.reason) == (Kind.INVALID_ARGUMENT, "AMBIGUOUS_BACKUP_ID")
    assert all(each in ambiguous.message for each in ids)
    assert {(await client.get(each)).backup_id for each in ids} == ids
    assert (await refused(client.get("backup-%"))).reason == "BACKUP_NOT_FOUND"
    world.add_vm("other")
    other = await client.run("other")
    assert (await client.get("backup-oth")).backup_id == other.backup_id
    chain = await refused(client.peer.call(client.backups.GetChain, backup_pb2.GetChainRequest(vm_name="same")))
    assert chain.reason == "AMBIGUOUS_VM_NAME"
    never = await refused(client.peer.call(client.backups.GetChain, backup_pb2.GetChainRequest(vm_name="never")))
    assert (never.kind, never.reason) == (Kind.NOT_FOUND, "VM_NOT_FOUND")


async def test_lists_page_newest_first_and_filter(client: Client, world: World) -> None:
    world.add_vm("web")
    ids = [(await client.run("web")).backup_id for _ in range(3)]
    seen: list[str] = []
    token = ""
    while True:
        request = backup_pb2.ListBackupsRequest(vm_name="web", page_size=2, page_token=token)
        page = await client.peer.call(client.backups.ListBackups, request)
        seen += [each.backup_id for each in page.backups]
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]
    failed = await client.peer.call(client.backups.ListBackups, backup_pb2.ListBackupsRequest(status="failed"))
    assert list(failed.backups) == []
    for token in ("nonsense", "bm9uc2Vuc2U=", "WzEsIDJd"):
        bad = await refused(
            client.peer.call(client.backups.ListBackups, backup_pb2.ListBackupsRequest(page_token=token))
        )
        assert bad.reason == "INVALID_FIELD"


async def test_delete_says_first_and_merges_unless_dependants_go_too(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    ids = [(await client.run("web", kind)).backup_id for kind in ("full", "incremental", "incremental")]
    content = bytes(vm.disks[0].content)

    async def delete(number: int, **more: Any) -> backup_pb2.DeleteBackupResponse:
        request = backup_pb2.DeleteBackupRequest(backup_id=ids[number], **more)
        return await client.peer.call(client.backups.DeleteBackup, request)

    said = await delete(0, dry_run=True)
    assert (list(said.backup_ids), list(said.merged_into), said.dry_run) == ([ids[0]], [ids[1]], True)
    assert len(world.points) == 3
    done = await delete(0)
    assert (list(done.backup_ids), list(done.merged_into), done.status) == ([ids[0]], [ids[1]], "completed")
    assert [world.point_contents(each) for each in ids[1:]] == [[content], [content]]
    assert (await refused(client.get(ids[0]))).reason == "BACKUP_NOT_FOUND"
    assert list((await delete(1, cascade=True, dry_run=True)).backup_ids) == ids[:0:-1]
    assert list((await delete(1, cascade=True)).backup_ids) == ids[:0:-1]
    assert world.points == []
    for each in ids:
        assert (await refused(client.get(each))).reason == "BACKUP_NOT_FOUND"
    await cleaned(world)


async def test_a_point_that_somebody_reads_is_not_deleted(client: Client, world: World) -> None:
    world.add_vm("web")
    backup = await client.run("web")
    world.holders.append("mount-1")
    request = backup_pb2.DeleteBackupRequest(backup_id=backup.backup_id)
    held = await refused(client.peer.call(client.backups.DeleteBackup, request))
    assert (held.kind, held.reason) == (Kind.FAILED_PRECONDITION, "POINT_LEASED")
    assert "mount-1" in held.message
    assert len(world.points) == 1


async def test_a_failed_backup_can_be_deleted_too(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    vm.template = True
    backup = await client.run("web")
    request = backup_pb2.DeleteBackupRequest(backup_id=backup.backup_id)
    assert list((await client.peer.call(client.backups.DeleteBackup, request)).backup_ids) == [backup.backup_id]
    assert (await refused(client.get(backup.backup_id))).reason == "BACKUP_NOT_FOUND"


async def test_a_second_process_on_the_same_state_is_refused(
    client: Client, world: World, settings: BackupSettings
) -> None:
    with pytest.raises(AlreadyRunning):
        async with running(settings):
            pass
    world.add_vm("web")
    assert (await client.run("web")).status == "completed"


async def test_the_list_of_vms_pages(client: Client, world: World) -> None:
    for number in range(5):
        world.add_vm(f"web-{number}")
    found, token = [], ""
    for size in (2, 2, 1):
        request = backup_pb2.ListVmsRequest(page_size=2, page_token=token)
        page = await client.peer.call(client.vms.ListVms, request)
        found += [each.vm_name for each in page.vms]
        token = page.next_page_token
        assert (len(page.vms), bool(token)) == (size, size == 2)
    assert found == [f"web-{number}" for number in range(5)]
    bad = await refused(client.peer.call(client.vms.ListVms, backup_pb2.ListVmsRequest(page_token="x")))
    assert bad.reason == "INVALID_FIELD"
