"""Attention kinds: each knows its own bytes. All figures are bytes on one rank of a tensor-parallel group of `tp`.

`growth` is what every further token adds for ever, `window` is what stops growing, `state` is constant per sequence.
A new kind is one class that satisfies `Layer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from kvmodel.dtypes import KvDtype
from kvmodel.errors import ModelError


class Layer(Hashable, Protocol):
    """One layer's cache of one sequence, without block rounding."""

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        """Bytes of one token while it is kept."""

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int:
        """Bytes each further token adds however long the sequence is."""

    def window_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        """Bytes of a full window; 0 for a kind without one."""

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        """Bytes that do not depend on the length; 0 for a kind without state."""

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int:
        """Bytes held for a sequence of `tokens` tokens."""


def heads_per_rank(kv_heads: int, tp: int) -> int:
    """KV heads one rank holds: an even share, or one replica when there are more ranks than heads.

    vLLM `ModelConfig.get_num_kv_heads` and SGLang alike. Raises ModelError (field `tp`) when neither divides.
    """
    if tp < 1 or (kv_heads % tp and tp % kv_heads):
        raise ModelError("tp", f"{tp} neither divides {kv_heads} KV heads nor is a multiple of them")
    return max(1, kv_heads // tp)


class _PerToken(ABC):
    """A cache of rows, one set per token: all of them, or the last `kept_tokens`."""

    __slots__ = ()

    @property
    def kept_tokens(self) -> int | None:
        """The most tokens kept; None where every token is kept to the end."""
        return None

    @abstractmethod
    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int: ...

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int:
        return self.token_bytes(kv, tp) if self.kept_tokens is None else 0

    def window_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        return (self.kept_tokens or 0) * self.token_bytes(kv, tp)

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return 0

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int:
        kept = tokens if self.kept_tokens is None else min(tokens, self.kept_tokens)
        return kept * self.token_bytes(kv, tp)


@dataclass(frozen=True, slots=True)
class _Heads(_PerToken):
    """K and V rows of every KV head: `kv_heads * (head_dim_k + head_dim_v)` elements per token."""

    kv_heads: int
    head_dim_k: int
    head_dim_v: int

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        return heads_per_rank(self.kv_heads, tp) * (kv.row_bytes(self.head_dim_k) + kv.row_bytes(self.head_dim_v))


@dataclass(frozen=True, slots=True)
class FullAttention(_Heads):
    """MHA, GQA and MQA over the whole sequence."""


@dataclass(frozen=True, slots=True)
class SlidingWindowAttention(_Heads):
    """Attention to the last `window_tokens` tokens: older ones are dropped."""

    window_tokens: int

    @property
    def kept_tokens(self) -> int:
        return self.window_tokens


@dataclass(frozen=True, slots=True)
class ChunkedLocalAttention(_Heads):
    """Attention inside the current chunk of `chunk_tokens` tokens (Llama 4): never more than one chunk is needed.

    `bytes_at` is the most held on the way to that length, since the cache starts afresh with each chunk.
    """

    chunk_tokens: int

    @property
    def kept_tokens(self) -> int:
        return self.chunk_tokens


@dataclass(frozen=True, slots=True)
class LatentAttention(_PerToken):
    """MLA (DeepSeek-V2, arXiv 2405.04434): one latent of `kv_lora_rank + qk_rope_head_dim` elements, no V.

    Every tensor-parallel rank holds the whole latent.
    """

    kv_lora_rank: int
    qk_rope_head_dim: int

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        if tp < 1:
            raise ModelError("tp", f"{tp} is less than 1")
        return kv.row_bytes(self.kv_lora_rank + self.qk_rope_head_dim)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """`count` layers of one kind and one geometry."""

    layer: Layer
    count: int


def group_layers(layers: Iterable[Layer]) -> tuple[LayerGroup, ...]:
    """Layers in model order, gathered into groups of equal ones, in order of first appearance."""
    counts: dict[Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(LayerGroup(layer, count) for layer, count in counts.items())
