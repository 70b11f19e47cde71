"""Labels, annotations and resource names that the cluster's parts, the chart and people's manifests share."""

DOMAIN = "kvgauge.dev"

SIDECAR = f"{DOMAIN}/sidecar"
"""Label or annotation, "true": the pod carries a sidecar. The injector sets the label."""
PORT = f"{DOMAIN}/port"
"""Annotation: where the pod's sidecar serves, if not on DEFAULT_PORT."""
INJECT = f"{DOMAIN}/inject"
"""Label, "true": the injector is to add a sidecar."""
DEFAULT_PORT = 9838

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
