"""The access service on its real socket, its real catalogue and its real key."""

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sqlalchemy import text

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense_access.audit import BrokenChain, verify_chain
from sendense_access.config import AccessSettings
from sendense_access.keys import SigningKey, write_private
from sendense_access.main import build
from sendense_access.store import AuditStore, metadata
from sendense_db.engine import Database
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import Kind, RemoteError, SendenseError
from sendense_rpc.identity import TokenVerifier
from support import serving


@asynccontextmanager
async def database(settings: AccessSettings) -> AsyncIterator[Database]:
    opened = Database(settings.catalogue_url)
    try:
        async with opened.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def access(settings: AccessSettings) -> AsyncIterator[Peer]:
    """The running service, as the administrator sees it."""
    async with build(settings) as service, serving(service, settings):
        peer = unix_peer(settings.socket("access"), settings.admin_token_file)
        try:
            yield peer
        finally:
            await peer.close()


@pytest.fixture
async def settings(sendense_home: Path) -> AccessSettings:
    settings = AccessSettings()
    async with database(settings):
        pass
    return settings


def public_key() -> str:
    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


async def create(peer: Peer, role: str = "viewer", lifetime: int = 60) -> access_pb2.CreateTokenResponse:
    stub = access_pb2_grpc.AccessServiceStub(peer.channel)
    request = access_pb2.CreateTokenRequest(subject="anna", role=role, lifetime_seconds=lifetime)
    return await peer.call(stub.CreateToken, request)


async def test_first_start_makes_an_administrators_token_that_works_and_stays(settings):
    assert not settings.admin_token_file.exists()
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        first = settings.admin_token_file.read_text()
        listed = await peer.call(stub.ListTokens, access_pb2.ListTokensRequest())
    assert stat.S_IMODE(settings.admin_token_file.stat().st_mode) == 0o600
    assert [(token.subject, token.role) for token in listed.tokens] == [("administrator", "admin")]
    async with access(settings):
        assert settings.admin_token_file.read_text() == first


async def test_token_of_a_key_that_is_gone_is_replaced_at_start(settings):
    foreign = SigningKey(Ed25519PrivateKey.generate()).sign("administrator", "admin", 3600)
    write_private(settings.admin_token_file, foreign.encode())
    async with access(settings) as peer:
        assert settings.admin_token_file.read_text() != foreign
        await create(peer)


async def test_token_put_there_by_the_node_is_adopted_and_can_be_revoked(settings):
    secret = SigningKey.load_or_create(settings.keys_dir).sign("node", "admin", 3600, "node-token")
    write_private(settings.admin_token_file, secret.encode())
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        revoked = await peer.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id="node-token"))
        assert revoked.HasField("revoked_at")
        with pytest.raises(RemoteError, match="revoked"):
            await create(peer)
    async with access(settings):
        assert settings.admin_token_file.read_text() == secret, "a revoked token must not be replaced behind one's back"


async def test_created_token_is_good_everywhere_until_it_is_revoked(settings):
    verifier = TokenVerifier(settings.jwks_file, settings.revoked_file)
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        made = await create(peer, "restore", 90)
        caller = verifier.verify(f"Bearer {made.secret}")
        assert (caller.subject, caller.role, caller.token_id) == ("anna", "restore", made.token.token_id)
        assert abs(made.token.expires_at.seconds - time.time() - 90) < 5
        for _ in range(2):
            await peer.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id=made.token.token_id))
        with pytest.raises(SendenseError, match="revoked"):
            verifier.verify(f"Bearer {made.secret}")


async def test_revoked_ids_are_written_again_at_start(settings):
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        made = await create(peer)
        await peer.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id=made.token.token_id))
    settings.revoked_file.unlink()
    async with access(settings):
        assert json.loads(settings.revoked_file.read_text()) == [made.token.token_id]


async def test_tokens_secret_is_nowhere_in_the_catalogue(settings):
    async with access(settings) as peer:
        made = await create(peer)
    signature = made.secret.rsplit(".", 1)[1].encode()
    files = list((settings.root / "db").iterdir())
    assert files
    assert not any(signature in file.read_bytes() for file in files)


