"""Pods of real engines: what is read from them, and that the API server takes what comes out."""

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from kvgauge.cluster.injector.containers import AGENT_FOLDER, LAUNCH_FOLDER, SPOOL_FOLDER
from kvgauge.settings import load
from kvgauge_agent.bundle import lay_out
from kvgauge_agent.spool import DEFAULT_DIRECTORY
from tests.cluster.injector.applying import lost
from tests.cluster.injector.given import NAMES, env_of, flags_of, injected, manifest, mounts_of, sidecar_of
from tests.helm.schemas import complaint

READ: dict[str, dict[str, str]] = {
    "dra": {"--engine": "vllm", "--model": "Qwen/Qwen3-8B"},
    "dynamo": {"--engine": "dynamo", "--engine-url": "http://127.0.0.1:9090", "--model": "Qwen/Qwen3-0.6B"},
    "kserve": {"--engine-url": "http://127.0.0.1:8081", "--model": "/mnt/models"},
    "llamacpp": {
        "--engine": "llama.cpp",
        "--engine-url": "http://127.0.0.1:8080",
        "--model": "/gguf/qwen2.5-7b-q4_k_m.gguf",
        "--engine-kv-dtype": "q8_0",
        "--llamacpp-kv-unified": "true",
    },
    "lmdeploy": {
        "--engine": "lmdeploy",
        "--engine-url": "http://127.0.0.1:23333",
        "--model": "internlm/internlm3-8b-instruct",
        "--tp": "1",
        "--max-num-seqs": "128",
        "--engine-max-model-len": "32768",
    },
    "lws": {
        "--engine": "vllm",
        "--engine-url": "http://127.0.0.1:8080",
        "--model": "meta-llama/Llama-3.1-405B-Instruct",
        "--tp": "8",
        "--pp": "2",
    },
    "max": {"--engine": "max", "--engine-url": "http://127.0.0.1:8001", "--model": "google/gemma-3-12b-it"},
    "nim": {"--engine": "nim"},
    "ollama": {"--engine": "ollama", "--engine-url": "http://127.0.0.1:11500", "--engine-parallel": "4"},
    "own": {"--engine-url": "http://127.0.0.1:5000"},
    "ray": {"--engine-url": "http://127.0.0.1:8080"},
    "sglang": {
        "--engine": "sglang",
        "--engine-url": "http://127.0.0.1:30000",
        "--model": "/model",
        "--tp": "8",
        "--max-num-seqs": "256",
    },
    "tgi": {
        "--engine": "tgi",
        "--engine-url": "http://127.0.0.1:8080",
        "--model": "mistralai/Mistral-7B-Instruct-v0.3",
        "--tp": "1",
        "--engine-capacity-tokens": "65536",
    },
    "triton": {"--engine-url": "http://127.0.0.1:8002"},
    "trtllm": {
        "--engine": "tensorrt-llm",
        "--engine-url": "http://127.0.0.1:8355",
        "--model": "nvidia/Llama-3.1-8B-Instruct-FP8",
        "--tp": "2",
        "--max-num-seqs": "64",
        "--max-num-batched-tokens": "4096",
    },
    "vllm": {
        "--engine": "vllm",
        "--model": "/models/llama-3.1-8b",
        "--tp": "2",
        "--max-num-seqs": "128",
        "--max-num-batched-tokens": "8192",
        "--enforce-eager": "",
    },
    "vllm-shell": {
        "--engine": "vllm",
        "--port": "9839",
        "--engine-url": "http://127.0.0.1:8080",
        "--model": "Qwen/Qwen2.5-7B-Instruct",
        "--max-num-seqs": "64",
    },
}
"""All that is read, beside what is the same for most."""
COUNTS = {"dra": None, "own": None, "vllm": "2", "sglang": "8", "lws": "8", "trtllm": "2"}
ADDED = {"kvgauge.dev/agent": "true"}


