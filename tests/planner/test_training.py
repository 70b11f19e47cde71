"""The training breakdown against arithmetic done by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvgauge.complaints import InputError
from kvgauge.planner.training import breakdown
from tests.e2e.tiny_model import TinyShape, write
from tests.model.known import LLAMA_8B
from tests.planner.running import piped

PARAMETERS = 8_030_261_248
"""Llama-3.1-8B's published count."""


def test_full_training_in_mixed_precision_takes_sixteen_bytes_a_parameter() -> None:
    memory = breakdown({"config": LLAMA_8B}).memory
    assert (memory.weights_bytes, memory.gradients_bytes) == (2 * PARAMETERS, 2 * PARAMETERS)
    assert memory.optimizer_bytes == 12 * PARAMETERS
    # s*b*h*L*(34 + 5*a*s/h), arXiv 2205.05198
    assert memory.activations_bytes == 2048 * 4096 * 32 * (34 + 5 * 32 * 2048 // 4096)


@pytest.mark.parametrize(("stage", "cut"), [(0, (1, 1, 1)), (1, (1, 1, 8)), (2, (1, 8, 8)), (3, (8, 8, 8))])
def test_zero_cuts_over_data_parallel_ranks(stage: int, cut: tuple[int, int, int]) -> None:
    memory = breakdown({"config": LLAMA_8B, "dp": 8, "zero": stage}).memory
    whole = (2 * PARAMETERS, 2 * PARAMETERS, 12 * PARAMETERS)
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes) == tuple(
        -(-size // ranks) for size, ranks in zip(whole, cut, strict=True)
    )


def test_full_recomputation_keeps_the_layers_inputs() -> None:
    case = {"config": LLAMA_8B, "recompute": "full", "batch_size": 2, "seq_len": 1024}
    assert breakdown(case).memory.activations_bytes == 2 * 1024 * 2 * 4096 * 32


def test_sequence_parallelism_cuts_what_tensor_parallelism_leaves() -> None:
    case = {"config": LLAMA_8B, "tp": 4, "recompute": "selective"}
    parted, whole = breakdown({**case, "sequence_parallel": True}), breakdown(case)
    tokens_by_hidden = 2048 * 4096 * 32
    assert whole.memory.activations_bytes == tokens_by_hidden * (10 + 24 // 4)
    assert parted.memory.activations_bytes == tokens_by_hidden * 34 // 4


def test_lora_trains_its_adapters_only() -> None:
    made = breakdown({"config": LLAMA_8B, "lora_rank": 8})
    attention = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096)
    assert made.memory.trained_parameters == 32 * 8 * (attention + 3 * (4096 + 14336))
    assert made.memory.gradients_bytes == 2 * made.memory.trained_parameters
    small = breakdown({"config": LLAMA_8B, "qlora": True}).memory
    assert small.trained_parameters == 2 * made.memory.trained_parameters
    assert small.weights_bytes < made.memory.weights_bytes / 3


def test_the_checkpoint_beside_the_config_counts_the_parameters(tmp_path: Path) -> None:
    write(tmp_path, TinyShape())
    body = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    made = breakdown({"model": str(tmp_path)})
    # Two bytes a parameter, and a header.
    assert 0 < body - 2 * made.parameters < 16_384
    assert breakdown({"model": str(tmp_path), "params": 1000}).parameters == 1000


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"zero": 4}, "zero"),
        ({"precision": "fp4"}, "precision"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"recompute": "some"}, "recompute"),
        ({"batch_size": 0}, "batch_size"),
        ({"seq_len": -1}, "seq_len"),
        ({"tp": 3}, "tp"),
        ({"lora_rank": 0}, "rank"),
        ({"config": {**LLAMA_8B, "model_type": "unheard-of"}}, "model_type"),
        ({"config": None}, "model"),
    ],
)
def test_bad_input_is_named(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}\b"):
        breakdown({"config": LLAMA_8B, **bad})


def test_lists_are_compared_and_listed() -> None:
    arguments = ["--train", "--config", json.dumps(LLAMA_8B), "--zero", "0,3", "--dp", "8"]
    listed = json.loads(piped(*arguments, "--json").stdout)
    assert [made["case"] for made in listed] == [{"zero": 0}, {"zero": 3}]
    assert all(
        sum(size for part, size in made["memory"].items() if part != "total_bytes") == made["memory"]["total_bytes"]
        for made in listed
    )
    made = piped(*arguments)
    assert made.returncode == 0
    assert max(map(len, made.stdout.decode().splitlines())) <= 80
    assert [line.split()[0] for line in made.stdout.decode().splitlines() if line.split()[:1] in (["0"], ["3"])] == [
        "0",
        "3",
    ]


def test_a_missing_model_is_one_line() -> None:
    made = piped("--train", "--model", "/nowhere/model")
    assert made.returncode == 2
    assert made.stderr.decode().startswith("kvgauge: model: ")
    assert len(made.stderr.splitlines()) == 1


def test_zero_cuts_until_a_card_holds_it() -> None:
    case = {"config": LLAMA_8B, "recompute": "full", "gpu_memory_gib": 40}
    needed = breakdown(case).to_json()["gpus_needed"]
    assert isinstance(needed, dict)
    # 16 bytes a parameter and 2 * 2048 * 4096 * 32 of activations in 40 GiB.
    whole = 16 * PARAMETERS + 2 * 2048 * 4096 * 32
    card = 40 * 2**30
    assert (needed["gpu_bytes"], needed["by_memory"], needed["tensor_parallel"]) == (card, -(-whole // card), 4)
    rest = card - 2 * 2048 * 4096 * 32
    by_stage = {"1": (12, rest - 4 * PARAMETERS), "2": (14, rest - 2 * PARAMETERS), "3": (16, rest)}
    cut = {stage: -(-bytes_each * PARAMETERS // left) for stage, (bytes_each, left) in by_stage.items()}
    assert needed["zero_stages"] == {"0": None, **cut}
    for stage, ranks in cut.items():
        held = [breakdown({**case, "zero": int(stage), "dp": dp}).memory.total_bytes for dp in (ranks, ranks - 1)]
        assert held[0] <= card < held[1]


def test_cards_of_a_case_that_is_cut_already() -> None:
    case = {"config": LLAMA_8B, "recompute": "full", "gpu": "h100-80gb", "tp": 2, "pp": 2}
    needed = breakdown(case).to_json()["gpus_needed"]
    assert isinstance(needed, dict)
    assert needed["zero_stages"] == dict.fromkeys("0123", 4)
    small = breakdown({**case, "gpu": "t4"}).to_json()["gpus_needed"]
    assert isinstance(small, dict)
    assert small["zero_stages"]["0"] is None
    assert small["zero_stages"]["3"] % 4 == 0
    assert breakdown({"config": LLAMA_8B}).to_json()["gpus_needed"] is None


def test_an_unknown_card_is_named() -> None:
    with pytest.raises(InputError, match="gpu: unknown card 'abacus'"):
        breakdown({"config": LLAMA_8B, "gpu": "abacus"})
