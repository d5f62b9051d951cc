"""JSON schemas of messages, as the transcoder reads and writes them.

64-bit integers are JSON strings in answers (proto3's JSON mapping), times are RFC 3339, names are snake_case, and every
field that is no message is always present in an answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2

from sendense.access.v1 import options_pb2
from sendense_gateway.contract import prose
from sendense_rpc.validation import DEFAULT_MAX_STRING_BYTES

Schema = dict[str, Any]

_Field = descriptor_pb2.FieldDescriptorProto
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
}
_INT64 = (_Field.TYPE_INT64, _Field.TYPE_SINT64, _Field.TYPE_SFIXED64)
_UINT64 = (_Field.TYPE_UINT64, _Field.TYPE_FIXED64)
_INT32 = (_Field.TYPE_INT32, _Field.TYPE_SINT32, _Field.TYPE_SFIXED32)
_UINT32 = (_Field.TYPE_UINT32, _Field.TYPE_FIXED32)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the contract with its comments.

    Attributes:
        name: Full name.
        proto: Its descriptor.
        comment: Its comment.
        field_comments: The comment of each field, by name.
    """

    name: str
    proto: descriptor_pb2.DescriptorProto
    comment: str
    field_comments: dict[str, str]


class Schemas:
    """The messages of a descriptor set, and the schemas of those that were asked for.

    Args:
        files: The set, with source information.
    """

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self._messages: dict[str, Message] = {}
        self._enums: dict[str, descriptor_pb2.EnumDescriptorProto] = {}
        self._components: dict[str, Schema] = {}
        for file in files.file:
            comments = {tuple(each.path): prose(each.leading_comments) for each in file.source_code_info.location}
            for number, message in enumerate(file.message_type):
                self._add(message, file.package, (4, number), comments)
            for enum in file.enum_type:
                self._enums[f"{file.package}.{enum.name}"] = enum

    @property
    def components(self) -> dict[str, Schema]:
        """The schemas that were referred to, by component name."""
        return dict(sorted(self._components.items()))

    def message(self, name: str) -> Message:
        """Returns a message by its full name."""
        return self._messages[name]

    def reference(self, name: str) -> Schema:
        """Returns a reference to the schema of a message in an answer, and adds that schema to the components."""
        component = "".join(part[:1].upper() + part[1:] for part in name.split(".")[1:] if part != "v1")
        if component not in self._components:
            message = self.message(name)
            properties: Schema = {}
            # Before its fields: a message may hold itself.
            self._components[component] = {
                "type": "object",
                **({"description": message.comment} if message.comment else {}),
                "properties": properties,
                "required": [
                    field.name
                    for field in message.proto.field
                    if field.type != _Field.TYPE_MESSAGE or field.label == _Field.LABEL_REPEATED
                ],
            }
            for field in message.proto.field:
                properties[field.name] = self._described(self._answer_field(field), message, field)
        return {"$ref": f"#/components/schemas/{component}"}

    def request_body(self, name: str, without: Collection[str]) -> Schema:
        """Returns the schema of a request's JSON body: the message without the fields that the path carries."""
        message = self.message(name)
        fields = [field for field in message.proto.field if field.name not in without]
        schema: Schema = {
            "type": "object",
            "properties": {field.name: self._body_field(message, field) for field in fields},
            # Fields that no message has are dropped silently by the transcoder; whoever sends one has mistyped it.
            "additionalProperties": False,
        }
        required = [field.name for field in fields if _rule(field).required]
        if required:
            schema["required"] = required
        return schema

    def _body_field(self, message: Message, field: descriptor_pb2.FieldDescriptorProto) -> Schema:
        """Returns the schema of a field in a body: a message within a message is an object of its own."""
        if field.type != _Field.TYPE_MESSAGE or field.type_name.lstrip(".") in _WELL_KNOWN:
            return self.request_field(message.name, field.name)
        schema = self.request_body(field.type_name.lstrip("."), ())
        if field.label == _Field.LABEL_REPEATED:
            schema = {"type": "array", "items": schema}
        return self._described(schema, message, field)

    def request_field(self, name: str, field_name: str) -> Schema:
        """Returns the schema of a field in a query or path, with what its rule asks for.

        Raises:
            ValueError: The field is a message that no query can carry.
        """
        message = self.message(name)
        field = next(each for each in message.proto.field if each.name == field_name)
        rule = _rule(field)
        schema = self._scalar(field)
        if schema is None:
            raise ValueError(f"{name}.{field_name} is a message: queries of the REST API are flat")
        if field.type in (*_INT64, *_UINT64):
            schema = {"type": ["string", "integer"], "format": "int64"}
        if field.type == _Field.TYPE_STRING:
            schema = _ruled(schema, rule)
        if field.label == _Field.LABEL_REPEATED:
            schema = {"type": "array", "items": schema}
        return self._described(schema, message, field)

    def is_required(self, name: str, field_name: str) -> bool:
        """Tells whether a request must have this field."""
        return any(field.name == field_name and _rule(field).required for field in self.message(name).proto.field)

    def _add(
        self,
        proto: descriptor_pb2.DescriptorProto,
        prefix: str,
        path: tuple[int, ...],
        comments: dict[tuple[int, ...], str],
    ) -> None:
        name = f"{prefix}.{proto.name}"
        fields = {field.name: comments.get((*path, 2, n), "") for n, field in enumerate(proto.field)}
        self._messages[name] = Message(name, proto, comments.get(path, ""), fields)
        for number, nested in enumerate(proto.nested_type):
            self._add(nested, name, (*path, 3, number), comments)
        for enum in proto.enum_type:
            self._enums[f"{name}.{enum.name}"] = enum

    def _answer_field(self, field: descriptor_pb2.FieldDescriptorProto) -> Schema:
        schema = self._scalar(field)
        if schema is None:
            name = field.type_name.lstrip(".")
            nested = self.message(name).proto
            if nested.options.map_entry:
                return {"type": "object", "additionalProperties": self._answer_field(nested.field[1])}
            schema = self.reference(name)
        return {"type": "array", "items": schema} if field.label == _Field.LABEL_REPEATED else schema

    def _scalar(self, field: descriptor_pb2.FieldDescriptorProto) -> Schema | None:
        """Returns the schema of one value, or None for a message."""
        name = field.type_name.lstrip(".")
        if field.type == _Field.TYPE_MESSAGE:
            return dict(_WELL_KNOWN[name]) if name in _WELL_KNOWN else None
        if field.type == _Field.TYPE_ENUM:
            return {"type": "string", "enum": [value.name for value in self._enums[name].value]}
        return _plain(field.type)

    @staticmethod
    def _described(schema: Schema, message: Message, field: descriptor_pb2.FieldDescriptorProto) -> Schema:
        comment = message.field_comments[field.name]
        return {**schema, "description": comment} if comment else schema


