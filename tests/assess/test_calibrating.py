"""What is learned of one run and what it says of the next, with measured start-ups."""

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.assess import EngineFlags, Memo, Past, assess, compared
from kvgauge.assess.calibrating import Figure, calibrated, figures_of, learned, plain_figures
from kvgauge.assess.past import MAX_KEYS
from kvgauge.assess.records import ComponentPrediction
from kvgauge.observe.records import EngineReading, ModelReading
from kvmodel import Weights, read_architecture
from tests.assess.living import MINUTE, Life, sizes, using
from tests.model.h100_startups import VLLM_019, Startup
from tests.support.facts import ENGINE, GIB, GPU, RANK, model, observation

H100_BYTES = round(79.19 * GIB)
CONTEXT_BYTES = round(0.51 * GIB)
ON_ONE_GPU = tuple(row for row in VLLM_019 if row.tp == 1)
LLAMA = next(row for row in ON_ONE_GPU if row.model == "Llama-3.1-8B-Instruct")


def to_bytes(gib: float) -> int:
    return round(gib * GIB)


def model_of(row: Startup) -> ModelReading:
    return ModelReading(
        row.model, read_architecture(row.config), Weights(to_bytes(row.file), to_bytes(row.file) // 2, {}, 1, ("m",))
    )


def share_at(utilization: float) -> int:
    return math.ceil(H100_BYTES * utilization)


def engine_of(row: Startup, *, measured: bool = True) -> EngineReading:
    """As it was measured: 0.95 of the card, requests of 8192 tokens."""
    parts = {"weights": row.weights, "activations": row.activations, "graphs": row.graphs, "kv_pool": row.pool}
    return replace(
        ENGINE,
        model=row.model,
        model_path=row.model,
        memory_bytes={name: to_bytes(size) for name, size in parts.items()} if measured else {},
        ranks=(replace(RANK, capacity_tokens=None, num_blocks=None, used_blocks=None, active_tokens=None),),
    )


def used_by(row: Startup) -> int:
    return share_at(0.95) + CONTEXT_BYTES + to_bytes(row.graphs)


def restarted(row: Startup) -> EngineReading:
    """With less of the card and other lengths, before anything of it was measured."""
    return replace(engine_of(row, measured=False), gpu_memory_utilization=0.85, max_model_len=4096, started_seconds=1e6)


@pytest.mark.parametrize("row", ON_ONE_GPU, ids=lambda row: row.model)
def test_after_a_restart_with_other_flags_the_calibrated_pool_and_total_are_nearer(row: Startup) -> None:
    life = Life(with_model=model_of(row))
    life.lives(5 * MINUTE, engine=engine_of(row), gpus=using(used_by(row)))
    after = sizes(life.lives(1, engine=restarted(row), gpus=using(2 * GIB)))
    # The rules are vLLM's own: what is not the pool takes what it took, the pool has the rest of its share.
    less = share_at(0.95) - share_at(0.85)
    for component, truth in (("kv_pool", to_bytes(row.pool) - less), ("total", used_by(row) - less)):
        predicted, now = after[component]
        assert now is not None
        assert abs(now - truth) <= abs(predicted - truth)
        assert abs(now - truth) <= 1 << 20


def test_how_much_nearer_over_all_start_ups() -> None:
    before, after = [], []
    for row in ON_ONE_GPU:
        life = Life(with_model=model_of(row))
        life.lives(5 * MINUTE, engine=engine_of(row), gpus=using(used_by(row)))
        predicted, now = sizes(life.lives(1, engine=restarted(row)))["kv_pool"]
        truth = to_bytes(row.pool) - (share_at(0.95) - share_at(0.85))
        assert now is not None
        before.append(abs(predicted - truth) / truth)
        after.append(abs(now - truth) / truth)
    assert fmean(after) < fmean(before) / 10


def test_a_part_that_grows_with_the_batch_takes_its_error_along() -> None:
    life = Life(with_model=model_of(LLAMA), flags=EngineFlags(max_num_seqs=1024, max_num_batched_tokens=8192))
    life.lives(5 * MINUTE, engine=engine_of(LLAMA), gpus=using(used_by(LLAMA)))
    at_8192 = sizes(life.seen[-1])
    assert at_8192["activations"][1] == to_bytes(LLAMA.activations)
    smaller = replace(restarted(LLAMA), max_num_batched_tokens=2048, max_num_seqs=128)
    other = Life(life.past, model_of(LLAMA), flags=EngineFlags())
    other.now = life.now
    after = sizes(other.lives(1, engine=smaller))
    ratio = to_bytes(LLAMA.activations) / at_8192["activations"][0]
    predicted, now = after["activations"]
    assert now is not None
    assert predicted < at_8192["activations"][0]
    assert now == pytest.approx(predicted * ratio, abs=2)
    # The pool pays for the activations: by how much these are corrected, it is.
    rest = to_bytes(LLAMA.pool) - at_8192["kv_pool"][0] + (to_bytes(LLAMA.activations) - at_8192["activations"][0])
    pool_predicted, pool = after["kv_pool"]
    assert pool == pytest.approx(pool_predicted + rest - (now - predicted), abs=2)


def test_without_an_agent_the_pool_and_the_driver_teach_enough() -> None:
    tokens = to_bytes(LLAMA.pool) // 131_072
    rank = replace(RANK, capacity_tokens=tokens)
    life = Life(with_model=model_of(LLAMA))
    first = replace(engine_of(LLAMA, measured=False), ranks=(rank,))
    life.lives(5 * MINUTE, engine=first, gpus=using(used_by(LLAMA)))
    settled = sizes(life.seen[-1])
    assert settled["kv_pool"][1] == tokens * 131_072
    assert settled["total"][1] == used_by(LLAMA)
    # Nothing is known of these, and what the driver shows beyond all is the context.
    assert settled["activations"][0] == settled["activations"][1]
    calibrated_parts = [now for name, (_, now) in settled.items() if name != "total" and now is not None]
    assert sum(calibrated_parts) == used_by(LLAMA)
    less = share_at(0.95) - share_at(0.85)
    assert sizes(life.lives(1, engine=restarted(LLAMA)))["kv_pool"][1] == tokens * 131_072 - less


def test_nothing_is_learned_before_it_has_settled_or_of_an_idle_engine() -> None:
    life = Life(with_model=model_of(LLAMA))
    life.lives(100, engine=engine_of(LLAMA), gpus=using(used_by(LLAMA)))
    assert all(now is None for _, now in sizes(life.seen[-1]).values())
    idle = Life(with_model=model_of(LLAMA))
    never = replace(engine_of(LLAMA), ranks=(replace(RANK, running=0, generation_tokens_total=0.0),))
    idle.lives(10 * MINUTE, engine=never, gpus=using(used_by(LLAMA)))
    assert all(now is None for _, now in sizes(idle.seen[-1]).values())
    rising = Life(with_model=model_of(LLAMA))
    rising.lives(10 * MINUTE, engine=engine_of(LLAMA), gpus=lambda at: using(20 * GIB + int(at) * (4 << 20)))
    assert all(now is None for _, now in sizes(rising.seen[-1]).values())


def test_another_gpu_that_the_engine_is_not_on_teaches_nothing() -> None:
    life = Life(with_model=model_of(LLAMA), flags=EngineFlags(tp=1, max_num_seqs=1024, max_num_batched_tokens=8192))
    idle = replace(GPU, gpu=1, uuid="GPU-2", used_bytes=GIB // 2)
    life.lives(5 * MINUTE, engine=engine_of(LLAMA), gpus=(*using(used_by(LLAMA)), idle))
    assert sizes(life.seen[-1])["total"][1] == used_by(LLAMA)


def test_one_odd_tick_teaches_nothing() -> None:
    def odd(at: float) -> EngineReading:
        told = engine_of(LLAMA)
        return replace(told, memory_bytes={**told.memory_bytes, "weights": 3 * GIB}) if at == 150 else told

    life = Life(with_model=model_of(LLAMA))
    life.lives(5 * MINUTE, engine=odd, gpus=lambda at: using(5 * GIB if at == 200 else used_by(LLAMA)))
    assert sizes(life.seen[-1])["weights"][1] == to_bytes(LLAMA.weights)
    assert sizes(life.seen[-1])["total"][1] == used_by(LLAMA)
    assert life.warnings == []


@pytest.mark.parametrize(
    "changes", [{"version": "0.20.0"}, {"model_path": "/models/other"}, {"tp": 2}, {"engine": "sglang"}], ids=str
)
def test_what_was_learned_is_not_said_of_another(changes: dict[str, object]) -> None:
    life = Life(with_model=model_of(LLAMA), flags=EngineFlags())
    life.lives(5 * MINUTE, engine=engine_of(LLAMA), gpus=using(used_by(LLAMA)))
    assert sizes(life.seen[-1])["total"][1] is not None
    other = replace(restarted(LLAMA), **changes)  # type: ignore[arg-type]
    assert all(now is None for _, now in sizes(life.lives(1, engine=other)).values())
    # But it is not lost when the first one comes back.
    assert sizes(life.lives(1, engine=engine_of(LLAMA)))["total"][1] is not None
    card = (replace(GPU, name="NVIDIA H200"),)
    assert all(now is None for _, now in sizes(life.lives(1, engine=engine_of(LLAMA), gpus=card)).values())


def test_a_fact_that_is_not_told_for_a_moment_is_no_other_engine() -> None:
    life = Life(with_model=model_of(LLAMA))
    life.lives(5 * MINUTE, engine=engine_of(LLAMA), gpus=using(used_by(LLAMA)))
    life.lives(1, engine=replace(engine_of(LLAMA), version=None, model_path=None, model=""), gpus=())
    assert len(life.past.plain()) == 1


def test_a_bounded_number_of_engines_is_remembered() -> None:
    life = Life()
    for number in range(3 * MAX_KEYS):
        life.lives(1, engine=replace(ENGINE, version=f"0.19.{number}"))
    assert len(life.past.plain()) == MAX_KEYS
    assert [entry["key"]["version"] for entry in life.past.plain()][-1] == f"0.19.{3 * MAX_KEYS - 1}"  # type: ignore[index]


def test_what_was_learned_can_be_written_down_and_read_back() -> None:
    life = Life(with_model=model_of(LLAMA))
    life.lives(5 * MINUTE, engine=engine_of(LLAMA), gpus=using(used_by(LLAMA)))
    plain = json.loads(json.dumps(life.past.plain()))
    later = Life(Past(plain), model_of(LLAMA))
    assert later.past.plain() == life.past.plain()
    assert (
        sizes(later.lives(1, engine=restarted(LLAMA)))["kv_pool"]
        == sizes(life.lives(1, engine=restarted(LLAMA)))["kv_pool"]
    )
    assert sizes(later.seen[-1])["kv_pool"][1] is not None


@given(
    plain=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["key", "figures"]), inner),
        max_leaves=8,
    )
)
def test_anything_else_written_down_is_left_out(plain: object) -> None:
    key = {"engine": "vllm", "version": "", "gpu": "", "model": "", "tp": 1, "pp": 1}
    past = Past([{"key": key, "figures": plain, "settings": plain, "pool_bytes": plain}, {"key": plain}])
    assert past.plain()[0]["figures"] == plain_figures(figures_of(plain))


