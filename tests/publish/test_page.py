import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

from kvgauge.advise import History, advise
from kvgauge.assess import EngineFlags, Past, assess, compared
from kvgauge.observe.merging import refined
from kvgauge.observe.records import Observation, SourceState
from kvgauge.publish.board import Board
from kvgauge.publish.families import FAMILIES, Snapshot
from kvgauge.publish.metrics import render
from kvgauge.publish.reference import reference
from kvgauge.publish.views import AssessmentView, ObservationView, assessment_view, observation_view
from tests.support.facts import ENGINE, GPU, RANK, histogram, model, observation
from tests.support.spool import ALLOCATOR, process, reading, scheduler, worker


def snapshot(seen: Observation, max_num_seqs: int | None = 256) -> Snapshot:
    history = History()
    history.remember(seen)
    assessment = assess(seen, EngineFlags(max_num_seqs=max_num_seqs))
    return Snapshot(assessment, advise(assessment, history, max_num_seqs=max_num_seqs))


def full(engine_bytes: int = 151 << 29) -> Snapshot:
    """Everything that this version can know, known."""
    seen = observation(
        gpus=(replace(GPU, reserved_bytes=1 << 29, engine_bytes=engine_bytes),),
        with_model=model(),
        reclaimable_tokens=100,
        free_tokens=7900,
        swapped=0,
        prompt_lengths=histogram([500] * 10),
        output_lengths=histogram([300] * 10),
    )
    agent = reading(scheduler(), worker())
    seen = replace(seen, agent=agent, engine=refined(seen.engine, agent) if seen.engine is not None else None)
    failed = SourceState("agent", False, None, None, "no_spool", "-", {"no_spool": 2})
    history = History()
    for second in range(12):
        history.remember(replace(seen, monotonic_seconds=float(second)))
    seen = replace(seen, sources=(*seen.sources, failed))
    past = Past()
    for second in range(0, 300, 5):
        past.remember(assess(replace(seen, monotonic_seconds=float(second)), EngineFlags(max_num_seqs=256)))
    seen = replace(seen, monotonic_seconds=300.0)
    assessment = compared(assess(seen, EngineFlags(max_num_seqs=256)), past)
    return Snapshot(assessment, advise(assessment, history, max_num_seqs=256))


def test_a_full_snapshot_fills_every_family() -> None:
    text = render(full())[0].decode()
    missing = [family.name for family in FAMILIES if f"\n{family.name}{{" not in text]
    assert missing == []


def test_labels_are_those_of_the_table() -> None:
    by_name = {family.name: family for family in FAMILIES}
    for family in text_string_to_metric_families(render(full())[0].decode()):
        for sample in family.samples:
            assert set(sample.labels) == set(by_name[sample.name].labels)


def test_states_add_up_to_the_capacity() -> None:
    samples = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(render(full())[0].decode())
        for sample in family.samples
    }
    states = [samples["kvgauge_kv_tokens", state] for state in ("active", "reclaimable", "free")]
    assert sum(states) == samples["kvgauge_kv_capacity_tokens", None] == 16_000


def values(seen: Snapshot, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in text_string_to_metric_families(render(seen)[0].decode())
        for sample in family.samples
        if sample.name == name
    }


def test_what_the_agent_measured_is_on_the_page() -> None:
    assert values(full(), "kvgauge_waste_bytes", "kind", "method") == {
        ("block_tail", "measured"): 100 * 131_072,
        ("reservation", "measured"): 0,
        ("group_padding", "measured"): 0,
        ("head_replication", "measured"): 0,
        ("stranded", "measured"): 16 * 131_072,
    }
    assert values(full(), "kvgauge_kv_live_tokens", "method") == {("measured",): 7900}
    assert values(full(), "kvgauge_allocator_bytes", "gpu", "uuid", "state") == {
        ("0", "GPU-1", "allocated"): 700,
        ("0", "GPU-1", "reserved"): 1000,
        ("0", "GPU-1", "inactive_split"): 120,
        ("0", "GPU-1", "requested"): 650,
        ("0", "GPU-1", "largest_free"): 240,
    }
    assert values(full(), "kvgauge_allocator_fragmentation_ratio", "gpu")["0",] == pytest.approx(0.2)
    assert values(full(), "kvgauge_memory_actual_bytes", "component") == {
        ("weights",): 16_000, ("kv_pool",): 50_000, ("activations",): 2_000, ("non_torch",): 500,
    }  # fmt: skip


