import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.cluster.reading import ReadingError, read

PLAIN = {
    "wall_seconds": 5.0,
    "valid": True,
    "safe_concurrency": 37,
    "limits": {"kv": 37},
    "binding_limit": "kv",
    "load_ratio": 0.84,
    "kv_usage_ratio": 0.5,
    "kv_exhaustion_seconds": None,
    "running": 21,
    "waiting": 3,
    "age_seconds": 0.5,
    "explanation": ["x"],
    "terms": {"active_tokens": 1000},
    "demand": None,
    "served": {"arrived_total": 9.0, "judged_total": 5.0, "slow_total": None},
    "something_new": [1, 2],
}


def body(**changes: object) -> bytes:
    return json.dumps(PLAIN | changes).encode()


def test_an_answer() -> None:
    reading = read(body(), 100.0, 1000.0, 10.0)
    assert (reading.read_seconds, reading.wall_seconds) == (99.5, 999.5)
    assert (reading.load_ratio, reading.safe_concurrency, reading.running, reading.waiting) == (0.84, 37, 21, 3)
    assert (reading.kv_usage_ratio, reading.kv_exhaustion_seconds, reading.kv_active_tokens) == (0.5, None, 1000.0)
    assert reading.served is not None
    assert (reading.served.arrived_total, reading.served.slow_total) == (9.0, None)
    assert reading.demand is None


@pytest.mark.parametrize(("told", "found"), [(0.3, 0.3), (None, None), ("x", None), (-1, None), (1e9, None)])
def test_a_figure_that_is_only_shown_voids_nothing(told: object, found: float | None) -> None:
    reading = read(body(terms={"load_now_ratio": told}), 100.0, 1000.0, 10.0)
    assert (reading.load_ratio, reading.load_now_ratio) == (0.84, found)


def test_what_is_not_told_is_not_zero() -> None:
    reading = read(b'{"valid": false}', 100.0, 1000.0, 10.0)
    assert (reading.valid, reading.load_ratio, reading.running, reading.served) == (False, None, None, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"<html>", "not_json"),
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[]", "malformed"),
        (b"{}", "malformed"),
        (body(valid="yes"), "malformed"),
        (body(load_ratio="1"), "malformed"),
        (body(load_ratio=True), "malformed"),
        (body(running=1.5), "malformed"),
        (body(load_ratio=1e9), "unbelievable"),
        (body(load_ratio=-1), "unbelievable"),
        (body(kv_usage_ratio=1.2), "unbelievable"),
        (body(safe_concurrency=10**9), "unbelievable"),
        (body().replace(b"0.84", b"NaN"), "unbelievable"),
        (body().replace(b"0.84", b"Infinity"), "unbelievable"),
        (body(age_seconds=11), "stale"),
    ],
)
def test_what_is_no_answer(text: bytes, reason: str) -> None:
    with pytest.raises(ReadingError) as error:
        read(text, 100.0, 1000.0, 10.0)
    assert error.value.reason == reason


DEMAND = {
    "arrived_total": 9.0,
    "finished": 50.0,
    "prompts": {"length_tokens": [100.0, 900.0], "share_ratio": [0.5, 0.5], "requests": 50.0},
    "outputs": {"length_tokens": [10.0, 90.0], "share_ratio": [0.5, 0.5], "requests": 50.0},
    "computed_ratio": 1.0,
    "resident": None,
    "pool_slots": 1e5,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "cost": {
        "fixed_seconds": 0.01,
        "kv_token_seconds": 1e-8,
        "token_seconds": 2e-5,
        "pair_seconds": 0,
        "sequence_seconds": 0,
    },
    "slo_ttft_seconds": 3.0,
    "slo_tpot_seconds": 0.1,
    "ranks": 1,
}


def test_what_is_asked_of_the_pod() -> None:
    demand = read(body(demand=DEMAND), 100.0, 1000.0, 10.0).demand
    assert demand is not None
    assert (demand.finished, demand.max_num_seqs, demand.prompts.points) == (50.0, 256, (100.0, 900.0))
    assert demand.cost is not None


@pytest.mark.parametrize(
    "nonsense",
    [
        {"ranks": 0.5},
        {"ranks": 1e9},
        {"pool_slots": 1e-9},
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"slo_tpot_seconds": 1e-18},
        {"slo_ttft_seconds": 0},
        {"prompts": {"length_tokens": [1e12], "share_ratio": [1], "requests": 5}},
        {"cost": DEMAND["cost"] | {"token_seconds": 1e6}},  # type: ignore[operator]
    ],
)
def test_an_engine_that_cannot_be_makes_the_answer_void(nonsense: dict[str, object]) -> None:
    with pytest.raises(ReadingError) as error:
        read(body(demand=DEMAND | nonsense), 100.0, 1000.0, 10.0)
    assert error.value.reason == "unbelievable"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(PLAIN)), json_values))
def test_whatever_a_pod_says_is_a_reading_or_an_error(changes: dict[str, object]) -> None:
    try:
        reading = read(body(**changes), 100.0, 1000.0, 10.0)
    except ReadingError:
        return
    assert reading.load_ratio is None or 0 <= reading.load_ratio <= 1000
