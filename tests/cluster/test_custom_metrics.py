import pytest

from kvgauge.cluster import metrics, names
from kvgauge.cluster.access import Attributes
from kvgauge.cluster.records import WorkloadKey
from kvgauge.cluster.store import Store

from .api_server import Client, served
from .stocking import LLAMA, NOW_SECONDS, pod, put, reading, required, stocked, workload

V2 = "/apis/custom.metrics.k8s.io/v1beta2"
V1 = "/apis/custom.metrics.k8s.io/v1beta1"
STAR = f"{V2}/namespaces/llm/pods/%2A"


def items(answer: dict[str, object]) -> list[dict[str, object]]:
    found = answer["items"]
    assert isinstance(found, list)
    return found


def values(client: Client, path: str) -> dict[str, object]:
    return {str(item["describedObject"]["name"]): item["value"] for item in items(client.get(path))}  # type: ignore[index]


def test_each_version_has_its_own_form() -> None:
    with served(stocked()) as client:
        answer = client.get(f"{V2}/namespaces/llm/pods/a/kvgauge_load_ratio")
        described = {"kind": "Pod", "name": "a", "apiVersion": "v1", "namespace": "llm"}
        assert answer == {
            "kind": "MetricValueList",
            "apiVersion": "custom.metrics.k8s.io/v1beta2",
            "metadata": {},
            "items": [
                {
                    "describedObject": described,
                    "metric": {"name": "kvgauge_load_ratio"},
                    "timestamp": "2026-09-21T14:13:20Z",
                    "value": "841m",
                }
            ],
        }
        (item,) = items(client.get(f"{V1}/namespaces/llm/pods/a/kvgauge_load_ratio"))
        assert item["metricName"] == "kvgauge_load_ratio"
        assert "metric" not in item


def test_the_star_selects_by_labels_and_leaves_out_who_is_silent_or_goes() -> None:
    with served(stocked()) as client:
        assert values(client, f"{STAR}/kvgauge_load_ratio") == {"a": "841m", "b": "1250m"}
        assert values(client, f"{V2}/namespaces/llm/pods/*/kvgauge_load_ratio?labelSelector=tier%3Dgold") == {
            "b": "1250m"
        }
        assert values(client, f"{STAR}/kvgauge_load_ratio?labelSelector=app%3Dllama&metricLabelSelector=!tier") == {
            "a": "841m"
        }
        assert values(client, f"{STAR}/kvgauge_running_requests?timeout=10s&pretty=1&x=%00") == {"a": "21", "b": "21"}


def test_capacity_and_time_left_are_rounded_down_and_what_is_unknown_is_left_out() -> None:
    with served(stocked()) as client:
        assert values(client, f"{STAR}/kvgauge_safe_concurrency") == {"a": "37", "b": "37"}
        assert values(client, f"{STAR}/kvgauge_kv_exhaustion_seconds") == {"b": "90900m"}


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        (f"{STAR}/kvgauge_load_ratio?labelSelector=app%3Dother", 503, "ServiceUnavailable"),
        (f"{STAR}/kvgauge_load_ratio?labelSelector=app%3Dnobody", 404, "NotFound"),
        (f"{STAR}/kvgauge_load_ratio?labelSelector=app%3D%3D%3D", 400, "BadRequest"),
        (f"{STAR}/kvgauge_load_ratio?labelSelector=app+in+(a%3Bb)", 400, "BadRequest"),
        (f"{STAR}/kvgauge_load_ratio?metricLabelSelector=%27+or+1%3D1", 400, "BadRequest"),
        (f"{STAR}/no_such_metric", 404, "NotFound"),
        (f"{V2}/namespaces/llm/pods/nobody/kvgauge_load_ratio", 404, "NotFound"),
        (f"{V2}/namespaces/llm/pods/silent/kvgauge_load_ratio", 503, "ServiceUnavailable"),
        (f"{V2}/namespaces/nowhere/pods/%2A/kvgauge_load_ratio", 404, "NotFound"),
        (f"{V2}/namespaces/llm/services/x/kvgauge_load_ratio", 404, "NotFound"),
        (f"{V2}/namespaces/llm/deployments.apps/llama/kvgauge_load_ratio", 404, "NotFound"),
        (f"{V2}/namespaces/llm/deployments.apps/nobody/kvgauge_required_replicas", 404, "NotFound"),
        ("/apis/custom.metrics.k8s.io/v1/namespaces/llm/pods/%2A/kvgauge_load_ratio", 404, "NotFound"),
        (f"{V2}/", 404, "NotFound"),
        (f"{V2}//namespaces/llm/pods/%2A/kvgauge_load_ratio", 404, "NotFound"),
        ("/openapi/v2", 404, "NotFound"),
        ("/version", 404, "NotFound"),
        ("/docs", 404, "NotFound"),
    ],
)
def test_what_cannot_be_answered_is_a_status(path: str, code: int, reason: str) -> None:
    with served(stocked()) as client:
        got, answer = client.send(path)
        assert (got, answer["kind"], answer["code"], answer["reason"]) == (code, "Status", code, reason)
        assert answer["status"] == "Failure"


