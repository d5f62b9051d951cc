"""`sendense-ctl job …`: everything that runs or ran: backups, and what is done to restore points."""

from __future__ import annotations

import json
import time
import uuid
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict

from sendense.backup.v1 import job_pb2, job_pb2_grpc
from sendense_ctl.connection import Gateway, open_gateway
from sendense_ctl.failures import ExitCode
from sendense_ctl.output import console, moment, print_error, print_facts, print_json, print_table, printable, size
from sendense_ctl.progress import FINAL, RECONNECT_SECONDS

app = typer.Typer(no_args_is_help=True, help="Jobs of all kinds: backups, deletions, verifications and more.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST shows it.")]
JobId = Annotated[str, typer.Option("--job-id", help="Job id, or a unique beginning of one.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job until it has ended.")]


@app.command("list")
def list_(
    kind: Annotated[str, typer.Option("--kind", help="Only of this kind, such as backup or verify.")] = "",
    status: Annotated[str, typer.Option("--status", help="Only with this status.")] = "",
    vm: Annotated[str, typer.Option("--vm", help="Only of this VM.")] = "",
    limit: Annotated[int, typer.Option("--limit", help="At most so many.")] = 100,
    json_: Json = False,
) -> None:
    """List jobs, newest first."""
    gateway = open_gateway()
    whole = job_pb2.ListJobsResponse()
    with gateway.channel() as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        while len(whole.jobs) < limit:
            request = job_pb2.ListJobsRequest(
                kind=kind,
                status=status,
                vm_name=vm,
                page_size=min(1000, limit - len(whole.jobs)),
                page_token=whole.next_page_token,
            )
            page = gateway.call(stub.ListJobs, request)
            whole.jobs.extend(page.jobs)
            whole.next_page_token = page.next_page_token
            if not page.next_page_token:
                break
    if json_:
        print_json(whole)
        return
    # The id begins with the kind and holds the VM's name.
    rows = [
        [job.job_id, moment(job.created_at), _state(job) + (f" [{job.error_reason}]" if job.error_reason else "")]
        for job in whole.jobs
    ]
    print_table(["JOB", "ASKED FOR", "STATUS"], rows, "No jobs yet.")


@app.command()
def get(job_id: JobId, json_: Json = False) -> None:
    """Show one job."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        job = gateway.call(job_pb2_grpc.JobServiceStub(channel).GetJob, job_pb2.GetJobRequest(job_id=job_id))
    show(job, json_=json_)


@app.command()
def log(job_id: JobId, json_: Json = False) -> None:
    """Show a job's log."""
    gateway = open_gateway()
    whole = job_pb2.ListJobLogEntriesResponse()
    with gateway.channel() as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        token = ""
        while True:
            request = job_pb2.ListJobLogEntriesRequest(job_id=job_id, page_size=1000, page_token=token)
            page = gateway.call(stub.ListJobLogEntries, request)
            whole.entries.extend(page.entries)
            token = page.next_page_token
            if not token:
                break
    if json_:
        print_json(whole)
        return
    rows = [[moment(each.created_at), each.level, each.step, each.message] for each in whole.entries]
    print_table(["TIME", "LEVEL", "STEP", "MESSAGE"], rows, "The log is empty.")


