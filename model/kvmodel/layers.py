"""Cache kinds: each knows its own bytes. All figures are bytes on one rank of a tensor-parallel group of `tp`.

`growth` is what every further token adds for ever, `window` is what stops growing, `state` is constant per sequence.
What an encoder's output costs stands apart: it comes once per input, not per token (`CrossAttention`). A new kind is
one class that satisfies `Layer`. Recurrent kinds lie in `kvmodel.states`.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kvmodel.dtypes import KvDtype
from kvmodel.errors import ModelError

if TYPE_CHECKING:
    from kvmodel.states import (
        GatedDeltaNetState,
        KimiDeltaState,
        LightningState,
        Mamba1State,
        Mamba2State,
        MatrixState,
        RgLruState,
        RwkvState,
        ShortConvState,
        StateLayer,
    )

__all__ = [
    "Block",
    "ChunkedLocalAttention",
    "CompressedLatentAttention",
    "CrossAttention",
    "FullAttention",
    "GatedDeltaNetState",
    "HeadsLayer",
    "IndexKeys",
    "KimiDeltaState",
    "LatentAttention",
    "Layer",
    "LayerGroup",
    "LightningState",
    "Mamba1State",
    "Mamba2State",
    "MatrixState",
    "RgLruState",
    "RwkvState",
    "ShortConvState",
    "SlidingLatentAttention",
    "SlidingWindowAttention",
    "StateLayer",
    "WindowLatent",
    "exact_ratio",
    "group_layers",
    "heads_per_rank",
]


def __getattr__(name: str) -> object:
    """Recurrent kinds, loaded when first asked for: most models have none, and every class costs import time."""
    if name in __all__:
        from kvmodel import states

        return getattr(states, name)
    raise AttributeError(name)


class Layer(Hashable, Protocol):
    """One cache of one sequence, without block rounding.

    Byte counts are whole numbers but for compressed kinds, where one entry stands for several tokens and a token's
    share may be a fraction.
    """

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int | float:
        """Bytes of one token while it is kept."""

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int | float:
        """Bytes each further token adds however long the sequence is."""

    def window_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        """Bytes of a full window; 0 for a kind without one."""

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        """Bytes that do not depend on the length; 0 for a kind without state."""

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int | float:
        """Bytes held for a sequence of `tokens` tokens."""


def heads_per_rank(kv_heads: int, tp: int) -> int:
    """KV heads one rank holds: an even share, or one replica when there are more ranks than heads.

    vLLM `ModelConfig.get_num_kv_heads` and SGLang alike. Raises ModelError (field `tp`) when neither divides.
    """
    if tp < 1 or (kv_heads % tp and tp % kv_heads):
        raise ModelError("tp", f"{tp} neither divides {kv_heads} KV heads nor is a multiple of them")
    return max(1, kv_heads // tp)


def exact_ratio(bytes_: int, tokens: int) -> int | float:
    """`bytes_ / tokens`, as a whole number where it is one."""
    return bytes_ // tokens if bytes_ % tokens == 0 else bytes_ / tokens


class _PerToken(ABC):
    """A cache of rows, one set per token: all of them, or the last `kept_tokens`."""

    __slots__ = ()

    @property
    def kept_tokens(self) -> int | None:
        """The most tokens kept; None where every token is kept to the end."""
        return None

    @abstractmethod
    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int: ...

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int | float:
        return self.token_bytes(kv, tp) if self.kept_tokens is None else 0

    def window_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        return (self.kept_tokens or 0) * self.token_bytes(kv, tp)

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return 0

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int | float:
        kept = tokens if self.kept_tokens is None else min(tokens, self.kept_tokens)
        return kept * self.token_bytes(kv, tp)


@dataclass(frozen=True, slots=True)
class HeadsLayer(_PerToken):
    """K and V rows of every KV head: `kv_heads * (head_dim_k + head_dim_v)` elements per token."""

    kv_heads: int
    head_dim_k: int
    head_dim_v: int

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        return heads_per_rank(self.kv_heads, tp) * kv.pair_bytes(self.head_dim_k, self.head_dim_v)


@dataclass(frozen=True, slots=True)
class FullAttention(HeadsLayer):
    """MHA, GQA and MQA over the whole sequence.

    `sink_tokens` learned K/V rows stand before every sequence (not learned sink logits, which cost nothing).
    """

    sink_tokens: int = 0

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        return self.sink_tokens * self.token_bytes(kv, tp)

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int | float:
        return (tokens + self.sink_tokens) * self.token_bytes(kv, tp)


@dataclass(frozen=True, slots=True)
class SlidingWindowAttention(HeadsLayer):
    """Attention to the last `window_tokens` tokens: older ones are dropped."""

    window_tokens: int

    @property
    def kept_tokens(self) -> int:
        return self.window_tokens


@dataclass(frozen=True, slots=True)
class ChunkedLocalAttention(HeadsLayer):
    """Attention inside the current chunk of `chunk_tokens` tokens (Llama 4): never more than one chunk is needed.

    `bytes_at` is the most held on the way to that length, since the cache starts afresh with each chunk.
    """

    chunk_tokens: int

    @property
    def kept_tokens(self) -> int:
        return self.chunk_tokens


@dataclass(frozen=True, slots=True)
class CrossAttention(HeadsLayer):
    """K and V of the encoder's output: filled once per input, whatever the sequence then grows to.

    `encoder_tokens` is what one input holds at most (Whisper 1500, mllama's four tiles); None where the config sets
    no limit. These bytes are no part of growth, window and state.
    """

    encoder_tokens: int | None = None

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int | float:  # noqa: ARG002
        return 0

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int | float:  # noqa: ARG002
        return 0

    def encoder_bytes(self, encoder_tokens: int, kv: KvDtype, tp: int = 1) -> int:
        """Bytes of an input of that many encoder tokens."""
        return encoder_tokens * self.token_bytes(kv, tp)


@dataclass(frozen=True, slots=True)
class LatentAttention(_PerToken):
    """MLA (DeepSeek-V2, arXiv 2405.04434): one latent of `kv_lora_rank + qk_rope_head_dim` elements, no V.

    Every tensor-parallel rank holds the whole latent.
    """

    kv_lora_rank: int
    qk_rope_head_dim: int

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        _check_rank(tp)
        return kv.latent_row_bytes(self.kv_lora_rank, self.qk_rope_head_dim)


@dataclass(frozen=True, slots=True)
class SlidingLatentAttention(LatentAttention):
    """MLA over the last `window_tokens` tokens."""

    window_tokens: int

    @property
    def kept_tokens(self) -> int:
        return self.window_tokens


@dataclass(frozen=True, slots=True)
class WindowLatent(_PerToken):
    """DeepSeek-V4's uncompressed rows of the last `window_tokens` tokens, which every layer keeps: K is V."""

    head_dim: int
    qk_rope_head_dim: int
    window_tokens: int

    @property
    def kept_tokens(self) -> int:
        return self.window_tokens

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:
        _check_rank(tp)
        return kv.shared_row_bytes(self.head_dim, self.qk_rope_head_dim)


class _Compressed(ABC):
    """One row for every `tokens_per_entry` tokens. Whole on every rank."""

    __slots__ = ()

    @property
    @abstractmethod
    def entry_tokens(self) -> int:
        """Tokens one row stands for."""

    @abstractmethod
    def entry_bytes(self, kv: KvDtype) -> int:
        """Bytes of one row."""

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int | float:
        _check_rank(tp)
        return exact_ratio(self.entry_bytes(kv), self.entry_tokens)

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int | float:
        return self.token_bytes(kv, tp)

    def window_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return 0

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return 0

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int | float:
        _check_rank(tp)
        return exact_ratio(tokens * self.entry_bytes(kv), self.entry_tokens)


@dataclass(frozen=True, slots=True)
class CompressedLatentAttention(_Compressed):
    """DeepSeek-V4: one row of `head_dim` elements, K and V in one, for every `tokens_per_entry` tokens.

    The compressor's own float32 rows of tokens not yet compressed are no part of the figures; `compressor_rows` and
    `compressor_row_bytes` give them (vLLM 0.32 `models/deepseek_v4/compressor.py`).
    """

    head_dim: int
    qk_rope_head_dim: int
    tokens_per_entry: int

    @property
    def entry_tokens(self) -> int:
        return self.tokens_per_entry

    def entry_bytes(self, kv: KvDtype) -> int:
        return kv.shared_row_bytes(self.head_dim, self.qk_rope_head_dim)

    @property
    def compressor_rows(self) -> int:
        """Tokens the compressor looks back: entries of ratio 4 overlap."""
        return _overlap(self.tokens_per_entry) * self.tokens_per_entry

    @property
    def compressor_row_bytes(self) -> int:
        """A value and a gate per element, in float32, once per overlap."""
        return 2 * _overlap(self.tokens_per_entry) * self.head_dim * 4


@dataclass(frozen=True, slots=True)
class IndexKeys(_Compressed):
    """Keys of a sparse-attention indexer: one head of `dim` elements, K only, whole on every rank.

    `packed` keys lie in fp8 with one float32 scale per 128 elements (DeepSeek-V3.2), others in 16 bits (MiniMax-M3),
    whatever the cache's type. DeepSeek-V4 indexes its compressed rows: one for `tokens_per_entry` tokens.
    """

    dim: int
    packed: bool = True
    tokens_per_entry: int = 1

    @property
    def entry_tokens(self) -> int:
        return self.tokens_per_entry

    def entry_bytes(self, kv: KvDtype) -> int:  # noqa: ARG002
        return self.dim + 4 * -(-self.dim // 128) if self.packed else 2 * self.dim

    @property
    def compressor_rows(self) -> int:
        """As of `CompressedLatentAttention`; 0 where keys are not compressed."""
        return 0 if self.tokens_per_entry == 1 else _overlap(self.tokens_per_entry) * self.tokens_per_entry

    @property
    def compressor_row_bytes(self) -> int:
        """As of `CompressedLatentAttention`."""
        return 2 * _overlap(self.tokens_per_entry) * self.dim * 4


def _overlap(tokens_per_entry: int) -> int:
    return 2 if tokens_per_entry == 4 else 1


def _check_rank(tp: int) -> None:
    if tp < 1:
        raise ModelError("tp", f"{tp} is less than 1")


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer: the caches it owns, attention before state where it has both in parallel.

    No cache and no `shares_with` is a layer without attention or state (an MLP of its own, a skipped attention).
    """

    caches: tuple[Layer, ...] = ()
    shares_with: int | None = None
    """Index of the block whose cache this one reads instead of one of its own."""


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