def part(name: str, size: int, spread: int = 1) -> ComponentPrediction:
    return ComponentPrediction(name, max(size - spread, 0), size, size + spread, None, "")


def test_a_pool_that_was_asked_for_is_neither_corrected_nor_learned_from() -> None:
    parts = (part("weights", 100), part("kv_pool", 500, spread=0), part("total", 600))
    figures = learned(parts, {"weights": [110], "kv_pool": [490], "total": [700]})
    assert figures["kv_pool"] == Figure(500, None)
    assert calibrated(parts, figures, ("weights",)) == {"weights": 110, "kv_pool": 500, "context": 90, "total": 700}
    free = (part("weights", 100), part("kv_pool", 300), part("total", 400))
    # With no pool of its own to learn from, what its neighbour takes more is all there is to know.
    assert calibrated(free, figures, ("weights",))["kv_pool"] == 290
    assert calibrated(free, figures, ())["kv_pool"] == 300


def test_what_is_too_far_off_was_not_measured_of_the_same_thing() -> None:
    parts = (part("weights", 1 << 30), part("graphs", 0))
    assert learned(parts, {"weights": [16_000]})["weights"].measured_bytes is None
    assert learned(parts, {"weights": [1 << 31]})["weights"].measured_bytes == 1 << 31
    assert learned(parts, {"graphs": [7]})["graphs"].measured_bytes == 7


