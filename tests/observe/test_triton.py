"""The page is constructed from the backend's sources; `captures/triton/README.md` says which."""

from pathlib import Path

import pytest
from hypothesis import given

from kvgauge.observe.engines.contract import FACTS, Hints
from kvgauge.observe.engines.triton_tensorrt_llm import ENGINE
from kvgauge.observe.exposition import sample_names
from kvgauge.observe.records import EngineReading, SourceError
from tests.support.odd import assert_sound, mutated_page
from tests.support.pages import GivenPages

PAGE = (Path(__file__).parent.parent / "captures/triton/2025/metrics.prom").read_text()


def read(page: str | bytes, hints: Hints | None = None) -> EngineReading:
    reading = ENGINE.read(GivenPages({"/metrics": page}, hints))
    assert_sound(reading)
    return reading


def test_one_model() -> None:
    reading = read(PAGE, Hints(max_model_len=8192, kv_dtype="fp8"))
    (rank,) = reading.ranks
    assert (rank.rank, rank.model) == ("0", "tensorrt_llm")
    assert (rank.num_blocks, rank.used_blocks, rank.block_tokens) == (1000, 600, 64)
    assert (rank.capacity_tokens, rank.active_tokens, rank.free_tokens) == (64000, 38400, 25600)
    assert (rank.running, rank.waiting, rank.swapped) == (13, 3, 1)
    assert rank.prompt_lengths is not None
    assert (rank.prompt_lengths.count, rank.prompt_lengths.total) == (10, 4200)
    assert rank.output_lengths is not None
    assert (rank.output_lengths.count, rank.output_lengths.total) == (10, 1800)
    assert rank.progress == (90210.0, 1750000000.0)
    assert (reading.max_num_seqs, reading.max_model_len, reading.kv_dtype) == (64, 8192, "fp8")
    assert set(reading.missing) == {"version", "model_path", "tp", "pp"}


def test_the_fraction_is_not_believed() -> None:
    """The backend's README shows one of 0.4875 beside 1 block of 6239."""
    page = PAGE.replace("} 0.6\n", "} 0.4875\n").replace("} 600\n", "} 1\n").replace("} 1000\n", "} 6239\n")
    (rank,) = read(page).ranks
    assert rank.usage_ratio == 1 / 6239


def test_the_last_batch_is_not_running_at_rest() -> None:
    """The README's page: scheduled 1, waiting 1, but none active."""
    (rank,) = read(PAGE.replace("} 16\n", "} 0\n").replace("} 13\n", "} 1\n")).ranks
    assert (rank.running, rank.waiting) == (0, 0)


def test_a_page_without_one_of_the_two_counts() -> None:
    without = "\n".join(line for line in PAGE.splitlines() if 'request_type="active"' not in line) + "\n"
    (rank,) = read(without).ranks
    assert (rank.running, rank.waiting) == (None, None)


def test_each_model_and_version_has_a_pool() -> None:
    second = PAGE.replace('version="1"', 'version="2"').replace("} 600\n", "} 10\n")
    other = PAGE.replace('model="tensorrt_llm"', 'model="draft"').replace("} 1000\n", "} 800\n")
    reading = read(PAGE + second + other)
    assert [(rank.rank, rank.model, rank.used_blocks, rank.num_blocks) for rank in reading.ranks] == [
        ("draft:1", "draft", 600, 800),
        ("tensorrt_llm:1", "tensorrt_llm", 600, 1000),
        ("tensorrt_llm:2", "tensorrt_llm", 10, 1000),
    ]
    assert reading.max_num_seqs == 64


def test_more_models_than_can_be() -> None:
    with pytest.raises(SourceError) as failure:
        read("".join(PAGE.replace('version="1"', f'version="{version}"') for version in range(300)))
    assert failure.value.reason == "too_many_ranks"


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "2000", "1.2e+300"])
def test_used_blocks_that_cannot_be(value: str) -> None:
    reading = read(PAGE.replace("} 600\n", f"}} {value}\n"))
    (rank,) = reading.ranks
    assert (rank.used_blocks, rank.active_tokens, rank.capacity_tokens) == (None, None, 64000)
    assert reading.bad_values == 1


def test_exponents_of_three_digits() -> None:
    (rank,) = read(PAGE.replace("} 1000\n", "} 1.0e+003\n")).ranks
    assert rank.num_blocks == 1000


def test_triton_without_the_backend_is_nobody() -> None:
    page = b'nv_inference_request_success{model="m",version="1"} 1\n'
    assert not ENGINE.marks.page(frozenset(sample_names(page)), page)
    assert ENGINE.marks.page(frozenset(sample_names(PAGE.encode())), PAGE.encode())
    assert read(page).ranks == ()


def test_every_fact_is_accounted_for() -> None:
    assert tuple(ENGINE.facts) == FACTS
    assert all(text.startswith(("exact", "derived: ", "unavailable")) for text in ENGINE.facts.values())


@given(mutated_page(PAGE))
def test_odd_pages_never_raise(body: bytes) -> None:
    read(body)