def _plain(kind: int) -> Schema:
    if kind == _Field.TYPE_STRING:
        return {"type": "string"}
    if kind == _Field.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if kind == _Field.TYPE_BOOL:
        return {"type": "boolean"}
    if kind in (_Field.TYPE_DOUBLE, _Field.TYPE_FLOAT):
        return {"type": "number"}
    if kind in _INT64:
        return {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
    if kind in _UINT64:
        return {"type": "string", "format": "uint64", "pattern": "^[0-9]+$"}
    if kind in _INT32:
        return {"type": "integer", "format": "int32", "minimum": -(1 << 31), "maximum": (1 << 31) - 1}
    if kind in _UINT32:
        return {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}
    raise ValueError(f"no JSON form is known of field type {kind}")


def _rule(field: descriptor_pb2.FieldDescriptorProto) -> options_pb2.FieldRule:
    rule: options_pb2.FieldRule = field.options.Extensions[options_pb2.rule]
    return rule


def _ruled(schema: Schema, rule: options_pb2.FieldRule) -> Schema:
    allowed = list(getattr(rule, "in"))
    if allowed:
        return {**schema, "enum": allowed}
    ruled = {**schema, "maxLength": rule.max_bytes or DEFAULT_MAX_STRING_BYTES}
    if rule.required:
        ruled["minLength"] = 1
    if rule.pattern:
        ruled["pattern"] = f"^(?:{rule.pattern})$"
    return ruled