@app.command()
def watch(job_id: JobId, json_: Json = False) -> None:
    """Follow a job until it has ended."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        show(follow(gateway, channel, job_id, quiet=json_), json_=json_)


@app.command()
def cancel(job_id: JobId, json_: Json = False) -> None:
    """Stop a job. A backup is undone; a deletion that has begun is finished."""
    gateway = open_gateway()
    with gateway.channel() as channel:
        request = job_pb2.CancelJobRequest(job_id=job_id, request_id=uuid.uuid4().hex)
        job = gateway.call(job_pb2_grpc.JobServiceStub(channel).CancelJob, request)
    if json_:
        print_json(job)
    else:
        console.print(f"Job {printable(job.job_id)} is {job.status}; it stops where it can.")


@app.command()
def retry(job_id: JobId, wait: Wait = True, json_: Json = False) -> None:
    """Start a job that failed or was cancelled again."""
    request = job_pb2.RetryJobRequest(job_id=job_id, request_id=uuid.uuid4().hex)
    _start(lambda stub: stub.RetryJob, request, wait=wait, json_=json_)


@app.command()
def verify(
    backup_id: Annotated[str, typer.Option("--backup-id", help="Backup id, or a unique beginning of one.")],
    rate: Annotated[int, typer.Option("--rate", help="Bytes a second to read at most; 0: as the server is set.")] = 0,
    wait: Wait = True,
    json_: Json = False,
) -> None:
    """Read a restore point back and compare it with what was written."""
    request = job_pb2.VerifyBackupRequest(backup_id=backup_id, bytes_per_second=rate, request_id=uuid.uuid4().hex)
    _start(lambda stub: stub.VerifyBackup, request, wait=wait, json_=json_)


@app.command()
def consolidate(
    first: Annotated[str, typer.Option("--first", help="The oldest restore point of the run.")],
    last: Annotated[str, typer.Option("--last", help="The newest one, which stays and keeps its content.")],
    wait: Wait = True,
    json_: Json = False,
) -> None:
    """Join a run of a VM's restore points into the last of them."""
    request = job_pb2.ConsolidateBackupsRequest(first_backup_id=first, last_backup_id=last, request_id=uuid.uuid4().hex)
    _start(lambda stub: stub.ConsolidateBackups, request, wait=wait, json_=json_)


def _start(method: Any, request: Any, *, wait: bool, json_: bool) -> None:
    gateway = open_gateway()
    with gateway.channel() as channel:
        job = gateway.call(method(job_pb2_grpc.JobServiceStub(channel)), request)
        if not json_:
            console.print(f"Job {printable(job.job_id)} was queued.")
        if wait:
            job = follow(gateway, channel, job.job_id, quiet=json_)
    show(job, json_=json_)


def follow(gateway: Gateway, channel: grpc.Channel, job_id: str, *, quiet: bool) -> job_pb2.Job:
    """Prints a line for each phase until a job has ended, and returns it; joins again after a broken connection."""
    stub = job_pb2_grpc.JobServiceStub(channel)
    phase = ""
    broken_since: float | None = None
    while True:
        try:
            for job in stub.WatchJob(job_pb2.WatchJobRequest(job_id=job_id), metadata=gateway.metadata()):
                broken_since = None
                if job.status in FINAL:
                    return job
                if job.progress.phase != phase and not quiet:
                    phase = job.progress.phase
                    console.print(f"  {printable(phase)}", markup=False)
        except grpc.RpcError as error:
            broken_since = broken_since or time.monotonic()
            late = time.monotonic() - broken_since > RECONNECT_SECONDS
            if error.code() is not grpc.StatusCode.UNAVAILABLE or late:
                raise
        time.sleep(0.5)


def show(job: job_pb2.Job, *, json_: bool) -> None:
    """Prints a job; one that failed or was cancelled ends the program with the exit code for that."""
    if json_:
        print_json(job)
    else:
        progress = job.progress
        moved = f"{size(progress.done_bytes)} of {size(progress.total_bytes)}" if progress.total_bytes else ""
        facts = [
            ("job", job.job_id),
            ("kind", job.kind),
            ("vm", job.vm_name or "–"),
            ("backup", job.backup_id or "–"),
            ("policy", job.policy_id or "–"),
            ("status", _state(job)),
            *([("done", moved)] if moved else []),
            ("asked for", moment(job.created_at)),
            ("ended", moment(job.completed_at)),
            *([("tries again", job.retry_of)] if job.retry_of else []),
            *((name, _plain(value)) for name, value in sorted(MessageToDict(job.result).items())),
        ]
        print_facts(facts)
    if job.status in ("failed", "cancelled"):
        print_error(f"job {job.job_id} is {job.status}: {job.error_message}", reason=job.error_reason)
        raise typer.Exit(ExitCode.BACKUP_FAILED)


def _state(job: job_pb2.Job) -> str:
    return f"{job.status} ({job.progress.phase})" if job.progress.phase else job.status


def _plain(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
