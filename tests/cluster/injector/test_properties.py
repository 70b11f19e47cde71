"""Any pod: whatever is the user's is still there afterwards, and a second call changes nothing."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.injector.applying import lost
from tests.cluster.injector.given import injected, sidecar_of

WORD = st.text("abcdefgh-/.$(){}'\" \n=", max_size=12)
NAME = st.sampled_from(["a", "b", "c", "d", "kvgauge", "kvgauge-agent", "kvgauge-state", "kvgauge-spool"])
COMMAND = st.lists(
    st.sampled_from(["vllm", "serve", "--model", "/m/x", "--port", "sh", "-c", "vllm serve /m/x --port 9", "-tp", "2"])
    | WORD,
    max_size=6,
)
PATH = st.sampled_from(
    ["/m", "/", "/run/kvgauge", "/opt/kvgauge-agent", "/root/.cache/huggingface", "/var/lib/kvgauge"]
)
ENV = st.fixed_dictionaries(
    {"name": st.sampled_from(["PYTHONPATH", "KVGAUGE_SPOOL", "PORT", "A"])},
    optional={"value": WORD, "valueFrom": st.just({"secretKeyRef": {"name": "s", "key": "k"}})},
)
MOUNT = st.fixed_dictionaries(
    {"name": NAME, "mountPath": PATH}, optional={"subPath": st.just("x"), "readOnly": st.booleans()}
)


def listed(item: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[Any]:
    return st.none() | st.lists(item, max_size=most)


CONTAINER = st.fixed_dictionaries(
    {"name": NAME, "image": st.sampled_from(["vllm/vllm-openai:1", "x", "registry.example/nim/a", "ollama/ollama"])},
    optional={
        "command": listed(st.one_of(WORD)) | COMMAND,
        "args": COMMAND,
        "env": listed(ENV),
        "envFrom": listed(st.just({"secretRef": {"name": "s"}})),
        "ports": listed(st.fixed_dictionaries({"containerPort": st.sampled_from([8000, 9838, 1])})),
        "volumeMounts": listed(MOUNT),
        "resources": st.sampled_from(
            [
                None,
                {},
                {"limits": {"nvidia.com/gpu": 1}},
                {"limits": {"cpu": 1, "memory": "1"}},
                {"claims": [{"name": "c"}]},
            ]
        ),
        "restartPolicy": st.just("Always"),
        "unknownToUs": st.dictionaries(st.text(max_size=3), st.integers() | st.none()),
    },
)
POD = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"labels": st.just({"kvgauge.dev/inject": "true", "a/b~c": "d"})},
            optional={
                "annotations": st.none()
                | st.fixed_dictionaries(
                    {},
                    optional={
                        "kvgauge.dev/agent": st.just("true"),
                        "kvgauge.dev/status": st.just("injected: x"),
                        "kvgauge.dev/container": NAME,
                        "kvgauge.dev/port": st.sampled_from(["9838", "10000"]),
                        "kvgauge.dev/model": st.sampled_from(["/m/x", "a/b"]),
                    },
                ),
            },
        ),
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(CONTAINER, min_size=1, max_size=3, unique_by=lambda each: each["name"])},
            optional={
                "initContainers": listed(CONTAINER, 2),
                "volumes": listed(st.fixed_dictionaries({"name": NAME}, optional={"emptyDir": st.just({})})),
                "hostNetwork": st.booleans(),
                "runtimeClassName": st.sampled_from([None, "", "kata"]),
                "restartPolicy": st.sampled_from(["Always", "Never"]),
                "tolerations": st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2),
            },
        ),
    }
)
MODES = st.sampled_from(["none", "env", "runtimeClass", "dra", "hostPath"])


@settings(max_examples=400, deadline=None)
@given(POD, st.booleans(), MODES)
def test_only_additions_and_once(pod: dict[str, Any], native: bool, mode: str) -> None:
    once, outcome = injected(pod, native=native, gpu_mode=mode)
    assert lost(pod, once) == []
    assert outcome.result in {"injected", "skipped"}
    assert all(warning.isprintable() for warning in outcome.warnings)
    if outcome.result == "skipped":
        assert once == pod
    twice, _ = injected(once, native=native, gpu_mode=mode)
    assert twice == once
    if outcome.reason == "new":
        places = [mount["mountPath"] for mount in sidecar_of(once)["volumeMounts"]]
        assert len(places) == len(set(places))
        volumes = [volume["name"] for volume in once["spec"]["volumes"]]
        assert {mount["name"] for mount in sidecar_of(once)["volumeMounts"]} <= set(volumes)
