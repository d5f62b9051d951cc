"""Fixtures: the world of fakes, and the settings of a backup service that lives in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from backup_service import Client, make_catalogue, running, settings_for
from backup_world import World
from world_serving import world_serving

from sendense_backup.config import BackupSettings


@pytest.fixture
async def settings(memory_home: Path) -> BackupSettings:
    made = settings_for(memory_home)
    await make_catalogue(made)
    return made


@pytest.fixture
async def world(settings: BackupSettings) -> AsyncIterator[World]:
    async with world_serving(settings) as made:
        yield made


@pytest.fixture
async def client(settings: BackupSettings, world: World) -> AsyncIterator[Client]:
    async with running(settings) as made:
        yield made
