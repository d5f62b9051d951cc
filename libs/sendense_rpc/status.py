"""Between `SendenseError` and `google.rpc.Status`: one way out of a server, one way into a client."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from sendense_rpc.errors import Kind, RemoteError, SendenseError

DOMAIN = "sendense"


def to_status(error: SendenseError) -> grpc.Status:
    """Returns the gRPC status of an error: its message, one ErrorInfo, and Help when the error has one."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    info.metadata["retryable"] = "true" if error.retryable else "false"
    details = [_pack(info)]
    if error.help:
        details.append(_pack(error_details_pb2.Help(links=[error_details_pb2.Help.Link(description=error.help)])))
    code: int = grpc.StatusCode[error.kind.name].value[0]
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=code, message=error.message, details=details))
    return status


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.Help) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def from_rpc_error(error: grpc.RpcError, service: str = "") -> RemoteError:
    """Returns what a failed call reports as an error of ours.

    Args:
        error: What gRPC raised.
        service: Who was called, for the message when nobody answered: gRPC's own words name sockets and say little.

    A failure without our ErrorInfo (connection refused, deadline) keeps gRPC's code, with reason `SERVICE_UNAVAILABLE`
    or the code's name.
    """
    code = error.code()
    message = error.details() or code.name
    reason, help_text, retryable, metadata = "", "", False, {}
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                links = error_details_pb2.Help()
                if detail.Unpack(info):
                    reason = info.reason
                    metadata = dict(info.metadata)
                    retryable = metadata.pop("retryable", "false") == "true"
                elif detail.Unpack(links) and links.links:
                    help_text = links.links[0].description
    if not reason:
        reason = "SERVICE_UNAVAILABLE" if code is grpc.StatusCode.UNAVAILABLE else code.name
        if service and code is grpc.StatusCode.UNAVAILABLE:
            message = f"the service '{service}' does not answer"
            help_text = "Try again in a moment; GET /readyz tells which services answer."
        retryable = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    kind = Kind[code.name] if code.name in Kind.__members__ else Kind.INTERNAL
    return RemoteError(message, kind=kind, reason=reason, help=help_text, retryable=retryable, metadata=metadata)
