"""`sendense-ctl policy …`: which VMs are backed up when, how, and what is kept."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from sendense.backup.v1 import policy_pb2, policy_pb2_grpc
from sendense_ctl.connection import open_gateway
from sendense_ctl.failures import LocalError
from sendense_ctl.output import console, moment, print_facts, print_json, print_table, printable, size

app = typer.Typer(no_args_is_help=True, help="Which VMs are backed up when, how, and what is kept.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]
Name = Annotated[str, typer.Argument(help="The policy's name or id.")]
Vm = Annotated[list[str] | None, typer.Option("--vm", help="A VM's name; repeat for more.")]
Pattern = Annotated[list[str] | None, typer.Option("--pattern", help="Shell pattern over VM names, such as web-*.")]
Folder = Annotated[list[str] | None, typer.Option("--folder", help="Inventory folder, such as /DC/vm/Production.")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="A custom attribute of the VM, as NAME=VALUE.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Leave out VMs of this pattern.")]
Cron = Annotated[str, typer.Option("--cron", help="Five fields, such as '30 1 * * mon-fri'.")]
Zone = Annotated[str, typer.Option("--time-zone", help="IANA name, such as Europe/Berlin.")]
FullEvery = Annotated[int, typer.Option("--full-every-days", help="A full when the last is so old; 0: the first only.")]
Synthetic = Annotated[bool, typer.Option("--synthetic-full", help="Make that full by consolidation.")]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="What stays: last=7, hourly=, daily=14, weekly=, monthly=12, yearly=; repeat."),
]
Repository = Annotated[str, typer.Option("--repository", help="Name of the repository; default: the default one.")]
Window = Annotated[str, typer.Option("--window", help="When jobs may start, such as 22:00-06:00.")]
Days = Annotated[list[str] | None, typer.Option("--window-day", help="Days on which the window begins: mon … sun.")]
Retries = Annotated[int, typer.Option("--retries", help="How often a failed backup is started again.")]
Pause = Annotated[int, typer.Option("--retry-pause", help="Seconds between a failure and the next try.")]
Quiesce = Annotated[bool, typer.Option("--quiesce", help="Ask the guests to quiesce their file systems.")]
Priority = Annotated[int, typer.Option("--priority", help="Place in line: the larger, the earlier.")]
VerifyEvery = Annotated[int, typer.Option("--verify-every-days", help="Read the newest point back so often; 0: never.")]
Disabled = Annotated[bool, typer.Option("--disabled", help="Make it without turning its schedule on.")]

_KEPT = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _spec(
    name: Name,
    cron: Cron,
    vm: Vm = None,
    pattern: Pattern = None,
    folder: Folder = None,
    tag: Tag = None,
    exclude: Exclude = None,
    time_zone: Zone = "UTC",
    full_every_days: FullEvery = 0,
    synthetic_full: Synthetic = False,
    keep: Keep = None,
    repository: Repository = "",
    window: Window = "",
    window_day: Days = None,
    retries: Retries = 0,
    retry_pause: Pause = 300,
    quiesce: Quiesce = False,
    priority: Priority = 0,
    verify_every_days: VerifyEvery = 0,
    disabled: Disabled = False,
) -> policy_pb2.PolicySpec:
    include = [policy_pb2.VmSelector(name=each) for each in vm or []]
    include += [policy_pb2.VmSelector(pattern=each) for each in pattern or []]
    include += [policy_pb2.VmSelector(folder=each) for each in folder or []]
    include += [policy_pb2.VmSelector(tag=each) for each in tag or []]
    spec = policy_pb2.PolicySpec(
        name=name,
        disabled=disabled,
        include=include,
        exclude=[policy_pb2.VmSelector(pattern=each) for each in exclude or []],
        cron=cron,
        time_zone=time_zone,
        full_every_days=full_every_days,
        synthetic_full=synthetic_full,
        repository=repository,
        retries=retries,
        retry_pause_seconds=retry_pause,
        quiesce=quiesce,
        priority=priority,
        verify_every_days=verify_every_days,
    )
    for each in keep or []:
        rule, _, number = each.partition("=")
        if rule not in _KEPT or not number.isdecimal():
            raise LocalError(f"--keep {each} is no rule", f"Write it as daily=14, with one of {', '.join(_KEPT)}.")
        setattr(spec.retention, f"keep_{rule}", int(number))
    if window:
        start, _, end = window.partition("-")
        spec.window.CopyFrom(policy_pb2.TimeWindow(start=start.strip(), end=end.strip(), days=window_day or []))
    return spec


@app.command()
def create(
    name: Name,
    cron: Cron,
    vm: Vm = None,
    pattern: Pattern = None,
    folder: Folder = None,
    tag: Tag = None,
    exclude: Exclude = None,
    time_zone: Zone = "UTC",
    full_every_days: FullEvery = 0,
    synthetic_full: Synthetic = False,
    keep: Keep = None,
    repository: Repository = "",
    window: Window = "",
    window_day: Days = None,
    retries: Retries = 0,
    retry_pause: Pause = 300,
    quiesce: Quiesce = False,
    priority: Priority = 0,
    verify_every_days: VerifyEvery = 0,
    disabled: Disabled = False,
    json_: Json = False,
) -> None:
    """Make a policy."""
    spec = _spec(
        name, cron, vm, pattern, folder, tag, exclude, time_zone, full_every_days, synthetic_full, keep, repository,
        window, window_day, retries, retry_pause, quiesce, priority, verify_every_days, disabled,
    )  # fmt: skip
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        request = policy_pb2.CreatePolicyRequest(spec=spec, request_id=uuid.uuid4().hex)
        _show(gateway.call(stub.CreatePolicy, request), json_=json_)


@app.command()
def update(
    name: Name,
    cron: Cron,
    vm: Vm = None,
    pattern: Pattern = None,
    folder: Folder = None,
    tag: Tag = None,
    exclude: Exclude = None,
    time_zone: Zone = "UTC",
    full_every_days: FullEvery = 0,
    synthetic_full: Synthetic = False,
    keep: Keep = None,
    repository: Repository = "",
    window: Window = "",
    window_day: Days = None,
    retries: Retries = 0,
    retry_pause: Pause = 300,
    quiesce: Quiesce = False,
    priority: Priority = 0,
    verify_every_days: VerifyEvery = 0,
    disabled: Disabled = False,
    rename: Annotated[str, typer.Option("--rename", help="Its new name.")] = "",
    json_: Json = False,
) -> None:
    """Replace all that a policy says; what is left out is as if it was never said."""
    spec = _spec(
        rename or name, cron, vm, pattern, folder, tag, exclude, time_zone, full_every_days, synthetic_full, keep,
        repository, window, window_day, retries, retry_pause, quiesce, priority, verify_every_days, disabled,
    )  # fmt: skip
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        request = policy_pb2.UpdatePolicyRequest(policy_id=name, spec=spec, request_id=uuid.uuid4().hex)
        _show(gateway.call(stub.UpdatePolicy, request), json_=json_)


@app.command("list")
def list_(json_: Json = False) -> None:
    """List policies by name."""
    gateway = open_gateway()
    whole = policy_pb2.ListPoliciesResponse()
    with gateway.channel() as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        token = ""
        while True:
            page = gateway.call(stub.ListPolicies, policy_pb2.ListPoliciesRequest(page_size=1000, page_token=token))
            whole.policies.extend(page.policies)
            token = page.next_page_token
            if not token:
                break
    if json_:
        print_json(whole)
        return
    rows = [
        [each.spec.name, f"{each.spec.cron} {each.spec.time_zone}", _next(each), _selectors(each.spec)]
        for each in whole.policies
    ]
    print_table(["POLICY", "SCHEDULE", "NEXT RUN", "VMS"], rows, "No policies yet.")


@app.command()
def get(name: Name, json_: Json = False) -> None:
    """Show one policy."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        _show(gateway.call(stub.GetPolicy, policy_pb2.GetPolicyRequest(policy_id=name)), json_=json_)


