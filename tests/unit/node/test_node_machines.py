"""A node over several machines: each process is told where the others are, and nothing starts half-equipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sendense_access.keys import SigningKey, write_workload_identities
from sendense_node.config import NodeSettings
from sendense_node.machines import MachineNotReady, machine_environment, make_machine, peers_of, require_machine

STORAGE = "repository exports nbdd tunnel restore"
CONTROL = "access backup gateway"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENDENSE_HOME", str(tmp_path))
    monkeypatch.setenv("SENDENSE_DATABASE_URL", "postgresql+asyncpg://sendense@10.0.0.1/sendense")
    return tmp_path


def test_one_machine_is_told_nothing(home: Path) -> None:
    settings = NodeSettings()
    assert settings.runs("access")
    assert settings.runs("lab")
    assert machine_environment(settings) == {}


def test_each_machine_knows_its_ports_and_the_others(home: Path) -> None:
    told = machine_environment(NodeSettings(services=STORAGE, address="fd00::2", others={"10.0.0.1": CONTROL}))
    assert told["SENDENSE_REPOSITORY_RPC_LISTEN"] == "[fd00::2]:7443"
    assert told["SENDENSE_RESTORE_HTTP_LISTEN"] == "[fd00::2]:7447"
    assert "SENDENSE_ACCESS_RPC_LISTEN" not in told
    assert json.loads(told["SENDENSE_PEERS"]) == {"access": "10.0.0.1:7441", "backup": "10.0.0.1:7442"}
    assert told["SENDENSE_MTLS_DIR"] == str(home / "mtls")


def test_downloads_are_found_where_the_restore_service_is(home: Path) -> None:
    peers = peers_of(NodeSettings(services=CONTROL, address="10.0.0.1", others={"fd00::2": STORAGE}))
    assert peers["restore-http"] == "[fd00::2]:7447"
    assert peers["tunnel"] == "[fd00::2]:7446"


def test_a_variable_that_is_set_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_REPOSITORY_RPC_LISTEN", "10.0.0.2:1")
    told = machine_environment(NodeSettings(services=STORAGE, address="10.0.0.2", others={"10.0.0.1": CONTROL}))
    assert "SENDENSE_REPOSITORY_RPC_LISTEN" not in told


def test_a_machine_is_given_what_it_needs_and_never_the_signing_key(home: Path, tmp_path: Path) -> None:
    keys = home / "keys"
    write_workload_identities(SigningKey.load_or_create(keys), keys)
    control = NodeSettings(services=CONTROL, address="10.0.0.1", others={"10.0.0.2": STORAGE})
    require_machine(control)  # makes its own certificate
    given = tmp_path / "given"
    make_machine(control, ["10.0.0.2"], STORAGE.split(), given)
    files = {str(file.relative_to(given)) for file in given.rglob("*") if file.is_file()}
    identities = {f"keys/identities/{name}.token" for name in ("repository", "exports", "tunnel", "restore")}
    assert files == {"mtls/ca.crt", "mtls/node.crt", "mtls/node.key"} | identities
    assert all(file.stat().st_mode & 0o077 == 0 for file in given.rglob("*.*") if file.is_file())
    storage = NodeSettings(services=STORAGE, address="10.0.0.2", others={"10.0.0.1": CONTROL})
    require_machine(storage.model_copy(update={"home": given}))


def test_nothing_starts_without_its_certificate_its_identities_or_postgresql(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = NodeSettings(services=STORAGE, address="10.0.0.2", others={"10.0.0.1": CONTROL})
    with pytest.raises(MachineNotReady, match=r"node\.crt.*sendense-node machine"):
        require_machine(storage)
    (home / "mtls").mkdir()
    (home / "mtls" / "node.crt").touch()
    with pytest.raises(MachineNotReady, match=r"repository\.token"):
        require_machine(storage)
    with pytest.raises(MachineNotReady, match="start it first"):
        make_machine(storage, ["10.0.0.3"], ["exports"], tmp_path / "given")
    monkeypatch.delenv("SENDENSE_DATABASE_URL")
    with pytest.raises(MachineNotReady, match="PostgreSQL"):
        require_machine(NodeSettings(services=STORAGE, address="10.0.0.2", others={"10.0.0.1": CONTROL}))


def test_an_agents_machine_needs_nothing_of_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENDENSE_DATABASE_URL")
    require_machine(NodeSettings(services="lab agent"))
