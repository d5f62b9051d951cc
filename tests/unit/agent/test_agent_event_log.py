"""What vCenter's events prove about reverts: only a log that is complete proves that there was none (cbt-facts 10a)."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest

from sendense_agent.event_log import Finding, LoggedEvent, Look, judge
from sendense_agent.model import Mark

BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MADE = "VirtualMachine.createSnapshot"
REVERT = "com.vmware.vc.vm.VmStateRevertedToSnapshot"


def logged(key: int, kind: str, minutes: int | None = None) -> LoggedEvent:
    return LoggedEvent(Mark(key, BEGIN + dt.timedelta(minutes=key if minutes is None else minutes)), kind)


QUIET = [logged(10, "VmPoweredOnEvent"), logged(20, MADE), logged(21, "vm.Snapshot.remove"), logged(30, MADE)]
SINCE, OWN = QUIET[0].mark, QUIET[2].mark


def finding(events: list[LoggedEvent], since: Mark = SINCE, own: Mark = OWN) -> Finding | None:
    look = judge(events, since, own)
    return look and look.finding


def test_fact_10a_a_complete_log_without_a_revert_proves_that_there_was_none() -> None:
    for order in itertools.permutations(QUIET):
        assert judge(order, SINCE, OWN) == Look(Finding.NO_REVERT)


@pytest.mark.parametrize(
    "kind",
    [
        REVERT,
        "vim.vm.Snapshot.revert",
        "VirtualMachine.revertToCurrentSnapshot",
        "esx.audit.vm.RevertedToSnapshot",
    ],
)
@pytest.mark.parametrize("key", [11, 25, 31])
def test_fact_10a_a_revert_is_seen_as_task_and_as_event_wherever_it_stands(kind: str, key: int) -> None:
    assert finding([*QUIET, logged(key, kind)]) is Finding.REVERTED


def test_fact_10a_a_revert_before_the_parent_is_none_of_ours() -> None:
    assert finding([logged(9, REVERT), *QUIET]) is Finding.NO_REVERT


def test_fact_10a_order_is_by_number_not_by_clock() -> None:
    """A clock that was set back puts a revert before the parent; its number does not."""
    assert finding([*QUIET, logged(26, REVERT, minutes=-500)]) is Finding.REVERTED


def test_fact_10a_a_log_that_lost_the_mark_proves_nothing() -> None:
    assert finding(QUIET[1:]) is Finding.INCOMPLETE
    assert finding([]) is Finding.INCOMPLETE


def test_fact_10a_a_log_that_began_anew_proves_nothing_though_a_number_returns() -> None:
    assert finding([logged(10, "VmPoweredOnEvent", minutes=99), *QUIET[1:]]) is Finding.INCOMPLETE


@pytest.mark.parametrize(
    "kind", ["VmDisconnectedEvent", "VmOrphanedEvent", "VmRemovedEvent", "VmRegisteredEvent", "VmDiscoveredEvent"]
)
def test_fact_10a_while_vcenter_did_not_see_the_vm_the_log_proves_nothing(kind: str) -> None:
    assert finding([*QUIET, logged(25, kind)]) is Finding.INCOMPLETE


def test_fact_10a_a_log_that_does_not_show_our_own_snapshot_yet_is_waited_for() -> None:
    assert judge(QUIET[:3], SINCE, OWN) is None
    assert finding([*QUIET[:3], logged(25, REVERT)]) is Finding.REVERTED


def test_a_mark_survives_being_written_and_nothing_else_is_one() -> None:
    mark = Mark(7, BEGIN)
    assert Mark.parse(str(mark)) == mark
    for text in ("", "7", "7@", "x@2026-01-01T00:00:00+00:00", "7@yesterday", "7@2026-01-01T00:00:00"):
        assert Mark.parse(text) is None
