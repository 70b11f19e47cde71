"""Reading one cache, layer by layer, with tensors that fail the test when their data or a device is touched."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kvgauge_agent.caches import DEVICE_LENGTH, UnreadableError, entries

from .fake_torch import HostNumber, Tensor, TracedTensor, WrappingTensor, module

SEQUENCES, HEADS, SLOTS, HEAD_DIM = 2, 4, 10, 8
TOKEN_BYTES = HEADS * HEAD_DIM * 2 * 2


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", module())


def layer(slots: int = SLOTS, slack_bytes: int = 0, device: str = "cuda", **more: Any) -> Any:
    pair = [Tensor(SEQUENCES, HEADS, slots, HEAD_DIM, device=device, slack_bytes=slack_bytes) for _ in "kv"]
    return SimpleNamespace(keys=pair[0], values=pair[1], is_initialized=True, **more)


def cache(*layers: object, **more: object) -> Any:
    return SimpleNamespace(layers=list(layers), **more)


def static(**more: Any) -> Any:
    return layer(max_cache_len=SLOTS, **more)


def test_a_growing_cache_with_a_view_in_it() -> None:
    found, missing = entries(cache(layer(), layer(slack_bytes=64)))
    assert found == [
        {
            "kind": "dynamic",
            "layers": 2,
            "sequences": SEQUENCES,
            "allocated_bytes": 2 * SEQUENCES * SLOTS * TOKEN_BYTES + 128,
            "live_bytes": 2 * SEQUENCES * SLOTS * TOKEN_BYTES,
            "live_tokens": SEQUENCES * SLOTS,
        }
    ]
    assert missing == {}


def test_kinds_of_layers_are_told_apart() -> None:
    found, _ = entries(cache(layer(), layer(4, is_sliding=True, sliding_window=5)))
    assert [(entry["kind"], entry["layers"], entry["live_tokens"]) for entry in found] == [
        ("dynamic", 1, SEQUENCES * SLOTS),
        ("sliding", 1, SEQUENCES * 4),
    ]


@pytest.mark.parametrize(
    ("more", "length"),
    [
        ({"cumulative_length": HostNumber(3)}, None),
        ({"cumulative_length_int": 3, "cumulative_length": Tensor(itemsize=8)}, None),
        ({"cumulative_length": Tensor(itemsize=8)}, 3),
        ({}, 3),
    ],
)
def test_a_reserved_cache_with_a_length_that_is_known(more: dict[str, Any], length: int | None) -> None:
    ((entry,), missing) = entries(cache(static(**more)), length)
    assert entry["kind"] == "static"
    assert entry["capacity_tokens"] == SEQUENCES * SLOTS
    assert entry["allocated_bytes"] == SEQUENCES * SLOTS * TOKEN_BYTES
    assert entry["live_tokens"] == SEQUENCES * 3
    assert entry["live_bytes"] == SEQUENCES * 3 * TOKEN_BYTES
    assert missing == {}


def test_a_reserved_cache_whose_length_is_on_the_device() -> None:
    unfilled = SimpleNamespace(keys=None, values=None, max_cache_len=SLOTS, is_initialized=False)
    unfilled.cumulative_length = HostNumber(0)
    ((entry,), missing) = entries(cache(static(cumulative_length=Tensor(itemsize=8)), unfilled))
    assert "live_tokens" not in entry
    assert "live_bytes" not in entry
    assert entry["capacity_tokens"] == SEQUENCES * SLOTS
    assert missing == {"caches.static.live_tokens": DEVICE_LENGTH, "caches.static.live_bytes": DEVICE_LENGTH}


def test_a_layer_with_a_window_tells_the_length_of_the_others() -> None:
    window = static(is_sliding=True, cumulative_length_int=7)
    found, missing = entries(cache(static(cumulative_length=Tensor(itemsize=8)), window))
    assert {entry["kind"]: entry["live_tokens"] for entry in found} == {"static": 14, "sliding": 14}
    assert missing == {}


def test_a_window_that_is_full_holds_no_more_than_its_slots() -> None:
    ((entry,), _) = entries(cache(static(is_sliding=True, cumulative_length_int=700)))
    assert entry["live_tokens"] == entry["capacity_tokens"] == SEQUENCES * SLOTS
    assert entry["live_bytes"] == entry["allocated_bytes"]


def packed(sequences: int) -> WrappingTensor:
    inner = WrappingTensor(8, parts={"_data": Tensor(8, 4, itemsize=1)})
    return WrappingTensor(
        sequences, HEADS, 16, HEAD_DIM, parts={"_data": inner, "_scale": Tensor(8), "_shift": Tensor(8)}
    )


@pytest.mark.parametrize(
    ("quantized", "size"),
    [
        (packed(SEQUENCES), 32 + 16 + 16),
        ((Tensor(8, 4, itemsize=1), {"shape": (SEQUENCES, 4, 16, 8), "scale": Tensor(8), "nbits": 4}), 32 + 16),
        ((Tensor(SEQUENCES, 4, 16, 8, itemsize=1), Tensor(1, itemsize=4)), SEQUENCES * 4 * 16 * 8 + 4),
    ],
    ids=["quanto", "hqq", "fp8"],
)
def test_a_quantized_layer(quantized: object, size: int) -> None:
    rest = Tensor(0)
    one = SimpleNamespace(
        keys=rest, values=rest, _quantized_keys=quantized, _quantized_values=None, _quantize=None, cumulative_length=16
    )
    ((entry,), missing) = entries(cache(one))
    assert entry == {
        "kind": "quantized",
        "layers": 1,
        "sequences": SEQUENCES,
        "allocated_bytes": size,
        "live_bytes": size,
        "live_tokens": SEQUENCES * 16,
    }
    assert missing == {}


def test_a_quantized_layer_that_does_not_tell_its_tokens() -> None:
    one = SimpleNamespace(keys=Tensor(0), values=Tensor(0), _quantized_keys=Tensor(8), _quantized_values=None)
    one._quantize = None
    ((entry,), missing) = entries(cache(one))
    assert entry["live_bytes"] == 16
    assert list(missing) == ["caches.quantized.live_tokens"]


def test_states_and_attention_of_one_layer() -> None:
    state = Tensor(SEQUENCES, 6, 5, itemsize=4)
    one = layer()
    one.conv_states, one.recurrent_states = {0: state, 1: None}, {0: None}
    found, _ = entries(cache(one))
    assert found[0] == {
        "kind": "state",
        "layers": 1,
        "sequences": SEQUENCES,
        "allocated_bytes": SEQUENCES * 120,
        "live_bytes": SEQUENCES * 120,
    }
    assert found[1]["kind"] == "dynamic"


def test_what_is_offloaded_is_not_counted() -> None:
    ((entry,), _) = entries(cache(layer(), layer(device="cpu"), offloading=True))
    assert entry["allocated_bytes"] == entry["live_bytes"] == SEQUENCES * SLOTS * TOKEN_BYTES


def test_a_storage_that_layers_share_counts_once() -> None:
    one = layer()
    ((entry,), _) = entries(cache(one, one))
    assert entry["allocated_bytes"] == SEQUENCES * SLOTS * TOKEN_BYTES


def test_an_unfilled_cache_has_no_entries() -> None:
    dummy = SimpleNamespace(keys=None, values=None)
    assert entries(cache(dummy, SimpleNamespace(keys=Tensor(0), values=Tensor(0)))) == ([], {})


@pytest.mark.parametrize("strange", [SimpleNamespace(key_cache=[]), SimpleNamespace(layers=())])
def test_a_layout_that_is_not_known(strange: object) -> None:
    with pytest.raises(UnreadableError, match="SimpleNamespace"):
        entries(strange)


def test_a_cache_that_is_being_traced_is_left_alone() -> None:
    with pytest.raises(UnreadableError, match="TracedTensor"):
        entries(cache(SimpleNamespace(keys=TracedTensor(), values=TracedTensor())))
