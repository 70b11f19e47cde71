"""The pods that the chart makes: what they run, may do and are asked."""

from collections.abc import Sequence

import pytest

from kvgauge.cli import ROLES
from kvgauge.cluster.names import SIDECAR
from kvgauge.cluster.settings import AggregatorSettings, InjectorSettings, ServingSettings
from kvgauge.configuring import load_role, validated_role
from kvgauge.settings import load as load_sidecar
from kvgauge.settings import validated
from tests.helm.rendering import (
    NAMESPACE,
    VERSIONS,
    Manifest,
    Values,
    containers,
    merged,
    named,
    of_kind,
    pod_specs,
    render,
)
from tests.helm.switches import SWITCHES

KINDS: dict[str, type[ServingSettings]] = {"aggregator": AggregatorSettings, "injector": InjectorSettings}
RENDERED = {name: values for name, values in SWITCHES.items() if name != "everything on pods"}


def arguments(manifests: Sequence[Manifest], role: str) -> list[str]:
    """Flags of the container that runs a role, by that role's Deployment."""
    (container,) = named(manifests, "Deployment", f"kvgauge-{role}")["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == role
    return list(container["args"][1:])


def settings(values: Values, role: str) -> ServingSettings:
    """What the role makes of its flags, as the command itself would."""
    found, _ = load_role(KINDS[role], role, "", arguments(render(values), role), {})
    return found


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_container_says_what_it_runs_and_the_role_takes_its_flags(switch: str) -> None:
    for spec in pod_specs(render(SWITCHES[switch])):
        for container in containers(spec):
            assert container["command"] == ["/opt/kvgauge/bin/kvgauge"]
            role, *flags = container["args"]
            assert role in ROLES
            if role in KINDS:
                load_role(KINDS[role], role, "", flags, {})
            elif role == "sidecar":
                load_sidecar(flags, {})


def test_the_defaults_of_the_chart_are_those_of_the_roles() -> None:
    other = {"log_format", "tls_cert", "tls_key", "image", "image_pull_policy", "leader_election", "pod_selector"}
    for role, kind in KINDS.items():
        found = settings({}, role).model_dump()
        default = validated_role(kind, {}).model_dump()
        assert {name: found[name] for name in found if name not in other} == {
            name: default[name] for name in default if name not in other
        }


def test_switches_reach_the_aggregator() -> None:
    values = merged(SWITCHES["keda with TLS"], merged(SWITCHES["one namespace"], SWITCHES["pod selector"]))
    values = merged(values, {"externalMetrics": {"enabled": True}, "aggregator": {"sidecarPort": 9900, "port": 8443}})
    found = settings(values, "aggregator")
    assert isinstance(found, AggregatorSettings)
    assert (found.keda_port, found.keda_tls, found.external) == (9840, True, True)
    assert (found.namespace, found.pod_selector) == ("llm", "team=llm")
    assert (found.sidecar_port, found.port, found.metrics_port) == (9900, 8443, 9839)


def test_the_aggregator_watches_pods_by_the_label_that_injector_and_library_set() -> None:
    found = settings({}, "aggregator")
    assert isinstance(found, AggregatorSettings)
    assert found.pod_selector == f"{SIDECAR}=true"
    everything = settings({"aggregator": {"podSelector": ""}}, "aggregator")
    assert isinstance(everything, AggregatorSettings)
    assert everything.pod_selector is None


@pytest.mark.parametrize(("switch", "elects"), [("injector off", False), ("events", True), ("scale-in helper", True)])
def test_only_who_writes_elects_a_leader(switch: str, elects: bool) -> None:
    found = settings(SWITCHES[switch], "aggregator")
    assert isinstance(found, AggregatorSettings)
    assert found.leader_election is elects
    assert found.lease_namespace == (NAMESPACE if elects else None)


def test_the_injector_puts_in_the_image_that_it_is_of_itself() -> None:
    values = merged(SWITCHES["image by digest"], SWITCHES["gpu by runtime class"])
    found = settings(values, "injector")
    assert isinstance(found, InjectorSettings)
    (container,) = named(render(values), "Deployment", "kvgauge-injector")["spec"]["template"]["spec"]["containers"]
    assert found.image == container["image"] == f"mirror/team/kvgauge@sha256:{'0' * 64}"
    assert (found.gpu_mode, found.runtime_class, found.image_pull_policy) == ("runtimeClass", "other", "Always")


def test_every_setting_of_a_role_has_a_value() -> None:
    """But for those that make no sense in a cluster."""
    senseless = {"host", "self_signed", "kubeconfig"}
    rendered = [render(values) for values in SWITCHES.values()]
    for role, kind in KINDS.items():
        given = {
            argument.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
            for manifests in rendered
            if any(one["metadata"]["name"] == f"kvgauge-{role}" for one in of_kind(manifests, "Deployment"))
            for argument in arguments(manifests, role)
        }
        assert set(kind.model_fields) - given == senseless, role


def test_more_flags_win_over_those_of_the_values() -> None:
    found = settings(SWITCHES["more flags"], "aggregator")
    assert isinstance(found, AggregatorSettings)
    assert found.interval == 2.0


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize("switch", RENDERED)
def test_pods_pass_the_restricted_pod_security_standard(switch: str, version: str) -> None:
    for spec in pod_specs(render(RENDERED[switch], version=version)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "emptyDir", "secret"}
        for container in containers(spec):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert not security.get("privileged")
            assert not any("hostPort" in port for port in container["ports"])


@pytest.mark.parametrize("switch", SWITCHES)
def test_pods_state_what_is_expected_of_every_pod(switch: str) -> None:
    for one in of_kind(render(SWITCHES[switch]), "Deployment"):
        spec = one["spec"]["template"]["spec"]
        assert spec["enableServiceLinks"] is False
        assert spec["nodeSelector"]["kubernetes.io/os"] == "linux"
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        mounts = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}
        for container in containers(spec):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports


