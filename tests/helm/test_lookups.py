"""What the chart makes of what stands in the cluster already. Helm's real client asks a fake API server."""

import re
from collections.abc import Sequence

import helm_python
import pytest

from tests.helm.fake_api_server import serving
from tests.helm.rendering import NAMESPACE, NO_KEYS, RELEASE, Manifest, Values, chart, merged, named, objects, of_kind

CUSTOM = "custom.metrics.k8s.io"


def render_beside(standing: Sequence[Manifest], values: Values) -> list[Manifest]:
    """All objects, rendered where those stand."""
    with serving(standing) as kubeconfig, helm_python.Config(kubeconfig_content=kubeconfig) as config:
        files = config.render(chart(), dict(values), name=RELEASE, namespace=NAMESPACE)
    return objects(files)


def api_service(name: str, annotations: dict[str, str], service: dict[str, str] | None) -> Manifest:
    version, _, group = name.partition(".")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"group": group, "version": version, "service": service},
    }


ADAPTER = {"namespace": "monitoring", "name": "prometheus-adapter"}
OF_HELM = {"meta.helm.sh/release-name": "adapter", "meta.helm.sh/release-namespace": "monitoring"}
OURS = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE}


@pytest.mark.parametrize(
    ("name", "annotations", "service", "values", "message"),
    [
        (f"v1beta1.{CUSTOM}", {}, ADAPTER, {}, "Service monitoring/prometheus-adapter"),
        (f"v1beta2.{CUSTOM}", OF_HELM, ADAPTER, {}, "of Helm release adapter in namespace monitoring"),
        (f"v1beta1.{CUSTOM}", {**OURS, "meta.helm.sh/release-namespace": "other"}, ADAPTER, {}, "in namespace other"),
        (f"v1beta1.{CUSTOM}", {}, None, {}, "the API server itself"),
        (
            "v1beta1.external.metrics.k8s.io",
            {},
            {"namespace": "keda", "name": "keda-operator-metrics-apiserver"},
            {"externalMetrics": {"enabled": True}},
            "Service keda/keda-operator-metrics-apiserver",
        ),
    ],
)
def test_an_api_that_another_owns_is_not_taken(
    name: str, annotations: dict[str, str], service: dict[str, str] | None, values: Values, message: str
) -> None:
    with pytest.raises(helm_python.HelmRenderError) as caught:
        render_beside([api_service(name, annotations, service)], merged(NO_KEYS, values))
    switch = "customMetrics" if CUSTOM in name else "externalMetrics"
    said = re.sub(r"\s+", " ", str(caught.value))
    assert f"APIService {name} belongs to" in said
    assert message in said
    assert f"{switch}.enabled=false" in said


@pytest.mark.parametrize(
    "values",
    [{"customMetrics": {"enabled": False}}, {"aggregator": {"enabled": False}}],
)
def test_who_does_not_want_the_api_installs_beside_its_owner(values: Values) -> None:
    standing = [api_service(f"v1beta1.{CUSTOM}", OF_HELM, ADAPTER)]
    assert of_kind(render_beside(standing, merged(NO_KEYS, values)), "APIService") == []


def test_kedas_api_does_not_stop_the_custom_one() -> None:
    standing = [api_service("v1beta1.external.metrics.k8s.io", {}, {"namespace": "keda", "name": "keda"})]
    assert len(of_kind(render_beside(standing, NO_KEYS), "APIService")) == 2


def test_an_upgrade_finds_its_own_and_goes_on() -> None:
    standing = [api_service(f"{version}.{CUSTOM}", OURS, ADAPTER) for version in ("v1beta1", "v1beta2")]
    assert len(of_kind(render_beside(standing, NO_KEYS), "APIService")) == 2


def test_certificates_are_kept_over_an_upgrade_and_made_anew_when_deleted() -> None:
    values: Values = {"certificates": {"mode": "chart"}}
    first = render_beside([], values)
    secret = named(first, "Secret", "kvgauge-aggregator-tls")
    # As the API server hands it out, with what others put into it.
    standing = merged(secret, {"data": {"more": "AAAA"}, "metadata": {"resourceVersion": "7"}})
    second = render_beside([standing], values)
    assert named(second, "Secret", "kvgauge-aggregator-tls")["data"] == secret["data"]
    assert {one["spec"]["caBundle"] for one in of_kind(second, "APIService")} == {secret["data"]["ca.crt"]}
    injector = [named(found, "Secret", "kvgauge-injector-tls")["data"]["tls.crt"] for found in (first, second)]
    assert injector[0] != injector[1]


def test_a_secret_that_lacks_a_part_is_made_anew() -> None:
    values: Values = {"certificates": {"mode": "chart"}, "injector": {"enabled": False}}
    standing = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "kvgauge-aggregator-tls", "namespace": NAMESPACE},
        "data": {"tls.crt": "AAAA"},
    }
    secret = named(render_beside([standing], values), "Secret", "kvgauge-aggregator-tls")
    assert set(secret["data"]) == {"ca.crt", "tls.crt", "tls.key"}
    assert secret["data"]["tls.crt"] != "AAAA"
