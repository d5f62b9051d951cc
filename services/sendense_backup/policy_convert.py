"""Policies as messages, and back."""

from __future__ import annotations

from sendense.backup.v1 import policy_pb2
from sendense_backup.convert import to_timestamp
from sendense_backup.errors import BadPolicy
from sendense_backup.model import RetentionRules
from sendense_backup.policies import PlannedVm, PolicyPlan
from sendense_backup.policy import Policy, PolicyRules, Selector, Window
from sendense_backup.store.policies import PolicyRun

RETRY_PAUSE_SECONDS = 300
_COUNTS = ("full_every_days", "retries", "retry_pause_seconds", "verify_every_days")
_KEPT = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "min_age_seconds")


def to_rules(spec: policy_pb2.PolicySpec) -> PolicyRules:
    """Returns what a message says.

    Raises:
        BadPolicy: A number is negative or far too large.
    """
    for message, names, where in ((spec, _COUNTS, ""), (spec.retention, _KEPT, "retention.")):
        for name in names:
            if not 0 <= getattr(message, name) < 1 << 40:
                raise BadPolicy(where + name, f"{where}{name} is {getattr(message, name)}", "Use 0 or more.")
    if abs(spec.priority) > _MOST_PRIORITY:
        raise BadPolicy("priority", f"priority is {spec.priority}", f"Use -{_MOST_PRIORITY} to {_MOST_PRIORITY}.")
    zone = spec.time_zone or "UTC"
    window = Window(spec.window.start, spec.window.end, tuple(spec.window.days)) if spec.HasField("window") else None
    return PolicyRules(
        include=tuple(_selector(each) for each in spec.include),
        exclude=tuple(_selector(each) for each in spec.exclude),
        full_every_days=spec.full_every_days,
        synthetic_full=spec.synthetic_full,
        retention=RetentionRules(**{name: getattr(spec.retention, name) for name in _KEPT}, time_zone=zone),
        repository=spec.repository,
        window=window,
        retries=spec.retries,
        retry_pause_seconds=spec.retry_pause_seconds or RETRY_PAUSE_SECONDS,
        quiesce=spec.quiesce,
        priority=spec.priority,
        verify_every_days=spec.verify_every_days,
        time_zone=zone,
    )


_MOST_PRIORITY = 1000


def to_policy(policy: Policy) -> policy_pb2.Policy:
    """Returns a policy."""
    rules = policy.rules
    spec = policy_pb2.PolicySpec(
        name=policy.name,
        disabled=not policy.enabled,
        include=[_to_selector(each) for each in rules.include],
        exclude=[_to_selector(each) for each in rules.exclude],
        cron=policy.cron,
        time_zone=rules.time_zone,
        full_every_days=rules.full_every_days,
        synthetic_full=rules.synthetic_full,
        retention=policy_pb2.Retention(**{name: getattr(rules.retention, name) for name in _KEPT}),
        repository=rules.repository,
        window=policy_pb2.TimeWindow(start=rules.window.start, end=rules.window.end, days=rules.window.days)
        if rules.window
        else None,
        retries=rules.retries,
        retry_pause_seconds=rules.retry_pause_seconds,
        quiesce=rules.quiesce,
        priority=rules.priority,
        verify_every_days=rules.verify_every_days,
    )
    return policy_pb2.Policy(
        policy_id=policy.policy_id,
        spec=spec,
        next_run_at=to_timestamp(policy.next_run_at),
        created_at=to_timestamp(policy.created_at),
        updated_at=to_timestamp(policy.updated_at),
    )


def to_plan(plan: PolicyPlan) -> policy_pb2.PolicyPlan:
    """Returns what a policy would do."""
    return policy_pb2.PolicyPlan(
        policy_id=plan.policy.policy_id,
        name=plan.policy.name,
        next_runs=[stamp for each in plan.next_runs if (stamp := to_timestamp(each)) is not None],
        vms=[_planned(each) for each in plan.vms],
        estimated_bytes=sum(max(0, each.estimated_bytes) for each in plan.vms),
        freed_bytes=sum(each.freed_bytes for each in plan.vms),
        warnings=plan.warnings,
        next_page_token=plan.next_page_token,
    )


def to_run(run: PolicyRun) -> policy_pb2.PolicyRun:
    """Returns a run."""
    return policy_pb2.PolicyRun(
        run_id=run.run_id,
        policy_id=run.policy_id,
        caused_by=run.caused_by,
        due_at=to_timestamp(run.due_at),
        missed=run.missed,
        status=run.status,
        vms_found=run.vms_found,
        summary=policy_pb2.PolicyRunSummary(**run.summary),
        message=run.message,
        started_at=to_timestamp(run.started_at),
        completed_at=to_timestamp(run.completed_at),
    )


def _planned(planned: PlannedVm) -> policy_pb2.PlannedVm:
    return policy_pb2.PlannedVm(
        vm_name=planned.known.vm.name,
        vm_uuid=planned.known.vm.ref.vm_uuid,
        backup_type=planned.backup_type,
        reason=planned.reason,
        synthetic_full=planned.synthetic_full,
        estimated_bytes=planned.estimated_bytes,
        estimate_basis=planned.estimate_basis,
        latest_backup_id=planned.latest_backup_id,
        retention_removes=planned.removes,
        retention_freed_bytes=planned.freed_bytes,
        running_job_id=planned.running_job_id,
    )


def _selector(message: policy_pb2.VmSelector) -> Selector:
    return Selector(message.name, message.pattern, message.folder, message.tag)


def _to_selector(selector: Selector) -> policy_pb2.VmSelector:
    return policy_pb2.VmSelector(name=selector.name, pattern=selector.pattern, folder=selector.folder, tag=selector.tag)
