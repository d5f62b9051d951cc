"""gRPC through the same port: public RPCs pass, internal ones do not exist, reflection shows what there is."""

import asyncio
import json
import os
import sys
from pathlib import Path

import grpc
import pytest

from fakes import gateway_edge
from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_gateway.contract import Contract, packaged
from sendense_rpc.errors import Kind
from sendense_rpc.status import from_rpc_error

edge = gateway_edge.edge
exports = gateway_edge.exports
pytestmark = pytest.mark.asyncio(loop_scope="module")

INTERNAL = [rpc.path for rpc in Contract.load(packaged("descriptor.binpb")).rpcs if not rpc.public]
BUF = Path(sys.executable).parent / "buf"


def metadata(edge, role="admin"):
    return (("authorization", f"Bearer {edge.token(role)}"),)


async def test_domain_error_arrives_whole(edge):
    async with edge.channel() as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await backup_pb2_grpc.BackupServiceStub(channel).GetBackup(
                backup_pb2.GetBackupRequest(backup_id="nothing"), metadata=metadata(edge)
            )
    error = from_rpc_error(refused.value)
    assert (error.kind, error.reason) == (Kind.NOT_FOUND, "BACKUP_NOT_FOUND")
    assert error.help == 'List the backups with "sendense-ctl backup list".'
    assert error.metadata == {"backup_id": "nothing"}


async def test_stream_passes(edge):
    async with edge.channel() as channel:
        watch = backup_pb2_grpc.BackupServiceStub(channel).WatchBackup
        request = backup_pb2.WatchBackupRequest(backup_id="b1")
        states = [backup.status async for backup in watch(request, metadata=metadata(edge, "viewer"))]
    assert states == ["running", "completed"]


async def test_call_without_token_is_unauthenticated_in_plain_words(edge):
    async with edge.channel() as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await backup_pb2_grpc.BackupServiceStub(channel).ListBackups(backup_pb2.ListBackupsRequest())
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "{" not in refused.value.details()


async def test_service_that_is_down_is_named(edge):
    async with edge.channel() as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await exports_pb2_grpc.ExportServiceStub(channel).ListExports(
                exports_pb2.ListExportsRequest(), metadata=metadata(edge)
            )
    error = from_rpc_error(refused.value)
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "SERVICE_UNAVAILABLE")
    assert error.message == "the service 'exports' does not answer"


@pytest.mark.parametrize("path", INTERNAL)
async def test_internal_rpc_does_not_exist_outside(edge, path):
    calls = len(edge.seen.calls)
    workload = (edge.settings.root / "keys" / "identities" / "backup.token").read_text()
    async with edge.channel() as channel:
        for token in (edge.token(), workload):
            with pytest.raises(grpc.RpcError) as refused:
                await channel.unary_unary(path)(b"", metadata=(("authorization", f"Bearer {token}"),))
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    for kind in ("application/json", "application/grpc-web", "application/x-protobuf"):
        headers = {**edge.auth(), "content-type": kind}
        answer = await edge.http.post(path, content=b"{}", headers=headers)
        assert answer.status_code == 404
    assert len(edge.seen.calls) == calls


async def buf(edge, *arguments: str, role: str = "viewer") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(str(BUF), "curl", "--protocol", "grpc", "--cacert", str(edge.ca)),
        *("--reflect-header", "*", "-H", f"Authorization: Bearer {edge.token(role)}", *arguments),
        env={**os.environ, "BUF_CACHE_DIR": str(edge.settings.root / "buf")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_buf_lists_services_by_reflection(edge):
    status, out, err = await buf(edge, "--list-services", edge.endpoint)
    assert status == 0, err
    listed = set(out.split())
    assert {"sendense.backup.v1.BackupService", "sendense.restore.v1.RestoreService"} <= listed
    assert not {"sendense.agent.v1.AgentService", "sendense.tunnel.v1.TunnelService"} & listed


async def test_buf_calls_by_reflection(edge):
    url = f"{edge.endpoint}/sendense.backup.v1.BackupService/GetBackup"
    status, out, err = await buf(edge, "-d", '{"backup_id": "b1"}', url)
    assert status == 0, err
    assert json.loads(out)["backupId"] == "b1"
    status, out, err = await buf(edge, "-d", '{"backup_id": "nothing"}', url)
    assert status != 0
    assert "not_found" in err
