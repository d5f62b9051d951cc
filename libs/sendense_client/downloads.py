"""What a refused download says."""

from __future__ import annotations

import json

from google.rpc import code_pb2

from sendense_client.errors import ApiError, class_of
from sendense_rpc.errors import Kind


def refusal(body: bytes) -> ApiError:
    """Returns the error that the JSON of a refused REST request describes."""
    try:
        said = json.loads(body)
        name = code_pb2.Code.Name(int(said["code"]))
        kind = Kind[name] if name in Kind.__members__ else Kind.INTERNAL
        return class_of(kind)(str(said["message"]), kind=kind, reason=str(said["reason"]), help=str(said["help"]))
    except (ValueError, KeyError, TypeError):
        return ApiError("the server's answer is no error of Sendense", kind=Kind.INTERNAL, reason="INTERNAL")
