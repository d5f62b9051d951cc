"""Services on three machines (network namespaces): mutual TLS, tokens beside it, revocation within a minute.

`control` runs the access service, `storage` another service, `agent` is a machine of somebody who has no certificate.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from machines import Machines, machines_of
from sendense_access.keys import SigningKey, write_workload_identities
from sendense_db.migrate import upgrade
from sendense_rpc.machine_certificates import make_certificate

pytestmark = pytest.mark.timeout(300)

NETWORK = "10.79.13"
HOSTS = {"control": f"{NETWORK}.1", "storage": f"{NETWORK}.2", "agent": f"{NETWORK}.3"}
ACCESS_PORT, EXPORTS_PORT = 7443, 7444
PROBE = """
import asyncio, sys, time
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_rpc.channel import service_peer
from sendense_rpc.errors import SendenseError
from sendense_rpc.settings import ServiceSettings

async def asked(peer):
    try:
        stub = exports_pb2_grpc.ExportServiceStub(peer.channel)
        await peer.call(stub.ListExports, exports_pb2.ListExportsRequest(), timeout=20)
    except SendenseError as error:
        return f"{error.reason} {error.message}"
    return "ok"

async def main():
    wanted, deadline = sys.argv[2], time.monotonic() + float(sys.argv[3])
    peer = service_peer(ServiceSettings(), "exports", sys.argv[1])
    while wanted not in (said := await asked(peer)) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    print(said)
    await peer.close()

asyncio.run(main())
"""
WITHOUT = """
import grpc, sys
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc

roots = open(sys.argv[2], "rb").read()
secure = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(roots))
for channel in (grpc.insecure_channel(sys.argv[1]), secure):
    try:
        stub = exports_pb2_grpc.ExportServiceStub(channel)
        stub.ListExports(exports_pb2.ListExportsRequest(), timeout=20)
        print("reached")
    except grpc.RpcError as error:
        print(error.code().name)
"""
REVOKE = """
import asyncio
from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense_rpc.channel import unix_peer
from sendense_rpc.settings import ServiceSettings

async def main():
    settings = ServiceSettings()
    peer = unix_peer(settings.socket("access"), settings.root / "admin.token")
    stub = access_pb2_grpc.AccessServiceStub(peer.channel)
    listed = await peer.call(stub.ListTokens, access_pb2.ListTokensRequest())
    await peer.call(stub.RevokeToken, access_pb2.RevokeTokenRequest(token_id=listed.tokens[0].token_id))
    await peer.close()

