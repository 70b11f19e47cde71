"""Transformers: what its caches and its continuous batching hold, though nothing there publishes it.

`watch` is the one call for a program that can be changed; `install` is what `python -m kvgauge_agent -- CMD` does for
one that can't. Either way caches and managers are noted as they are made, by weak references that never keep one alive,
and read once a second in the agent's thread. Code that torch compiles is left as it is.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kvgauge_agent import caches, paged
from kvgauge_agent.daemon import describe, register, start
from kvgauge_agent.imports import when_imported
from kvgauge_agent.log import guarded, reason
from kvgauge_agent.wrapping import call_after

MAX_ENTRIES = 64
"""Entries of `caches`; each is about 150 bytes of the file's 64 KiB."""
READ_SECONDS = 0.001
"""Processor time that reading caches may take in one tick."""
_MAX_NAME = 256


def watch(watched: object = None) -> None:
    """Starts this process' agent and has it read the caches of Transformers. Never raises.

    `watched` may be a model, a ContinuousBatchingManager or a cache that exists already; what is made later is found
    without being named. Nothing given is changed, or kept alive.
    """
    guarded("the agent", _watch, watched)


def install() -> None:
    """Starts the agent when the program imports torch, and watches Transformers when that is imported."""
    when_imported("torch", lambda torch: start("program", "torch", engine_version=str(torch.__version__)))
    _hook()


def _watch(watched: object) -> None:
    start()
    _hook()
    if watched is None:
        return
    if hasattr(watched, "batch_processor"):
        _part.note_manager(watched)
    elif hasattr(watched, "generate"):
        _part.note_model(watched)
        _part.note_manager(getattr(watched, "_cached_continuous_batching_manager", None))
        _part.note_cache(getattr(watched, "_cache", None))
    else:
        _part.note_cache(watched)


class TransformersPart:
    """The part of the file that comes from Transformers: `caches` and, with continuous batching, `scheduler`."""

    name = "caches"

    def __init__(self) -> None:
        self._caches: dict[int, weakref.ref[Any]] = {}
        self._managers: dict[int, weakref.ref[Any]] = {}
        self._lengths: dict[int, int] = {}
        self._facts: dict[str, object] = {}
        self._process = 0

    def note_cache(self, cache: Any, length: int | None = None) -> None:
        """Remembers a cache, and how many tokens of each sequence it holds where the caller knows."""
        if cache is None:
            return
        parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
        if parts[0] is not None:
            # Cross-attention holds the encoder's tokens, however far the decoder is.
            self.note_cache(parts[0], length)
            self.note_cache(parts[1])
            return
        self._note(self._caches, cache)
        if length is not None:
            self._lengths[id(cache)] = length

    def note_manager(self, manager: Any) -> None:
        """Remembers a manager of continuous batching."""
        if manager is not None:
            self._note(self._managers, manager)
            self.note_model(getattr(manager, "model", None))
            self._describe(role="scheduler")

    def note_model(self, model: Any) -> None:
        """Names the model in the file, by the path or id it was loaded from."""
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        if isinstance(name, str) and name:
            self._describe(model=name[:_MAX_NAME])

    def _describe(self, **facts: object) -> None:
        if any(self._facts.get(key) != value for key, value in facts.items()):
            self._facts.update(facts)
            describe(**facts)

    def _note(self, noted: dict[int, weakref.ref[Any]], thing: Any) -> None:
        key = id(thing)
        known = noted.get(key)
        if known is None or known() is not thing:
            noted[key] = weakref.ref(thing, functools.partial(self._forget, noted, key))
        # A forked child has the notes and no thread.
        if self._process != os.getpid():
            self._process = os.getpid()
            describe(**_engine(), **self._facts)
            register(self)

    def _forget(self, noted: dict[int, weakref.ref[Any]], key: int, gone: weakref.ref[Any]) -> None:
        if noted.get(key) is gone:
            del noted[key]
            if noted is self._caches:
                self._lengths.pop(key, None)

    def collect(self) -> Mapping[str, object]:
        """`caches`, `scheduler` where a manager has a pool, and what is missing."""
        missing: dict[str, str] = {}
        found: list[caches.Entry] = []
        file: dict[str, object] = {"caches": found, "missing": missing}
        for manager in list(self._managers.values()):
            self._add_pool(manager(), file, found, missing)
        began = time.thread_time()
        newest_first = list(self._caches.items())[::-1]
        for index, (key, cache) in enumerate(newest_first):
            if len(found) >= MAX_ENTRIES or time.thread_time() - began > READ_SECONDS:
                missing["caches"] = f"{len(newest_first) - index} older caches were not read: too many to read in time"
                break
            self._add_cache(cache(), self._lengths.get(key), found, missing)
        del found[MAX_ENTRIES:]
        return file

    def _add_cache(self, cache: Any, length: int | None, found: list[caches.Entry], missing: dict[str, str]) -> None:
        if cache is None:
            return
        try:
            entries, lacking = caches.entries(cache, length)
        except caches.UnreadableError as error:
            missing[f"caches.{type(cache).__name__}"] = str(error)
        except Exception as error:
            # Another thread may be in the middle of changing it; the next tick finds it whole.
            missing[f"caches.{type(cache).__name__}"] = reason(error)
        else:
            found += entries
            missing.update(lacking)

    def _add_pool(
        self, manager: Any, file: dict[str, object], found: list[caches.Entry], missing: dict[str, str]
    ) -> None:
        if manager is None:
            return
        try:
            facts = paged.facts(manager)
        except Exception as error:
            missing["scheduler"] = missing["caches.paged"] = f"the books are kept in another way: {reason(error)}"
            return
        if facts is None:
            return
        scheduler, entry = facts
        found.append(entry)
        file["scheduler"] = scheduler
        missing["scheduler.preemptions"] = "Transformers does not count them"
        missing["scheduler.max_model_len"] = "Transformers sets no limit"
        if "block_tokens" not in entry:
            missing["caches.paged.block_tokens"] = "its groups of layers have blocks of their own: see scheduler.groups"


