"""The doctor outside: a cluster that works, and its links broken one by one."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from kvgauge.doctor.asking import Asker
from kvgauge.doctor.checking_cluster import check_cluster
from kvgauge.doctor.findings import Finding
from kvgauge.doctor.looking_around import look_around
from tests.cluster.test_aggregator import TOKEN, Sidecars, a_pod, review, running, until

from .cluster import (
    APISERVICE,
    Cluster,
    an_aggregator,
    an_apiservice,
    an_hpa,
    kubeconfig,
    looked,
    object_metric,
    pods_metric,
)
from .running import run

HPAS = "horizontalpodautoscalers"


@pytest.fixture
def api() -> Iterator[Cluster]:
    with Cluster() as server:
        yield server.fill()
        assert server.complaints == []


def statuses(found: Mapping[str, Finding]) -> dict[str, str]:
    return {name: finding.status for name, finding in found.items()}


def seen(folder: Path, api: Cluster, status: str) -> Mapping[str, Finding] | None:
    """What is found, once both metrics are found so."""
    found = looked(folder, api)
    both = {found["metric llm"].status, found["hpa llm/llama metric"].status}
    return found if both == {status} else None


def _failed(found: Mapping[str, Finding]) -> Mapping[str, Finding] | None:
    return found if found["metric llm"].status == "fail" else None


def replace_hpa(api: Cluster, hpa: object) -> None:
    api.delete(HPAS, "llm", "llama")
    api.create(HPAS, hpa)  # type: ignore[arg-type]


def test_a_cluster_that_works(tmp_path: Path, api: Cluster) -> None:
    found = looked(tmp_path, api)
    assert set(statuses(found).values()) == {"ok"}, found
    assert set(found) == {
        "api-server", "pods", "sidecars", "apiservice", "aggregator", "metric llm", "hpa llm/llama metric",
        "hpa llm/llama target", "hpa llm/llama pods", "hpa llm/llama conditions",
    }  # fmt: skip
    assert "2 of 2 asked give valid advice" in found["sidecars"].found
    assert "llama-1 840m" in found["metric llm"].found


def test_as_a_process_and_in_lines(tmp_path: Path, api: Cluster) -> None:
    """Without being asked for, it is found by its kubeconfig; the pod's half stands beside it."""
    environ = {"KUBECONFIG": kubeconfig(tmp_path, api.url)}
    answer = run("--cluster", environ=environ)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "hpa llm/llama pods" in answer.stdout
    assert "engine" not in answer.stdout.split()
    both = run("--json", environ=environ)
    checks = [line["check"] for line in json.loads(both.stdout)]
    assert checks[0] == "driver"
    assert checks[-1] == "hpa llm/llama conditions"
    assert both.returncode == 1
    nothing = run("--json", environ={"KUBECONFIG": "/nowhere"})
    assert [line["status"] for line in json.loads(nothing.stdout) if line["check"] == "cluster"] == ["skip"]


def test_a_real_aggregator_behind_it(tmp_path: Path) -> None:
    sidecars = Sidecars()
    try:
        with Cluster(review=review) as api:
            api.fill()
            for number in (1, 2):
                api.delete("pods", "llm", f"llama-{number}")
                api.create("pods", a_pod(f"llama-{number}", f"127.0.0.{number + 1}", sidecars.port))
            replace_hpa(api, an_hpa(pods_metric(), object_metric()))
            with running(tmp_path, api, "--stale-after=1s", "--interval=200ms") as aggregator:
                api.behind = (f"https://127.0.0.1:{aggregator.api}", TOKEN)
                found = until(partial(seen, tmp_path, api, "ok"), "the metrics")
                assert "kvgauge_load_ratio of 2 pods" in found["metric llm"].found
                assert found["hpa llm/llama metric"].status == "ok", found["hpa llm/llama metric"]
                sidecars.silent = True
                found = until(lambda: _failed(looked(tmp_path, api)), "silence")
                assert "none of the 2 selected pods has told kvgauge_load_ratio lately" in found["metric llm"].found
    finally:
        sidecars.close()


def test_an_api_server_that_is_away(tmp_path: Path) -> None:
    with Cluster() as api:
        api.away()
        began = time.monotonic()
        found = looked(tmp_path, api)
        assert time.monotonic() - began < 20
    assert found["api-server"].status == "fail"
    assert "no connection" in found["api-server"].found
    assert {finding.status for name, finding in found.items() if name != "api-server"} == {"skip"}


