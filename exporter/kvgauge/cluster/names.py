"""Labels, annotations and resource names that the cluster's parts, the chart and people's manifests share."""

from dataclasses import dataclass

DOMAIN = "kvgauge.dev"

SIDECAR = f"{DOMAIN}/sidecar"
"""Label or annotation, "true": the pod carries a sidecar. The injector sets the label."""
PORT = f"{DOMAIN}/port"
"""Annotation: where the pod's sidecar serves, if not on DEFAULT_PORT."""
INJECT = f"{DOMAIN}/inject"
"""Label, "true": the injector is to add a sidecar."""
DEFAULT_PORT = 9838
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation of Kubernetes: pods of a low one go first."""
WORKER_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"
"""Label of a pod within its group; "0" is the leader."""


@dataclass(frozen=True, slots=True)
class WorkloadKind:
    """A kind of workload that is reckoned with."""

    group: str
    resource: str
    """The plural, as paths have it."""
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1"

    @property
    def qualified(self) -> str:
        """As the metrics API and kubectl write it."""
        return f"{self.resource}.{self.group}"


DEPLOYMENT = WorkloadKind("apps", "deployments", "Deployment")
STATEFUL_SET = WorkloadKind("apps", "statefulsets", "StatefulSet")
LEADER_WORKER_SET = WorkloadKind("leaderworkerset.x-k8s.io", "leaderworkersets", "LeaderWorkerSet")
WORKLOAD_KINDS = (DEPLOYMENT, STATEFUL_SET, LEADER_WORKER_SET)

REQUIRED_REPLICAS = "kvgauge_required_replicas"
"""The metric of a workload."""
POD_METRICS = (
    "kvgauge_load_ratio",
    "kvgauge_safe_concurrency",
    "kvgauge_running_requests",
    "kvgauge_waiting_requests",
    "kvgauge_kv_usage_ratio",
    "kvgauge_kv_exhaustion_seconds",
)
"""The metrics of a pod."""
