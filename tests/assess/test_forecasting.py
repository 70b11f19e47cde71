"""What is predicted of each engine, and why not of the others."""

from dataclasses import replace
from typing import Any

import pytest

from kvgauge.assess import Assessment, EngineFlags, Memo, assess
from kvgauge.assess.forecasting import RULES, MemoryQuestion, forecast_memory
from kvgauge.observe.records import EngineReading
from kvmodel.engines import ENGINES, plan_of
from tests.support.facts import ENGINE, GIB, GPU, RANK, model, observation
from tests.support.spool import reading, scheduler


def judged(engine: str, *, gpus: Any = (GPU,), agent: Any = None, **changes: Any) -> Assessment:
    told: EngineReading = replace(ENGINE, engine=engine, **changes)
    seen = replace(observation(engine=told, gpus=gpus, with_model=model()), agent=agent)
    return assess(seen, EngineFlags())


def test_every_rule_is_of_an_engine_that_kvmodel_knows() -> None:
    assert {rules.plan for rules in RULES.values()} <= set(ENGINES)
    assert all(rules.memory or rules.unsized for rules in RULES.values())


def test_sglangs_share_and_pool() -> None:
    result = judged("sglang", version="0.5.23", gpu_memory_utilization=0.87, max_num_seqs=512)
    parts = {part.component: part.expected_bytes for part in result.gpus[0].components}
    pool = result.pools[0]
    assert 45 * GIB < parts["kv_pool"] < 60 * GIB
    assert pool.predicted_capacity_tokens == parts["kv_pool"] // 131_072 // 16 * 16
    assert result.gpus[0].total is not None
    assert "memory" not in result.missing
    # A build from a branch has no version of its own.
    assert judged("sglang", version="0.0.0.dev1+gabc").pools[0].predicted_capacity_tokens is not None


def test_ranks_of_sglang_share_weights_in_a_way_that_is_not_known() -> None:
    result = judged("sglang", version="0.5.23", ranks=(RANK, replace(RANK, rank="1")))
    assert "data-parallel attention" in result.missing["memory"]
    assert [part.component for part in result.gpus[0].components] == ["weights"]


@pytest.mark.parametrize("name", ["tensorrt-llm", "triton-tensorrt-llm"])
def test_tensorrt_llms_share_is_not_told_and_nothing_is_assumed(name: str) -> None:
    result = judged(name, version="1.2.0", gpu_memory_utilization=None)
    assert "free_gpu_memory_fraction" in result.missing["memory"]
    assert result.gpus[0].total is None
    assert result.gpus[0].missing == {"memory": result.missing["memory"]}
    assert result.pools[0].predicted_capacity_tokens is None
    told = judged(name, version="1.2.0", gpu_memory_utilization=0.9)
    pool = {part.component: part.expected_bytes for part in told.gpus[0].components}["kv_pool"]
    plan = plan_of("tensorrt-llm")(model().architecture, kv_bytes=pool, max_seq_len=8192, tokens_per_block=16)
    assert told.pools[0].predicted_capacity_tokens == plan.capacity_tokens > 300_000


def llama_cpp(slots: int | None, capacity_tokens: int | None, **changes: Any) -> Assessment:
    rank = replace(RANK, capacity_tokens=capacity_tokens, block_tokens=None, num_blocks=None, used_blocks=None)
    told = {"version": "b11434", "max_model_len": 4096, "gpu_memory_utilization": None, "max_num_seqs": slots}
    return judged("llama.cpp", ranks=(rank,), **{**told, **changes})


def test_llama_cpps_slots() -> None:
    assert llama_cpp(4, 16_384).pools[0].predicted_capacity_tokens == 16_384
    assert llama_cpp(4, 4096).pools[0].predicted_capacity_tokens == 4096
    assert llama_cpp(1, None).pools[0].predicted_capacity_tokens == 4096
    assert llama_cpp(4, 16_384, kv_dtype="q8_0").pools[0].predicted_capacity_tokens == 16_384
    assert "--kv-unified" in llama_cpp(4, None).pools[0].missing["predicted_capacity_tokens"]
    assert "slots" in llama_cpp(None, 4096).pools[0].missing["predicted_capacity_tokens"]
    assert "cache_type_k" in llama_cpp(4, 4096, kv_dtype="q9").pools[0].missing["predicted_capacity_tokens"]
    # Layers may lie on the processor.
    assert llama_cpp(4, 4096).gpus[0].components == ()
    assert "layers" in llama_cpp(4, 4096).missing["memory"]


@pytest.mark.parametrize("name", ["tgi", "lmdeploy", "transformers"])
def test_engines_that_do_not_tell_their_share_have_weights_only(name: str) -> None:
    result = judged(name, gpu_memory_utilization=None)
    assert [part.component for part in result.gpus[0].components] == ["weights"]
    assert result.gpus[0].total is None
    assert result.missing["memory"] == RULES[name].unsized == result.pools[0].missing["predicted_capacity_tokens"]


@pytest.mark.parametrize("name", ["dynamo", "nim", "ollama", "max", "something"])
def test_engines_without_rules_are_left_out(name: str) -> None:
    result = judged(name)
    assert name in result.missing["memory"]
    assert result.gpus[0].components == ()
    assert result.pools[0].predicted_capacity_tokens is None


def test_of_a_wrapper_the_engine_inside_counts_once_its_agent_names_it() -> None:
    inside = judged("dynamo", agent=reading(scheduler()))
    assert inside.kind == "vllm"
    assert inside.pools[0].predicted_capacity_tokens == judged("vllm").pools[0].predicted_capacity_tokens
    # The engine that has rules keeps them, whatever runs inside.
    assert judged("tgi", agent=reading(scheduler())).kind == "tgi"


def test_the_cards_name_decides_its_defaults() -> None:
    def activations(name: str) -> int:
        parts = judged("vllm", gpus=(replace(GPU, name=name, total_bytes=80 * GIB),)).gpus[0].components
        return next(part.expected_bytes for part in parts if part.component == "activations")

    # An A100 batches 2048 tokens by default, an H100 8192.
    assert activations("NVIDIA A100-SXM4-80GB") < activations("NVIDIA H100 80GB HBM3")
    assert activations("some card of the future") == activations("NVIDIA H100 80GB HBM3")


def test_unified_memory_has_no_size_of_its_own() -> None:
    result = judged("vllm", gpus=(replace(GPU, total_bytes=None, used_bytes=None, free_bytes=None),))
    assert result.missing["memory"] == "no GPU's memory size is known"
    assert [part.component for part in result.gpus[0].components] == ["weights"]


def test_a_question_is_answered_once() -> None:
    asked = []

    def ask(question: MemoryQuestion) -> object:
        asked.append(question)
        return forecast_memory(question)

    memo, subject = Memo(size=2), model()
    questions = [
        MemoryQuestion("vllm", "0.19.0", subject, 1, 1, 1, 80 * GIB, "", share, 8192, None, None, None, False)
        for share in (0.8, 0.9, 0.95)
    ]
    first = memo.answer(ask, questions[0])
    assert memo.answer(ask, replace(questions[0])) is first
    assert len(asked) == 1
    for question in questions[1:]:
        assert memo.answer(ask, question) != first
    # Only the last two are kept.
    assert memo.answer(ask, questions[0]) == first
    assert len(asked) == 4


def test_the_memo_changes_nothing() -> None:
    seen, memo = observation(with_model=model()), Memo()
    again = [assess(seen, EngineFlags(), memo) for _ in range(2)]
    assert again[0] == again[1] == assess(seen, EngineFlags())
