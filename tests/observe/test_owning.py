"""Whose GPUs: what the engine was given, its own processes, or nothing at all."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.observe.model import ModelSource
from kvgauge.observe.observer import Observer
from kvgauge.observe.owning import Ownership, owned
from kvgauge.observe.records import AgentReading, AllocatorReading, GpuReading, ProcessReading
from kvgauge.settings import validated
from tests.support.facts import GIB, GPU


def node(number: int = 8) -> tuple[GpuReading, ...]:
    return tuple(replace(GPU, gpu=index, uuid=f"GPU-0000000{index}") for index in range(number))


def agent(*uuids: str, reserved_bytes: int | None = GIB) -> AgentReading:
    allocators = tuple(AllocatorReading(index, uuid, reserved_bytes=reserved_bytes) for index, uuid in enumerate(uuids))
    return AgentReading((ProcessReading(1, "pod-1", "worker", "vllm", 0.0, allocators=allocators),))


def indices(gpus: Sequence[GpuReading]) -> list[int]:
    return [gpu.gpu for gpu in gpus]


def test_nothing_said_and_no_more_visible_than_given_leave_all() -> None:
    assert owned(node(), None, Ownership()) == (node(), None)
    assert owned(node(2), None, Ownership(count=2)) == (node(2), None)
    assert owned((), None, Ownership(count=2, uuids=frozenset({"GPU-1"}))) == ((), None)


def test_more_visible_than_given_and_nothing_known_shows_none() -> None:
    gpus, why = owned(node(), None, Ownership(count=1))
    assert gpus == ()
    assert why is not None
    assert "8 GPUs are visible" in why


def test_named_gpus() -> None:
    named = Ownership(count=1, uuids=frozenset({"GPU-00000003", "MIG-x"}))
    assert indices(owned(node(), None, named)[0]) == [3]
    gpus, why = owned(node(), None, Ownership(uuids=frozenset({"GPU-nowhere"})))
    assert gpus == ()
    assert why is not None


def test_the_agents_allocators_tell() -> None:
    # torch may leave the prefix out.
    told = agent("00000005", "GPU-00000002")
    assert indices(owned(node(), told, Ownership(count=2))[0]) == [2, 5]
    assert owned(node(), agent("00000005", reserved_bytes=0), Ownership(count=1))[0] == ()
    # More than it was given: that is not believed.
    assert owned(node(), told, Ownership(count=1))[0] == ()


def test_the_drivers_process_lists_tell() -> None:
    gpus = (*node(3), replace(GPU, gpu=3, uuid="GPU-00000003", engine_bytes=70 * GIB))
    assert indices(owned(gpus, None, Ownership(count=1))[0]) == [3]
    assert owned(tuple(replace(gpu, engine_bytes=1) for gpu in gpus), None, Ownership(count=1))[0] == ()


@given(st.integers(0, 8), st.integers(1, 8), st.sets(st.integers(0, 7)))
def test_never_more_than_given(visible: int, count: int, used: set[int]) -> None:
    gpus, why = owned(node(visible), agent(*(f"GPU-0000000{index}" for index in used)), Ownership(count=count))
    assert len(gpus) <= count
    assert all(gpu in node(visible) for gpu in gpus)
    assert (why is None) == (bool(gpus) or visible == 0)


class Devices:
    name = "nvml"

    def read(self) -> tuple[GpuReading, ...]:
        return node()


@contextmanager
def observer(ownership: Ownership) -> Iterator[Observer]:
    watching = Observer(
        Devices(), None, ModelSource(), engine_timeout_seconds=0.5, stale_after_seconds=5, ownership=ownership
    )
    with closing(watching):
        yield watching


@pytest.mark.parametrize(
    ("ownership", "seen", "reason"), [(Ownership(count=1), 0, "ambiguous"), (Ownership(), 8, None)]
)
def test_what_cannot_be_told_is_not_published(ownership: Ownership, seen: int, reason: str | None) -> None:
    with observer(ownership) as watching:
        observation = watching.observe(2)
    assert len(observation.gpus) == seen
    state = next(state for state in observation.sources if state.source == "nvml")
    assert (state.up, state.reason) == (reason is None, reason)


def test_settings() -> None:
    settings = validated({"gpu_count": "2", "gpu_uuids": "GPU-1,GPU-2"})
    assert (settings.gpu_count, settings.gpu_uuids) == (2, "GPU-1,GPU-2")