_part = TransformersPart()


def _engine() -> dict[str, object]:
    # vLLM uses classes of Transformers too, and describes itself.
    if "vllm" in sys.modules:
        return {}
    return {"engine": "transformers", "engine_version": getattr(sys.modules["transformers"], "__version__", None)}


def _hook() -> None:
    when_imported("transformers.cache_utils", _hook_caches)
    when_imported("transformers.generation.utils", _hook_generation)
    when_imported("transformers.generation.continuous_batching.continuous_api", _hook_batching)


def _hook_caches(module: ModuleType) -> None:
    call_after(module.Cache, "__init__", _cache_made, "the notice of caches")


def _hook_generation(module: ModuleType) -> None:
    name = "_update_model_kwargs_for_generation"
    call_after(module.GenerationMixin, name, _step_generated, "the length of static caches")


def _hook_batching(module: ModuleType) -> None:
    call_after(module.ContinuousBatchingManager, "__init__", _manager_made, "the notice of continuous batching")


def _cache_made(cache: Any, _: object) -> None:
    # A compiler that traces this sees a constant, and nothing of the rest.
    if not sys.modules["torch"].compiler.is_compiling():
        _part.note_cache(cache)


def _manager_made(manager: Any, _: object) -> None:
    _part.note_manager(manager)


def _step_generated(model: Any, next_inputs: Any) -> None:
    """After each step of `generate`: which cache it used, and how far, as the shapes of the next step's inputs tell.

    Finds caches that were made by copying another, and the length of a static one, which lies on the device.
    """
    cache = next_inputs.get("past_key_values")
    if cache is None or sys.modules["torch"].compiler.is_compiling():
        return
    prefix = "decoder_" if getattr(model.config, "is_encoder_decoder", False) else ""
    inputs = [next_inputs.get(prefix + name) for name in ("attention_mask", "position_ids")]
    # They count the token just made, which no cache holds yet.
    lengths = [int(given.shape[-1]) - 1 for given in inputs if given is not None]
    _part.note_model(model)
    _part.note_cache(cache, max(lengths, default=None))
