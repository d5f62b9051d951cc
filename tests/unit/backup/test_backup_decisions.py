"""Full or increment: each doubt makes a full, with its own words; nothing else does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sendense_backup.decisions import (
    TURNS_FULL,
    FullReason,
    after_look,
    decide,
    full,
    job_type,
    of_one_vcenter,
    snapshot_facts,
    with_snapshot_facts,
)
from sendense_backup.model import Disk, Layer, Point, RevertLook, SnapshotFacts

EPOCH = "52 de c1 28-aa"
DISK = Disk(2000, "uuid-a/2000", "Hard disk 1", 1 << 30, change_id=f"{EPOCH}/7")
LAYER = Layer(
    layer_id="layer-1",
    disk_id=0,
    disk_identity=DISK.identity,
    backup_type="full",
    backup_id="backup-web-1",
    chain_id="chain-1",
    parent_layer_id="",
    path="/backups/x",
    virtual_size_bytes=1 << 30,
    stored_bytes=1,
    change_id=f"{EPOCH}/3",
    cluster_size_bytes=65536,
)


def point(*layers: Layer) -> Point:
    return Point("backup-web-1", "repo", "vm", layers)


def test_an_increment_builds_on_the_disks_layer_of_the_latest_point() -> None:
    other = dataclasses.replace(LAYER, layer_id="layer-2", disk_identity="uuid-b/2001")
    decision = decide(DISK, "incremental", point(other, LAYER))
    assert (decision.backup_type, decision.reason, decision.parent) == (
        "incremental",
        "changed since backup-web-1",
        LAYER,
    )


@pytest.mark.parametrize(
    ("reason", "disk", "layer"),
    [
        (FullReason.DISK_ADDED, {"identity": "another"}, {}),
        (FullReason.CAPACITY_CHANGED, {"capacity_bytes": 2 << 30}, {}),
        (FullReason.PARENT_DAMAGED, {}, {"damage": "data of full.qcow2"}),
        (FullReason.NO_CHANGE_ID, {"change_id": ""}, {}),
        (FullReason.NO_CHANGE_ID, {}, {"change_id": ""}),
        (FullReason.CHANGE_TRACKING_RESET, {"change_id": "another/7"}, {}),
    ],
)
def test_each_doubt_makes_a_full_and_says_which(
    reason: FullReason, disk: dict[str, object], layer: dict[str, object]
) -> None:
    decision = decide(
        dataclasses.replace(DISK, **disk),  # type: ignore[arg-type]
        "incremental",
        point(dataclasses.replace(LAYER, **layer)),  # type: ignore[arg-type]
    )
    assert (decision.backup_type, decision.reason, decision.parent) == ("full", reason.value, None)


def test_without_a_point_it_is_the_first_backup_whatever_was_asked() -> None:
    for asked in ("full", "incremental"):
        assert decide(DISK, asked, None) == full(FullReason.FIRST_BACKUP)


def test_a_full_that_was_asked_for_is_taken_though_an_increment_could_be() -> None:
    assert decide(DISK, "full", point(LAYER)) == full(FullReason.REQUESTED)


def test_disks_are_matched_by_identity_in_any_order() -> None:
    second = dataclasses.replace(DISK, identity="uuid-b/2001", device_key=2001)
    below = dataclasses.replace(LAYER, layer_id="layer-2", disk_identity="uuid-b/2001")
    for layers in ((LAYER, below), (below, LAYER)):
        assert decide(second, "incremental", point(*layers)).parent == below


def test_a_job_is_full_only_if_every_disk_is() -> None:
    assert job_type(["full", "full"]) == "full"
    assert job_type(["full", "incremental"]) == "incremental"


def test_reasons_are_the_documented_words() -> None:
    page = Path(__file__).parents[3] / "docs" / "troubleshooting.md"
    documented = set(re.findall(r"^\| `([a-zA-Z ]+)` \|", page.read_text(), re.MULTILINE))
    assert {each.value for each in FullReason} <= documented
    assert set(TURNS_FULL) == {"CBT_RESET", "AREAS_QUERY_FAILED"}


@pytest.mark.parametrize(
    ("alone", "finding", "reason"),
    [
        (True, "no revert", None),
        (True, "incomplete", None),
        (True, "reverted", FullReason.REVERTED),
        (False, "no revert", None),
        (False, "incomplete", FullReason.REVERT_POSSIBLE),
        (False, "reverted", FullReason.REVERTED),
        (False, "a word of a newer agent", FullReason.REVERT_POSSIBLE),
    ],
)
def test_fact_10a_an_increment_needs_proof_that_no_revert_is_hidden(
    alone: bool,
    finding: str,
    reason: FullReason | None,
) -> None:
    increment = decide(DISK, "incremental", point(LAYER))
    decided = after_look(increment, SnapshotFacts(alone=alone, event_mark="1@x"), RevertLook(finding))
    assert decided == (increment if reason is None else full(reason))


def test_fact_10a_a_point_that_says_nothing_about_its_snapshot_leaves_a_doubt() -> None:
    for nothing in ("", "{}", "null", "[]", '{"snapshot": 3}', '{"snapshot": {"alone": "yes"}}', '{"hardware": {}}'):
        assert snapshot_facts(nothing) == SnapshotFacts(alone=False, event_mark="")


def test_fact_18_a_replica_in_another_vcenter_counts_its_changes_by_itself() -> None:
    increment = decide(DISK, "incremental", point(LAYER))
    here = SnapshotFacts(alone=True, event_mark="1@x", vcenter_uuid="here")
    assert of_one_vcenter(increment, here, "here") == increment
    assert of_one_vcenter(increment, here, "there") == full(FullReason.ANOTHER_VCENTER)
    unknown = SnapshotFacts(alone=True, event_mark="1@x")  # is left to the event log, which lacks the mark
    assert of_one_vcenter(increment, unknown, "there") == increment


def test_fact_10a_what_is_known_of_a_snapshot_travels_with_the_hardware() -> None:
    facts = SnapshotFacts(alone=True, event_mark="7@2026-01-01T00:00:00+00:00", vcenter_uuid="v")
    kept = with_snapshot_facts('{"name": "web"}', facts)
    assert snapshot_facts(kept) == facts
    assert json.loads(kept)["name"] == "web"
