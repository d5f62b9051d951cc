"""Below which directories images may lie: the settings', and what the repository service says."""

from __future__ import annotations

from pathlib import Path

import pytest

from sendense_exports.config import ExportsSettings
from sendense_exports.roots import Roots, read_rules
from sendense_rpc.errors import Kind, SendenseError


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExportsSettings:
    monkeypatch.setenv("SENDENSE_HOME", str(tmp_path))
    made = ExportsSettings()
    made.roots_file.parent.mkdir(parents=True)
    return made


async def test_registered_repositories_are_learned_kept_and_forgotten(settings: ExportsSettings) -> None:
    registered = [Path("/srv/backups"), Path("/srv/two\nlines"), Path("relative")]

    async def directories() -> list[Path]:
        return registered

    roots = Roots(settings, directories)
    own = settings.image_roots
    assert (await roots.rules()).roots == own
    assert await roots.learn()
    assert read_rules(settings).roots == (*own, Path("/srv/backups"))
    assert not await roots.learn(), "nothing has changed"
    registered.clear()
    assert await roots.learn()
    assert (await roots.rules()).roots == own


async def test_a_repository_service_that_is_down_changes_nothing(settings: ExportsSettings) -> None:
    async def directories() -> list[Path]:
        raise SendenseError("it is down", kind=Kind.UNAVAILABLE, reason="DOWN")

    settings.roots_file.write_text("/srv/backups\n")
    roots = Roots(settings, directories)
    assert not await roots.learn()
    assert Path("/srv/backups") in (await roots.rules()).roots