def test_an_api_server_that_says_nothing() -> None:
    async def look(url: str) -> list[Finding]:
        async with ApiClient(Configuration(host=url)) as client:
            return check_cluster(await look_around(Asker(client, 0.3), url, None), time.time())

    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = asyncio.run(look(f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert (found[0].status, found[0].next) == ("fail", "kubectl version")
    assert "no answer within 0.3 s" in found[0].found


def test_no_pod_has_a_sidecar(tmp_path: Path, api: Cluster) -> None:
    for number in (1, 2):
        pod = a_pod(f"llama-{number}", "127.0.0.2", 9838)
        del pod["metadata"]["labels"]["kvgauge.dev/sidecar"]
        api.delete("pods", "llm", f"llama-{number}")
        api.create("pods", pod)
    found = looked(tmp_path, api)
    assert found["pods"].status == "fail"
    assert "kvgauge.dev/sidecar=true" in found["pods"].found
    assert found["pods"].next == "kubectl get pods -A -L kvgauge.dev/inject,kvgauge.dev/sidecar"
    assert found["sidecars"].status == "skip"
    assert found["hpa llm/llama pods"].status == "fail"
    assert "none of the 2 pods" in found["hpa llm/llama pods"].found


def test_sidecars_that_do_not_answer_or_advise(tmp_path: Path, api: Cluster) -> None:
    api.advice["llama-1"] = 503
    found = looked(tmp_path, api)
    assert found["sidecars"].status == "fail"
    assert "llm/llama-1" in found["sidecars"].found
    assert found["sidecars"].next == "kubectl -n llm logs llama-1 -c kvgauge --tail=20"
    api.advice["llama-1"] = {"valid": False, "explanation": ["The engine is down."]}
    found = looked(tmp_path, api)
    assert "its advice is not valid: The engine is down." in found["sidecars"].found
    api.advice["llama-1"] = {"hello": 1}
    assert "no advice (malformed)" in looked(tmp_path, api)["sidecars"].found


def test_an_aggregator_that_is_away(tmp_path: Path, api: Cluster) -> None:
    api.delete("pods", "kvgauge", "kvgauge-aggregator-1")
    assert looked(tmp_path, api)["aggregator"].status == "fail"
    api.create("pods", an_aggregator("kvgauge-aggregator-2", ready=False))
    found = looked(tmp_path, api)
    assert found["aggregator"].status == "fail"
    assert found["aggregator"].next == "kubectl -n kvgauge describe pod kvgauge-aggregator-2"
    api.create("pods", an_aggregator("kvgauge-aggregator-3"))
    assert looked(tmp_path, api)["aggregator"].status == "warn"


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("ServiceNotFound", "kubectl -n kvgauge get service kvgauge-aggregator"),
        ("MissingEndpoints", "kubectl -n kvgauge get pods -l app.kubernetes.io/component=aggregator"),
        ("FailedDiscoveryCheck", "kubectl -n kvgauge logs -l app.kubernetes.io/component=aggregator --tail=30"),
    ],
)
def test_an_apiservice_that_is_false(tmp_path: Path, api: Cluster, reason: str, command: str) -> None:
    broken = an_apiservice("False", reason, "it is\nnot there")
    changed = datetime.now(UTC) - timedelta(days=2, hours=1)
    broken["status"]["conditions"][0]["lastTransitionTime"] = changed.isoformat(timespec="seconds")
    api.update("apiservices", broken)
    found = looked(tmp_path, api)
    assert found["apiservice"].status == "fail"
    assert f"is False for 2 d: {reason}: it is not there" in found["apiservice"].found
    assert found["apiservice"].next == command
    assert found["metric"].status == "skip"


def test_an_aggregator_that_the_api_server_does_not_reach(tmp_path: Path, api: Cluster) -> None:
    why = "failing or missing response from https://10.0.0.7:6443: context deadline exceeded"
    api.update("apiservices", an_apiservice("False", "FailedDiscoveryCheck", why))
    found = looked(tmp_path, api)["apiservice"]
    assert "a firewall or a network policy" in found.found
    assert found.next == "kubectl -n kvgauge get networkpolicies,endpointslices,pods -o wide"


def test_an_apiservice_that_is_not_there_or_anothers(tmp_path: Path, api: Cluster) -> None:
    other = an_apiservice()
    other["metadata"]["labels"]["app.kubernetes.io/name"] = "prometheus-adapter"
    api.update("apiservices", other)
    found = looked(tmp_path, api)
    assert found["apiservice"].status == "warn"
    assert "belongs to prometheus-adapter" in found["apiservice"].found
    api.delete("apiservices", "", APISERVICE)
    found = looked(tmp_path, api)
    # An HPA needs it.
    assert (found["apiservice"].status, found["metric"].status) == ("fail", "skip")
    assert "llm/llama needs it" in found["apiservice"].found
    api.delete(HPAS, "llm", "llama")
    # With KEDA alone nothing does.
    found = looked(tmp_path, api)
    assert (found["apiservice"].status, found["hpa"].status) == ("warn", "warn")


