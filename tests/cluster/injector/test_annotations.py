"""Annotations win over what is read, and one that cannot be followed leaves the pod as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.injector.annotations import AnnotationError, Wishes, read_wishes
from tests.cluster.injector.given import env_of, flags_of, injected, manifest, sidecar_of

MODES = ("none", "env", "runtimeClass", "dra")


def test_each_wins() -> None:
    pod, outcome = injected(
        manifest(
            "vllm",
            {
                "kvgauge.dev/engine": "sglang",
                "kvgauge.dev/engine-port": "7000",
                "kvgauge.dev/model": "Qwen/Qwen3-8B",
                "kvgauge.dev/container": "vllm",
                "kvgauge.dev/slo-ttft": "2s",
                "kvgauge.dev/slo-tpot": "80ms",
                "kvgauge.dev/port": "12345",
                "kvgauge.dev/gpu-mode": "env",
                "kvgauge.dev/engine-api-key-secret": "keys/api.key",
            },
        )
    )
    assert outcome.result == "injected"
    flags = flags_of(pod)
    assert flags["--engine"] == "sglang"
    assert flags["--engine-url"] == "http://127.0.0.1:7000"
    assert flags["--model"] == "Qwen/Qwen3-8B"
    assert (flags["--slo-ttft"], flags["--slo-tpot"], flags["--port"]) == ("2s", "80ms", "12345")
    assert sidecar_of(pod)["ports"][0]["containerPort"] == 12345
    env = env_of(sidecar_of(pod))
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert env["KVGAUGE_ENGINE_API_KEY"] == {"secretKeyRef": {"name": "keys", "key": "api.key", "optional": True}}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "https://localhost/x/y", "http://[::1]:9/", "http://localhost"]
)
def test_the_pod_itself_may_be_an_address(url: str) -> None:
    pod, _ = injected(manifest("own", {"kvgauge.dev/engine-url": url, "kvgauge.dev/engine-port": "1"}))
    assert flags_of(pod)["--engine-url"] == url.rstrip("/")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "vLLM"),
        ("engine", ""),
        ("engine-port", "0"),
        ("engine-port", "65536"),
        ("engine-port", "٣"),
        ("engine-port", "8000 "),
        ("engine-url", "http://10.0.0.1:8000"),
        ("engine-url", "http://169.254.169.254/latest"),
        ("engine-url", "http://127.0.0.1.example"),
        ("engine-url", "http://user:secret@127.0.0.1"),
        ("engine-url", "http://@127.0.0.1"),
        ("engine-url", "http://127.0.0.1:0"),
        ("engine-url", "http://127.0.0.1:x"),
        ("engine-url", "http://127.0.0.1/?a=b"),
        ("engine-url", "http://127.0.0.1/$(X)"),
        ("engine-url", "ht\ntp://127.0.0.1"),
        ("engine-url", "file:///etc/passwd"),
        ("engine-url", "http://[::1"),
        ("model", ""),
        ("model", "$(SECRET)"),
        ("model", "a\nb"),
        ("model", "x" * 600),
        ("container", "nobody"),
        ("container", "kvgauge"),
        ("container", "no such\nname"),
        ("slo-ttft", "0s"),
        ("slo-ttft", "soon"),
        ("slo-ttft", "2h"),
        ("slo-tpot", "61s"),
        ("port", "80"),
        ("port", "x"),
        ("gpu-mode", "all"),
        ("gpu-mode", "hostPath"),
        ("agent", "yes"),
        ("engine-api-key-secret", "keys"),
        ("engine-api-key-secret", "../keys/key/key"),
    ],
)
def test_what_cannot_be_followed_leaves_the_pod_as_it_is(name: str, value: str) -> None:
    before = manifest("vllm", {f"kvgauge.dev/{name}": value})
    after, outcome = injected(before)
    assert after == before
    assert (outcome.result, outcome.reason) == ("skipped", "bad_annotation")
    [warning] = outcome.warnings
    assert warning.startswith("kvgauge: ")
    assert f"kvgauge.dev/{name}" in warning
    assert ascii(value[:20])[1:-1] in warning
    assert warning.isprintable()
    assert len(warning) < 256


def test_host_path_is_allowed_by_whoever_runs_the_injector() -> None:
    _, outcome = injected(manifest("vllm", {"kvgauge.dev/gpu-mode": "hostPath"}), gpu_mode="hostPath")
    assert outcome.result == "injected"
    pod, _ = injected(manifest("vllm", {"kvgauge.dev/gpu-mode": "none"}), gpu_mode="hostPath")
    assert "privileged" not in sidecar_of(pod)["securityContext"]


def test_auto_is_told_to_the_sidecar_and_not_believed_of_the_command() -> None:
    pod, _ = injected(manifest("vllm", {"kvgauge.dev/engine": "auto"}))
    assert flags_of(pod)["--engine"] == "auto"
    assert flags_of(pod)["--tp"] == "2"


NAMES = [
    "engine",
    "engine-port",
    "engine-url",
    "model",
    "container",
    "slo-ttft",
    "slo-tpot",
    "port",
    "gpu-mode",
    "agent",
]


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=100), min_size=1))
def test_any_value_is_taken_or_refused(given_annotations: dict[str, str]) -> None:
    annotations = {f"kvgauge.dev/{name}": value for name, value in given_annotations.items()}
    try:
        wishes, complaint = read_wishes(annotations, {}, MODES), ""
    except AnnotationError as error:
        wishes, complaint = Wishes(), str(error)
    assert complaint.isprintable()
    assert len(complaint) < 700
    for text in (wishes.model, wishes.engine_url, wishes.container):
        assert text is None or (text.isprintable() and "$" not in text)