BYTES = st.integers(0, 1 << 40)
NAMES = ("weights", "kv_pool", "activations", "graphs", "context", "total")


@given(
    before=st.dictionaries(st.sampled_from(NAMES), BYTES),
    now=st.dictionaries(st.sampled_from(NAMES), BYTES),
    measured=st.dictionaries(st.sampled_from((*NAMES, "other")), st.lists(BYTES, max_size=4)),
    pays=st.sets(st.sampled_from(NAMES[:3])),
)
def test_calibrated_bytes_are_whole_and_never_negative(
    before: dict[str, int], now: dict[str, int], measured: dict[str, list[int]], pays: set[str]
) -> None:
    figures = learned([part(name, size) for name, size in before.items()], measured)
    found = calibrated([part(name, size) for name, size in now.items()], figures, pays - {"kv_pool"})
    assert all(isinstance(size, int) and size >= 0 for size in found.values())
    assert set(now) <= set(found)


@given(
    ticks=st.lists(
        st.fixed_dictionaries(
            {
                "step": st.sampled_from([0.0, 1.0, 5.0, 60.0, 600.0]),
                "used": st.none() | BYTES,
                "own": st.none() | BYTES,
                "total": st.none() | st.integers(1, 1 << 40),
                "weights": st.none() | BYTES,
                "pool": st.none() | st.integers(1, 1 << 30),
                "started": st.none() | st.sampled_from([1.0, 2.0]),
                "alive": st.sampled_from(["up", "up", "up", "down", "asleep", "no gpu"]),
            }
        ),
        max_size=25,
    )
)
def test_nothing_raises_and_no_bytes_are_negative(ticks: list[dict[str, object]]) -> None:
    past, memo, now, subject = Past(), Memo(), 0.0, model()
    for tick in ticks:
        now += tick["step"]  # type: ignore[operator]
        gpu = replace(GPU, used_bytes=tick["used"], engine_bytes=tick["own"], total_bytes=tick["total"])  # type: ignore[arg-type]
        engine = replace(
            ENGINE,
            asleep=tick["alive"] == "asleep",
            started_seconds=tick["started"],  # type: ignore[arg-type]
            memory_bytes={} if tick["weights"] is None else {"weights": tick["weights"]},  # type: ignore[dict-item]
            ranks=(replace(RANK, capacity_tokens=tick["pool"]),),  # type: ignore[arg-type]
        )
        seen = observation(
            at=now,
            engine=None if tick["alive"] == "down" else engine,
            gpus=() if tick["alive"] == "no gpu" else (gpu,),
            with_model=subject,
        )
        assessment = assess(seen, EngineFlags(), memo)
        past.remember(assessment)
        for each in compared(assessment, past).gpus:
            parts = (*each.components, *((each.total,) if each.total is not None else ()))
            assert all(found.calibrated_bytes is None or found.calibrated_bytes >= 0 for found in parts)
            for drift in each.drifts:
                assert drift.kind == "flags" or (drift.drift_bytes or 0) >= 0
                assert (drift.drift_bytes == 0) == (drift.warning is None) or drift.kind == "flags"
        json.dumps(past.plain(), allow_nan=False)
