"""Start-up logs judged, on records made up for each rule."""

from collections.abc import Mapping
from typing import Any

import pytest
from bench.accuracy.log_rules import DEFAULTS, MISSED, NOT_COMPARED, PRINTED, RANKS, TRIED, judge
from bench.accuracy.log_section import section
from bench.accuracy.logs import drafted_tokens, read_further, read_record, versions_of

from kvmodel import Architecture, plan_pool, read_architecture
from tests.model.known import LLAMA_8B, known_config

GIB = 2**30
LLAMA = read_architecture(LLAMA_8B)
GEMMA = read_architecture(known_config("google/gemma-3-27b-it"))


def tokens(architecture: Architecture, pool_gib: float, **flags: Any) -> int:
    flags = {"max_model_len": 8192, "engine_version": "0.19.0", **flags}
    return plan_pool(architecture, kv_bytes=int(pool_gib * GIB), **flags).capacity_tokens


def row(**printed: Any) -> dict[str, Any]:
    """A record that prints everything; None takes a value out."""
    whole = {
        "id": "X1",
        "engine": "vllm",
        "engine_arch": "V1",
        "outcome": "ok",
        "engine_version": "0.19.0",
        "model_id": "some/model",
        "kv_cache_dtype": "auto",
        "tensor_parallel": 1,
        "max_model_len": 8192,
        "max_num_batched_tokens": 8192,
        "prefix_caching": False,
        "available_kv_gib": 40.0,
        "kv_tokens": tokens(LLAMA, 40),
        **printed,
    }
    return {name: value for name, value in whole.items() if value is not None}


def test_everything_printed_and_right() -> None:
    verdict = judge(read_record(row()), LLAMA)
    assert (verdict.kind, verdict.holds, verdict.inside, verdict.line) == (PRINTED, True, True, "")
    assert verdict.error == 0


def test_everything_printed_and_wrong_is_not_explained_away() -> None:
    verdict = judge(read_record(row(kv_tokens=2 * tokens(LLAMA, 40))), LLAMA)
    assert (verdict.kind, verdict.holds) == (PRINTED, False)
    assert verdict.line == "every setting is printed"


def test_what_the_engine_refuses_is_told() -> None:
    verdict = judge(read_record(row(tensor_parallel=3, per_rank=[{"available_kv_gib": 40.0}] * 3)), LLAMA)
    assert (verdict.ours, verdict.holds) == (None, False)
    assert verdict.line.startswith("refused: tp")


def test_a_setting_on_which_nothing_hangs_need_not_be_printed() -> None:
    verdict = judge(read_record(row(engine_version=None, max_model_len=None, prefix_caching=None)), LLAMA)
    assert (verdict.kind, verdict.holds) == (PRINTED, True)


def test_a_default_that_fits() -> None:
    verdict = judge(read_record(row(kv_cache_dtype=None)), LLAMA)
    assert (verdict.kind, verdict.holds, verdict.line) == (DEFAULTS, True, "not printed: KV dtype")


def test_another_dtype_than_the_default() -> None:
    verdict = judge(read_record(row(kv_cache_dtype=None, kv_tokens=tokens(LLAMA, 40, kv_dtype="fp8"))), LLAMA)
    assert (verdict.kind, verdict.holds, verdict.line) == (TRIED, False, "exact with an fp8 cache")


def test_another_version_than_the_newest() -> None:
    printed = row(engine_version=None, max_model_len=131072, kv_tokens=tokens(GEMMA, 40, max_model_len=131072))
    verdict = judge(read_record(printed), GEMMA)
    assert verdict.kind == TRIED
    assert verdict.line.startswith("exact with the rules of 0.")
    assert " (or the rules of 0." in verdict.line


def test_two_settings_at_once() -> None:
    fp8 = tokens(LLAMA, 40, kv_dtype="fp8", tp=4)
    verdict = judge(read_record(row(kv_cache_dtype=None, tensor_parallel=None, kv_tokens=fp8)), LLAMA)
    # TP 8 alone holds as many: the fewest changes are told.
    assert verdict.line == "exact with TP 8"


def test_a_printed_block_size_must_come_out_too() -> None:
    printed = row(kv_cache_dtype=None, block_size=32, kv_tokens=tokens(LLAMA, 40, kv_dtype="fp8", block_tokens=32))
    assert judge(read_record(printed), LLAMA).kind == TRIED
    hybrid = read_architecture(
        {
            **LLAMA_8B,
            "model_type": "qwen3_next",
            "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8,
            "moe_intermediate_size": 512,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        }
    )
    fp8 = plan_pool(hybrid, kv_bytes=40 * GIB, max_model_len=8192, engine_version="0.19.0", kv_dtype="fp8")
    printed = row(kv_cache_dtype=None, kv_tokens=fp8.capacity_tokens, prefix_caching=None, block_size=fp8.block_tokens)
    assert judge(read_record(printed), hybrid).line.startswith("exact with an fp8 cache")
    assert judge(read_record({**printed, "block_size": 7}), hybrid).kind == MISSED


def test_nothing_fits() -> None:
    verdict = judge(read_record(row(kv_cache_dtype=None, kv_tokens=7 * tokens(LLAMA, 40))), LLAMA)
    assert (verdict.kind, verdict.line) == (MISSED, "no value of what is not printed fits")


