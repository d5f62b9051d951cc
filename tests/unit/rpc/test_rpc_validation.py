"""What the protos' field rules promise."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from sendense.access.v1 import access_pb2
from sendense.agent.v1 import agent_pb2
from sendense.backup.v1 import backup_pb2
from sendense.repository.v1 import layer_pb2
from sendense_rpc.validation import InvalidField, validate

VM = agent_pb2.VmRef(vcenter_uuid="c", vm_uuid="v")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (backup_pb2.GetBackupRequest(), "backup_id"),
        (backup_pb2.GetBackupRequest(backup_id="x" * 1025), "backup_id"),
        (backup_pb2.StartBackupRequest(vm_name="vm"), "backup_type"),
        (backup_pb2.StartBackupRequest(vm_name="vm", backup_type="differential"), "backup_type"),
        (backup_pb2.StartBackupRequest(vm_name="v\nm", backup_type="full"), "vm_name"),
        (backup_pb2.StartBackupRequest(vm_name="é" * 128, backup_type="full"), "vm_name"),
        (access_pb2.EnrollAgentRequest(agent_id="Up", public_key="ssh-ed25519 AAAA"), "agent_id"),
        (agent_pb2.CreateSnapshotRequest(vm=VM), "holder"),
        (agent_pb2.CreateSnapshotRequest(vm=VM, holder=agent_pb2.Holder(job_id="j")), "holder.attempt"),
        (layer_pb2.AppendJournalRequest(layer_id="l", sequence=1), "holder"),
    ],
)
def test_a_broken_rule_names_its_field(request_: Message, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        validate(request_)
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize(
    "request_",
    [
        backup_pb2.StartBackupRequest(vm_name="vm with spaces, ünïcode", backup_type="full"),
        backup_pb2.ListBackupsRequest(),
        layer_pb2.SetAreasRequest(areas=[layer_pb2.Area(offset=0, length=1)]),
        agent_pb2.CaptureRequest(areas=[agent_pb2.PlannedArea(offset=1, length=2)]),
    ],
)
def test_a_good_request_passes(request_: Message) -> None:
    validate(request_)
