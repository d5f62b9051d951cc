"""Fencing, names of snapshots, pages of plans, and the agent's own key."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sendense_agent.convert import PAGE_AREAS, plan_pages
from sendense_agent.errors import StaleAttempt
from sendense_agent.fencing import Fence
from sendense_agent.labels import MAX_NAME, attempt_of, describe, snapshot_name
from sendense_agent.model import Holder
from sendense_agent.own_key import KeyUnsafe, load_or_create_key
from sendense_agent.plan import Plan
from sendense_blockio.extents import Extent


def holder(attempt: int = 1, job: str = "backup-web-1", installation: str = "i1") -> Holder:
    return Holder(job, attempt, installation)


def test_a_restart_lets_no_older_attempt_in_again(tmp_path: Path) -> None:
    file = tmp_path / "attempts.json"
    Fence(file).admit(holder(3))
    restarted = Fence(file)
    with pytest.raises(StaleAttempt):
        restarted.admit(holder(2))
    restarted.admit(holder(3))
    restarted.admit(holder(1, job="another"))
    assert not file.with_suffix(".partial").exists()


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"a": "b"}', "null"])
def test_a_fence_that_cannot_be_read_begins_anew(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "attempts.json"
    file.write_text(torn)
    Fence(file).admit(holder(1))
    with pytest.raises(StaleAttempt):
        Fence(file).admit(holder(0))


def test_an_older_attempt_is_refused_and_another_job_is_not() -> None:
    fence = Fence()
    fence.admit(holder(2))
    fence.admit(holder(2))
    fence.admit(holder(1, job="another"))
    with pytest.raises(StaleAttempt) as stale:
        fence.admit(holder(1))
    assert (stale.value.reason, stale.value.metadata["newest"]) == ("STALE_ATTEMPT", "2")
    fence.admit(holder(3))


def test_snapshot_names_fit_vsphere_and_never_meet() -> None:
    assert snapshot_name("backup-web-20260101000000") == "sendense-backup-web-20260101000000"
    long = "backup-" + "x" * 80
    names = {snapshot_name(long + end) for end in "abc"}
    assert len(names) == 3
    assert all(len(name) <= MAX_NAME for name in names)


def test_a_snapshot_is_ours_by_installation_and_job_only() -> None:
    description = describe(holder(4))
    assert attempt_of(description, holder(1)) == 4
    assert attempt_of(description, holder(job="another")) is None
    assert attempt_of(description, holder(installation="i2")) is None
    for foreign in (
        "",
        "made by hand",
        "[]",
        "null",
        '{"installation": "i1"}',
        '{"installation":"i1","job":"backup-web-1"}',
    ):
        assert attempt_of(foreign, holder()) is None


@pytest.mark.parametrize("count", [0, 1, PAGE_AREAS, PAGE_AREAS + 1, 2 * PAGE_AREAS])
def test_plans_come_in_bounded_pages_and_the_last_has_the_sum(count: int) -> None:
    plan = Plan([Extent(n * 8192, 4096) for n in range(count)], changed_bytes=77)
    pages = list(plan_pages(plan))
    assert [area.offset for page in pages for area in page.areas] == [area.offset for area in plan.areas]
    assert all(len(page.areas) <= PAGE_AREAS for page in pages)
    assert [page.changed_bytes for page in pages] == [0] * (len(pages) - 1) + [77]


def test_the_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "id_ed25519"
    key = load_or_create_key(path, "comment")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = path.with_name("id_ed25519.pub").read_text()
    assert public.startswith("ssh-ed25519 ")
    assert load_or_create_key(path, "other").export_public_key() == key.export_public_key()
    path.chmod(0o640)
    with pytest.raises(KeyUnsafe):
        load_or_create_key(path, "comment")