def test_the_least_of_all_ranks_counts() -> None:
    ranks = [{"available_kv_gib": 40.0}, {"available_kv_gib": 38.0}]
    printed = row(tensor_parallel=2, per_rank=ranks, kv_tokens=tokens(LLAMA, 38, tp=2))
    verdict = judge(read_record(printed), LLAMA)
    assert (verdict.record.pool_gib, verdict.kind, verdict.holds) == (38.0, PRINTED, True)


def test_fewer_tokens_than_one_rank_holds() -> None:
    verdict = judge(read_record(row(tensor_parallel=2, kv_tokens=tokens(LLAMA, 38, tp=2))), LLAMA)
    assert verdict.kind == RANKS
    assert verdict.line == "pool of 1 of 2 ranks printed; the smallest decides: 38.00 GiB would give these tokens"


def test_float32_weights_make_a_float32_cache() -> None:
    printed = row(weights_dtype="float32", kv_tokens=tokens(LLAMA, 40, kv_dtype="float32"))
    assert judge(read_record(printed), LLAMA).holds


def test_blocks_stand_for_tokens_before_v1() -> None:
    printed = row(kv_tokens=None, num_gpu_blocks=20480, engine_arch="V0", engine_version=None)
    record = read_record(printed)
    assert record.tokens == 327_680
    assert judge(record, LLAMA).holds


@pytest.mark.parametrize(
    ("printed", "known", "reason"),
    [
        ({"model_id": None}, True, "names no model"),
        ({}, False, "no facts on the model's layers at hand"),
        ({"available_kv_gib": None}, True, "prints no pool"),
        ({"available_kv_gib": None, "kv_tokens": None}, True, "prints neither pool nor tokens (an excerpt of a start)"),
        ({"available_kv_gib": -2.1}, True, "no memory was left for a pool"),
        ({"kv_tokens": None, "outcome": "max_len_exceeds_kv"}, True, "prints no tokens (one request does not fit)"),
        ({"kv_needed_gib": 2.0}, True, "prints the bytes of one request: see the table above"),
        ({"speculative": "some drafter"}, True, "drafts with a model whose layers are not printed"),
        ({"engine": "tgi"}, True, "prints no bytes"),
        (
            {"engine": "sglang", "sglang_k_gb": 1, "sglang_v_gb": 1},
            True,
            "prints sizes in place of a pool: see the table above",
        ),
    ],
)
def test_what_cannot_be_compared(printed: Mapping[str, Any], known: bool, reason: str) -> None:
    verdict = judge(read_record(row(**printed)), LLAMA if known else None)
    assert (verdict.kind, verdict.line, verdict.holds) == (NOT_COMPARED, reason, False)


@pytest.mark.parametrize(("printed", "number"), [("mtp n=3", 3), ("mtp", 1), ("dflash2 drafter", None), (None, None)])
def test_drafted_tokens(printed: str | None, number: int | None) -> None:
    assert drafted_tokens(printed) == number


def test_further_logs_are_records_too() -> None:
    held = tokens(LLAMA, 40)
    quoted = {"model": "a/b", "kv_gib": 40.0, "kv_tokens": held, "max_model_len": 8192}
    rows = [
        {**quoted, "engine": "vLLM 0.19.0", "source": "github some/project issue 7"},
        {"model": "a/b", "engine": "vLLM (2025-07)", "source": "a talk", "kv_tokens_without": 5},
    ]
    first, second = read_further({"engine_logs": rows})
    assert (first.id, first.engine_version, first.source) == (
        "E1",
        "0.19.0",
        "https://github.com/some/project/issues/7",
    )
    assert judge(first, LLAMA).holds
    assert (second.engine_version, second.source, second.tokens, second.pool_gib) == (None, None, 5, None)


def test_versions_are_every_minor_since_v1() -> None:
    versions = list(versions_of("V1"))
    assert versions[0] == "0.8.0"
    assert {"0.9.1", "0.19.0", "0.20.1", "0.23.0"} <= set(versions)
    assert versions_of("V0") == ("0.7.0",)


def test_the_section_counts_and_shows_every_record() -> None:
    records = [
        read_record(row(source_url="https://example.org/1")),
        read_record(row(id="X2", kv_cache_dtype=None)),
        read_record(row(id="X3", model_id=None)),
        read_record(row(id="X4", kv_tokens=None, kv_needed_gib=1.0, kv_needed_for_len=8192)),
        read_record(row(id="X5", engine="sglang", sglang_k_gb=0.5, sglang_v_gb=0.5, kv_tokens=8192)),
        read_record(
            row(
                id="X6",
                engine="llama.cpp",
                kv_cache_dtype=None,
                llamacpp_n_ctx=8192,
                llamacpp_kv=[{"pool": "all", "k_type": "f16", "size_mib": 1024.0}],
            )
        ),
    ]
    made = section(records, {"some/model": LLAMA}.get)
    assert made.figures[0].measured == 0
    assert made.figures[0].met
    assert "Of 1 records that print everything 1 hold (100.0 %)" in made.text
    assert "| [X1](https://example.org/1) | vllm 0.19.0 | some/model | 1 x 1 | 40.00 |" in made.text
    assert "| X3 | vllm 0.19.0 | - | names no model |" in made.text
    for record in ("X4", "X5", "X6"):
        assert any(
            line.startswith(f"| {record} |") and "| 1,024.00 | 1,024.00 | 0.00 % |" in line
            for line in made.text.splitlines()
        )
