"""What the protos say about the API, read from the descriptor set: RPCs, their roles and their REST paths.

Everything else in this package (routes, clusters, OpenAPI) is derived from it, so a new RPC needs no second mention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

from sendense.access.v1 import options_pb2

DOWNLOAD_TEMPLATE = "/api/v1/restore/{mount_id}/download"
"""The one documented path that is no RPC: plain HTTP of the restore service."""

_VARIABLE = re.compile(r"\{([a-z0-9_]+)\}")


@dataclass(frozen=True, slots=True)
class RestRoute:
    """One REST path of an RPC.

    Attributes:
        verb: HTTP method.
        template: Path with variables, such as `/api/v1/backup/{backup_id}`.
        body: Whether a JSON body is read.
    """

    verb: str
    template: str
    body: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the fields that the path carries."""
        return tuple(_VARIABLE.findall(self.template))


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC.

    Attributes:
        service: Full name of its service.
        name: Its name.
        role: The role it needs, in lower case, such as `viewer` or `internal`.
        rest: Its REST paths.
        streaming: Whether it answers with a stream.
        request: Full name of its request message.
        answer: Full name of its answer message.
        comment: What its comment in the proto says.
    """

    service: str
    name: str
    role: str
    rest: tuple[RestRoute, ...]
    streaming: bool
    request: str
    answer: str
    comment: str

    @property
    def path(self) -> str:
        """The gRPC path."""
        return f"/{self.service}/{self.name}"

    @property
    def owner(self) -> str:
        """The process that serves it, such as `backup`: the area in `sendense.<area>.v1`."""
        return self.service.split(".")[1]

    @property
    def public(self) -> bool:
        """Whether a person may call it, through the gateway."""
        return self.role != "internal"


class Contract:
    """All RPCs of a descriptor set.

    Args:
        files: The set, with source information.

    Raises:
        ValueError: An RPC names no role, or an internal one has a REST path.
    """

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self.files = files
        self.rpcs = tuple(_rpcs(files))
        for rpc in self.rpcs:
            if rpc.role == "unspecified":
                raise ValueError(f"{rpc.path} names no role")
            if not rpc.public and rpc.rest:
                raise ValueError(f"{rpc.path} is internal and has a REST path")

    @classmethod
    def load(cls, file: Path) -> Contract:
        """Reads a descriptor set that `buf build` wrote."""
        return cls(descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()))

    @property
    def public(self) -> tuple[Rpc, ...]:
        """The RPCs that the gateway routes."""
        return tuple(rpc for rpc in self.rpcs if rpc.public)

    @property
    def owners(self) -> tuple[str, ...]:
        """The processes that serve a public RPC, sorted."""
        return tuple(sorted({rpc.owner for rpc in self.public}))

    @property
    def rest_services(self) -> tuple[str, ...]:
        """Full names of the services with a REST path, sorted."""
        return tuple(sorted({rpc.service for rpc in self.public if rpc.rest}))


def packaged(name: str) -> Path:
    """Returns the path of a generated file that is installed with this package."""
    return Path(str(resources.files("sendense_gateway"))) / "generated" / name


def _rpcs(files: descriptor_pb2.FileDescriptorSet) -> Iterator[Rpc]:
    for file in files.file:
        comments = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
        for s, service in enumerate(file.service):
            for m, method in enumerate(service.method):
                rule = method.options.Extensions[annotations_pb2.http]
                role = options_pb2.Role.Name(method.options.Extensions[options_pb2.role])
                yield Rpc(
                    service=f"{file.package}.{service.name}",
                    name=method.name,
                    role=role.removeprefix("ROLE_").lower(),
                    rest=tuple(_rest(rule)),
                    streaming=method.server_streaming,
                    request=method.input_type.lstrip("."),
                    answer=method.output_type.lstrip("."),
                    comment=prose(comments.get((6, s, 2, m), "")),
                )


def _rest(rule: http_pb2.HttpRule) -> Iterator[RestRoute]:
    for each in (rule, *rule.additional_bindings):
        verb = each.WhichOneof("pattern")
        if verb in ("get", "put", "post", "delete", "patch"):
            yield RestRoute(verb.upper(), getattr(each, verb), body=bool(each.body))
        elif verb:
            raise ValueError(f"the REST verb '{verb}' is not supported")


def prose(comment: str) -> str:
    """Returns a proto comment as one paragraph."""
    return " ".join(comment.split())