def test_the_sidecar_beside_the_demo_has_no_readiness_probe() -> None:
    spec = named(render(SWITCHES["demo"]), "Deployment", "kvgauge-demo")["spec"]["template"]["spec"]
    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert "readinessProbe" not in sidecar
    assert "startupProbe" not in sidecar


def test_services_lead_to_ports_that_their_pods_have() -> None:
    manifests = render(SWITCHES["keda"])
    pods = [one["spec"]["template"] for one in of_kind(manifests, "Deployment")]
    services = of_kind(manifests, "Service")
    assert len(services) == 3
    for service in services:
        selector = service["spec"]["selector"].items()
        (pod,) = [pod for pod in pods if selector <= pod["metadata"]["labels"].items()]
        ports = {port["name"] for container in containers(pod["spec"]) for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize(
    ("switch", "aggregator", "injector"), [("events", True, True), ("native sidecars", True, False)]
)
def test_a_token_is_mounted_only_where_the_api_server_is_asked(switch: str, aggregator: bool, injector: bool) -> None:
    manifests = render(SWITCHES[switch])
    for role, mounted in (("aggregator", aggregator), ("injector", injector)):
        spec = named(manifests, "Deployment", f"kvgauge-{role}")["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is mounted
    assert all(one["automountServiceAccountToken"] is False for one in of_kind(manifests, "ServiceAccount"))


def test_a_budget_keeps_what_it_says() -> None:
    for switch, expected in (("events", {"maxUnavailable": 1}), ("budgets that keep", {"minAvailable": "50%"})):
        spec = named(render(SWITCHES[switch]), "PodDisruptionBudget", "kvgauge-aggregator")["spec"]
        assert {name: value for name, value in spec.items() if name.endswith("vailable")} == expected


def test_the_priority_class_that_is_made_is_used() -> None:
    manifests = render(merged(SWITCHES["priority class"], SWITCHES["demo"]))
    made = named(manifests, "PriorityClass")["metadata"]["name"]
    used = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"].get("priorityClassName")
        for one in of_kind(manifests, "Deployment")
    }
    assert used == {"kvgauge-aggregator": made, "kvgauge-injector": made, "kvgauge-demo": None}


def test_settings_of_the_sidecar_have_the_ports_that_the_chart_counts_on() -> None:
    aggregator = settings({}, "aggregator")
    assert isinstance(aggregator, AggregatorSettings)
    assert validated({}).port == aggregator.sidecar_port == 9838