@app.command()
def delete(name: Name) -> None:
    """End a policy; its backups stay."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        request = policy_pb2.DeletePolicyRequest(policy_id=name, request_id=uuid.uuid4().hex)
        gateway.call(policy_pb2_grpc.PolicyServiceStub(channel).DeletePolicy, request)
    console.print(f"Policy {printable(name)} is gone; its backups stay.")


@app.command()
def plan(
    name: Name,
    vm: Annotated[str, typer.Option("--vm", help="Only this VM.")] = "",
    json_: Json = False,
) -> None:
    """Show the next runs, and what the next one would do, VM by VM. Changes nothing."""
    gateway = open_gateway()
    whole = policy_pb2.PolicyPlan()
    with gateway.channel() as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        token = ""
        while True:
            request = policy_pb2.PlanPolicyRequest(policy_id=name, vm_name=vm, page_size=1000, page_token=token)
            page = gateway.call(stub.PlanPolicy, request, timeout=120)
            token = page.next_page_token
            if not whole.name:
                whole.CopyFrom(page)
                whole.next_page_token = ""
            else:
                whole.vms.extend(page.vms)
                whole.estimated_bytes += page.estimated_bytes
                whole.freed_bytes += page.freed_bytes
            if not token:
                break
    if json_:
        print_json(whole)
        return
    console.print(f"Next runs: {', '.join(moment(each) for each in whole.next_runs[:3]) or 'none'}", markup=False)
    for warning in whole.warnings:
        console.print(f"Warning: {printable(warning)}", markup=False)
    rows = [
        [
            each.vm_name,
            each.backup_type + (" + synthetic full" if each.synthetic_full else ""),
            size(each.estimated_bytes) if each.estimated_bytes >= 0 else "?",
            str(len(each.retention_removes)),
            f"{each.reason} ({each.estimate_basis})"
            + (f"; waits for {each.running_job_id}" if each.running_job_id else ""),
        ]
        for each in whole.vms
    ]
    print_table(["VM", "TYPE", "MOVES>", "RETENTION REMOVES>", "WHY"], rows, "No VM is meant now.")
    console.print(f"In all about {size(whole.estimated_bytes)} to move; {size(whole.freed_bytes)} would come back.")


@app.command()
def run(name: Name, json_: Json = False) -> None:
    """Run a policy now, besides its schedule."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        request = policy_pb2.RunPolicyRequest(policy_id=name, request_id=uuid.uuid4().hex)
        made = gateway.call(policy_pb2_grpc.PolicyServiceStub(channel).RunPolicy, request)
    if json_:
        print_json(made)
    else:
        console.print(f"Run {printable(made.run_id)} of {printable(name)} begins: sendense-ctl policy runs {name}")