async def test_tokens_are_paged_newest_first(settings):
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        made = [(await create(peer)).token.token_id for _ in range(4)]
        seen: list[str] = []
        token = ""
        while True:
            page = await peer.call(stub.ListTokens, access_pb2.ListTokensRequest(page_size=2, page_token=token))
            assert len(page.tokens) <= 2
            seen += [each.token_id for each in page.tokens]
            token = page.next_page_token
            if not token:
                break
    assert seen[:4] == made[::-1]
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"subject": "anna", "role": "root"}, "INVALID_FIELD"),
        ({"subject": "", "role": "admin"}, "INVALID_FIELD"),
        ({"subject": "anna", "role": "internal"}, "INVALID_FIELD"),
        ({"subject": "service:backup", "role": "admin"}, "INVALID_FIELD"),
        ({"subject": "anna", "role": "viewer", "lifetime_seconds": 366 * 86400}, "INVALID_FIELD"),
    ],
)
async def test_wrong_token_request_is_refused_and_changes_nothing(settings, request_, reason):
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        with pytest.raises(RemoteError) as refused:
            await peer.call(stub.CreateToken, access_pb2.CreateTokenRequest(**request_))
        assert (refused.value.kind, refused.value.reason) == (Kind.INVALID_ARGUMENT, reason)
        listed = await peer.call(stub.ListTokens, access_pb2.ListTokensRequest())
    assert len(listed.tokens) == 1


async def test_revoking_an_unknown_token_is_not_found(settings):
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        with pytest.raises(RemoteError) as refused:
            await peer.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id="x" * 1000))
    assert refused.value.reason == "TOKEN_NOT_FOUND"


async def test_enrolled_agent_is_recognised_by_its_key_until_it_is_removed(settings):
    key = public_key()
    workload = unix_peer(settings.socket("access"), settings.identity_file("tunnel"))
    async with access(settings) as peer:
        stub = access_pb2_grpc.AgentRegistryServiceStub(peer.channel)
        enrol = access_pb2.EnrollAgentRequest(agent_id="site-1", public_key=f"{key} root@site")
        first = await peer.call(stub.EnrollAgent, enrol)
        assert (await peer.call(stub.EnrollAgent, enrol)) == first
        assert first.public_key == key

        inside = access_pb2_grpc.AgentRegistryServiceStub(workload.channel)
        asked = access_pb2.AuthenticateAgentRequest(public_key=f"{key} other comment")
        assert (await workload.call(inside.AuthenticateAgent, asked)).agent_id == "site-1"

        await peer.call(stub.RemoveAgent, access_pb2.RemoveAgentRequest(agent_id="site-1"))
        with pytest.raises(RemoteError) as refused:
            await workload.call(inside.AuthenticateAgent, asked)
        assert (refused.value.kind, refused.value.reason) == (Kind.NOT_FOUND, "AGENT_NOT_FOUND")
        assert not (await peer.call(stub.ListAgents, access_pb2.ListAgentsRequest())).agents

        again = access_pb2.EnrollAgentRequest(agent_id="site-1", public_key=public_key())
        assert (await peer.call(stub.EnrollAgent, again)).agent_id == "site-1"
        moved = access_pb2.EnrollAgentRequest(agent_id="site-2", public_key=key)
        assert (await peer.call(stub.EnrollAgent, moved)).agent_id == "site-2"
        await workload.close()


async def test_name_and_key_belong_to_one_agent(settings):
    key = public_key()
    async with access(settings) as peer:
        stub = access_pb2_grpc.AgentRegistryServiceStub(peer.channel)
        await peer.call(stub.EnrollAgent, access_pb2.EnrollAgentRequest(agent_id="a", public_key=key))
        for agent_id, public, reason in (("a", public_key(), "AGENT_EXISTS"), ("b", key, "AGENT_KEY_IN_USE")):
            request = access_pb2.EnrollAgentRequest(agent_id=agent_id, public_key=public)
            with pytest.raises(RemoteError) as refused:
                await peer.call(stub.EnrollAgent, request)
            assert (refused.value.kind, refused.value.reason) == (Kind.ALREADY_EXISTS, reason)
        listed = (await peer.call(stub.ListAgents, access_pb2.ListAgentsRequest())).agents
    assert [(agent.agent_id, agent.public_key) for agent in listed] == [("a", key)]


