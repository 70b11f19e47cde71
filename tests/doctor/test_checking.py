"""Findings from facts, without asking anybody: devices that are not here, names that are misspelt, odd objects."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.doctor import checking, checking_hpas
from kvgauge.doctor.asking import Answer
from kvgauge.doctor.autoscalers import KNOWN, Hpa, NamedMetric, Target, hpa_of, selector_of
from kvgauge.doctor.findings import since, words
from kvgauge.doctor.here import Here
from kvgauge.doctor.looking import LocalFacts, Looked, SidecarFacts
from kvgauge.doctor.looking_around import Scaled
from kvgauge.observe.owning import Ownership
from kvgauge.observe.records import GpuReading, SourceError

HERE = Here("http://127.0.0.1:8000", "http://127.0.0.1:9838")
GIB = 1 << 30
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def a_gpu(number: int = 0, used_bytes: int | None = 40 * GIB) -> GpuReading:
    missing = {} if used_bytes is not None else {"used_bytes": "the driver does not report it for this device"}
    return GpuReading(
        gpu=number,
        uuid=f"GPU-{number}",
        name="NVIDIA H100",
        driver="570.1",
        mig="",
        total_bytes=80 * GIB,
        used_bytes=used_bytes,
        free_bytes=None,
        reserved_bytes=None,
        engine_bytes=None,
        missing=missing,
    )


def facts(*gpus: GpuReading, ownership: Ownership | None = None) -> LocalFacts:
    nobody: SidecarFacts = SidecarFacts(Looked(), Looked(), Looked())
    devices = Looked(gpus)
    return LocalFacts(devices, Looked(), Looked(), Looked(), nobody, "/run/kvgauge", False, ownership or Ownership())


def test_devices() -> None:
    assert checking.driver(Looked((a_gpu(0), a_gpu(1))), HERE).found == "2 GPUs: NVIDIA H100, driver 570.1"
    assert checking.gpu_view(facts(a_gpu()), HERE).found == "1 of 1 visible are the engine's: 40.0 GiB of 80.0 GiB used"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("library_not_found", "warn"), ("no_device", "warn"), ("gpu_lost", "fail"), ("driver_mismatch", "fail")],
)
def test_a_driver_that_is_not_here_is_no_failure_and_one_that_fails_is(reason: str, status: str) -> None:
    looked: Looked[tuple[GpuReading, ...]] = Looked(error=SourceError(reason, "so it is"))
    found = checking.driver(looked, Here("", "", pod="p", namespace="n"))
    assert (found.status, found.next) == (status, "kubectl -n n describe pod p")


def test_the_drivers_tool_is_named_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Looked[tuple[GpuReading, ...]] = Looked(error=SourceError("library_not_found", "so it is"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checking.driver(absent, HERE).next == "ls -l /proc/driver/nvidia"
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert checking.driver(absent, HERE).next == "nvidia-smi"


def test_gpus_of_others_are_named() -> None:
    found = checking.gpu_view(facts(a_gpu(0), a_gpu(1), ownership=Ownership(count=1)), HERE)
    assert found.status == "fail"
    assert "2 GPUs are visible, the engine was given 1" in found.found
    assert found.next == "kvgauge doctor --gpu-uuids GPU-0,GPU-1"


def test_memory_that_is_not_told() -> None:
    found = checking.gpu_view(facts(a_gpu(used_bytes=None)), HERE)
    assert found.status == "warn"
    assert "does not report it" in found.found


@given(st.sampled_from(KNOWN), st.data())
def test_a_name_with_a_slip_is_understood(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 2))
    slipped = data.draw(
        st.sampled_from(
            [
                name[:place] + name[place + 1 :],
                name[:place] + name[place + 1] + name[place] + name[place + 2 :],
                name[:place] + "x" + name[place:],
                name.replace("_", "-"),
            ]
        )
    )
    metric = NamedMetric("Pods", slipped)
    if slipped == name:
        return
    assert metric.meant == name
    assert metric.fault is not None
    assert name in metric.fault


@pytest.mark.parametrize("name", ["http_requests", "vllm:num_requests_waiting", "DCGM_FI_DEV_GPU_UTIL", "queue_size"])
def test_others_metrics_are_not_ours(name: str) -> None:
    assert NamedMetric("Pods", name).meant is None


def test_selectors() -> None:
    expressions = [
        {"key": "tier", "operator": "In", "values": ["a", "b"]},
        {"key": "old", "operator": "DoesNotExist"},
        {"key": "gpu", "operator": "Exists"},
        {"key": "zone", "operator": "NotIn", "values": ["z"]},
    ]
    selector = {"matchLabels": {"app": "x"}, "matchExpressions": expressions}
    assert selector_of({"spec": {"selector": selector}}) == "app=x,tier in (a,b),!old,gpu,zone notin (z)"
    assert selector_of({"status": {"hpaPodSelector": "a=b"}}) == "a=b"
    assert selector_of({}) is None


@given(JSON)
def test_odd_objects_are_no_autoscalers(odd: object) -> None:
    hpa_of({"metadata": odd, "spec": odd})
    hpa_of({"metadata": {"namespace": "n", "name": "m"}, "spec": {"metrics": [odd, {"type": "Pods", "pods": odd}]}})
    selector_of({"spec": {"selector": odd}, "status": odd})


@given(st.text())
def test_words_fit_a_line(text: str) -> None:
    shown = words(text)
    assert len(shown) <= 300
    assert shown.isprintable()


def test_a_command_holds_no_other() -> None:
    """A name that an object's maker chose is one word, whatever is in it."""
    target = Target("apps", "Deployment", "x; reboot #")
    scaled = Scaled(Hpa("llm", "a", target, (NamedMetric("Pods", KNOWN[0]),), ()), Answer(403, {}, "no"))
    assert checking_hpas.target(scaled).next == "kubectl auth can-i get 'deployments.apps/x; reboot #' -n llm"
    assert target.path("llm").endswith("/deployments/x%3B%20reboot%20%23")


def test_ages() -> None:
    assert [since(age) for age in (0.25, 42, 119, 120, 7200, 200_000)] == [
        "0.2 s",
        "42 s",
        "119 s",
        "2 min",
        "2 h",
        "2 d",
    ]
    assert since(None) == "an unknown time"