asyncio.run(main())
"""


def probe(machines: Machines, name: str, identity: str, wanted: str = "", seconds: float = 0) -> str:
    """Asks the exports service from a machine until the answer holds what is wanted; returns the last one."""
    done = subprocess.run(
        machines.python(name, "-c", PROBE, identity, wanted, str(seconds)),
        env=machines.environment(name, **_to_exports(machines, name)),
        capture_output=True,
        text=True,
        timeout=60 + seconds,
        check=False,
    )
    return done.stdout.strip() or done.stderr[-500:]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with machines_of(HOSTS) as machines:
        _certify(machines)
        yield machines


def _certify(machines: Machines) -> None:
    control, storage, agent = (machines.home(name) for name in HOSTS)
    for home in (control, storage, agent):
        (home / "keys").mkdir(parents=True)
    write_workload_identities(SigningKey.load_or_create(control / "keys"), control / "keys")
    # What an administrator carries over: certificates and identities, never the signing key.
    shutil.copytree(control / "keys" / "identities", storage / "keys" / "identities")
    shutil.copytree(control / "keys" / "identities", agent / "keys" / "identities")
    for name in ("control", "storage"):
        make_certificate(machines.root / "ca", machines.home(name) / "mtls", [HOSTS[name], name])
    make_certificate(machines.root / "strangers-ca", agent / "mtls", [HOSTS["agent"]])
    for home in (control, storage):
        (home / "db").mkdir()
        upgrade(f"sqlite+aiosqlite:///{home}/db/sendense.sqlite")


@pytest.fixture(scope="module")
def services(machines: Machines) -> Iterator[Machines]:
    """The access service on `control`, the exports service on `storage`, which has no keys of its own."""
    started = [
        _start(
            machines,
            "control",
            "sendense_access.main",
            SENDENSE_ACCESS_RPC_LISTEN=f"{HOSTS['control']}:{ACCESS_PORT}",
            SENDENSE_MTLS_DIR=str(machines.home("control") / "mtls"),
        ),
        _start(
            machines,
            "storage",
            "sendense_exports.main",
            SENDENSE_EXPORTS_RPC_LISTEN=f"{HOSTS['storage']}:{EXPORTS_PORT}",
            SENDENSE_MTLS_DIR=str(machines.home("storage") / "mtls"),
            SENDENSE_PEERS=json.dumps({"access": f"{HOSTS['control']}:{ACCESS_PORT}"}),
        ),
    ]
    try:
        yield machines
    finally:
        for process in started:
            process.terminate()
            process.wait(60)


def _start(machines: Machines, name: str, module: str, **further: str) -> subprocess.Popen[bytes]:
    with (machines.root / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            machines.python(name, "-m", module),
            env=machines.environment(name, **further),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )


def _to_exports(machines: Machines, name: str) -> dict[str, str]:
    return {
        "SENDENSE_MTLS_DIR": str(machines.home(name) / "mtls"),
        "SENDENSE_PEERS": json.dumps({"exports": f"{HOSTS['storage']}:{EXPORTS_PORT}"}),
    }


def eventually(machines: Machines, name: str, identity: str, wanted: str, seconds: float = 90) -> None:
    if wanted not in (said := probe(machines, name, identity, wanted, seconds)):
        logs = {file.name: file.read_text()[-1500:] for file in machines.root.glob("*.log")}
        pytest.fail(f"wanted {wanted!r}, last was {said!r}\n{logs}")


def test_a_call_reaches_another_machine_with_certificate_and_identity(services: Machines) -> None:
    eventually(services, "control", "backup", "ok")
    # It verified the caller with keys that it fetched from the access service.
    fetched = json.loads((services.home("storage") / "keys" / "jwks.json").read_text())
    assert fetched == json.loads((services.home("control") / "keys" / "jwks.json").read_text())
    assert not (services.home("storage") / "keys" / "signing.pem").exists()


def test_a_machine_with_another_ca_is_refused(services: Machines) -> None:
    eventually(services, "control", "backup", "ok")
    assert "SERVICE_UNAVAILABLE" in probe(services, "agent", "backup")


def test_plain_text_and_no_certificate_are_refused(services: Machines) -> None:
    eventually(services, "control", "backup", "ok")
    done = subprocess.run(
        services.python("agent", "-c", WITHOUT, f"{HOSTS['storage']}:{EXPORTS_PORT}", f"{services.root}/ca/ca.crt"),
        env=services.environment("agent"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["UNAVAILABLE", "UNAVAILABLE"]


def test_the_certificate_alone_is_no_identity(services: Machines) -> None:
    eventually(services, "control", "backup", "ok")
    (services.home("control") / "keys" / "identities" / "forged.token").write_text("a.b.c")
    assert probe(services, "control", "forged").startswith("UNAUTHENTICATED")


def test_a_revocation_on_one_machine_holds_on_the_other_within_a_minute(
    services: Machines,
) -> None:
    eventually(services, "control", "backup", "ok")
    identities = services.home("control") / "keys" / "identities"
    shutil.copy(services.home("control") / "admin.token", identities / "person.token")
    eventually(services, "control", "person", "ok")
    subprocess.run(services.python("control", "-c", REVOKE), env=services.environment("control"), check=True)
    eventually(services, "control", "person", "revoked", seconds=60)
    eventually(services, "control", "backup", "ok")