def test_other_methods_are_refused() -> None:
    with served(stocked()) as client:
        code, answer = client.send(f"{STAR}/kvgauge_load_ratio", method="POST")
        assert (code, answer["reason"]) == (405, "MethodNotAllowed")


def test_a_workload_is_an_object_with_its_required_replicas() -> None:
    store = stocked()
    with served(store) as client:
        path = f"{V2}/namespaces/llm/deployments.apps/llama/kvgauge_required_replicas"
        (item,) = items(client.get(path))
        assert item["describedObject"] == {
            "kind": "Deployment",
            "name": "llama",
            "apiVersion": "apps/v1",
            "namespace": "llm",
        }
        assert item["value"] == "3"
        starred = path.replace("llama", "%2A")
        assert values(client, f"{starred}?labelSelector=app%3Dllama") == {"llama": "3"}
        assert client.send(f"{starred}?labelSelector=app%3Dx")[0] == 404
        store.put_required(required(None))
        assert client.send(path)[0] == 503
        store.put_required(required(read_seconds=NOW_SECONDS - 61))
        assert client.send(path)[0] == 503
        assert client.send(starred)[0] == 503


def test_every_kind_of_workload_is_served() -> None:
    store = Store()
    kinds = {
        "deployments.apps": WorkloadKey("llm", "apps", "deployments", "w"),
        "statefulsets.apps": WorkloadKey("llm", "apps", "statefulsets", "w"),
        "leaderworkersets.leaderworkerset.x-k8s.io": WorkloadKey(
            "llm", "leaderworkerset.x-k8s.io", "leaderworkersets", "w"
        ),
    }
    for key in kinds.values():
        store.put_workload(workload(key))
        store.put_required(required(workload=workload(key)))
    with served(store) as client:
        for resource in kinds:
            assert values(client, f"{V2}/namespaces/llm/{resource}/w/kvgauge_required_replicas") == {"w": "3"}


def test_a_namespace_adds_up_and_never_without_a_silent_pod() -> None:
    with served(stocked()) as client:
        path = f"{V2}/namespaces/llm/metrics/kvgauge_load_ratio"
        assert client.send(path)[0] == 503
        (item,) = items(client.get(f"{path}?metricLabelSelector=app%3Dllama"))
        assert item["describedObject"] == {"kind": "Namespace", "name": "llm", "apiVersion": "v1"}
        assert item["value"] == "2091m"
        (item,) = items(
            client.get(f"{V2}/namespaces/llm/metrics/kvgauge_kv_usage_ratio?metricLabelSelector=app%3Dllama")
        )
        assert item["value"] == "500m"


def test_advice_that_is_not_valid_is_no_figure() -> None:
    store = Store()
    put(store, pod("a"), reading(valid=False))
    with served(store) as client:
        assert client.send(f"{STAR}/kvgauge_running_requests")[0] == 503


