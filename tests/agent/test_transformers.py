"""Finding caches and managers, by weak references, and the part of the file they become."""

import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvgauge_agent import transformers
from kvgauge_agent.transformers import MAX_ENTRIES, TransformersPart

from . import fake_torch
from .fake_torch import Tensor


class Layer:
    is_initialized = True

    def __init__(self) -> None:
        self.keys = self.values = Tensor(1, 2, 3, 4)


class Cache:
    def __init__(self) -> None:
        self.layers = [Layer()]


class StaticCache(Cache):
    def __init__(self) -> None:
        super().__init__()
        vars(self.layers[0])["max_cache_len"] = 3


class StrangeCache:
    pass


class Manager:
    def __init__(self, processor: object = None) -> None:
        self.batch_processor = processor
        self.model = SimpleNamespace(config=SimpleNamespace(_name_or_path="org/model"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the agent is told; it does not run here."""
    facts: dict[str, object] = {}
    monkeypatch.setitem(sys.modules, "torch", fake_torch.module())
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    monkeypatch.setattr(transformers, "describe", lambda **more: facts.update(more))
    monkeypatch.setattr(transformers, "register", lambda part: facts.update(part=part.name))
    monkeypatch.setattr(transformers, "when_imported", lambda *_: None)
    monkeypatch.setattr(transformers, "start", lambda *_, **__: facts.update(started=True))
    return facts


@pytest.fixture
def part(told: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> TransformersPart:
    made = TransformersPart()
    monkeypatch.setattr(transformers, "_part", made)
    return made


def collected(part: TransformersPart) -> Any:
    return part.collect()


def test_the_first_cache_starts_the_part(part: TransformersPart, told: dict[str, object]) -> None:
    assert told == {}
    cache = Cache()
    part.note_cache(cache)
    assert told == {"engine": "transformers", "engine_version": None, "part": "caches"}
    assert [entry["kind"] for entry in collected(part)["caches"]] == ["dynamic"]
    del cache


def test_vllm_describes_itself(
    part: TransformersPart, told: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    cache = Cache()
    part.note_cache(cache)
    assert told == {"part": "caches"}


def test_nothing_is_kept_alive(part: TransformersPart) -> None:
    cache, manager = Cache(), Manager()
    part.note_cache(cache, 3)
    part.note_manager(manager)
    assert len(collected(part)["caches"]) == 1
    del cache, manager
    gc.collect()
    assert collected(part) == {"caches": [], "missing": {}}
    assert not any((part._caches, part._managers, part._lengths))


def test_a_static_cache_has_the_length_that_generation_told(part: TransformersPart) -> None:
    cache = StaticCache()
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False, _name_or_path="org/model"))
    transformers._step_generated(
        model, {"past_key_values": cache, "attention_mask": Tensor(1, 3), "position_ids": None}
    )
    assert [entry["live_tokens"] for entry in collected(part)["caches"]] == [2]
    transformers._step_generated(model, {"past_key_values": cache, "attention_mask": None})
    transformers._step_generated(model, {"past_key_values": None})
    assert [entry["live_tokens"] for entry in collected(part)["caches"]] == [2]


def test_the_two_caches_of_an_encoder_decoder(part: TransformersPart) -> None:
    both = SimpleNamespace(self_attention_cache=StaticCache(), cross_attention_cache=Cache())
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    inputs = {"past_key_values": both, "decoder_attention_mask": Tensor(1, 3), "attention_mask": Tensor(1, 99)}
    transformers._step_generated(model, inputs)
    found = collected(part)["caches"]
    assert {entry["kind"]: entry["live_tokens"] for entry in found} == {"static": 2, "dynamic": 3}


def test_caches_of_code_that_is_being_compiled_are_left_alone(
    part: TransformersPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch.module(compiling=True))
    cache = Cache()
    transformers._cache_made(cache, None)
    assert collected(part)["caches"] == []


def test_a_strange_cache_is_named_and_the_others_read(part: TransformersPart) -> None:
    strange, cache, broken = StrangeCache(), Cache(), Cache()
    vars(broken)["layers"] = [SimpleNamespace(keys=1, values=1)]
    for each in (strange, cache, broken):
        part.note_cache(each)
    found = collected(part)
    assert len(found["caches"]) == 1
    assert found["missing"] == {"caches.StrangeCache": "a StrangeCache has no list of layers"}


def test_the_newest_caches_are_read_and_the_rest_counted(part: TransformersPart) -> None:
    many = [Cache() for _ in range(MAX_ENTRIES + 5)]
    for cache in many:
        part.note_cache(cache)
    found = collected(part)
    assert 0 < len(found["caches"]) <= MAX_ENTRIES
    left_out = len(many) - len(found["caches"])
    assert found["missing"]["caches"].startswith(f"{left_out} older caches")


def test_a_manager_whose_books_are_not_known(part: TransformersPart, told: dict[str, object]) -> None:
    processor = SimpleNamespace(cache=SimpleNamespace(), scheduler=SimpleNamespace(active_requests={}))
    manager = Manager(processor)
    part.note_manager(manager)
    found = collected(part)
    assert "scheduler" not in found
    assert set(found["missing"]) == {"scheduler", "caches.paged"}
    assert "AttributeError" in found["missing"]["scheduler"]
    assert told == {**told, "role": "scheduler", "model": "org/model"}


def test_watch_takes_what_a_program_has(part: TransformersPart, told: dict[str, object]) -> None:
    manager, cache = Manager(), Cache()
    model = SimpleNamespace(generate=None, _cache=cache, config=SimpleNamespace(_name_or_path="x" * 999))
    model._cached_continuous_batching_manager = manager
    transformers.watch(model)
    assert told["started"] is True
    assert told["model"] == "org/model"
    assert len(part._managers) == len(part._caches) == 1
    transformers.watch()
    transformers.watch(cache)
    # No weak reference can be made to a number: said in the log, not raised.
    transformers.watch(7)
