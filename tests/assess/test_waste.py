"""Each kind of waste, with numbers worked out by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from kvgauge.assess import Assessment, EngineFlags, PoolAssessment, Waste, assess
from kvgauge.assess.waste import KINDS
from kvgauge.observe.merging import refined, standing_in
from kvgauge.observe.records import EngineReading, ModelReading
from kvgauge.publish.reference import reference
from tests.support.facts import ENGINE, RANK, histogram, model, observation
from tests.support.spool import BOOKS, process, reading, scheduler

FULL = BOOKS["groups"][0]
SLOT_BYTES = 131_072
BLOCK_BYTES = 16 * SLOT_BYTES


def judged(
    *files: Mapping[str, Any],
    engine: EngineReading | None = ENGINE,
    with_model: ModelReading | None = None,
    tp: int | None = None,
) -> Assessment:
    """The assessment of an engine and what its agents told."""
    agent = reading(*map(dict, files)) if files else None
    if agent is not None:
        engine = standing_in(agent) if engine is None else refined(engine, agent)
    seen = replace(observation(engine=engine, with_model=with_model), agent=agent)
    return assess(seen, EngineFlags(tp=tp))


def pool(*files: Mapping[str, Any], **given: Any) -> PoolAssessment:
    return judged(*files, **given).pools[0]


def waste(found: PoolAssessment) -> dict[str, tuple[str, int]]:
    return {each.kind: (each.method, each.waste_bytes) for each in found.waste}


def rank(**changes: Any) -> EngineReading:
    return replace(ENGINE, ranks=(replace(RANK, **changes),))


def test_with_the_agent_all_of_it_is_measured() -> None:
    found = waste(pool(scheduler(), with_model=model()))
    assert found == {
        "block_tail": ("measured", 100 * SLOT_BYTES),
        "reservation": ("measured", 0),
        "group_padding": ("measured", 0),
        "head_replication": ("measured", 0),
        # The null block.
        "stranded": ("measured", BLOCK_BYTES),
    }


def test_no_model_is_needed_for_what_the_scheduler_knows() -> None:
    assert waste(pool(scheduler())) == waste(pool(scheduler(), with_model=model()))


def test_without_the_agent_what_is_estimated_says_so() -> None:
    found = waste(pool(with_model=model()))
    # Ten requests, 7.5 slots each on average.
    assert found["block_tail"] == ("estimated", 75 * SLOT_BYTES)
    assert found["stranded"] == ("estimated", BLOCK_BYTES)
    assert {kind: found[kind] for kind in ("reservation", "group_padding", "head_replication")} == {
        "reservation": ("measured", 0), "group_padding": ("measured", 0), "head_replication": ("measured", 0),
    }  # fmt: skip


def test_tails_of_several_groups_have_their_own_sizes() -> None:
    groups = [
        # 16 slots in 1600 bytes, 32 in 800; a state fills its block, and an encoder's output too.
        {**FULL, "layer_bytes_per_block": 1600, "used_blocks": 300, "tail_tokens": 48},
        {**FULL, "kind": "sliding_window", "block_tokens": 32, "layer_bytes_per_block": 800, "used_blocks": 150,
         "tail_tokens": 64},
        {"kind": "state", "layer_bytes_per_block": 1000, "used_blocks": 30},
        {"kind": "cross", "layer_bytes_per_block": 1600, "used_blocks": 20},
    ]  # fmt: skip
    books = {"groups": groups, "bytes_per_block": 1600, "kv_pool_bytes": 1000 * 1600 + 700}
    found = waste(pool(scheduler(books=books)))
    assert found["block_tail"] == ("measured", 48 * 100 + 64 * 25)
    # 150 blocks of which a window uses half, 30 of which a state uses 1000 bytes.
    assert found["group_padding"] == ("measured", 150 * 800 + 30 * 600)
    # The null block, and the bytes that make no block.
    assert found["stranded"] == ("measured", 1600 + 700)


def test_groups_that_shared_blocks_were_split_among_are_estimated() -> None:
    groups = [{**FULL, "used_blocks": 250}, {**FULL, "kind": "sliding_window", "used_blocks": 251}]
    why = {"scheduler.groups.used_blocks": "split in proportion"}
    assert waste(pool(scheduler(books={"groups": groups}, missing=why)))["group_padding"] == ("estimated", 0)


def test_groups_with_blocks_of_their_own_have_no_padding_to_tell() -> None:
    groups = [{**FULL, "used_blocks": 2000, "layer_bytes_per_block": 4096}, {**FULL, "used_blocks": 900}]
    found = pool(scheduler(books={"groups": groups}))
    assert "group_padding" not in waste(found)
    assert "waste.group_padding" in found.missing


def test_padding_is_estimated_from_the_plan() -> None:
    # 24 layers, every second one full: two groups of 12 in equal pages, nothing empty. Then 18 full and 6 of a window:
    # vLLM deals groups of 6, so none is short either. With 17 and 7 the groups are of 7 places: full ones have 6, 6, 5.
    kinds = ["full_attention"] * 17 + ["sliding_attention"] * 7
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "layer_types": kinds, "sliding_window": 128, "head_dim": 64,
        "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    }  # fmt: skip
    lengths = {"prompt_lengths": histogram([500] * 4), "output_lengths": histogram([280] * 4)}
    engine = replace(rank(used_blocks=480, **lengths), version="0.32.0", max_model_len=8192)
    found = waste(pool(engine=engine, with_model=model(**config)))
    # At 640 tokens a full group holds 40 blocks and the window 40 - (640 - 128) / 16 = 8: 128 blocks, of which three
    # groups' 40 lack 1, 1 and 2 of 7 places. A place is 16 slots of 8 heads of 64, K and V, in 16 bits.
    place = 16 * 8 * 64 * 2 * 2
    assert found["group_padding"] == ("estimated", round(480 * 7 * place * (40 * 4 / 7) / 128))
    assert "block_tail" not in found


def test_padding_of_states_is_left_to_the_agent() -> None:
    config = {
        "model_type": "jamba", "num_hidden_layers": 8, "attn_layer_period": 8, "attn_layer_offset": 4,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
        "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256,
    }  # fmt: skip
    found = pool(engine=replace(ENGINE, version="0.32.0"), with_model=model(**config))
    assert "group_padding" not in waste(found)
    assert "agent" in found.missing["waste.group_padding"]


@pytest.mark.parametrize(("tp", "share"), [(1, 0.0), (2, 0.0), (8, 0.0), (16, 0.5), (32, 0.75)])
def test_heads_are_copied_where_there_are_more_gpus_than_heads(tp: int, share: float) -> None:
    books = {"groups": [{**FULL, "layer_bytes_per_block": 4096}]}
    found = waste(pool(scheduler(books=books, tp=tp), with_model=model()))
    live_bytes = 500 * 4096 - 100 * 4096 // 16
    assert found["head_replication"] == ("measured", round(share * live_bytes))
    estimated = waste(pool(with_model=model(), tp=tp))["head_replication"]
    token_bytes = 2 * 32 * 128 * 2 * max(8 // tp, 1)
    assert estimated == ("measured" if tp == 1 else "estimated", round(share * (8000 - 75) * token_bytes))


def test_a_latent_lies_on_every_gpu() -> None:
    books = {"groups": [{**FULL, "kind": "mla", "layer_bytes_per_block": 1600, "tail_tokens": 0}]}
    assert waste(pool(scheduler(books=books, tp=4)))["head_replication"] == ("measured", 500 * 1600 * 3 // 4)


def test_copies_that_cannot_be_told_are_left_out() -> None:
    found = pool(scheduler(tp=4))
    assert "head_replication" not in waste(found)
    assert "waste.head_replication" in found.missing


def test_the_rest_of_a_pool_asked_for_in_bytes_is_stranded() -> None:
    asked = replace(ENGINE, kv_cache_bytes=1000 * BLOCK_BYTES + 5)
    assert waste(pool(engine=asked, with_model=model()))["stranded"] == ("estimated", BLOCK_BYTES + 5)
    assert waste(pool(scheduler(), engine=asked))["stranded"] == ("measured", BLOCK_BYTES + 5)
    fewer = replace(asked, num_blocks_override=1000)
    assert waste(pool(scheduler(), engine=fewer))["stranded"] == ("measured", BLOCK_BYTES)


def test_the_first_engine_of_vllm_had_no_null_block() -> None:
    assert waste(pool(engine=replace(ENGINE, version="0.6.6"), with_model=model()))["stranded"] == ("estimated", 0)


def test_a_reservation_is_what_is_set_aside_and_not_yet_held() -> None:
    # llama.cpp: slots of 4 requests, 1000 cells each, 300 tokens in all of them.
    slots = replace(
        rank(active_tokens=300, live_tokens=300, reserved_tokens=4000, block_tokens=1, running=4), engine="llama.cpp"
    )
    found = pool(engine=slots, with_model=model())
    assert waste(found)["reservation"] == ("measured", 3700 * SLOT_BYTES)
    assert "block_tail" not in waste(found)


def test_a_reservation_alone_is_held_half_way_on_average() -> None:
    # TGI: 4 requests of 500 + 300 tokens have reserved 8000; half way through they hold 650 each.
    lengths = {"prompt_lengths": histogram([500] * 10), "output_lengths": histogram([300] * 10)}
    reserving = rank(active_tokens=8000, reserved_tokens=8000, running=4, **lengths)
    found = pool(engine=replace(reserving, engine="tgi"), with_model=model())
    assert (found.live_tokens, found.live_tokens_method) == (2600, "estimated")
    assert waste(found)["reservation"] == ("estimated", 5400 * SLOT_BYTES)


def test_an_engine_that_may_reserve_is_not_said_not_to() -> None:
    found = pool(engine=replace(ENGINE, engine="tensorrt_llm"), with_model=model())
    assert "reservation" not in waste(found)
    assert "waste.reservation" in found.missing


def transformers(**changes: Any) -> dict[str, Any]:
    return process(**{"engine": "transformers", "engine_version": "5.23.0", "model": "org/tiny", **changes})


def test_a_static_cache_reserves_and_one_that_grows_keeps_a_tail() -> None:
    caches = [
        {"kind": "static", "allocated_bytes": 4096, "live_bytes": 1024, "capacity_tokens": 40, "live_tokens": 10},
        {"kind": "sliding", "allocated_bytes": 512, "live_bytes": 256, "capacity_tokens": 8, "live_tokens": 8},
        {"kind": "dynamic", "allocated_bytes": 1000, "live_bytes": 1000, "live_tokens": 10},
        {"kind": "sliding", "allocated_bytes": 900, "live_bytes": 800, "live_tokens": 8},
    ]
    found = waste(pool(transformers(caches=caches), engine=None))
    assert found["reservation"] == ("measured", 3072 + 256)
    assert found["block_tail"] == ("measured", 100)
    assert found["head_replication"] == ("measured", 0)
    assert not {"group_padding", "stranded"} & set(found)


def test_a_cache_that_does_not_tell_leaves_its_kind_out() -> None:
    found = pool(transformers(caches=[{"kind": "static", "allocated_bytes": 4096, "capacity_tokens": 40}]), engine=None)
    assert "reservation" not in waste(found)
    assert "static" in found.missing["waste.reservation"]


def test_a_paged_pool_of_transformers() -> None:
    paged = {"kind": "paged", "capacity_tokens": 16_000, "block_tokens": 16, "allocated_bytes": 1, "live_bytes": 1}
    books = {**BOOKS, "null_blocks": 0, "kv_pool_bytes": 1002 * BLOCK_BYTES}
    found = waste(pool(transformers(scheduler=books, caches=[paged]), engine=None))
    assert found == {
        "block_tail": ("measured", 100 * SLOT_BYTES),
        "reservation": ("measured", 0),
        "group_padding": ("measured", 0),
        "head_replication": ("measured", 0),
        # Two sectors that only take what nobody wants to keep.
        "stranded": ("measured", 2 * BLOCK_BYTES),
    }


def test_kinds_add_up_to_no_more_than_is_held() -> None:
    found = pool(scheduler(tp=16), with_model=model())
    held = [each for each in found.waste if each.kind != "stranded"]
    assert sum(each.waste_bytes for each in held) <= 500 * BLOCK_BYTES


def test_every_kind_is_in_the_reference() -> None:
    assert set(KINDS) == {"block_tail", "reservation", "group_padding", "head_replication", "stranded"}
    assert all(f"| `{kind}` |" in reference() for kind in KINDS)
    assert isinstance(pool(scheduler()).waste[0], Waste)
