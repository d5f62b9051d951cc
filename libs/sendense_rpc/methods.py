"""What the protos say about each RPC of a service, as the door needs it: role, limits, whether it changes something."""

from __future__ import annotations

import re
from dataclasses import dataclass

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from sendense.access.v1 import options_pb2

REQUEST_ID_FIELD = "request_id"

_TELLING = (
    "backup_id",
    "mount_id",
    "repository_id",
    "token_id",
    "agent_id",
    "policy_id",
    "export_name",
    "vm_name",
    "vm_uuid",
    "repository",
    "name",
    "subject",
)
"""Fields that may name what a request is about, besides those in its path. Never a field that could hold a secret."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Attributes:
        path: gRPC path, `/pkg.Service/Name`.
        role: The role that it needs, in lower case.
        limitable: Whether limited tokens may call it.
        mutation: Whether it is public and changes something: its REST verb is not GET.
        named: The request's fields that say what it is about.
        has_request_id: Whether its request has a `request_id`.
        answer_type: The message class that it answers with.
        rest: Its REST verb and path, such as `("GET", "/api/v1/backup/{backup_id}")`; None when it has none.
    """

    path: str
    role: str
    limitable: bool
    mutation: bool
    named: tuple[str, ...]
    has_request_id: bool
    answer_type: type[Message]
    rest: tuple[str, str] | None = None

    @property
    def action(self) -> str:
        """Its short name, such as `BackupService.DeleteBackup`."""
        service, _, name = self.path.rpartition("/")
        return f"{service.rpartition('.')[2]}.{name}"

    def target(self, request: Message) -> str:
        """Returns what a request is about, such as `backup_id=backup-vm-20251004120000`."""
        said = ((name, getattr(request, name)) for name in self.named)
        return " ".join(f"{name}={value}" for name, value in said if value)[:191]


def methods_of(descriptor: ServiceDescriptor) -> dict[str, Method]:
    """Returns the RPCs of a service by their gRPC path.

    Raises:
        TypeError: An RPC names no role.
    """
    methods = (_method(descriptor, each) for each in descriptor.methods)
    return {method.path: method for method in methods}


def _method(service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    options = method.GetOptions()
    role = options.Extensions[options_pb2.role]
    if role == options_pb2.ROLE_UNSPECIFIED:
        raise TypeError(f"{method.full_name} names no role: add `option (sendense.access.v1.role)`")
    rule = options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    in_path = re.findall(r"\{(\w+)\}", str(getattr(rule, verb))) if verb else []
    fields = {field.name: field for field in method.input_type.fields}
    plain = {name for name, field in fields.items() if field.type == field.TYPE_STRING and not field.is_repeated}
    return Method(
        path=f"/{service.full_name}/{method.name}",
        role=options_pb2.Role.Name(role).removeprefix("ROLE_").lower(),
        limitable=options.Extensions[options_pb2.limitable],
        mutation=role != options_pb2.ROLE_INTERNAL and verb is not None and verb != "get",
        named=tuple(dict.fromkeys(name for name in (*in_path, *_TELLING) if name in plain)),
        has_request_id=REQUEST_ID_FIELD in fields,
        answer_type=message_factory.GetMessageClass(method.output_type),
        rest=(verb.upper(), str(getattr(rule, verb))) if verb else None,
    )
