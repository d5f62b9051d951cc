"""Whole disks of restore points, as commands use them."""

from __future__ import annotations

import time
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from sendense.restore.v1 import disk_pb2, disk_pb2_grpc
from sendense_ctl import files
from sendense_ctl.connection import Gateway
from sendense_ctl.output import console
from sendense_rpc.errors import Kind, RemoteError

_POLL_SECONDS = 0.3


def export(
    gateway: Gateway, backup_id: str, disk_id: int, format_: str, output: Path, *, force: bool, quiet: bool
) -> disk_pb2.DiskExport:
    """Has a disk written into a file at the server, fetches it, and has the server's removed.

    Raises:
        SendenseError: What the server answered, or why the export failed.
        LocalError: The output cannot be written, or the connection broke.
    """
    with gateway.channel() as channel:
        stub = disk_pb2_grpc.DiskServiceStub(channel)
        request = disk_pb2.StartDiskExportRequest(backup_id=backup_id, disk_id=disk_id, format=format_, force=force)
        begun: disk_pb2.DiskExport = gateway.call(stub.StartDiskExport, request)
        try:
            done = _follow(gateway, stub, begun, quiet=quiet)
            if done.state == "failed":
                raise RemoteError(done.error_message, kind=Kind.FAILED_PRECONDITION, reason=done.error_reason, help="")
            with _bars(quiet=quiet) as bars:
                task = bars.add_task("downloading", total=done.file_size_bytes)
                files.download(
                    gateway, begun.export_id, {}, output, sparse=True, on_bytes=lambda n: bars.update(task, completed=n)
                )
        finally:
            gateway.call(stub.DeleteDiskExport, disk_pb2.DeleteDiskExportRequest(export_id=begun.export_id))
    return done


def _follow(
    gateway: Gateway, stub: disk_pb2_grpc.DiskServiceStub, begun: disk_pb2.DiskExport, *, quiet: bool
) -> disk_pb2.DiskExport:
    export = begun
    with _bars(quiet=quiet) as bars:
        task = bars.add_task(f"writing {begun.format}", total=100)
        while export.state == "running":
            time.sleep(_POLL_SECONDS)
            export = gateway.call(stub.GetDiskExport, disk_pb2.GetDiskExportRequest(export_id=begun.export_id))
            bars.update(task, completed=export.percent)
    return export


def _bars(*, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)


def serve(gateway: Gateway, backup_id: str, *, force: bool) -> disk_pb2.ServedPoint:
    """Offers a restore point over NBD."""
    with gateway.channel() as channel:
        stub = disk_pb2_grpc.DiskServiceStub(channel)
        request = disk_pb2.ServePointRequest(backup_id=backup_id, force=force)
        point: disk_pb2.ServedPoint = gateway.call(stub.ServePoint, request)
        return point


def list_served(gateway: Gateway) -> disk_pb2.ListServedPointsResponse:
    """Lists what is offered."""
    with gateway.channel() as channel:
        stub = disk_pb2_grpc.DiskServiceStub(channel)
        answer: disk_pb2.ListServedPointsResponse = gateway.call(
            stub.ListServedPoints, disk_pb2.ListServedPointsRequest()
        )
        return answer


def stop_serving(gateway: Gateway, served_id: str) -> None:
    """Ends an offer."""
    with gateway.channel() as channel:
        stub = disk_pb2_grpc.DiskServiceStub(channel)
        gateway.call(stub.StopServing, disk_pb2.StopServingRequest(served_id=served_id))