async def test_person_cannot_ask_whose_key_it_is(settings):
    async with access(settings) as peer:
        stub = access_pb2_grpc.AgentRegistryServiceStub(peer.channel)
        with pytest.raises(RemoteError) as refused:
            await peer.call(stub.AuthenticateAgent, access_pb2.AuthenticateAgentRequest(public_key=public_key()))
    assert refused.value.reason == "ROLE_MISSING"


async def test_every_mutation_and_refusal_is_in_the_audit_log_and_edits_show(settings):
    async with access(settings) as peer:
        registry = access_pb2_grpc.AgentRegistryServiceStub(peer.channel)
        made = await create(peer)
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        await peer.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id=made.token.token_id))
        await peer.call(registry.EnrollAgent, access_pb2.EnrollAgentRequest(agent_id="a", public_key=public_key()))
        with pytest.raises(RemoteError):
            await peer.call(registry.RemoveAgent, access_pb2.RemoveAgentRequest(agent_id="nobody"))
    async with database(settings) as opened:
        store = AuditStore(opened)
        entries = [entry async for entry in store.all()]
        assert [(each.event.actor, each.event.action, each.event.result) for each in entries] == [
            ("service:access", "token.create", "ok"),
            ("administrator", "token.create", "ok"),
            ("administrator", "token.revoke", "ok"),
            ("administrator", "agent.enrol", "ok"),
            ("administrator", "agent.remove", "AGENT_NOT_FOUND"),
        ]
        assert verify_chain(entries) == 5
        async with opened.begin() as connection:
            await connection.execute(text("UPDATE audit_log SET actor = 'mallory' WHERE sequence = 3"))
        with pytest.raises(BrokenChain) as broken:
            verify_chain([entry async for entry in store.all()])
        assert broken.value.sequence == 3


async def test_parallel_mutations_keep_one_chain(settings):
    async with access(settings) as peer:
        await asyncio.gather(*(create(peer) for _ in range(20)))
    async with database(settings) as opened:
        assert verify_chain([entry async for entry in AuditStore(opened).all()]) == 21


async def test_reflection_knows_all_public_services_and_no_internal_one(settings):
    async def asked() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="sendense.backup.v1.BackupService")

    async with access(settings) as peer:
        stub = reflection_pb2_grpc.ServerReflectionStub(peer.channel)
        answers = [answer async for answer in peer.stream(stub.ServerReflectionInfo, asked(), timeout=10)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {"sendense.backup.v1.BackupService", "sendense.restore.v1.RestoreService"} <= names
    assert not {"sendense.agent.v1.AgentService", "sendense.tunnel.v1.TunnelService"} & names
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_call_without_token_is_refused(settings):
    async with access(settings):
        async with grpc.aio.insecure_channel(
            f"unix:{settings.socket('access')}", options=[("grpc.default_authority", "localhost")]
        ) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                await access_pb2_grpc.AccessServiceStub(channel).ListTokens(access_pb2.ListTokensRequest())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "limits", [{"vms": [""]}, {"repositories": ["local", ""]}, {"vms": [f"vm-{n}" for n in range(51)]}]
)
async def test_limits_that_name_nothing_or_too_much_make_no_token(settings, limits):
    async with access(settings) as peer:
        stub = access_pb2_grpc.AccessServiceStub(peer.channel)
        with pytest.raises(RemoteError) as refused:
            await peer.call(stub.CreateToken, access_pb2.CreateTokenRequest(subject="ann", role="viewer", **limits))
        assert refused.value.reason == "INVALID_FIELD"
        listed = await peer.call(stub.ListTokens, access_pb2.ListTokensRequest())
        assert [token.subject for token in listed.tokens] == ["administrator"]
