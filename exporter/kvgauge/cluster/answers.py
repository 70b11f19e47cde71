"""The documents of the metrics APIs, as plain JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kvgauge.cluster.quantities import quantity

CUSTOM = "custom.metrics.k8s.io"
CUSTOM_VERSIONS = ("v1beta2", "v1beta1")
"""The preferred one first."""
EXTERNAL = "external.metrics.k8s.io"
EXTERNAL_VERSIONS = ("v1beta1",)
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    500: "InternalError",
    503: "ServiceUnavailable",
}

Json = dict[str, object]


class Failure(Exception):  # noqa: N818 - it is an answer, not an error
    """An answer that is a Status: HTTP status and one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Described:
    """The object that a value describes."""

    kind: str
    api_version: str
    namespace: str
    name: str

    def json(self) -> Json:
        found: Json = {"kind": self.kind, "name": self.name, "apiVersion": self.api_version}
        # A Namespace lies in none.
        return {**found, "namespace": self.namespace} if self.namespace else found


@dataclass(frozen=True, slots=True)
class Value:
    """One value, in thousandths, and the Unix time that it is of."""

    described: Described
    thousandths: int
    wall_seconds: float


def status(code: int, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(code, "Unknown"),
        "code": code,
    }


def group_list(groups: Sequence[Json]) -> Json:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups)}


def group(name: str, versions: Sequence[str]) -> Json:
    """An APIGroup whose first version is the preferred one."""
    found = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": found, "preferredVersion": found[0]}


def resource_list(group_version: str, names: Mapping[str, bool], kind: str) -> Json:
    """`names`: each resource and whether it is namespaced."""
    resources = [
        {"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get"]}
        for name, namespaced in names.items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def custom_values(version: str, metric: str, values: Sequence[Value]) -> Json:
    return {
        "kind": "MetricValueList",
        "apiVersion": f"{CUSTOM}/{version}",
        "metadata": {},
        "items": [
            {
                "describedObject": value.described.json(),
                **({"metricName": metric} if version == "v1beta1" else {"metric": {"name": metric}}),
                "timestamp": timestamp(value.wall_seconds),
                "value": quantity(value.thousandths),
            }
            for value in values
        ],
    }


def external_values(metric: str, values: Sequence[tuple[Mapping[str, str], Value]]) -> Json:
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": f"{EXTERNAL}/v1beta1",
        "metadata": {},
        "items": [
            {
                "metricName": metric,
                "metricLabels": dict(labels),
                "timestamp": timestamp(value.wall_seconds),
                "value": quantity(value.thousandths),
            }
            for labels, value in values
        ],
    }


def timestamp(wall_seconds: float) -> str:
    """RFC 3339 in UTC, whole seconds, rounded down."""
    return datetime.fromtimestamp(int(wall_seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
