"""Policies and their runs. What is due is taken in one transaction: once over all replicas."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError

from sendense_backup.errors import BadPageToken, PolicyExists, PolicyNotFound
from sendense_backup.policy import Policy, PolicyRules, next_run, rules_from_json, runs_between
from sendense_backup.store.paging import older_than, token_of
from sendense_backup.store.policy_tables import policies, runs
from sendense_db.columns import utc_now
from sendense_db.engine import Database

CLOCK_SLACK = timedelta(minutes=5)
"""A clock that is behind the last look by more than this was set back."""

DUE_AT_ONCE = 1000
"""How many due policies one look takes up."""

PENDING = "pending"
RUNNING = "running"
COMPLETED = "completed"
FAILED = "failed"

SCHEDULE = "schedule"
PERSON = "person"


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """One run of a policy: a row of `policy_runs`."""

    run_id: str
    policy_id: str
    caused_by: str
    due_at: datetime
    missed: int
    status: str
    vms_found: int
    summary: dict[str, int]
    message: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class Policies:
    """The rows of policies that are not deleted, and of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, cron: str, rules: PolicyRules, *, enabled: bool, moment: datetime) -> Policy:
        """Makes a policy.

        Raises:
            PolicyExists: Another one has the name.
        """
        identifier = f"policy-{uuid.uuid4().hex[:12]}"
        values = {
            "id": identifier,
            "created_at": moment,
            **_values(name, cron, rules, enabled=enabled, moment=moment),
        }
        try:
            async with self._database.begin() as connection:
                made = await connection.execute(insert(policies).values(**values).returning(policies))
                return _policy(made.one())
        except IntegrityError as error:
            raise PolicyExists(name) from error

    async def replace(
        self, policy_id: str, name: str, cron: str, rules: PolicyRules, *, enabled: bool, moment: datetime
    ) -> Policy:
        """Replaces all that a policy says.

        Raises:
            PolicyNotFound: There is none of this id.
            PolicyExists: Another one has the name.
        """
        values = _values(name, cron, rules, enabled=enabled, moment=moment)
        try:
            async with self._database.begin() as connection:
                changed = await connection.execute(
                    update(policies)
                    .where(policies.c.id == policy_id, policies.c.deleted_at.is_(None))
                    .values(**values)
                    .returning(policies)
                )
                row = changed.first()
        except IntegrityError as error:
            raise PolicyExists(name) from error
        if row is None:
            raise PolicyNotFound(policy_id)
        return _policy(row)

    async def delete(self, policy_id: str) -> None:
        """Ends a policy; its row and its runs stay."""
        async with self._database.begin() as connection:
            changed = await connection.execute(
                update(policies)
                .where(policies.c.id == policy_id, policies.c.deleted_at.is_(None))
                .values(deleted_at=utc_now(), next_run_at=None)
            )
        if changed.rowcount == 0:
            raise PolicyNotFound(policy_id)

    async def get(self, wanted: str) -> Policy:
        """Returns a policy by id or name.

        Raises:
            PolicyNotFound: There is none.
        """
        query = select(policies).where(
            (policies.c.id == wanted) | (policies.c.name == wanted), policies.c.deleted_at.is_(None)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query.order_by(policies.c.id != wanted).limit(1))).first()
        if row is None:
            raise PolicyNotFound(wanted)
        return _policy(row)

    async def page(self, size: int, token: str) -> tuple[list[Policy], str]:
        """Returns a page of policies by name, and the token of the next page."""
        if len(token) > 63:
            raise BadPageToken
        query = select(policies).where(policies.c.deleted_at.is_(None), policies.c.name > token)
        async with self._database.read() as connection:
            found = [_policy(row) for row in await connection.execute(query.order_by(policies.c.name).limit(size + 1))]
        return found[:size], found[size - 1].name if len(found) > size else ""

    async def take_due(self, moment: datetime) -> list[PolicyRun]:
        """Makes a run of each policy that is due, and says when it is due next: once over all replicas.

        Runs that were missed while nothing ran are caught up by one. A clock that was set back makes the next run early
        rather than late: a policy must not wait a day because a clock was wrong.
        """
        due = (
            select(policies.c.id, policies.c.cron, policies.c.time_zone, policies.c.next_run_at.label("due_at"))
            .where(
                policies.c.enabled,
                policies.c.deleted_at.is_(None),
                (policies.c.next_run_at <= moment) | (policies.c.looked_at > moment + CLOCK_SLACK),
            )
            .order_by(policies.c.next_run_at)
            .limit(DUE_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        made: list[dict[str, Any]] = []
        looked: list[dict[str, Any]] = []
        async with self._database.begin() as connection:
            for row in await connection.execute(due):
                following = next_run(row.cron, row.time_zone, moment)
                if row.due_at is not None and row.due_at <= moment:
                    late = runs_between(row.cron, row.time_zone, row.due_at, moment)
                    made.append(_new_run(row.id, late[-1] if late else row.due_at, SCHEDULE, len(late), moment))
                else:
                    following = min(following, row.due_at or following)
                looked.append({"policy": row.id, "following": following})
            if looked:
                # All at once: at midnight hundreds are due together.
                mine = policies.c.id == bindparam("policy")
                next_look = update(policies).where(mine).values(next_run_at=bindparam("following"), looked_at=moment)
                await connection.execute(next_look, looked)
            if not made:
                return []
            return [_run(row) for row in await connection.execute(insert(runs).returning(runs), made)]

    async def note_look(self, moment: datetime) -> None:
        """Writes down the clock, so that one that was set back shows; seldom, since it writes every policy."""
        stale = moment - timedelta(hours=1)
        async with self._database.begin() as connection:
            await connection.execute(
                update(policies)
                .where(policies.c.deleted_at.is_(None), policies.c.enabled, policies.c.looked_at < stale)
                .values(looked_at=moment)
            )

    async def run_now(self, policy_id: str, moment: datetime) -> PolicyRun:
        """Makes a run that a person asked for."""
        async with self._database.begin() as connection:
            inserted = await connection.execute(
                insert(runs).values(**_new_run(policy_id, moment, PERSON, 0, moment)).returning(runs)
            )
            return _run(inserted.one())

    async def unfinished_runs(self) -> list[tuple[PolicyRun, Policy]]:
        """Returns the runs that have not ended, oldest first, each with its policy, which may have been deleted."""
        unfinished = runs.c.status.in_([literal_column(repr(each)) for each in (PENDING, RUNNING)])
        theirs = select(policies).where(policies.c.id.in_(select(runs.c.policy_id).where(unfinished)))
        query = select(runs).where(unfinished).order_by(runs.c.created_at, runs.c.id)
        async with self._database.read() as connection:
            by_id = {row.id: _policy(row) for row in await connection.execute(theirs)}
            return [(_run(row), by_id[row.policy_id]) for row in await connection.execute(query)]

    async def write_run(self, run_id: str, **values: Any) -> None:
        """Writes columns of a run that has not ended."""
        if "summary" in values:
            values["summary_json"] = json.dumps(values.pop("summary"), sort_keys=True)
        async with self._database.begin() as connection:
            await connection.execute(
                update(runs).where(runs.c.id == run_id, runs.c.status.in_((PENDING, RUNNING))).values(**values)
            )

    async def runs_page(self, policy_id: str, size: int, token: str) -> tuple[list[PolicyRun], str]:
        """Returns a page of a policy's runs, newest first, and the token of the next page."""
        query = select(runs).where(runs.c.policy_id == policy_id)
        if token:
            query = query.where(older_than(runs, token))
        query = query.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(size + 1)
        async with self._database.read() as connection:
            found = [_run(row) for row in await connection.execute(query)]
        return found[:size], token_of(found[size - 1].created_at, found[size - 1].run_id) if len(found) > size else ""


def _values(name: str, cron: str, rules: PolicyRules, *, enabled: bool, moment: datetime) -> dict[str, Any]:
    return {
        "name": name,
        "enabled": enabled,
        "cron": cron,
        "time_zone": rules.time_zone,
        "rules_json": rules.to_json(),
        "next_run_at": next_run(cron, rules.time_zone, moment) if enabled else None,
        "looked_at": moment,
        "updated_at": moment,
    }


def _new_run(policy_id: str, due_at: datetime, caused_by: str, missed: int, moment: datetime) -> dict[str, Any]:
    return {
        "id": f"run-{uuid.uuid4().hex[:16]}",
        "policy_id": policy_id,
        "due_at": due_at,
        "caused_by": caused_by,
        "missed": missed,
        "created_at": moment,
    }


def _policy(row: Row[Any]) -> Policy:
    return Policy(
        policy_id=row.id,
        name=row.name,
        enabled=row.enabled,
        cron=row.cron,
        rules=rules_from_json(row.rules_json),
        next_run_at=row.next_run_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _run(row: Row[Any]) -> PolicyRun:
    return PolicyRun(
        run_id=row.id,
        policy_id=row.policy_id,
        caused_by=row.caused_by,
        due_at=row.due_at,
        missed=row.missed,
        status=row.status,
        vms_found=row.vms_found,
        summary=json.loads(row.summary_json),
        message=row.message,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
    )
