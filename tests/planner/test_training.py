"""The training breakdown against arithmetic done by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvgauge.complaints import InputError
from kvgauge.planner.training import breakdown
from tests.e2e.tiny_model import TinyShape, write
from tests.planner.running import piped

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
PARAMETERS = 8_030_261_248
"""Llama-3.1-8B's published count."""


def test_full_training_in_mixed_precision_takes_sixteen_bytes_a_parameter() -> None:
    memory = breakdown({"config": LLAMA}).memory
    assert (memory.weights_bytes, memory.gradients_bytes) == (2 * PARAMETERS, 2 * PARAMETERS)
    assert memory.optimizer_bytes == 12 * PARAMETERS
    # s*b*h*L*(34 + 5*a*s/h), arXiv 2205.05198
    assert memory.activations_bytes == 2048 * 4096 * 32 * (34 + 5 * 32 * 2048 // 4096)


@pytest.mark.parametrize(("stage", "cut"), [(0, (1, 1, 1)), (1, (1, 1, 8)), (2, (1, 8, 8)), (3, (8, 8, 8))])
def test_zero_cuts_over_data_parallel_ranks(stage: int, cut: tuple[int, int, int]) -> None:
    memory = breakdown({"config": LLAMA, "dp": 8, "zero": stage}).memory
    whole = (2 * PARAMETERS, 2 * PARAMETERS, 12 * PARAMETERS)
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes) == tuple(
        -(-size // ranks) for size, ranks in zip(whole, cut, strict=True)
    )


def test_full_recomputation_keeps_the_layers_inputs() -> None:
    case = {"config": LLAMA, "recompute": "full", "batch_size": 2, "seq_len": 1024}
    assert breakdown(case).memory.activations_bytes == 2 * 1024 * 2 * 4096 * 32


def test_sequence_parallelism_cuts_what_tensor_parallelism_leaves() -> None:
    case = {"config": LLAMA, "tp": 4, "recompute": "selective"}
    parted, whole = breakdown({**case, "sequence_parallel": True}), breakdown(case)
    tokens_by_hidden = 2048 * 4096 * 32
    assert whole.memory.activations_bytes == tokens_by_hidden * (10 + 24 // 4)
    assert parted.memory.activations_bytes == tokens_by_hidden * 34 // 4


def test_lora_trains_its_adapters_only() -> None:
    made = breakdown({"config": LLAMA, "lora_rank": 8})
    attention = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096)
    assert made.memory.trained_parameters == 32 * 8 * (attention + 3 * (4096 + 14336))
    assert made.memory.gradients_bytes == 2 * made.memory.trained_parameters
    small = breakdown({"config": LLAMA, "qlora": True}).memory
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
        ({"config": {**LLAMA, "model_type": "unheard-of"}}, "model_type"),
        ({"config": None}, "model"),
    ],
)
def test_bad_input_is_named(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}\b"):
        breakdown({"config": LLAMA, **bad})


def test_lists_are_compared_and_listed() -> None:
    arguments = ["--train", "--config", json.dumps(LLAMA), "--zero", "0,3", "--dp", "8"]
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