def test_a_metric_that_cannot_be_read(tmp_path: Path, api: Cluster) -> None:
    api.metrics_status = 503
    found = looked(tmp_path, api)
    assert found["metric llm"].status == "fail"
    assert "none of the 2 selected pods" in found["metric llm"].found
    # It serves, and has nothing fresh: what it says of its polls leads on.
    path = "/api/v1/namespaces/kvgauge/pods/kvgauge-aggregator-1:9839/proxy/metrics"
    assert found["metric llm"].next == f"kubectl get --raw {path} | grep -E '^kvgauge_(pods|polls_total)'"
    api.metrics_status = 404
    path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/llm/pods/*/kvgauge_load_ratio"
    assert looked(tmp_path, api)["metric llm"].next == f"kubectl get --raw '{path}'"
    api.metrics_status, api.metrics_age_seconds = 200, 300.0
    found = looked(tmp_path, api)
    assert found["metric llm"].status == "warn"
    assert "the oldest 5 min old" in found["metric llm"].found
    api.metrics_age_seconds = 1.0
    api.create("pods", a_pod("llama-3", "127.0.0.4", 9838))
    found = looked(tmp_path, api)
    assert found["metric llm"].status == "warn"
    assert "not told: llama-3" in found["metric llm"].found


def test_a_metric_that_the_api_server_cannot_fetch(tmp_path: Path, api: Cluster) -> None:
    api.metrics_status = 503
    api.metrics_text = "error trying to reach service: x509: certificate signed by unknown authority\n"
    found = looked(tmp_path, api)["metric llm"]
    assert found.found.endswith("x509: certificate signed by unknown authority")
    assert found.next == f"kubectl describe apiservice {APISERVICE}"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (pods_metric("kvgauge_laod_ratio"), "did you mean kvgauge_load_ratio?"),
        (pods_metric("kvgauge_required_replicas"), "is of a workload: type Object"),
        (object_metric("kvgauge_load_ratio"), "is of pods: type Pods"),
        (object_metric(of="lama"), "its describedObject lama does not exist"),
        (object_metric("kvgauge_required_replica"), "did you mean kvgauge_required_replicas?"),
    ],
)
def test_an_hpa_that_asks_for_the_wrong_thing(
    tmp_path: Path, api: Cluster, metric: dict[str, object], words: str
) -> None:
    replace_hpa(api, an_hpa(metric))
    found = looked(tmp_path, api)
    assert found["hpa llm/llama metric"].status == "fail"
    assert words in found["hpa llm/llama metric"].found
    assert found["hpa llm/llama metric"].next == "kubectl -n llm edit hpa llama"


def test_an_hpa_whose_target_is_not_there(tmp_path: Path, api: Cluster) -> None:
    replace_hpa(api, an_hpa(target="lama"))
    found = looked(tmp_path, api)
    assert found["hpa llm/llama target"].status == "fail"
    assert "Deployment lama does not exist" in found["hpa llm/llama target"].found
    assert found["hpa llm/llama pods"].status == "skip"


def test_a_selector_that_matches_nothing_or_too_much(tmp_path: Path, api: Cluster) -> None:
    api.patch("deployments", "llm", "llama", {"spec": {"selector": {"matchLabels": {"app": "lama"}}}})
    found = looked(tmp_path, api)
    assert found["hpa llm/llama pods"].status == "fail"
    assert "app=lama matches no pod" in found["hpa llm/llama pods"].found
    api.patch("deployments", "llm", "llama", {"spec": {"selector": {"matchLabels": {"app": "llama"}}}})
    bare = a_pod("llama-3", "127.0.0.4", 9838)
    del bare["metadata"]["labels"]["kvgauge.dev/sidecar"]
    api.create("pods", bare)
    found = looked(tmp_path, api)
    assert found["hpa llm/llama pods"].status == "warn"
    assert "1 of the 3 pods" in found["hpa llm/llama pods"].found


def test_what_the_hpa_says_of_itself(tmp_path: Path, api: Cluster) -> None:
    replace_hpa(api, an_hpa(ScalingActive="False FailedGetPodsMetric"))
    found = looked(tmp_path, api)["hpa llm/llama conditions"]
    assert found.status == "fail"
    assert "ScalingActive is False for " in found.found
    assert "FailedGetPodsMetric" in found.found
    replace_hpa(api, an_hpa(ScalingActive="False ScalingDisabled"))
    assert looked(tmp_path, api)["hpa llm/llama conditions"].status == "warn"
    replace_hpa(api, an_hpa(ScalingLimited="True TooManyReplicas"))
    assert "maxReplicas" in looked(tmp_path, api)["hpa llm/llama conditions"].found


def test_hpas_of_others_are_left_alone(tmp_path: Path, api: Cluster) -> None:
    api.create(HPAS, an_hpa(pods_metric("http_requests"), name="web"))
    assert not any("web" in name for name in looked(tmp_path, api))


@pytest.mark.parametrize(
    ("verb", "resource", "check", "command"),
    [
        ("list", "pods", "pods", "kubectl auth can-i list pods -A"),
        ("get", "apiservices", "apiservice", f"kubectl auth can-i get apiservices/{APISERVICE}"),
        ("list", HPAS, "hpa", "kubectl auth can-i list horizontalpodautoscalers.autoscaling -A"),
        (
            "get",
            "deployments",
            "hpa llm/llama target",
            "kubectl auth can-i get deployments.apps/llama -n llm",
        ),
    ],
)
def test_what_is_not_shown_is_a_warning(
    tmp_path: Path, api: Cluster, verb: str, resource: str, check: str, command: str
) -> None:
    api.forbid(verb, resource)
    found = looked(tmp_path, api)
    assert (found[check].status, found[check].next) == ("warn", command)
    assert "HTTP 403" in found[check].found
    assert "fail" not in statuses(found).values(), found


def test_metrics_and_sidecars_that_are_not_shown(tmp_path: Path, api: Cluster) -> None:
    api.metrics_status = 403
    api.advice["llama-1"] = 403
    found = looked(tmp_path, api)
    asked = "kubectl auth can-i get pods.custom.metrics.k8s.io --subresource=kvgauge_load_ratio -n llm"
    assert (found["metric llm"].status, found["metric llm"].next) == ("warn", asked)
    assert found["sidecars"].next == "kubectl auth can-i get pods --subresource=proxy -n llm"
    assert "fail" not in statuses(found).values()


def test_one_namespace(tmp_path: Path, api: Cluster) -> None:
    found = looked(tmp_path, api, namespace="other")
    assert "no pod of namespace other" in found["pods"].found
    assert found["pods"].next == "kubectl get pods -n other -L kvgauge.dev/inject,kvgauge.dev/sidecar"
    assert not any(name.startswith("hpa llm") for name in found)


def test_commands_ask_the_cluster_that_was_looked_at(tmp_path: Path, api: Cluster) -> None:
    config = kubeconfig(tmp_path, api.url)
    replace_hpa(api, an_hpa(pods_metric("kvgauge_laod_ratio")))
    named = run("--cluster", "--kubeconfig", config, "--json")
    told = {line["check"]: line["next"] for line in json.loads(named.stdout)}
    assert told["hpa llm/llama metric"] == f"kubectl --kubeconfig {config} -n llm edit hpa llama"
    # kubectl finds by itself the one that the variable names.
    found = run("--cluster", "--json", environ={"KUBECONFIG": config})
    told = {line["check"]: line["next"] for line in json.loads(found.stdout)}
    assert told["hpa llm/llama metric"] == "kubectl -n llm edit hpa llama"


def test_the_release_is_named_where_it_is_known(tmp_path: Path, api: Cluster) -> None:
    api.delete("apiservices", "", APISERVICE)
    assert looked(tmp_path, api)["apiservice"].next == "helm list -A"
    api.delete("pods", "kvgauge", "kvgauge-aggregator-1")
    aggregator = an_aggregator("kvgauge-aggregator-1")
    aggregator["metadata"]["labels"]["app.kubernetes.io/instance"] = "gauges"
    api.create("pods", aggregator)
    assert looked(tmp_path, api)["apiservice"].next == "helm get values gauges --all -n kvgauge"


def test_ages_and_values_are_said(tmp_path: Path, api: Cluster) -> None:
    hpa = an_hpa()
    current = {"metric": {"name": "kvgauge_load_ratio"}, "current": {"averageValue": "815m"}}
    hpa["status"]["currentMetrics"] = [{"type": "Pods", "pods": current}, {"type": "Resource"}]
    replace_hpa(api, hpa)
    found = looked(tmp_path, api)
    assert "valid advice, the oldest 0.5 s old: " in found["sidecars"].found
    assert found["hpa llm/llama conditions"].found.endswith("; it last read kvgauge_load_ratio 815m")


@pytest.mark.parametrize(("number", "left"), [(8, False), (9, True)])
def test_more_than_are_looked_at(tmp_path: Path, api: Cluster, number: int, left: bool) -> None:
    """Eight are looked at one by one; that there are more is said, with what to type to see them."""
    api.delete(HPAS, "llm", "llama")
    for each in range(number):
        hpa = an_hpa()
        hpa["metadata"]["namespace"] = f"team-{each}"
        api.create(HPAS, hpa)
    found = looked(tmp_path, api)
    assert ("hpa" in found) is left
    if left:
        assert found["hpa"].found == "only 8 of 9 that follow kvgauge were looked at"
        assert found["hpa"].next == "kvgauge doctor --cluster --namespace team-8"
    # The pods' own namespace is one more.
    assert "only 8 of 9 namespaces" in found["metric"].found
    assert (found["metric"].next or "").startswith("kvgauge doctor --cluster --namespace team-")
