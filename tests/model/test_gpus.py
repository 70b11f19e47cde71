"""The table of cards: every row complete, found by every name, and close to what drivers report."""

import pytest

from kvmodel import ModelError
from kvmodel.gpus import Gpu, find_gpu, gpus, gpus_needed

GIB = 2**30


@pytest.mark.parametrize("card", gpus(), ids=lambda card: card.name)
def test_every_card_is_complete(card: Gpu) -> None:
    assert find_gpu(card.name) is card
    assert card.source
    assert 50e9 < card.bandwidth_bytes_per_second < 20e12
    assert card.dense_flop_per_second
    assert all(1e12 < rate < 1e17 for rate in card.dense_flop_per_second.values())
    assert card.architecture.startswith(("sm", "gfx"))
    if card.usable_bytes is None:
        assert not card.usable_measured
    else:
        assert 0.9 * card.memory_gb < card.usable_bytes / GIB <= card.memory_gb
        assert card.usable_source
    for alias in card.aliases:
        assert find_gpu(alias) is card
        assert find_gpu(alias.upper()) is card


def test_no_name_means_two_cards() -> None:
    names = [name for card in gpus() for name in (card.name, *card.aliases)]
    owners = [(name, find_gpu(name).name) for name in names]
    expected = [(name, card.name) for card in gpus() for name in (card.name, *card.aliases)]
    assert owners == expected


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("h100-80gb", "h100-80gb"),
        ("H100", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("geforce rtx 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_of_drivers_and_people(name: str, found: str) -> None:
    assert find_gpu(name).name == found


def test_measured_and_derived() -> None:
    h100 = find_gpu("h100-80gb")
    assert h100.usable_measured
    assert h100.usable_bytes == int(79.19 * GIB)
    assert h100.compute_capability == (9, 0)
    assert find_gpu("gb10").compute_capability == (12, 1)
    assert find_gpu("mi300x").compute_capability is None
    assert not find_gpu("h200").usable_measured


# As CUDA's out-of-memory messages give it, for cards whose figure here is derived from the label.
@pytest.mark.parametrize(
    ("name", "reported_gib"), [("a30", 23.53), ("rtx-a4000", 15.61), ("rtx-4090", 23.68), ("a100-80gb", 79.25)]
)
def test_derived_figures_are_within_a_percent_of_reported_ones(name: str, reported_gib: float) -> None:
    card = find_gpu(name)
    assert not card.usable_measured
    assert card.usable_bytes == pytest.approx(reported_gib * GIB, rel=0.011)


@pytest.mark.parametrize("name", ["", "h101", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "nvidia", "x" * 10_000, None, 4090])
def test_unknown_cards_are_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_gpu(name)
    assert caught.value.field == "gpu"
    assert len(str(caught.value)) < 500


def test_cards_needed() -> None:
    needed = gpus_needed(101_200_000_000, 40_000_000_000, 40)
    assert (needed.by_memory, needed.practical) == (3, 4)
    assert needed.tensor_parallel == (1, 2, 4, 5, 8, 10, 20, 40)
    assert gpus_needed(10**15, 10**9, 32).practical is None


@pytest.mark.parametrize("argument", ["total_bytes", "gpu_bytes", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_bad_arguments_are_named(argument: str, value: object) -> None:
    arguments: dict[str, object] = {"total_bytes": 1, "gpu_bytes": 1, "num_attention_heads": 1, argument: value}
    with pytest.raises(ModelError) as caught:
        gpus_needed(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == argument
