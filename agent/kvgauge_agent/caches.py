"""What a Transformers cache outside a paged pool holds, in bytes and tokens, by the kind of its layers.

The agent's thread reads while the program computes, so nothing here may wait for a device or look into a tensor: the
figures come from shapes, element sizes and storages. A length is read only where it is a Python number or lies in host
memory. `get_seq_length` is never called: in some versions it reduces the whole cache on the device.

Layouts read: Transformers 4.54 to 5.23, where a cache is a list of layers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Entry = dict[str, object]

DEVICE_LENGTH = "its length is kept on the device, and reading it would make the program wait"
_NESTING = 5


class UnreadableError(Exception):
    """The cache is not laid out as any version known here, or is being traced by a compiler; the text says which."""


def entries(cache: Any, length: int | None = None) -> tuple[list[Entry], dict[str, str]]:
    """What one cache holds now: an entry of `caches` for each kind of layer in it, and reasons for what is missing.

    `length` is the number of tokens of each sequence, where somebody knows it: a static cache may not say. A cache that
    holds nothing yet has no entries. Padding counts as tokens. Raises UnreadableError.
    """
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list):
        raise UnreadableError(f"a {type(cache).__name__} has no list of layers")
    layers = list(layers)
    known = [tokens for tokens in map(_length, layers) if tokens is not None]
    reading = _Reading(max(known, default=length), offloaded=bool(getattr(cache, "offloading", False)))
    for layer in layers:
        reading.add(layer)
    return reading.result()


@dataclass
class _Kind:
    """The sums over the layers of one kind; tokens are the most that any of them holds."""

    layers: int = 0
    sequences: int = 0
    allocated_bytes: int = 0
    live_bytes: int = 0
    live_tokens: int = 0
    capacity_tokens: int | None = None
    unknown: str = ""


class _Reading:
    """The sums over one cache's layers. Bytes in host memory are left out where the cache is offloaded there."""

    def __init__(self, length: int | None, offloaded: bool) -> None:
        self._length = length
        self._offloaded = offloaded
        self._kinds: dict[str, _Kind] = {}
        self._storages: set[int] = set()

    def add(self, layer: Any) -> None:
        if hasattr(layer, "conv_states"):
            states = [*plain_tensors(layer.conv_states), *plain_tensors(getattr(layer, "recurrent_states", None))]
            if states:
                self._count("state", states, states[0].shape[0], _bytes(states))
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if hasattr(layer, "_quantize"):
            self._add_quantized(layer, keys, values)
        elif keys is not None and values is not None:
            self._add_plain(layer, [*plain_tensors(keys), *plain_tensors(values)])

    def _add_plain(self, layer: Any, tensors: list[Any]) -> None:
        if not tensors or tensors[0].dim() < 3:
            return
        sliding = bool(getattr(layer, "is_sliding", False))
        sequences, slots = tensors[0].shape[0], tensors[0].shape[-2]
        if hasattr(layer, "indexer_keys"):
            tensors += plain_tensors(layer.indexer_keys)
        size = _bytes(tensors)
        if not hasattr(layer, "max_cache_len"):
            kind = self._count("sliding" if sliding else "dynamic", tensors, sequences, size)
            kind.live_tokens = max(kind.live_tokens, sequences * slots)
            return
        own = _length(layer)
        length = self._length if own is None else own
        tokens = min(length or 0, slots)
        kind = self._count("sliding" if sliding else "static", tensors, sequences, size * tokens // max(slots, 1))
        kind.capacity_tokens = max(kind.capacity_tokens or 0, sequences * slots)
        kind.live_tokens = max(kind.live_tokens, sequences * tokens)
        if length is None:
            kind.unknown = DEVICE_LENGTH

    def _add_quantized(self, layer: Any, keys: Any, values: Any) -> None:
        quantized = [getattr(layer, name, None) for name in ("_quantized_keys", "_quantized_values")]
        tensors = [tensor for part in (*quantized, keys, values) for tensor in plain_tensors(part)]
        if not tensors:
            return
        sequences = _sequences(quantized[0], keys)
        kind = self._count("quantized", tensors, sequences, _bytes(tensors))
        tokens = _length(layer)
        kind.live_tokens = max(kind.live_tokens, sequences * (tokens or 0))
        if tokens is None or not sequences:
            kind.unknown = "its layers do not tell how many tokens they hold"

    def _count(self, name: str, tensors: list[Any], sequences: int, live_bytes: int) -> _Kind:
        kind = self._kinds.get(name) or self._kinds.setdefault(name, _Kind())
        kind.layers += 1
        kind.sequences = max(kind.sequences, sequences)
        allocated = self._allocated_bytes(tensors)
        kind.allocated_bytes += allocated
        kind.live_bytes += live_bytes if allocated or not self._offloaded else 0
        return kind

    def _allocated_bytes(self, tensors: list[Any]) -> int:
        """Bytes of the storages behind the tensors, each counted once; what a view leaves unused is among them."""
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            identity = storage._cdata
            if identity in self._storages or (self._offloaded and storage.device.type == "cpu"):
                continue
            self._storages.add(identity)
            total += storage.nbytes()
        return total

    def result(self) -> tuple[list[Entry], dict[str, str]]:
        found: list[Entry] = []
        missing: dict[str, str] = {}
        for name, kind in self._kinds.items():
            entry: Entry = {
                "kind": name,
                "layers": kind.layers,
                "sequences": kind.sequences,
                "allocated_bytes": kind.allocated_bytes,
            }
            if kind.capacity_tokens is not None:
                entry["capacity_tokens"] = kind.capacity_tokens
            if kind.unknown:
                missing[f"caches.{name}.live_tokens"] = kind.unknown
            elif name != "state":
                entry["live_tokens"] = kind.live_tokens
            # Only a preallocated layer's bytes depend on the length.
            if kind.unknown and kind.capacity_tokens is not None:
                missing[f"caches.{name}.live_bytes"] = kind.unknown
            else:
                entry["live_bytes"] = kind.live_bytes
            found.append(entry)
        return found, missing


def plain_tensors(value: Any, nesting: int = _NESTING) -> Iterator[Any]:
    """The ordinary tensors that make up a value: itself, those inside a subclass that wraps others, or in containers.

    Raises UnreadableError for tensors that stand for others while a compiler traces: their sizes may be symbols, and
    looking at one would change what is compiled.
    """
    torch: Any = sys.modules["torch"]
    if type(value) is torch.Tensor or type(value) is torch.nn.Parameter:
        yield value
    elif isinstance(value, torch.Tensor):
        if nesting == 0 or not hasattr(type(value), "__tensor_flatten__"):
            raise UnreadableError(f"it holds a {type(value).__name__}")
        for name in value.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(value, name), nesting - 1)
    elif nesting and isinstance(value, (tuple, list)):
        for item in list(value):
            yield from plain_tensors(item, nesting - 1)
    elif nesting and isinstance(value, dict):
        for item in list(value.values()):
            yield from plain_tensors(item, nesting - 1)


def _bytes(tensors: list[Any]) -> int:
    return sum([tensor.nbytes for tensor in tensors])


def _length(layer: Any) -> int | None:
    """Tokens of each sequence that a layer has been given, where it says so in host memory."""
    if not getattr(layer, "is_initialized", True):
        return None
    for name in ("cumulative_length_int", "cumulative_length"):
        value: Any = getattr(layer, name, None)
        if type(value) is int:
            return value
        if type(value) is sys.modules["torch"].Tensor and value.device.type == "cpu" and value.numel() == 1:
            return int(value.item())
    return None


def _sequences(quantized: Any, keys: Any) -> int:
    """Sequences in a quantized layer: by its full-precision rest, else by the shape the packed numbers stand for."""
    if getattr(keys, "ndim", 0) == 4:
        return int(keys.shape[0])
    if isinstance(quantized, tuple) and len(quantized) == 2 and isinstance(quantized[1], dict):
        shape = quantized[1].get("shape", ())
    else:
        shape = getattr(quantized[0] if isinstance(quantized, tuple) else quantized, "shape", ())
    return int(shape[0]) if len(shape) == 4 else 0
