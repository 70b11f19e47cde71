"""Layer kinds and cache dtypes on their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel import ModelError, read_architecture
from kvmodel.dtypes import kv_dtype, safetensors_bits
from kvmodel.layers import (
    FullAttention,
    LatentAttention,
    LayerGroup,
    SlidingWindowAttention,
    group_layers,
    heads_per_rank,
)

from .known import LLAMA_8B

# Bytes of one K or V row of 128 elements.
ROW_BYTES = {
    "auto": 256,
    "bf16": 256,
    "half": 256,
    "float32": 512,
    "fp8": 128,
    "FP8_E4M3": 128,
    "fp8_e5m2": 128,
    "int8": 128,
    "int8_per_token_head": 132,
    "int4_per_token_head": 68,
    "nvfp4": 72,
    "mxfp8": 132,
    "q8_0": 136,
    "q5_1": 96,
    "q5_0": 88,
    "q4_1": 80,
    "q4_0": 72,
    "iq4_nl": 72,
}


@pytest.mark.parametrize(("name", "size"), ROW_BYTES.items())
def test_bytes_of_a_row(name: str, size: int) -> None:
    assert kv_dtype(name, "bfloat16").row_bytes(128) == size


@pytest.mark.parametrize("name", ["", "fp7", "bfloat17", "auto ", "\n", "x" * 10_000])
def test_unknown_cache_dtypes_are_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        kv_dtype(name, "bfloat16")
    assert caught.value.field == "kv_dtype"
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "bits"), [("F64", 64), ("BF16", 16), ("F8_E4M3", 8), ("BOOL", 8), ("F4", 4)])
def test_safetensors_sizes(name: str, bits: int) -> None:
    assert safetensors_bits(name) == bits


def test_keys_and_values_may_differ_in_width() -> None:
    layer = FullAttention(kv_heads=4, head_dim_k=192, head_dim_v=128)
    assert layer.token_bytes(kv_dtype("auto", "bfloat16")) == 4 * 320 * 2


@pytest.mark.parametrize(
    ("kv_heads", "tp", "heads"), [(8, 1, 8), (8, 4, 2), (8, 8, 1), (8, 16, 1), (1, 7, 1), (71, 71, 1)]
)
def test_heads_are_shared_out_or_repeated(kv_heads: int, tp: int, heads: int) -> None:
    assert heads_per_rank(kv_heads, tp) == heads


@pytest.mark.parametrize(("kv_heads", "tp"), [(8, 3), (8, 12), (6, 4), (8, 0), (8, -1)])
def test_ranks_that_do_not_divide_are_refused(kv_heads: int, tp: int) -> None:
    with pytest.raises(ModelError) as caught:
        heads_per_rank(kv_heads, tp)
    assert caught.value.field == "tp"


@pytest.mark.parametrize("tp", [3, 5, 64, 0, -1, True, 2.0, "2", None])
def test_an_architecture_refuses_ranks_that_do_not_divide(tp: int) -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture(LLAMA_8B).bytes_at(1, tp=tp)
    assert caught.value.field == "tp"


@pytest.mark.parametrize("tokens", [-1, 1.5, True, "7", None])
def test_a_length_is_a_whole_number(tokens: int) -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture(LLAMA_8B).bytes_at(tokens)
    assert caught.value.field == "tokens"


def test_replication_beyond_the_kv_heads() -> None:
    architecture = read_architecture(LLAMA_8B)
    assert architecture.growth_bytes_per_token(tp=8) == 16384
    assert architecture.growth_bytes_per_token(tp=16) == 16384


@given(st.integers(1, 64), st.integers(1, 512), st.integers(1, 10_000), st.integers(0, 100_000))
def test_a_window_holds_the_lesser_of_window_and_sequence(heads: int, dim: int, window: int, tokens: int) -> None:
    kv = kv_dtype("auto", "bfloat16")
    layer = SlidingWindowAttention(heads, dim, dim, window)
    whole = FullAttention(heads, dim, dim)
    assert layer.bytes_at(tokens, kv) == min(whole.bytes_at(tokens, kv), layer.window_bytes(kv))
    assert layer.growth_bytes_per_token(kv) == 0


@given(st.integers(1, 10_000), st.sampled_from(sorted(ROW_BYTES)))
def test_scales_cost_and_narrow_types_do_not_cost_more(elements: int, name: str) -> None:
    kv = kv_dtype(name, "bfloat16")
    assert kv.row_bytes(elements) * 8 >= elements * kv.element_bits
    assert kv.row_bytes(elements) <= kv.row_bytes(elements + 1)


def test_equal_layers_are_gathered() -> None:
    one, other = LatentAttention(512, 64), FullAttention(1, 2, 3)
    assert group_layers([one, other, one]) == (LayerGroup(one, 2), LayerGroup(other, 1))
