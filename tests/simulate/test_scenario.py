"""Scenarios: the built-in one, files and flags, and one line for whatever cannot be."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.simulate.deployment import Deployment
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.hpa_behavior import DEFAULT_SCALE_UP, Behavior, Policy, ScalingRules
from kvgauge.simulate.scenario import LLM_D, LLM_D_BEHAVIOR, Scenario, load_scenario, scenario_from
from kvgauge.simulate.spec import FinishedRequest
from kvgauge.simulate.stages import Lognormal, Ramp, Sine, StagedLoad, Steady, Uniform
from kvgauge.simulate.traces import Trace

NUMBERS: dict[str, object] = {
    "kv_tokens": 48_000,
    "kv_bytes_per_token": 262_144,
    "weights_bytes": 65.5e9,
    "parameters": 32.8e9,
    "bandwidth_bytes_per_second": 2.4e12,
    "flops_per_second": 5e14,
}
STAGES: dict[str, object] = {
    "stages": [{"seconds": 10, "requests_per_second": 2}],
    "prompts": {"tokens": 100},
    "outputs": {"least_tokens": 5, "most_tokens": 9},
}


def test_llm_d_is_the_published_episode() -> None:
    scenario = load_scenario("llm-d")
    load = scenario.load()
    requests = list(load.requests())
    assert load.duration_seconds == 330 + 5 * 360 + 300
    per_stage = []
    begin = 0
    for seconds in (330, 360, 360, 360, 360, 360, 300):
        per_stage.append(sum(begin <= one.arrival_seconds < begin + seconds for one in requests) / seconds)
        begin += seconds
    assert per_stage == [2, 4, 6, 8, 10, 4, 1]
    assert {min(one.prompt_tokens for one in requests), max(one.prompt_tokens for one in requests)} == {3500, 4500}
    assert {min(one.output_tokens for one in requests), max(one.output_tokens for one in requests)} == {900, 1100}
    assert (scenario.min_replicas, scenario.initial_replicas, scenario.max_replicas) == (3, 3, 8)
    assert (scenario.slo_ttft_seconds, scenario.slo_tpot_seconds) == (3, 0.1)
    assert (scenario.start_up_seconds, scenario.warm_up_seconds) == (100, 0)
    assert scenario.behavior is None


def test_llm_d_runs_on_the_published_engine() -> None:
    spec = LLM_D.spec()
    assert spec.usable_blocks * spec.block_tokens == 350_000
    # Measured with prompts of 8,192 tokens, a step for each: 15,375 to 15,928 prompt tokens per second.
    prompt = 8192
    assert 15_375 < prompt / spec.step_seconds(0, 0, prompt, prompt * prompt / 2) < 15_928
    # One decode reads the weights of one GPU: 65.5 GB / 2 at 2.6 TB/s, and 0.7 ms besides.
    assert spec.step_seconds(0, 1, 0) == pytest.approx(0.0007 + 32.75e9 / 2.613e12, rel=0.01)


def test_a_replica_of_llm_d_bears_what_its_own_loop_settles_at() -> None:
    def late(requests_per_second: float) -> float:
        finished: list[FinishedRequest] = []
        engine = PagedEngine(replace(LLM_D.spec(), max_model_len=16_384), finished.append)
        load = StagedLoad((Steady(1200, requests_per_second),), Uniform(3500, 4500), Uniform(900, 1100))
        for request in load.requests():
            engine.submit(request)
        engine.advance(10_000)
        return sum(one.ttft_seconds > LLM_D.slo_ttft_seconds for one in finished) / len(finished)

    assert late(1.35) == 0
    assert late(1.55) > 0.5


def test_llm_d_own_behavior_is_at_hand() -> None:
    assert LLM_D_BEHAVIOR.scale_up.stabilization_seconds == 30
    assert LLM_D_BEHAVIOR.scale_down == ScalingRules((Policy("Pods", 1, 120),), 180)
    assert replace(LLM_D, behavior=LLM_D_BEHAVIOR).behavior == LLM_D_BEHAVIOR


def test_reads_a_file_with_everything(tmp_path: Path) -> None:
    (tmp_path / "evening.toml").write_text(
        """
        arrivals = "poisson"
        scale = 2
        duration = "15m"
        slo-ttft = 2
        slo_tpot = "80ms"
        start_up = 60
        warm_up = "0"
        min = 2
        max = 30
        initial = 4
        seed = 7
        kv_tokens = 48_000
        kv_bytes_per_token = 262_144
        weights_bytes = 65.5e9
        parameters = 32.8e9
        gpu = "h100-80gb"
        prefix_caching = true
        prompts = {median_tokens = 900, sigma = 1.0, most_tokens = 20000}
        outputs = {least_tokens = 100, most_tokens = 500}
        stages = [
            {seconds = 600, requests_per_second = 4},
            {seconds = "5m", begin_requests_per_second = 4, end_requests_per_second = 12},
            {seconds = 86400, requests_per_second = 8, amplitude_ratio = 0.5, shift_ratio = 0.75},
        ]
        [behavior.scale_down]
        stabilization_seconds = 180
        policies = [{kind = "Pods", value = 1, period_seconds = 120}]
        """
    )
    scenario = load_scenario(str(tmp_path / "evening.toml"))
    assert scenario == Scenario(
        name="evening",
        source=StagedLoad(
            (Steady(600, 4), Ramp(300, 4, 12), Sine(86400, 8, 0.5, shift_ratio=0.75)),
            Lognormal(900, 1.0, most_tokens=20_000),
            Uniform(100, 500),
            "poisson",
        ),
        engine=Deployment(
            gpu="h100-80gb",
            kv_tokens=48_000,
            kv_bytes_per_token=262_144,
            weights_bytes=65_500_000_000,
            parameters=32_800_000_000,
            prefix_caching=True,
        ),
        scale=2,
        duration_seconds=900,
        slo_ttft_seconds=2,
        slo_tpot_seconds=0.08,
        start_up_seconds=60,
        min_replicas=2,
        max_replicas=30,
        initial_replicas=4,
        warm_up_seconds=0,
        behavior=Behavior(DEFAULT_SCALE_UP, ScalingRules((Policy("Pods", 1, 120),), 180)),
        seed=7,
    )
    load = scenario.load()
    assert load.duration_seconds == 900
    # 600 s of 8 and 300 s of 16 on average, by chance: within six standard deviations.
    assert abs(len(list(load.requests())) - 9600) < 6 * 9600**0.5


def test_a_trace_lies_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("t_s,prompt_tokens,output_tokens\n0,5,6\n1,7,8\n2,9,10\n")
    lines = [f"{name} = {value}" for name, value in NUMBERS.items()]
    (tmp_path / "short.toml").write_text("\n".join(['trace = "rows.csv"', "duration = 1.5", "scale = 2", *lines]))
    scenario = load_scenario(str(tmp_path / "short.toml"))
    load = scenario.load()
    assert isinstance(load, Trace)
    assert load.duration_seconds == 1.5
    assert len(load.recorded) in {3, 4}
    assert scenario.spec().usable_blocks == 3000
    assert (scenario.slo_ttft_seconds, scenario.start_up_seconds, scenario.warm_up_seconds) == (3.0, 120.0, 300.0)


def test_flags_as_texts_change_a_scenario() -> None:
    scenario = scenario_from({"min": "1", "slo_ttft": "2s", "scale": "0.5", "arrivals": "poisson"}, LLM_D)
    assert isinstance(LLM_D.source, StagedLoad)
    assert scenario == replace(
        LLM_D, min_replicas=1, slo_ttft_seconds=2, scale=0.5, source=replace(LLM_D.source, arrivals="poisson")
    )
    assert scenario_from({}, LLM_D) == LLM_D


def test_another_load_takes_the_place_of_scale_and_cut_too() -> None:
    base = replace(LLM_D, scale=3.0, duration_seconds=60.0)
    traced = scenario_from({"trace": "x.csv"}, base)
    assert (traced.source, traced.scale, traced.duration_seconds) == (Path("x.csv"), 1.0, None)
    assert traced.engine == LLM_D.engine
    back = scenario_from(STAGES | {"scale": 2}, traced)
    assert isinstance(back.source, StagedLoad)
    assert (back.source.stages, back.scale) == ((Steady(10, 2),), 2)


def test_a_model_takes_the_place_of_numbers() -> None:
    assert scenario_from({"model": "some/folder", "gpu": "h100-80gb"}, LLM_D).engine == Deployment(
        model="some/folder", gpu="h100-80gb"
    )
    assert scenario_from({"kv_tokens": "1000"}, LLM_D).engine == replace(LLM_D.engine, kv_tokens=1000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": 1}, "colour: no such setting"),
        ({"config": {}}, "config: no such setting"),
        ({"slo-ttft": 1, "slo_ttft": 2}, "slo_ttft: given twice"),
        ({"slo_ttft": 0}, "slo_ttft: should be above 0 seconds and at most a year, not 0.0"),
        ({"slo_tpot": "soon"}, "slo_tpot: should be a time such as 90, 90s, 5m or 4h, not 'soon'"),
        ({"start_up": -1}, "start_up: should be from 0 seconds to a year, not -1.0"),
        ({"warm_up": float("nan")}, "warm_up: should be a number, not nan"),
        ({"duration": "0s"}, "duration: should be above 0 seconds"),
        ({"min": -1}, "min: should be from 0 to 10000 replicas, not -1"),
        ({"min": 9}, "max: should be from 9 to 10000 replicas, not 8"),
        ({"max": 2}, "max: should be from 3 to 10000 replicas, not 2"),
        ({"initial": 9}, "initial: should be from min to max (3 to 8), not 9"),
        ({"max": 4.5}, "max: should be a whole number, not 4.5"),
        ({"max": True}, "max: should be a number, not True"),
        ({"max": "1_0"}, "max: should be a number, not '1_0'"),
        ({"scale": 0}, "scale: should be above 0 and at most 1000, not 0.0"),
        ({"scale": 10**400}, "scale: should be a number, not an integer of 1329 bits"),
        ({"name": ""}, "name: should be a text, not ''"),
        ({"tp": "two"}, "tp: should be a number, not 'two'"),
        ({"prefix_caching": "perhaps"}, "prefix_caching: should be true or false, not 'perhaps'"),
        ({"trace": 5}, "trace: should be a text, not 5"),
        ({"trace": "x", "stages": []}, "stages: either a trace or stages"),
        ({"arrivals": "often"}, "arrivals must be constant or poisson, not 'often'"),
        ({"stages": 5}, "stages: should be a list of tables, not 5"),
        ({"stages": []}, "stages must bring up to 5000000 requests, not 0"),
        ({"stages": [5]}, "stages[0]: should be a table, not 5"),
        ({"stages": [{"seconds": 5}]}, "stages[0].requests_per_second: missing"),
        ({"stages": [{"seconds": "x", "requests_per_second": 1}]}, "stages[0].seconds: should be a"),
        ({"stages": [{"seconds": -1, "requests_per_second": 1}]}, "stages[0]: seconds must be above 0"),
        ({"stages": [{"seconds": 1, "requests_per_second": 1, "rate": 1}]}, "stages[0].rate: no such setting"),
        ({"prompts": {"least_tokens": 5}}, "prompts.most_tokens: missing"),
        ({"prompts": {"tokens": 0}}, "prompts: tokens must be from 1 to 10000000"),
        ({"outputs": 5}, "outputs: should be a table, not 5"),
        ({"behavior": {"up": {}}}, "behavior.up: no such setting"),
        (
            {"behavior": {"scale_up": {"select": "Most"}}},
            "behavior.scale_up.select: should be one of Max, Min, Disabled",
        ),
        ({"behavior": {"scale_up": {"tolerance": -1}}}, "behavior.scale_up.tolerance: should be 0 or more, not -1.0"),
        ({"behavior": {"scale_up": {"policies": []}}}, "behavior.scale_up: policies must not be empty"),
        (
            {"behavior": {"scale_up": {"policies": [{"kind": "Pods", "value": 0, "period_seconds": 5}]}}},
            "behavior.scale_up.policies[0]: value of a policy must be above 0, not 0",
        ),
    ],
)
def test_a_value_that_cannot_be_is_one_line_with_its_name(values: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        scenario_from(values, LLM_D)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "trace: missing, as are stages"),
        ({"stages": STAGES["stages"]}, "prompts: missing"),
        ({"prompts": STAGES["prompts"]}, "stages: missing"),
    ],
)
def test_without_a_base_the_load_must_be_said(values: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scenario_from(values)


def test_engine_figures_that_are_missing_are_named_when_they_are_needed() -> None:
    with pytest.raises(InputError, match="kv_tokens"):
        scenario_from(STAGES).spec()
    assert scenario_from(STAGES | NUMBERS).spec().usable_blocks == 3000


def test_too_large_a_scale_of_stages_is_refused() -> None:
    with pytest.raises(InputError, match="stages: stages must bring up to 5000000 requests"):
        scenario_from({"scale": 900}, LLM_D).load()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"min = ", "Invalid value"),
        (b"min = 1\nmin = 2", "Cannot overwrite a value"),
        (b"\xff\xfe", "codec can't decode"),
        (b"a = " + b"[" * 100_000, ""),
        (b"#" * 2_000_000, "larger than 1048576 bytes"),
        (b"colour = 1\ntrace = 'x'", "colour: no such setting"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(tmp_path: Path, body: bytes, message: str) -> None:
    (tmp_path / "bad.toml").write_bytes(body)
    with pytest.raises(InputError) as caught:
        load_scenario(str(tmp_path / "bad.toml"))
    assert message in str(caught.value)
    assert "bad.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_name_that_is_nothing_is_told_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'other' is not built in \(llm-d\) and no \.toml file"):
        load_scenario("other")
    with pytest.raises(InputError, match=r"none\.toml: No such file"):
        load_scenario("none.toml")


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(["5s", "Max"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(
                [
                    "scale_up",
                    "policies",
                    "select",
                    "seconds",
                    "requests_per_second",
                    "tokens",
                    "mean_tokens",
                    "kind",
                    "x",
                ]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    ["min", "max", "scale", "duration", "slo-ttft", "stages", "prompts", "behavior", "seed", "tp", "gpu", "trace", "y"]
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(keys, values, max_size=4))
def test_any_values_are_a_scenario_or_one_line(found: dict[str, object]) -> None:
    try:
        scenario = scenario_from(found, LLM_D)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    assert scenario.min_replicas <= scenario.initial_replicas <= scenario.max_replicas
