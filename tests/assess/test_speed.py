"""What an engine's steps should take, and why that is not told of others."""

from dataclasses import replace
from typing import Any

import pytest

from kvgauge.assess import Assessment, EngineFlags, Memo, assess
from kvgauge.observe.records import EngineReading, ModelReading
from kvmodel.latency import StepCost
from tests.support.facts import ENGINE, GPU, model, observation


def judged(
    with_model: ModelReading | None = None,
    gpus: Any = (GPU,),
    engine: EngineReading | None = ENGINE,
    flags: EngineFlags | None = None,
) -> Assessment:
    return assess(observation(engine=engine, gpus=gpus, with_model=with_model or model()), flags or EngineFlags())


def known(assessment: Assessment) -> StepCost:
    assert assessment.step_cost is not None
    assert "step_cost" not in assessment.missing
    return assessment.step_cost


def test_llama_8b_on_an_h100_takes_seven_milliseconds_a_token() -> None:
    cost = known(judged())
    # Published: 7.0 ms alone, 8.7 ms for 64 of about 200 tokens each.
    assert cost.seconds(200, 1) == pytest.approx(0.0070, rel=0.05)
    assert cost.seconds(64 * 200, 64) == pytest.approx(0.0087, rel=0.1)


def test_two_gpus_share_the_weights() -> None:
    one, two = known(judged()), known(judged(gpus=(GPU, replace(GPU, gpu=1)), flags=EngineFlags(tp=2)))
    assert one.fixed_seconds / 2 < two.fixed_seconds < one.fixed_seconds
    assert two.kv_token_seconds == pytest.approx(one.kv_token_seconds / 2)


def test_cards_on_plain_pcie_wait_longer_for_each_other() -> None:
    def on(name: str) -> StepCost:
        return known(judged(gpus=(replace(GPU, name=name),) * 2, flags=EngineFlags(tp=2)))

    assert on("NVIDIA A100-PCIE-40GB").fixed_seconds > on("NVIDIA A100-SXM4-40GB").fixed_seconds + 0.001


def test_an_fp8_checkpoint_is_multiplied_in_fp8_where_the_card_can() -> None:
    fp8 = model(quantization_config={"quant_method": "fp8"})
    assert known(judged(fp8)).token_seconds == pytest.approx(known(judged()).token_seconds / 2, rel=1e-3)


def test_a_cache_of_fewer_bytes_is_read_faster() -> None:
    halved = judged(engine=replace(ENGINE, kv_dtype="fp8"))
    assert known(halved).kv_token_seconds == pytest.approx(known(judged()).kv_token_seconds / 2)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"gpus": ()}, "no GPU"),
        ({"gpus": (replace(GPU, name="Ponte Vecchio"),)}, "unknown card"),
        ({"gpus": (replace(GPU, mig="1g.10gb"),)}, "MIG slice"),
        ({"gpus": (GPU, GPU)}, "tensor parallelism"),
        ({"flags": EngineFlags(pp=2)}, "pipeline"),
        ({"engine": replace(ENGINE, engine="llama.cpp")}, "llama.cpp"),
        ({"engine": None}, "engine"),
        ({"with_model": replace(model(), weights=None)}, "weights"),
        ({"with_model": replace(model(), weights=None, missing={"weights": "no files"})}, "no files"),
    ],
)
def test_what_is_not_known_has_a_reason(changed: dict[str, Any], why: str) -> None:
    assessment = judged(**changed)
    assert assessment.step_cost is None
    assert why in assessment.missing["step_cost"]


def test_without_a_model_there_is_a_reason_as_well() -> None:
    assessment = assess(observation(), EngineFlags())
    assert assessment.step_cost is None
    assert "architecture" in assessment.missing["step_cost"]


MIXTURE = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8}


def test_of_experts_only_those_a_token_meets_are_computed() -> None:
    mixture = model(**MIXTURE, num_experts_per_tok=2)
    untold = judged(mixture)
    assert untold.step_cost is None
    assert "parameters" in untold.missing["step_cost"]
    told = judged(replace(mixture, active_parameters=2_000_000_000))
    assert known(told).token_seconds < known(judged()).token_seconds / 3


def test_it_is_computed_once() -> None:
    memo = Memo()
    first, second = (
        assess(
            observation(gpus=(replace(GPU, used_bytes=used),), with_model=model(), running=running), EngineFlags(), memo
        )
        for used, running in ((1, 1), (2, 2))
    )
    assert first.step_cost is second.step_cost is not None
