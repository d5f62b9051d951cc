"""All services of the system, and which have a public RPC: what reflection shows and `auth explain` knows.

The gateway routes reflection to this service, so this process imports every contract.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

import sendense
from sendense_rpc.methods import Method, methods_of


def public_services() -> list[str]:
    """Returns the full names of services with at least one RPC that the gateway routes, sorted."""
    return sorted(
        service.full_name
        for service in _services()
        if any(method.role != "internal" for method in methods_of(service).values())
    )


def all_methods() -> list[Method]:
    """Returns every RPC of every service."""
    return [method for service in _services() for method in methods_of(service).values()]


def _services() -> Iterator[ServiceDescriptor]:
    pool = descriptor_pool.Default()
    # Generated packages have no __init__.py, so pkgutil does not see them.
    for root in map(Path, sendense.__path__):
        for file in sorted(root.rglob("*_pb2.py")):
            stem = file.relative_to(root.parent).as_posix().removesuffix("_pb2.py")
            importlib.import_module(stem.replace("/", ".") + "_pb2")
            yield from pool.FindFileByName(f"{stem}.proto").services_by_name.values()
