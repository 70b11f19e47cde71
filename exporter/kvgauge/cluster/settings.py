"""Settings of `kvgauge aggregator` and `kvgauge injector`."""

from typing import Literal

from pydantic import Field

from kvgauge.cluster.names import DEFAULT_PORT
from kvgauge.configuring import RoleSettings, Seconds


class ServingSettings(RoleSettings):
    """What both roles need: a TLS port, certificates, the API server."""

    host: str = Field("0.0.0.0", min_length=1, description="address to serve on")  # noqa: S104
    port: int = Field(6443, ge=0, le=65535, description="TLS port; 0 takes a free one")
    metrics_port: int = Field(9839, ge=0, le=65535, description="plain port of /metrics, /livez and /readyz; 0: free")
    tls_cert: str | None = Field(None, min_length=1, description="certificate chain, PEM; read anew when it changes")
    tls_key: str | None = Field(None, min_length=1, description="its key, PEM")
    self_signed: bool = Field(False, description="make a certificate at the start; for demos")
    kubeconfig: str | None = Field(
        None, min_length=1, description="how to reach the API server; without it the pod's own account, then KUBECONFIG"
    )
    log_format: Literal["console", "json"] = Field("console", description="shape of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


class AggregatorSettings(ServingSettings):
    """Settings of `kvgauge aggregator`. Durations are seconds, or strings such as 500ms, 1s, 2m."""

    namespace: str | None = Field(None, min_length=1, description="the one namespace to watch; without it all")
    pod_selector: str | None = Field(
        None, min_length=1, description="label selector that the API server applies to the pods watched"
    )
    sidecar_port: int = Field(
        DEFAULT_PORT, ge=1, le=65535, description="where sidecars serve that do not say otherwise"
    )
    interval: Seconds = Field(1.0, ge=0.1, le=60, description="time between two polls of a sidecar")
    poll_timeout: Seconds = Field(1.0, gt=0, le=30, description="bound on each poll")
    stale_after: Seconds = Field(10.0, gt=0, le=300, description="age at which a pod's figures are dropped")
    external: bool = Field(False, description="serve external.metrics.k8s.io too, unless another owner has it")
    hpa_tolerance: float = Field(
        0.1, ge=0, lt=1, description="dead band of autoscalers that do not state one, as the cluster has it"
    )
    keda_port: int | None = Field(None, ge=0, le=65535, description="port of KEDA's external scaler (gRPC); 0: free")
    keda_tls: bool = Field(False, description="the scaler speaks TLS, with the same certificate")
    scale_in_helper: bool = Field(False, description="mark the pods that scale-in should take first")
    events: bool = Field(False, description="an Event when KV pressure begins and when it ends")
    leader_election: bool = Field(True, description="of several replicas only the leader writes to the API server")
    lease_namespace: str | None = Field(None, min_length=1, description="of the Lease; without it the pod's own")


class InjectorSettings(ServingSettings):
    """Settings of `kvgauge injector`."""

    image: str = Field("kvgauge:latest", min_length=1, description="image of the sidecar")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="of that image; without it the cluster's default"
    )
    native_sidecars: Literal["auto", "always", "never"] = Field(
        "auto", description="init containers that keep running (Kubernetes 1.29); auto asks the API server"
    )
    gpu_mode: Literal["none", "env", "runtimeClass", "dra", "hostPath"] = Field(
        "none", description="how the sidecar gets to see the engine's GPUs"
    )
    runtime_class: str = Field("nvidia", min_length=1, description="RuntimeClass of the mode runtimeClass")
    cpu_request: str = Field("10m", min_length=1, description="CPU request of the sidecar")
    memory_request: str = Field("64Mi", min_length=1, description="memory request of the sidecar")
    memory_limit: str = Field("256Mi", min_length=1, description="memory limit of the sidecar")
    cpu_limit: str | None = Field(
        None, min_length=1, description="CPU limit of the sidecar, where a quota asks every container for one"
    )
    assigned_user: bool = Field(False, description="leave the sidecar's user to the cluster, as OpenShift wants it")
    driver_library: str = Field(
        "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        pattern=r"^/[A-Za-z0-9._/+-]+$",
        description="the node's libnvidia-ml.so.1, for the mode hostPath",
    )
