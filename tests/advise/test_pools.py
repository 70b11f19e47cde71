from dataclasses import replace

import pytest

from kvgauge.advise import History, advise
from kvgauge.advise.pools import Pool, pools_of
from kvgauge.advise.residing import Window
from kvgauge.assess import EngineFlags, Memo, assess
from kvgauge.observe.records import EngineReading
from kvmodel import plan_pool, read_architecture
from tests.model.known import LLAMA_8B
from tests.support.facts import ENGINE, RANK, histogram, model, observation

WINDOWED = {
    **LLAMA_8B,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 128,
    "sliding_window": 1024,
    "sliding_window_pattern": 4,
    "query_pre_attn_scalar": 128,
}


def pools(engine: EngineReading = ENGINE, **config: object) -> tuple[Pool, ...]:
    seen = observation(engine=engine, with_model=model(**config))
    return pools_of(assess(seen, EngineFlags()), Memo())


def test_a_plain_model_has_one_slot_for_each_token_and_vllm_keeps_a_block() -> None:
    (pool,) = pools()
    assert (pool.slots, pool.capacity_slots, pool.state_requests, pool.beside) == (15_984, 16_000, None, ())
    assert pool.footprint.slots_at(17) == 32
    (other,) = pools(replace(ENGINE, engine="lmdeploy"))
    assert other.slots == 16_000


def test_a_longest_length_that_fills_no_whole_blocks_costs_no_slots() -> None:
    # vLLM states num_blocks / ceil(L / b) * L: 41 blocks of 128 and L = 257 are 3,512 tokens, though 40 x 128 are free.
    rank = replace(RANK, num_blocks=41, block_tokens=128, capacity_tokens=41 * 257 // 3)
    (pool,) = pools(replace(ENGINE, ranks=(rank,), max_model_len=257), max_position_embeddings=257)
    assert pool.slots == 40 * 128
    assert pool.capacity_slots == 41 * 257 // 3


def test_an_unknown_capacity_has_no_pool() -> None:
    assert pools(replace(ENGINE, ranks=(RANK, replace(RANK, rank="1", capacity_tokens=None)))) == ()


def test_windows_hold_what_vllm_says_that_they_do() -> None:
    architecture = read_architecture(WINDOWED)
    plan = plan_pool(
        architecture,
        num_blocks=4001,
        block_tokens=16,
        max_model_len=8192,
        engine_version="0.19.0",
        prefix_caching=True,
    )
    assert {group.kind for group in plan.groups} == {"full", "window"}
    rank = replace(RANK, num_blocks=4001, capacity_tokens=plan.capacity_tokens)
    (pool,) = pools(replace(ENGINE, ranks=(rank,)), **WINDOWED)
    unit = plan.capacity_tokens / 4001
    assert pool.slots == pytest.approx(4000 * unit)
    assert pool.windows == sum(group.kind == "window" for group in plan.groups)
    assert all(isinstance(window, Window) and window.tokens == 1024 for window in pool.footprint.windows)
    assert plan.bytes_per_block is not None
    for tokens in (1, 100, 1024, 5000):
        blocks = plan.held_bytes(tokens) / plan.bytes_per_block
        assert pool.footprint.slots_at(tokens) == pytest.approx(blocks * unit)


def test_of_a_windowed_model_more_run_than_if_all_layers_kept_all() -> None:
    rank = replace(
        RANK,
        num_blocks=4001,
        capacity_tokens=16_000,
        active_tokens=0,
        running=0,
        prompt_lengths=histogram([5000] * 60, (10, 4000, 6000, float("inf"))),
        output_lengths=histogram([300] * 60),
    )

    def kv(**config: object) -> int:
        seen = observation(engine=replace(ENGINE, ranks=(rank,)), with_model=model(**config))
        history = History()
        history.remember(seen)
        return advise(assess(seen, EngineFlags()), history).limits["kv"]

    assert kv() == 3
    assert kv(**WINDOWED) >= kv()


def test_states_are_a_limit_of_their_own() -> None:
    hybrid = {
        "model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"], "hidden_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "vocab_size": 1000, "intermediate_size": 2048, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_n_heads": 16,
        "mamba_d_head": 64, "mamba_d_ssm": 1024, "mamba_n_groups": 1, "mamba_expand": 2, "mamba_chunk_size": 128,
        "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
    }  # fmt: skip
    plan = plan_pool(
        read_architecture(hybrid), num_blocks=1001, block_tokens=16, max_model_len=8192, engine_version="0.19.0"
    )
    assert "state" in {group.kind for group in plan.groups}
    rank = replace(
        RANK,
        num_blocks=1001,
        capacity_tokens=plan.capacity_tokens,
        block_tokens=plan.block_tokens,
        prompt_lengths=histogram([500] * 60),
        output_lengths=histogram([300] * 60),
    )
    seen = observation(engine=replace(ENGINE, prefix_caching=None, ranks=(rank,)), with_model=model())
    assert seen.model is not None
    seen = replace(seen, model=replace(seen.model, architecture=read_architecture(hybrid)))
    history = History()
    history.remember(seen)
    advice = advise(assess(seen, EngineFlags()), history)
    assert advice.limits["kv"] <= advice.limits["state_slots"]
    held = plan.held_bytes(8192) / (plan.bytes_per_block or 1)
    assert advice.limits["kv_worst_case"] == int(1000 / held)
