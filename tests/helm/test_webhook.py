"""The webhook must reach the pods that ask for it, and never be in anybody's way."""

import pytest

from kvgauge.cluster.injector.admission import PATH
from kvgauge.cluster.names import INJECT
from tests.helm.rendering import NAMESPACE, Manifest, Values, merged, named, render
from tests.helm.switches import SWITCHES


def webhook(values: Values) -> Manifest:
    (found,) = named(render(values), "MutatingWebhookConfiguration")["webhooks"]
    return dict(found)


def takes(selector: Manifest, namespace: str) -> bool:
    """Whether a namespace without labels of its own is selected."""
    labels = {"kubernetes.io/metadata.name": namespace}
    wanted = {"In": True, "NotIn": False}
    return set(selector.get("matchLabels", {})) <= set(labels) and all(
        (labels.get(rule["key"]) in rule["values"]) is wanted[rule["operator"]] for rule in selector["matchExpressions"]
    )


@pytest.mark.parametrize("switch", ["events", "webhook"])
def test_it_never_holds_up_a_pod(switch: str) -> None:
    found = webhook(SWITCHES[switch])
    assert found["failurePolicy"] == "Ignore"
    assert found["sideEffects"] == "None"
    assert found["reinvocationPolicy"] == "IfNeeded"
    assert 1 <= found["timeoutSeconds"] <= 5
    assert found["objectSelector"] == {"matchLabels": {INJECT: "true"}}
    assert [rule["operations"] for rule in found["rules"]] == [["CREATE"]]


@pytest.mark.parametrize(
    ("values", "seen", "unseen"),
    [
        ({}, ["llm", "default"], ["kube-system", NAMESPACE]),
        ({"injector": {"webhook": {"excludedNamespaces": ["a"]}}}, ["llm"], ["kube-system", NAMESPACE, "a"]),
        ({"watchNamespace": "llm"}, ["llm"], ["default", "kube-system", NAMESPACE]),
        ({"watchNamespace": NAMESPACE}, [NAMESPACE], ["default", "kube-system"]),
        ({"injector": {"webhook": {"namespaceLabels": {"llm": "true"}}}}, [], ["default"]),
    ],
)
def test_which_namespaces_it_sees(values: Values, seen: list[str], unseen: list[str]) -> None:
    selector = webhook(values)["namespaceSelector"]
    assert [name for name in (*seen, *unseen) if takes(selector, name)] == seen


def test_it_calls_the_injectors_service() -> None:
    manifests = render(merged(SWITCHES["given certificates"], {}))
    client = named(manifests, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]
    service = named(manifests, "Service", client["service"]["name"])
    assert client["service"]["namespace"] == service["metadata"]["namespace"]
    assert client["service"]["port"] in [port["port"] for port in service["spec"]["ports"]]
    assert client["service"]["path"] == PATH
    assert client["caBundle"]


def test_conditions_are_handed_on() -> None:
    assert webhook(SWITCHES["webhook"])["matchConditions"][0]["name"] == "no-mirror"
    assert "matchConditions" not in webhook({})
