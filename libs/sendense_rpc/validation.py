"""Checks requests against the rules that the protos' fields name (`sendense.access.v1.rule`).

Runs before any code of a service sees a request. A string without a rule is still bounded to 1024 bytes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from sendense.access.v1 import options_pb2
from sendense_rpc.errors import Kind, SendenseError

DEFAULT_MAX_STRING_BYTES = 1024


class InvalidField(SendenseError):
    """A field breaks its rule."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(
            f"{field}: {problem}",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            help="See the API reference for what the field must look like.",
            metadata={"field": field},
        )


@cache
def _fields(descriptor: Descriptor) -> tuple[tuple[FieldDescriptor, options_pb2.FieldRule], ...]:
    return tuple((field, field.GetOptions().Extensions[options_pb2.rule]) for field in descriptor.fields)


def validate(message: Message, prefix: str = "") -> None:
    """Raises `InvalidField` for the first field of `message`, or of a message inside it, that breaks its rule."""
    for field, rule in _fields(message.DESCRIPTOR):
        name = prefix + field.name
        value = getattr(message, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            _validate_message(message, field, rule, name, value)
        elif field.is_repeated:
            if rule.required and not value:
                raise InvalidField(name, "is required")
            for item in value:
                _validate_scalar(field, rule, name, item)
        else:
            if rule.required and not value:
                raise InvalidField(name, "is required")
            _validate_scalar(field, rule, name, value)


def _validate_message(
    message: Message, field: FieldDescriptor, rule: options_pb2.FieldRule, name: str, value: Any
) -> None:
    kind = field.message_type
    if kind is None:
        return
    if field.is_repeated:
        if rule.required and not value:
            raise InvalidField(name, "is required")
        # Pages of areas hold thousands of messages of plain numbers: nothing in them to check here.
        if any(f.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES) for f in kind.fields):
            for index, item in enumerate(value):
                validate(item, f"{name}[{index}].")
    elif message.HasField(field.name):
        if not kind.full_name.startswith("google."):
            validate(value, name + ".")
    elif rule.required:
        raise InvalidField(name, "is required")


def _validate_scalar(field: FieldDescriptor, rule: options_pb2.FieldRule, name: str, value: Any) -> None:
    if field.type == FieldDescriptor.TYPE_STRING:
        limit = rule.max_bytes or DEFAULT_MAX_STRING_BYTES
        if len(value.encode()) > limit:
            raise InvalidField(name, f"is longer than {limit} bytes")
        if value and rule.pattern and not re.fullmatch(rule.pattern, value):
            raise InvalidField(name, f"does not match {rule.pattern}")
        allowed = getattr(rule, "in")
        if value and allowed and value not in allowed:
            raise InvalidField(name, f"is '{value}', not one of {', '.join(allowed)}")
    elif field.type == FieldDescriptor.TYPE_BYTES and rule.max_bytes and len(value) > rule.max_bytes:
        raise InvalidField(name, f"is longer than {rule.max_bytes} bytes")
