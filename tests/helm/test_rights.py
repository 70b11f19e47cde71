"""What the chart lets whom do: no verb more than is used."""

import asyncio
from collections.abc import Sequence

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.cluster.following import Following
from kvgauge.cluster.leading import LEASE
from kvgauge.cluster.settings import AggregatorSettings
from kvgauge.cluster.store import Store
from kvgauge.configuring import validated_role
from tests.helm.rendering import NAMESPACE, Manifest, Values, merged, of_kind, render
from tests.helm.switches import SWITCHES

Right = tuple[str, str, str, str, str]
"""Namespace ("*": all), account, group, resource, verb."""

WATCHED = {
    ("", "pods"),
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("leaderworkerset.x-k8s.io", "leaderworkersets"),
    ("autoscaling", "horizontalpodautoscalers"),
}
AGGREGATOR = f"{NAMESPACE}/kvgauge-aggregator"
CONTROLLER = "kube-system/horizontal-pod-autoscaler"


def rights(manifests: Sequence[Manifest]) -> set[Right]:
    """Of roles that the chart makes itself."""
    roles = {
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]): one["rules"]
        for one in manifests
        if one["kind"] in {"Role", "ClusterRole"}
    }
    found: set[Right] = set()
    for binding in bindings(manifests):
        namespace = binding["metadata"].get("namespace")
        key = binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"]
        for rule in roles.pop(key, []):
            found |= {
                (namespace or "*", f"{subject['namespace']}/{subject['name']}", group, resource, verb)
                for subject in binding["subjects"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    assert roles == {}, "roles that nobody is bound to"
    return found


def bindings(manifests: Sequence[Manifest]) -> list[Manifest]:
    return [*of_kind(manifests, "RoleBinding"), *of_kind(manifests, "ClusterRoleBinding")]


def borrowed(manifests: Sequence[Manifest]) -> set[tuple[str, str]]:
    """(namespace, name) of roles of the cluster's own that are bound."""
    made = {one["metadata"]["name"] for one in manifests if one["kind"] in {"Role", "ClusterRole"}}
    return {
        (one["metadata"].get("namespace", "*"), one["roleRef"]["name"])
        for one in bindings(manifests)
        if one["roleRef"]["name"] not in made
    }


def watching(namespace: str) -> set[Right]:
    return {(namespace, AGGREGATOR, *what, verb) for what in WATCHED for verb in ("list", "watch")}


def reading(namespace: str, group: str = "custom.metrics.k8s.io") -> set[Right]:
    return {(namespace, CONTROLLER, group, "*", verb) for verb in ("get", "list")}


def lease() -> set[Right]:
    return {(NAMESPACE, AGGREGATOR, "coordination.k8s.io", "leases", verb) for verb in ("create", "get", "update")}


LOOKING: set[Right] = {("*", AGGREGATOR, "apiregistration.k8s.io", "apiservices", "get")}
DELEGATED = {("*", "system:auth-delegator"), ("kube-system", "extension-apiserver-authentication-reader")}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, watching("*") | reading("*")),
        ({"watchNamespace": "llm"}, watching("llm") | reading("llm")),
        (SWITCHES["no grant"], watching("*")),
        (
            SWITCHES["events"],
            watching("*") | reading("*") | lease() | {("*", AGGREGATOR, "events.k8s.io", "events", "create")},
        ),
        (
            SWITCHES["scale-in helper"],
            watching("*") | reading("*") | lease() | {("*", AGGREGATOR, "", "pods", "patch")},
        ),
        (
            SWITCHES["external metrics"],
            watching("*") | reading("*") | reading("*", "external.metrics.k8s.io") | LOOKING,
        ),
    ],
    ids=["default", "one namespace", "no grant", "events", "scale-in helper", "external metrics"],
)
def test_rights_are_what_is_used(values: Values, expected: set[Right]) -> None:
    manifests = render(values)
    assert rights(manifests) == expected
    assert borrowed(manifests) == DELEGATED


def test_without_an_api_nobody_is_authenticated() -> None:
    manifests = render(merged(SWITCHES["keda"], SWITCHES["custom metrics off"]))
    assert rights(manifests) == watching("*")
    assert borrowed(manifests) == set()


def test_one_namespace_needs_the_cluster_only_for_the_aggregated_api() -> None:
    manifests = render(merged(SWITCHES["one namespace"], merged(SWITCHES["events"], SWITCHES["scale-in helper"])))
    assert of_kind(manifests, "ClusterRole") == []
    assert [one["roleRef"]["name"] for one in of_kind(manifests, "ClusterRoleBinding")] == ["system:auth-delegator"]
    without = render({"watchNamespace": "llm", "customMetrics": {"enabled": False}, "injector": {"enabled": False}})
    assert not {one["kind"] for one in without} & {"ClusterRole", "ClusterRoleBinding", "APIService"}


def test_what_is_watched_is_what_the_aggregator_follows() -> None:
    async def resources() -> set[str]:
        async with ApiClient(Configuration()) as client:
            return set(Following(client, Store(), validated_role(AggregatorSettings, {})).ages())

    assert asyncio.run(resources()) == {resource for _, resource in WATCHED}


def test_a_lease_is_only_the_aggregators_own() -> None:
    (role,) = [one for one in of_kind(render(SWITCHES["events"]), "Role") if "lease" in one["metadata"]["name"]]
    for rule in role["rules"]:
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == [LEASE]


def test_the_injector_has_no_rights() -> None:
    accounts = {subject["name"] for one in bindings(render()) for subject in one["subjects"]}
    assert accounts == {"kvgauge-aggregator", "horizontal-pod-autoscaler"}


def test_an_account_of_ones_own_gets_the_rights() -> None:
    manifests = render(SWITCHES["other accounts"])
    assert of_kind(manifests, "ServiceAccount") == []
    assert {account for _, account, *_ in rights(manifests)} == {f"{NAMESPACE}/theirs", CONTROLLER}