def test_predicted_calibrated_and_actual_stand_side_by_side() -> None:
    calibrated = values(full(), "kvgauge_memory_calibrated_bytes", "component")
    assert calibrated.keys() - {("total",)} == values(full(), "kvgauge_memory_predicted_bytes", "component").keys()
    assert calibrated["total",] == 76 << 30
    assert values(full(), "kvgauge_memory_drift_bytes", "gpu", "kind") == {
        ("0", "leak"): 0,
        ("0", "foreign_process"): 0,
        ("0", "flags"): 0,
    }


def test_warnings_are_in_the_api() -> None:
    assessed = TypeAdapter(AssessmentView).dump_python(assessment_view(full(70 << 30).assessment), mode="json")
    (warning,) = assessed["warnings"]
    assert "another process" in warning
    (found,) = [each for each in assessed["gpus"][0]["drifts"] if each["warning"]]
    assert found == {"kind": "foreign_process", "drift_bytes": 11 << 29, "warning": warning}
    assert assessed["gpus"][0]["components"][0]["calibrated_bytes"] is None


def test_a_gpu_that_the_driver_does_not_show_has_no_index() -> None:
    told = reading(process(allocators=[{**ALLOCATOR, "uuid": "GPU-9"}]), instance=None)
    seen = snapshot(replace(observation(engine=None, gpus=()), agent=told))
    assert ("", "GPU-9", "allocated") in values(seen, "kvgauge_allocator_bytes", "gpu", "uuid", "state")


def test_the_api_shows_what_the_agent_told() -> None:
    assessment = full().assessment
    observed = TypeAdapter(ObservationView).dump_python(observation_view(assessment.observation), mode="json")["agent"]
    assessed = TypeAdapter(AssessmentView).dump_python(assessment_view(assessment), mode="json")
    assert [each["role"] for each in observed["processes"]] == ["scheduler", "worker"]
    assert observed["instance"] == "pod-1"
    assert observed["processes"][0]["scheduler"]["used_blocks"] == 500
    assert assessed["allocators"][0]["fragmentation_ratio"] == pytest.approx(0.2)
    assert assessed["gpus"][0]["measured_bytes"]["non_torch"] == 500
    assert {each["kind"] for each in assessed["pools"][0]["waste"]} >= {"block_tail", "stranded"}


def test_what_is_not_known_is_absent() -> None:
    text = render(snapshot(observation(engine=None, gpus=()), None))[0].decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == {"kvgauge_advice_valid", "kvgauge_source_up", "kvgauge_source_age_seconds",
                     "kvgauge_source_read_seconds", "kvgauge_build_info"}  # fmt: skip
    assert "NaN" not in text


def test_advice_for_several_ranks_is_one_series() -> None:
    two = replace(ENGINE, ranks=(RANK, replace(RANK, rank="1")))
    text = render(snapshot(observation(engine=two)))[0].decode()
    assert text.count("\nkvgauge_load_ratio{") == 1
    assert 'kvgauge_load_ratio{model="llama",rank="all"}' in text
    assert text.count("\nkvgauge_kv_capacity_tokens{") == 2


def test_openmetrics_says_the_same() -> None:
    text, openmetrics = render(full())

    def values(families: object) -> dict[object, float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families  # type: ignore[attr-defined]
            for sample in family.samples
        }

    parsed = parse_openmetrics(openmetrics.decode())  # type: ignore[no-untyped-call]
    assert values(parsed) == values(text_string_to_metric_families(text.decode()))


def test_hostile_label_values_do_not_break_the_page() -> None:
    evil = 'a"} 1\nkvgauge_load_ratio{x="\\'
    text = render(snapshot(observation(engine=replace(ENGINE, ranks=(replace(RANK, model=evil),)))))[0].decode()
    rows = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {row.labels["model"] for row in rows if row.name == "kvgauge_load_ratio"} == {evil}


@pytest.mark.prometheus
def test_promtool_finds_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: install Debian's package prometheus"
    result = subprocess.run([promtool, "check", "metrics"], input=render(full())[0], capture_output=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_the_metrics_reference_is_the_table() -> None:
    path = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
    assert path.read_text() == reference(), (
        "docs/metrics.md is old: python -m kvgauge.publish.reference > docs/metrics.md"
    )


def test_a_board_shows_nothing_old() -> None:
    now = [0.0]
    board = Board(stale_after_seconds=5, clock=lambda: now[0])
    assert board.current() is None
    board.publish(full())
    assert board.current() is not None
    now[0] = 5.1
    assert board.current() is None


def test_the_board_remembers_a_quarter_of_an_hour() -> None:
    board = Board(stale_after_seconds=5)
    for second in range(0, 2000, 10):
        board.publish(snapshot(observation(at=float(second))))
    points = board.history()
    assert points[-1].wall_seconds - points[0].wall_seconds == 900
    assert points[-1].kv_usage_ratio == 0.5
