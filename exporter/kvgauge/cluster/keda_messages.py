"""What KEDA and an external scaler write to each other.

The contract is that of gRPC service `externalscaler.ExternalScaler` in kedacore/keda (pkg/scalers/externalscaler). Its
messages are put together here at run time from a table of numbers and types. Fields that are not in the table are
skipped, as protobuf does. KEDA takes the fields that end in `Float` only above 0, from 2.17 on; before, the whole
numbers beside them.

What protobuf makes has no types that a checker knows; none of it leaves this module.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

PACKAGE = "externalscaler"
SERVICE = f"{PACKAGE}.ExternalScaler"

_Proto = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Proto.TYPE_STRING,
    "bool": _Proto.TYPE_BOOL,
    "int64": _Proto.TYPE_INT64,
    "double": _Proto.TYPE_DOUBLE,
}
_MAP = "map<string, string>"
_MESSAGES: Mapping[str, tuple[tuple[int, str, str], ...]] = {
    "ScaledObjectRef": ((1, "name", "string"), (2, "namespace", "string"), (3, "scalerMetadata", _MAP)),
    "IsActiveResponse": ((1, "result", "bool"),),
    "MetricSpec": ((1, "metricName", "string"), (2, "targetSize", "int64"), (3, "targetSizeFloat", "double")),
    "GetMetricSpecResponse": ((1, "metricSpecs", "repeated MetricSpec"),),
    "GetMetricsRequest": ((1, "scaledObjectRef", "ScaledObjectRef"), (2, "metricName", "string")),
    "MetricValue": ((1, "metricName", "string"), (2, "metricValue", "int64"), (3, "metricValueFloat", "double")),
    "GetMetricsResponse": ((1, "metricValues", "repeated MetricValue"),),
}
"""Message to its fields: number, name, type."""


class MalformedError(ValueError):
    """Bytes that are no such message. The text says which message was expected, and nothing of what came."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The ScaledObject that asks, with the metadata of its trigger as a person wrote them."""

    name: str
    namespace: str
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class MetricsRequest:
    reference: Reference
    metric_name: str


def read_reference(body: bytes) -> Reference:
    """Of a ScaledObjectRef. Raises MalformedError."""
    return _reference(_parsed("ScaledObjectRef", body))


def read_metrics_request(body: bytes) -> MetricsRequest:
    """Of a GetMetricsRequest. Raises MalformedError."""
    parsed = _parsed("GetMetricsRequest", body)
    return MetricsRequest(_reference(parsed.scaledObjectRef), parsed.metricName)


def write_activity(active: bool) -> bytes:
    """An IsActiveResponse."""
    return _written(message_class("IsActiveResponse")(result=active))


def write_spec(metric_name: str, target_milli: int) -> bytes:
    """A GetMetricSpecResponse of one metric, its target per pod in thousandths."""
    spec = message_class("MetricSpec")(metricName=metric_name, **_numbers("targetSize", target_milli))
    return _written(message_class("GetMetricSpecResponse")(metricSpecs=[spec]))


def write_value(metric_name: str, value_milli: int) -> bytes:
    """A GetMetricsResponse of one value, in thousandths."""
    value = message_class("MetricValue")(metricName=metric_name, **_numbers("metricValue", value_milli))
    return _written(message_class("GetMetricsResponse")(metricValues=[value]))


def as_double(milli: int) -> float:
    """The double nearest to so many thousandths of which KEDA, which multiplies by 1000 and cuts the rest off, makes
    just as many again: 1.001 itself would become 1.000."""
    value = milli / 1000
    return value if int(value * 1000) == milli else math.nextafter(value, math.inf)


def message_class(name: str) -> Any:
    """The class of one of the contract's messages."""
    return _classes()[name]


def _numbers(name: str, milli: int) -> dict[str, float]:
    # A KEDA that knows only whole numbers gets the next greater one: rather a pod too many.
    whole = -(-milli // 1000)
    return {name: whole, f"{name}Float": as_double(milli)} if milli % 1000 else {name: whole}


def _reference(parsed: Any) -> Reference:
    return Reference(parsed.name, parsed.namespace, MappingProxyType(dict(parsed.scalerMetadata)))


def _parsed(name: str, body: bytes) -> Any:
    try:
        return message_class(name).FromString(body)
    except message.DecodeError:
        raise MalformedError(f"the message is no {name}") from None


def _written(filled: message.Message) -> bytes:
    return filled.SerializeToString(deterministic=True)


@functools.cache
def _classes() -> Mapping[str, Any]:
    # A pool of its own: another package in the process may have registered the same names in the common one.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"{PACKAGE}.{name}")) for name in _MESSAGES}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="kvgauge/externalscaler", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            _add_field(described, number, field_name, kind)
    return file


def _add_field(described: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str) -> None:
    added = described.field.add(name=name, number=number, label=_Proto.LABEL_OPTIONAL)
    if kind in _SCALARS:
        added.type = _SCALARS[kind]
        return
    added.type = _Proto.TYPE_MESSAGE
    if kind == _MAP:
        added.label = _Proto.LABEL_REPEATED
        added.type_name = f".{PACKAGE}.{described.name}.{_add_entry(described, name)}"
        return
    if kind.startswith("repeated "):
        added.label = _Proto.LABEL_REPEATED
    added.type_name = f".{PACKAGE}.{kind.removeprefix('repeated ')}"


def _add_entry(described: descriptor_pb2.DescriptorProto, name: str) -> str:
    """On the wire a map is a repeated message of key and value, whose name protobuf derives from the field's."""
    entry = described.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
    entry.options.map_entry = True
    _add_field(entry, 1, "key", "string")
    _add_field(entry, 2, "value", "string")
    return entry.name
