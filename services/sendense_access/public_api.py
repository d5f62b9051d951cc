"""The names of all services that have a public RPC: what reflection through the gateway shows.

The gateway routes reflection to this service, so this process imports every contract.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor

import sendense
from sendense.access.v1 import options_pb2


def public_services() -> list[str]:
    """Returns the full names of services with at least one RPC that the gateway routes, sorted."""
    pool = descriptor_pool.Default()
    names: set[str] = set()
    # Generated packages have no __init__.py, so pkgutil does not see them.
    for root in map(Path, sendense.__path__):
        for file in root.rglob("*_pb2.py"):
            stem = file.relative_to(root.parent).as_posix().removesuffix("_pb2.py")
            importlib.import_module(stem.replace("/", ".") + "_pb2")
            names.update(_public(pool.FindFileByName(f"{stem}.proto")))
    return sorted(names)


def _public(file: FileDescriptor) -> set[str]:
    hidden = (options_pb2.ROLE_UNSPECIFIED, options_pb2.ROLE_INTERNAL)
    return {
        service.full_name
        for service in file.services_by_name.values()
        if any(method.GetOptions().Extensions[options_pb2.role] not in hidden for method in service.methods)
    }