def test_discovery_holds_whatever_the_store_holds() -> None:
    with served(Store(), external=False) as client:
        group = client.get("/apis/custom.metrics.k8s.io")
        assert group["preferredVersion"] == {
            "groupVersion": "custom.metrics.k8s.io/v1beta2",
            "version": "v1beta2",
        }
        resources = client.get(V1)["resources"]
        assert isinstance(resources, list)
        names = {resource["name"]: resource["namespaced"] for resource in resources}
        assert names["pods/kvgauge_load_ratio"] is True
        assert names["deployments.apps/kvgauge_required_replicas"] is True
        assert names["namespaces/kvgauge_load_ratio"] is False
        assert client.send("/apis/external.metrics.k8s.io/v1beta1")[0] == 404


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", 406),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", 200),
        ("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList, */*;q=0.1", 200),
        ("application/vnd.kubernetes.protobuf, */*", 200),
        ("application/vnd.kubernetes.protobuf", 200),
        ("", 200),
    ],
)
def test_only_who_takes_nothing_but_aggregated_discovery_is_sent_away(accept: str, code: int) -> None:
    with served(Store()) as client:
        assert client.send("/apis", headers={"Accept": accept})[0] == code


def test_the_authoriser_is_asked_what_a_subject_access_review_asks() -> None:
    with served(stocked(), forbidden="elsewhere") as client:
        client.get(f"{STAR}/kvgauge_load_ratio")
        assert client.asked == [
            Attributes("get", "custom.metrics.k8s.io", "v1beta2", "pods", "kvgauge_load_ratio", "llm", "*")
        ]
        code, answer = client.send(f"{V2}/namespaces/elsewhere/pods/c/kvgauge_load_ratio")
        assert (code, answer["reason"]) == (403, "Forbidden")
        # Whether the pod is there is not told.
        assert client.send(f"{V2}/namespaces/elsewhere/pods/x/kvgauge_load_ratio")[1] == answer
        assert client.send("/apis/external.metrics.k8s.io/v1beta1/namespaces/elsewhere/x")[0] == 403
        assert client.asked[-1] == Attributes("list", "external.metrics.k8s.io", "v1beta1", "x", "", "elsewhere", "")


def test_huge_queries_are_bounded() -> None:
    with served(stocked()) as client:
        code, answer = client.send(f"{STAR}/kvgauge_load_ratio?labelSelector=" + "a," * 5000)
        assert code == 400
        assert len(str(answer)) < 500


EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1/namespaces/llm"


def test_external_metrics_carry_labels_and_never_a_part_of_a_sum() -> None:
    store = stocked()
    with served(store) as client:
        (item,) = items(client.get(f"{EXTERNAL}/kvgauge_required_replicas?labelSelector=workload%3Dllama"))
        assert item == {
            "metricName": "kvgauge_required_replicas",
            "metricLabels": {"workload": "llama", "kind": "Deployment"},
            "timestamp": "2026-09-21T14:13:20Z",
            "value": "3",
        }
        assert client.send(f"{EXTERNAL}/kvgauge_load_ratio")[0] == 503
        found = items(client.get(f"{EXTERNAL}/kvgauge_load_ratio?labelSelector=app%3Dllama"))
        assert {str(item["metricLabels"]["pod"]): item["value"] for item in found} == {"a": "841m", "b": "1250m"}  # type: ignore[index]
        assert client.send(f"{EXTERNAL}/kvgauge_load_ratio?labelSelector=app%3Dnobody")[0] == 404
        assert client.send(f"{EXTERNAL}/kvgauge_required_replicas?labelSelector=workload%3Dx")[0] == 404
        store.drop_workload(LLAMA)
        assert client.send(f"{EXTERNAL}/kvgauge_required_replicas")[0] == 404


def test_the_contract_names_what_is_served() -> None:
    assert tuple(metrics.POD_METRICS) == names.POD_METRICS