def test_every_pod_is_here() -> None:
    assert sorted(READ) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read(name: str) -> None:
    pod, outcome = injected(manifest(name))
    assert (outcome.result, outcome.reason, outcome.warnings) == ("injected", "new", ())
    flags = flags_of(pod)
    count = COUNTS.get(name, "1")
    assert flags.pop("--state-file") == "/var/lib/kvgauge/state.json"
    assert flags == {
        "--port": "9838",
        "--engine-url": "http://127.0.0.1:8000",
        **({"--gpu-count": count} if count is not None else {}),
        **READ[name],
    }


VERSIONS = [f"1.{minor}" for minor in range(28, 38)]
# Before 1.31 a pod named its claims in another way.
CASES = [(name, version) for name in NAMES for version in VERSIONS if name != "dra" or version >= "1.31"]


@pytest.mark.parametrize(("name", "version"), CASES)
def test_the_api_server_takes_it(name: str, version: str) -> None:
    assert complaint(manifest(name), version) is None
    native = version != "1.28"
    for annotations in ({}, ADDED):
        for mode in ("none", "env", "runtimeClass", "dra", "hostPath"):
            pod, outcome = injected(manifest(name, annotations), native=native, gpu_mode=mode)
            assert outcome.result == "injected"
            assert complaint(pod, version) is None
            assert ("restartPolicy" in sidecar_of(pod)) == native


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("native", [True, False])
def test_nothing_of_the_users_changes_and_twice_is_once(name: str, native: bool) -> None:
    before = manifest(name, ADDED)
    once, _ = injected(before, native=native, gpu_mode="runtimeClass")
    assert lost(before, once) == []
    # What the cluster's version is meanwhile thought to be does not matter for a pod that has its sidecar.
    for now in (True, False):
        twice, outcome = injected(once, native=now, gpu_mode="runtimeClass")
        assert twice == once
        assert (outcome.result, outcome.reason) == ("skipped", "present")


@pytest.mark.parametrize("name", NAMES)
def test_the_sidecar_takes_what_it_is_told(name: str) -> None:
    slo = {"kvgauge.dev/slo-ttft": "2s", "kvgauge.dev/slo-tpot": "80ms"}
    pod, _ = injected(manifest(name, {**ADDED, **slo}))
    told = {flag.removeprefix("--").replace("-", "_"): value for flag, value in flags_of(pod).items()}
    found = load(sidecar_of(pod)["args"][1:], {})[0].model_dump()
    assert found["slo_tpot"] == 0.08
    for field, value in told.items():
        assert field.startswith("slo") or str(found[field]).lower() in {value.lower(), value or "true"}


def test_the_folders_of_the_agent_are_those_that_its_bundle_makes(tmp_path: Path) -> None:
    lay_out(tmp_path)
    inside = PurePosixPath(LAUNCH_FOLDER).relative_to(AGENT_FOLDER)
    assert (tmp_path / inside / "sitecustomize.py").is_file()
    assert SPOOL_FOLDER == DEFAULT_DIRECTORY
    assert "vllm.general_plugins" in next(tmp_path.glob("*.dist-info/entry_points.txt")).read_text()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 2 << 20


def test_models_are_mounted_from_the_engines_own_volume() -> None:
    def extra(name: str) -> list[dict[str, Any]]:
        pod, _ = injected(manifest(name))
        return [each for path, each in mounts_of(sidecar_of(pod)).items() if path != "/var/lib/kvgauge"]

    assert extra("vllm") == [{"name": "models", "mountPath": "/models", "readOnly": True, "subPath": "hub"}]
    assert extra("llamacpp") == [{"name": "gguf", "mountPath": "/gguf", "readOnly": True}]
    assert extra("kserve") == [{"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}]
    assert extra("nim") == []
    # Only root may look into /root, so the cache goes elsewhere.
    pod, _ = injected(manifest("vllm-shell"))
    assert extra("vllm-shell") == [{"name": "cache", "mountPath": "/mnt/kvgauge/model", "readOnly": True}]
    assert env_of(sidecar_of(pod))["HF_HUB_CACHE"] == "/mnt/kvgauge/model/hub"
    volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
    assert volumes == ["cache", "kvgauge-state"]