@app.command()
def runs(name: Name, json_: Json = False) -> None:
    """List a policy's runs, newest first."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        request = policy_pb2.ListPolicyRunsRequest(policy_id=name, page_size=100)
        answer = gateway.call(policy_pb2_grpc.PolicyServiceStub(channel).ListPolicyRuns, request)
    if json_:
        print_json(answer)
        return
    rows = [
        [
            each.run_id,
            moment(each.due_at),
            each.status,
            str(each.vms_found),
            f"{each.summary.completed} completed, {each.summary.failed} failed, {each.summary.skipped} left out"
            + (f", {each.missed} missed before" if each.missed else "")
            + (f"; {each.message}" if each.message else ""),
        ]
        for each in answer.runs
    ]
    print_table(["RUN", "DUE", "STATUS", "VMS>", "OUTCOME"], rows, "It has not run yet.")


def _show(policy: policy_pb2.Policy, *, json_: bool) -> None:
    if json_:
        print_json(policy)
        return
    spec = policy.spec
    kept = [f"{rule} {number}" for rule in _KEPT if (number := getattr(spec.retention, f"keep_{rule}"))]
    window = f"{spec.window.start}-{spec.window.end} {' '.join(spec.window.days)}" if spec.HasField("window") else "–"
    full = f"every {spec.full_every_days} days" if spec.full_every_days else "the first only"
    print_facts(
        [
            ("policy", f"{spec.name} ({policy.policy_id})"),
            ("vms", _selectors(spec)),
            ("schedule", f"{spec.cron} {spec.time_zone}"),
            ("next run", _next(policy)),
            ("full", full + (", by consolidation" if spec.synthetic_full else "")),
            ("keeps", ", ".join(kept) or "everything"),
            ("repository", spec.repository or "the default one"),
            ("window", window),
            ("retries", f"{spec.retries}, {spec.retry_pause_seconds} s apart" if spec.retries else "none"),
            ("priority", str(spec.priority)),
        ]
    )


def _next(policy: policy_pb2.Policy) -> str:
    return "disabled" if policy.spec.disabled else moment(policy.next_run_at)


def _selectors(spec: policy_pb2.PolicySpec) -> str:
    def words(selector: policy_pb2.VmSelector) -> str:
        return (
            selector.name
            or selector.pattern
            or (f"folder {selector.folder}" if selector.folder else f"tag {selector.tag}")
        )

    excluded = f" without {', '.join(words(each) for each in spec.exclude)}" if spec.exclude else ""
    return ", ".join(words(each) for each in spec.include) + excluded
