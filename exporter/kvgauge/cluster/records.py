"""What the cluster's parts tell each other: pods and workloads as the API server has them, and what sidecars said.

Times called `_seconds` are of `time.monotonic()`, those called `wall_seconds` Unix times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from kvgauge.advise.demand import Demand
from kvgauge.advise.served import Served


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """What a Deployment, StatefulSet or LeaderWorkerSet is called. `group` is the API group, "apps" for the first two;
    `resource` the plural, `kind` the singular."""

    namespace: str
    group: str
    resource: str
    name: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload as the API server has it."""

    key: WorkloadKey
    kind: str
    api_version: str
    """Group and version, `apps/v1`."""
    uid: str
    labels: Mapping[str, str]
    spec_replicas: int
    """Pods that are asked for; groups of pods for a LeaderWorkerSet."""
    status_replicas: int
    """Pods that there are: what the autoscaler divides by."""


@dataclass(frozen=True, slots=True)
class PodKey:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod that carries a sidecar, as the API server has it."""

    key: PodKey
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    workload: WorkloadKey | None
    """Whom it belongs to; None for a pod of its own or of a kind that is not known."""
    address: str | None
    """`http://IP:PORT` of its sidecar; None before the pod has an IP."""
    node: str | None
    phase: str
    ready: bool
    deleting: bool
    created_wall_seconds: float
    deletion_cost: str | None = None
    """The annotation `controller.kubernetes.io/pod-deletion-cost` as it stands."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one sidecar said. None: it did not tell, which is not 0."""

    read_seconds: float
    """Of the moment that the figures are of: when the answer came, less the age that it stated."""
    wall_seconds: float
    """The same moment as Unix time on this machine's clock."""
    valid: bool
    load_ratio: float | None
    safe_concurrency: int | None
    running: int | None
    waiting: int | None
    kv_usage_ratio: float | None
    kv_exhaustion_seconds: float | None
    """None too when it is not heading there."""
    kv_active_tokens: float | None
    """Slots of the pool that running requests hold."""
    binding_limit: str | None
    demand: Demand | None
    served: Served | None
    load_now_ratio: float | None = None
    """The load without the damping by which `load_ratio` follows a fall within a minute. For people to read."""

    @property
    def present_load_ratio(self) -> float | None:
        """What the pod really has to do: the lesser of both, where both are told."""
        if self.load_ratio is None or self.load_now_ratio is None:
            return self.load_ratio
        return min(self.load_ratio, self.load_now_ratio)


def is_fresh(reading: Reading | None, now_seconds: float, stale_seconds: float) -> TypeGuard[Reading]:
    """Whether a pod is heard: what it said last is not older than that."""
    return reading is not None and now_seconds - reading.read_seconds <= stale_seconds


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod and the last that its sidecar said; `failure` says in a word why the last poll brought nothing."""

    pod: Pod
    reading: Reading | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Required:
    """How many pods a workload needs, and what that stands on."""

    workload: Workload
    replicas: int | None
    """None: nothing was ever heard of its pods, so nothing is said."""
    wall_seconds: float
    read_seconds: float
    terms: Mapping[str, float | int | None]
    explanation: tuple[str, ...]
    start_up_seconds: float | None = None
    """The longest that one of its pods took lately from its coming to its being ready; None before one was seen."""
