"""Figures that four introductory articles on inference memory print, recomputed.

Where an article rounds, mixes GB and GiB, or computes something else than it names, the exact value is asserted and
the article's own figure is recognised, or shown not to follow.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel import read_architecture
from kvmodel.errors import ModelError
from kvmodel.gpus import gpus_needed
from kvmodel.latency import phase_time
from kvmodel.parameters import count_parameters
from kvmodel.rounding import PrintedSize, recognise_printed
from kvmodel.training import activation_bytes, lora_parameters, training_memory
from kvmodel.weight_formats import weight_format

from .known import LLAMA_8B, known_config

GB, GIB, MIB = 10**9, 2**30, 2**20

LLAMA_3_8B = read_architecture({**LLAMA_8B, "max_position_embeddings": 8192})
LLAMA_3_70B = read_architecture(known_config("meta-llama/Meta-Llama-3-70B"))
LLAMA_7B = read_architecture(known_config("meta-llama/Llama-2-7b-hf"))
LLAMA_13B_CONFIG = {
    **known_config("meta-llama/Llama-2-7b-hf"),
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "hidden_size": 5120,
    "intermediate_size": 13824,
}
LLAMA_13B = read_architecture(LLAMA_13B_CONFIG)
OPT_175B_CONFIG = {
    **known_config("facebook/opt-13b"),
    "num_hidden_layers": 96,
    "num_attention_heads": 96,
    "hidden_size": 12288,
    "word_embed_proj_dim": 12288,
    "ffn_dim": 49152,
}
OPT_175B = read_architecture(OPT_175B_CONFIG)


class TestCacheOfLlama3:
    """One token, a full context, a batch of 32."""

    def test_bytes_per_token(self) -> None:
        assert LLAMA_3_8B.growth_bytes_per_token() == 131_072
        assert LLAMA_3_70B.growth_bytes_per_token() == 327_680
        assert recognise_printed(131_072, "0.1 MB") == PrintedSize(10**6, "MB", "nearest")

    def test_a_full_context_caches_all_but_the_last_token(self) -> None:
        assert LLAMA_3_8B.bytes_at(8192 - 1) == 1_073_610_752
        assert LLAMA_3_70B.bytes_at(8191) == 2_684_026_880
        assert recognise_printed(1_073_610_752, "1.1 G") == PrintedSize(GB, "GB", "nearest")
        assert recognise_printed(2_684_026_880, "2.7 GB") == PrintedSize(GB, "GB", "nearest")

    def test_the_share_of_a_card_of_24(self) -> None:
        cached = LLAMA_3_8B.bytes_at(8191)
        assert cached / (24 * GB) == pytest.approx(0.044734, abs=1e-6)
        assert cached / (24 * GIB) == pytest.approx(0.041662, abs=1e-6)

    def test_a_batch_of_32_is_not_32_times_the_rounded_figure(self) -> None:
        batch = int(32 * LLAMA_3_8B.bytes_at(8191))
        assert batch == 34_355_544_064
        assert recognise_printed(batch, "35.2 GB") is None
        assert recognise_printed(32 * 1_100_000_000, "35.2 GB") == PrintedSize(GB, "GB", "exact")


class TestTraining:
    """Bytes per parameter, and a 13B model in mixed precision."""

    def test_bytes_per_element(self) -> None:
        bits = [weight_format(name).bits for name in ("float32", "float16", "int8")]
        assert bits[:2] == [32, 16]
        # Integers carry scales, which the article leaves out.
        assert bits[2] == pytest.approx(8, abs=0.005)
        assert weight_format("int4").bits == pytest.approx(4, abs=0.13)

    def test_a_billion_parameters(self) -> None:
        single = training_memory(GB, precision="float32")
        assert (single.weights_bytes, single.gradients_bytes) == (4 * GB, 4 * GB)
        assert single.weights_bytes / GIB == pytest.approx(3.7253, abs=1e-4)
        # Two moments and the fp32 copy of the weights.
        assert training_memory(GB).optimizer_bytes == 12 * GB

    def test_activations_of_7b(self) -> None:
        paper = activation_bytes(
            sequence_tokens=2048, micro_batch=1, hidden_size=4096, num_layers=32, num_attention_heads=32
        )
        assert paper == 30_601_641_984
        # The article multiplies by four bytes again and leaves out the paper's factor of five: 50 GiB exactly.
        misquoted = 4 * 2048 * 4096 * 32 * (34 + 2048 * 32 // 4096)
        assert misquoted == 53_687_091_200
        assert recognise_printed(misquoted, "50 GB") == PrintedSize(GIB, "GiB", "exact")

    def test_activations_of_13b_follow_the_paper(self) -> None:
        paper = activation_bytes(
            sequence_tokens=1024, micro_batch=1, hidden_size=5120, num_layers=40, num_attention_heads=40
        )
        assert paper == 15_518_924_800
        assert recognise_printed(paper, "14.5 GB") == PrintedSize(GIB, "GiB", "nearest")

    def test_all_of_13b(self) -> None:
        memory = training_memory(13 * GB, activations_bytes=15_518_924_800)
        assert (memory.weights_bytes, memory.gradients_bytes) == (26 * GB, 26 * GB)
        assert memory.optimizer_bytes == 156 * GB
        assert memory.total_bytes == 223_518_924_800
        assert recognise_printed(memory.total_bytes, "222.5 GB") is None
        assert recognise_printed(2 * 1024 * 5120 * 2, "20M") == PrintedSize(MIB, "MiB", "exact")

    def test_a_real_13b(self) -> None:
        assert count_parameters(LLAMA_13B_CONFIG).total == 13_015_864_320

    def test_lora(self) -> None:
        adapters = lora_parameters(8, [(5120, 5120)] * 2, 40)
        assert adapters == 6_553_600
        assert adapters / 13e9 == pytest.approx(0.000504, abs=1e-6)


class TestLatency:
    """Llama-7B on an A100: 312 Tflop/s, 1.515 TB/s."""

    PEAKS = {"flop_per_second": 312e12, "bytes_per_second": 1.515e12}  # noqa: RUF012

    def test_time_to_first_token(self) -> None:
        flop = 2 * 7e9 * 1024
        assert flop == 14_336e9
        prefill = phase_time(flop=flop, traffic_bytes=14e9, **self.PEAKS)
        assert prefill.compute_seconds * 1e3 == pytest.approx(45.949, abs=1e-3)
        assert prefill.memory_seconds * 1e3 == pytest.approx(9.241, abs=1e-3)
        assert prefill.sum_seconds * 1e3 == pytest.approx(55.19, abs=1e-2)
        assert prefill.max_seconds * 1e3 == pytest.approx(45.949, abs=1e-3)
        assert prefill.bound == "compute"

    def test_time_per_output_token(self) -> None:
        decode = phase_time(flop=14e9, traffic_bytes=14e9, **self.PEAKS)
        assert decode.compute_seconds * 1e3 == pytest.approx(0.0449, abs=1e-4)
        assert decode.sum_seconds * 1e3 == pytest.approx(9.286, abs=1e-3)
        assert decode.bound == "memory"

    def test_memory_of_inference(self) -> None:
        assert LLAMA_7B.bytes_at(1024) == 536_870_912
        assert recognise_printed(536_870_912, "512M") == PrintedSize(MIB, "MiB", "exact")
        assert count_parameters(known_config("meta-llama/Llama-2-7b-hf")).total == 6_738_415_616


class TestServing:
    """Weights, cache and ten percent: Llama-2-13B and OPT-175B on cards of 40 GB."""

    def test_cache_of_13b(self) -> None:
        assert LLAMA_13B.growth_bytes_per_token() == 819_200
        assert recognise_printed(819_200, "800 KB") == PrintedSize(1024, "KiB", "exact")
        assert LLAMA_13B.bytes_at(2000) == 1_638_400_000
        assert 10 * LLAMA_13B.bytes_at(8192) == 67_108_864_000
        # 800 KB taken for 800,000 bytes.
        assert recognise_printed(67_108_864_000, "66 GB") is None
        assert recognise_printed(10 * 8192 * 800_000, "66 GB") == PrintedSize(GB, "GB", "nearest")

    def test_cards_for_13b(self) -> None:
        weights, cache = 26 * GB, int(10 * LLAMA_13B.bytes_at(8192))
        total = (weights + cache) * 11 // 10
        assert (weights + cache) // 10 == 9_310_886_400
        assert total == 102_419_750_400
        needed = gpus_needed(total, 40 * GB, 40)
        assert (needed.by_memory, needed.practical) == (3, 4)
        assert needed.tensor_parallel == (1, 2, 4, 5, 8, 10, 20, 40)

    def test_cards_for_175b(self) -> None:
        assert count_parameters(OPT_175B_CONFIG).total == 174_604_468_224
        cache = int(OPT_175B.bytes_at(8192))
        assert cache == 38_654_705_664
        assert recognise_printed(cache, "36 GB") == PrintedSize(GIB, "GiB", "exact")
        overhead = (350 * GB + cache) // 10
        assert overhead == 38_865_470_566
        needed = gpus_needed(350 * GB + cache + overhead, 40 * GB, 96)
        assert 350 * GB + cache + overhead == 427_520_176_230
        assert (needed.by_memory, needed.practical) == (11, 12)
        assert needed.tensor_parallel == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96)


class TestCacheOfGpt2:
    def test_bytes_per_token_in_either_precision(self) -> None:
        gpt2 = read_architecture(known_config("openai-community/gpt2"))
        assert gpt2.growth_bytes_per_token("float32") == 73_728
        assert gpt2.growth_bytes_per_token("float16") == 36_864
        assert gpt2.bytes_at(1005, "float32") == 74_096_640


@given(st.integers(1, 10**15), st.integers(0, 3), st.sampled_from(["MB", "GB", "MiB", "GiB"]))
def test_what_is_printed_with_rounding_is_recognised(size: int, decimals: int, unit: str) -> None:
    base = 1024 if "i" in unit else 1000
    unit_bytes = base ** (2 if unit[0] == "M" else 3)
    printed = f"{size / unit_bytes:.{decimals}f} {unit}"
    found = recognise_printed(size, printed)
    assert found is not None
    assert found.rounding in ("exact", "nearest", "down", "up")


def test_rounded_down_and_up() -> None:
    assert recognise_printed(1_970_000_000, "1.9 GB") == PrintedSize(GB, "GB", "down")
    assert recognise_printed(1_020_000_000, "1.1 GB") == PrintedSize(GB, "GB", "up")
    assert recognise_printed(1_073_741_824, "1 GiB") == PrintedSize(GIB, "GiB", "exact")
    assert recognise_printed(7, "7 B") == PrintedSize(1, "B", "exact")


@pytest.mark.parametrize("printed", ["", "GB", "1,1 GB", "-1 GB", "1.1 XB", "1e9", "1" * 100, None, 5])
def test_what_is_no_size_is_refused(printed: str) -> None:
    with pytest.raises(ModelError) as caught:
        recognise_printed(1, printed)
    assert caught.value.field == "printed"


@pytest.mark.parametrize("size", [-1, 1.5, True, 2**90])
def test_what_is_no_number_of_bytes_is_refused(size: int) -> None:
    with pytest.raises(ModelError) as caught:
        recognise_printed(size, "1 GB")
    assert caught.value.field == "size_bytes"
