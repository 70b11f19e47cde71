"""From a model's layers to vLLM's own descriptions of them: pages, block sizes, and the alignment of hybrids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype, kv_dtype
from kvmodel.engines.vllm.profiles import Profile
from kvmodel.engines.vllm.specs import CHUNKED, CROSS, FULL, LATENT, SLIDING, SLIDING_LATENT, STATE, Spec
from kvmodel.errors import ModelError, show
from kvmodel.layers import (
    ChunkedLocalAttention,
    CompressedLatentAttention,
    CrossAttention,
    FullAttention,
    HeadsLayer,
    IndexKeys,
    LatentAttention,
    Layer,
    SlidingLatentAttention,
    SlidingWindowAttention,
    WindowLatent,
    heads_per_rank,
)

if TYPE_CHECKING:
    from kvmodel.states import StateLayer

SKIP_LAYERS = "kv_dtype_skip_layers"
SKIP_WINDOWS = "sliding_window"
_KERNEL_BLOCK_TOKENS = 16
_ULTRAQUANT_BLOCK_TOKENS = 64
_MAMBA_CHUNK_TOKENS = {"Mamba1State": 2048, "Mamba2State": 256}
"""Steps the kernels of aligned states work in, where a state is kept per block (`ModelConfig.get_mamba_chunk_size`)."""
_STATES = frozenset(
    {"GatedDeltaNetState", "KimiDeltaState", "LightningState", "Mamba1State", "Mamba2State", "ShortConvState"}
)
"""State kinds vLLM serves."""

# DeepSeek-V4 (`models/deepseek_v4/attention.py`, `compressor.py`, `backends/mla/sparse_swa.py`).
_COMPRESSED_BLOCK_TOKENS = 256
_WINDOW_ROWS_BLOCK_TOKENS = 64
_COMPRESSOR_BLOCK_TOKENS = {4: 4, 128: 8}
_PACKED_PAGE_MULTIPLE = 576
_PLAIN_PAGE_MULTIPLE = 512


@dataclass(frozen=True, slots=True)
class Terms:
    """What the flags say about blocks and states."""

    profile: Profile
    kv: KvDtype
    tp: int
    block_tokens: int | None = None
    max_model_len: int = 0
    caches_states: bool = False
    speculative_tokens: int = 0
    state_dtype: str | None = None
    encoder_tokens: int = 0
    skip_layers: frozenset[str] = frozenset()
    """Layers whose cache keeps the model's type: their numbers, or `sliding_window`."""
    skipped_kv: KvDtype | None = None
    """What they are kept in, where any are skipped."""

    def skips(self, layer: Layer, place: int) -> bool:
        """Whether a layer's cache keeps the model's type (`model_executor/layers/attention/attention.py`)."""
        if not self.skip_layers:
            return False
        windowed = isinstance(layer, SlidingWindowAttention) and SKIP_WINDOWS in self.skip_layers
        return windowed or str(place) in self.skip_layers


@dataclass(frozen=True, slots=True)
class Layout:
    """Every cache of the model with the decoder layer it belongs to, in model order."""

    specs: tuple[Spec, ...]
    blocks: tuple[int, ...]
    """The decoder layer of each; drafts come after the last one of the target."""
    token_bytes: dict[int, float]
    """Bytes of one token while it is kept, by decoder layer."""
    block_tokens: int
    """`cache_config.block_size`."""


def layout(architecture: Architecture, terms: Terms, drafts: Sequence[Layer] = ()) -> Layout:
    """One spec per cache. Raises ModelError (field `architecture`) for a kind of layer vLLM does not serve.

    `drafts` are further caches, of a draft model or of prediction layers.
    """
    caches = [(place, layer) for place, block in enumerate(architecture.blocks) for layer in block.caches]
    caches += [(architecture.num_layers, layer) for layer in drafts]
    caches = [(place, _as_served(layer, architecture, terms)) for place, layer in caches]
    if not terms.profile.specs:
        caches = [(place, layer) for place, layer in caches if not _is_state(layer)]
        if not caches:
            raise ModelError("architecture", f"{architecture.model_type}: vLLM V0 keeps state outside of the pool")
    sizes = _sizes(architecture, [layer for _, layer in caches], terms)
    known: tuple[dict[Layer, tuple[tuple[Spec, ...], float]], ...] = ({}, {})
    specs: list[Spec] = []
    blocks: list[int] = []
    token_bytes: dict[int, float] = {}
    for place, layer in caches:
        skipped = terms.skips(layer, place)
        found = known[skipped].get(layer)
        if found is None:
            own = replace(terms, kv=terms.skipped_kv) if skipped and terms.skipped_kv is not None else terms
            found = _specs(layer, architecture, own, sizes), layer.token_bytes(own.kv, terms.tp)
            known[skipped][layer] = found
        specs += found[0]
        blocks += [place] * len(found[0])
        token_bytes[place] = token_bytes.get(place, 0) + found[1]
    return Layout(tuple(specs), tuple(blocks), token_bytes, sizes.block_tokens)


@dataclass(frozen=True, slots=True)
class _Sizes:
    block_tokens: int
    state_page: int
    """Bytes of a state's page, padding included."""
    state_mode: str
    shared_page: int = 0
    """The page that every window is padded to where layers of another type share the pool."""


def _as_served(layer: Layer, architecture: Architecture, terms: Terms) -> Layer:
    """The layer as vLLM caches it: MLA it has no kernels for keeps expanded heads."""
    if isinstance(layer, LatentAttention) and _expands(architecture, terms.profile):
        nope, heads = architecture.qk_nope_head_dim, architecture.num_attention_heads
        if nope is None:
            raise ModelError("architecture", f"{architecture.model_type}: the width of its expanded heads is not known")
        # FlashAttention took widths of 64, 128 and 256 then; V is padded to K.
        width = nope + layer.qk_rope_head_dim if terms.profile.specs else 256
        return FullAttention(heads, width, width)
    if not terms.profile.specs and isinstance(layer, HeadsLayer):
        # Windows, chunks and an encoder's output as well.
        return FullAttention(layer.kv_heads, layer.head_dim_k, layer.head_dim_v)
    return layer


def _expands(architecture: Architecture, profile: Profile) -> bool:
    return architecture.model_type == "minicpm3" or (not profile.specs and profile.minor < 7)


def _is_state(layer: Layer) -> bool:
    # By name: the kinds of state need not be loaded for models that have none.
    return type(layer).__module__ == "kvmodel.states"


def _sizes(architecture: Architecture, layers: Sequence[Layer], terms: Terms) -> _Sizes:
    """Block size and state page (`platforms/interface.py: update_block_size_for_backend`, `_align_hybrid_block_size`).

    In hybrids the attention block grows until its page holds a state, and the state is padded to that page.
    """
    states = {layer for layer in layers if _is_state(layer)}
    block = terms.block_tokens or _usual_block(layers, terms.kv)
    if not states:
        return _shared(_Sizes(block, 0, "none"), layers, terms)
    page = max(_state_bytes(layer, architecture, terms) for layer in states)
    mode = _state_mode(states, terms)
    attention = next((layer for layer in layers if isinstance(layer, FullAttention | LatentAttention)), None)
    if attention is None:
        return _Sizes(block, page, mode)
    per_token = int(attention.token_bytes(terms.kv, terms.tp))
    latent = isinstance(attention, LatentAttention)
    profile = terms.profile
    unit = max(_KERNEL_BLOCK_TOKENS, profile.latent_block_multiple if latent else 0)
    if not profile.keeps_larger_blocks:
        unit = max(unit, block)
    if mode == "all":
        unit = math.lcm(unit, max(_MAMBA_CHUNK_TOKENS.get(type(layer).__name__, 1) for layer in states))
    needed = unit * -(-page // (unit * per_token))
    needed = -(-needed // _KERNEL_BLOCK_TOKENS) * _KERNEL_BLOCK_TOKENS
    block = max(block, needed)
    return _shared(_Sizes(block, block * per_token, mode), layers, terms)


def _shared(sizes: _Sizes, layers: Sequence[Layer], terms: Terms) -> _Sizes:
    """Blocks grown until their page covers the least one of a skipped layer (`_align_heterogeneous_kv_block_size`)."""
    if terms.skipped_kv is None:
        return sizes
    rows = {layer for layer in layers if isinstance(layer, HeadsLayer | LatentAttention)}
    pairs = {
        (int(row.token_bytes(terms.kv, terms.tp)), int(row.token_bytes(terms.skipped_kv, terms.tp))) for row in rows
    }
    if len(pairs) != 1:
        raise ModelError(SKIP_LAYERS, "is planned for models whose attention layers are all of one width")
    row, skipped_row = pairs.pop()
    if skipped_row <= row:
        return sizes
    unit = max(_KERNEL_BLOCK_TOKENS, sizes.block_tokens)
    needed = max(skipped_row * _KERNEL_BLOCK_TOKENS, sizes.state_page)
    block = max(sizes.block_tokens, unit * -(-needed // (unit * row)))
    page = block * row
    return _Sizes(block, page if sizes.state_page else 0, sizes.state_mode, page)


def _usual_block(layers: Sequence[Layer], kv: KvDtype) -> int:
    if kv.name == "ultraquant_4bit":
        return _ULTRAQUANT_BLOCK_TOKENS
    compressed = any(isinstance(layer, CompressedLatentAttention) for layer in layers)
    return _COMPRESSED_BLOCK_TOKENS if compressed else _KERNEL_BLOCK_TOKENS


def _state_mode(states: set[Layer], terms: Terms) -> str:
    """How states are kept: `none`, one per `all` blocks, or `align`ed ones (`MambaModelConfig`)."""
    if not terms.caches_states:
        return "none"
    mamba = all(type(layer).__name__ in _MAMBA_CHUNK_TOKENS for layer in states)
    mode = terms.profile.mamba_mode if mamba else terms.profile.linear_mode
    if mode == "all" and terms.speculative_tokens and terms.profile.linear_mode == "align":
        return "align"
    return mode


def _state_blocks(layer: Layer, mode: str, block_tokens: int, terms: Terms) -> int:
    """Blocks a request holds of a state layer (`MambaSpec.max_memory_usage_bytes`)."""
    if mode == "all":
        return -(-terms.max_model_len // block_tokens)
    drafts = terms.speculative_tokens if mode == "align" or terms.profile.drafts_hold_states else 0
    if mode == "align":
        return 2 + drafts + (1 if type(layer).__name__ in terms.profile.checkpoints else 0)
    return 1 + drafts


def _state_bytes(layer: Layer, architecture: Architecture, terms: Terms) -> int:
    """vLLM's `auto`: the model's dtype for both parts, unless the kind or the architecture says 32 bits."""
    name = type(layer).__name__
    if name not in _STATES:
        raise ModelError("architecture", f"{architecture.model_type}: vLLM does not serve layers of {name}")
    state = cast("StateLayer", layer)
    dtype = terms.state_dtype or _named_state_dtype(architecture, terms.profile)
    wide = dtype == "float32" or (state.recurrent_always_32bit and dtype is None)
    return state.state_bytes_as(
        conv_bytes=2,
        recurrent_bytes=4 if wide else 2,
        tp=terms.tp,
        more_columns=0 if name == "Mamba1State" else terms.speculative_tokens,
    )


def _named_state_dtype(architecture: Architecture, profile: Profile) -> str | None:
    """The recurrent type a config names, for the architectures whose config vLLM asks (`models/config.py`)."""
    if architecture.model_type.startswith("nemotron_h") and profile.minor >= 13:
        return architecture.state_dtype or ("float32" if profile.minor >= 20 else None)
    if architecture.model_type.startswith(("qwen3_5", "qwen4")) and profile.minor >= 17:
        return architecture.state_dtype
    return None


def _specs(layer: Layer, architecture: Architecture, terms: Terms, sizes: _Sizes) -> tuple[Spec, ...]:
    block = sizes.block_tokens
    if _is_state(layer):
        mode = sizes.state_mode
        tokens = terms.max_model_len if mode == "none" else block
        held = _state_blocks(layer, mode, block, terms)
        return (Spec(STATE, tokens, sizes.state_page, (type(layer).__name__, layer), held, True),)
    if isinstance(layer, CompressedLatentAttention | WindowLatent) or (
        isinstance(layer, IndexKeys) and layer.tokens_per_entry > 1
    ):
        return _compressed(layer, architecture, terms, sizes)
    row = layer.token_bytes(terms.kv, terms.tp)
    if not terms.profile.specs and isinstance(layer, LatentAttention):
        # V0 keeps MLA rows on a grid of 256 bytes (`worker/cache_engine.py`).
        row = -(-int(row) // 256) * 256
    page = block * int(row)
    if isinstance(layer, SlidingLatentAttention):
        return (Spec(SLIDING_LATENT, block, page, ("mla",), layer.window_tokens),)
    if isinstance(layer, LatentAttention):
        if terms.kv.name == "nvfp4":
            raise ModelError("kv_dtype", "vLLM has no MLA backend for nvfp4")
        return (Spec(LATENT, block, page, ("mla", terms.kv.name)),)
    if isinstance(layer, IndexKeys):
        return (Spec(LATENT, block, page, ("indexer",)),)
    if isinstance(layer, SlidingWindowAttention) and sizes.shared_page:
        own = max(_KERNEL_BLOCK_TOKENS, sizes.shared_page // int(row) // _KERNEL_BLOCK_TOKENS * _KERNEL_BLOCK_TOKENS)
        return (_heads(layer, own * int(row), terms, own).padded_to(sizes.shared_page),)
    if isinstance(layer, HeadsLayer):
        return (_heads(layer, page, terms, block),)
    raise ModelError("architecture", f"{architecture.model_type}: vLLM has no cache for {type(layer).__name__}")


def _heads(layer: HeadsLayer, page: int, terms: Terms, block: int) -> Spec:
    row = (heads_per_rank(layer.kv_heads, terms.tp), layer.head_dim_k, layer.head_dim_v, terms.kv.name)
    if isinstance(layer, SlidingWindowAttention):
        return Spec(SLIDING, block, page, row, layer.window_tokens)
    if isinstance(layer, ChunkedLocalAttention):
        return Spec(CHUNKED, block, page, row, layer.chunk_tokens)
    if isinstance(layer, CrossAttention):
        tokens = terms.encoder_tokens or layer.encoder_tokens
        if tokens is None:
            raise ModelError("encoder_tokens", "is missing: the model's config sets no limit to the encoder's output")
        return Spec(CROSS, block, page, row, tokens)
    return Spec(FULL, block, page, row)


def _compressed(
    layer: CompressedLatentAttention | WindowLatent | IndexKeys, architecture: Architecture, terms: Terms, sizes: _Sizes
) -> tuple[Spec, ...]:
    """DeepSeek-V4's rows, and beside them the compressor's own state: a window of float32 rows."""
    if terms.profile.minor < 22:
        raise ModelError("architecture", f"{architecture.model_type}: vLLM serves it from 0.22 on")
    kv, multiple = terms.kv, _PLAIN_PAGE_MULTIPLE
    if kv.name.startswith("fp8"):
        kv, multiple = kv_dtype("fp8_ds_mla", architecture.dtype), _PACKED_PAGE_MULTIPLE
    if isinstance(layer, WindowLatent):
        page = _up(_WINDOW_ROWS_BLOCK_TOKENS * layer.token_bytes(kv), multiple)
        return (Spec(SLIDING_LATENT, _WINDOW_ROWS_BLOCK_TOKENS, page, ("rows",), layer.window_tokens, True),)
    block, ratio = sizes.block_tokens, layer.tokens_per_entry
    rows = Spec(LATENT, block, _up(block // ratio * layer.entry_bytes(kv), multiple), (type(layer), ratio), 0, True)
    own = _COMPRESSOR_BLOCK_TOKENS.get(ratio)
    if own is None:
        raise ModelError("architecture", f"{show(ratio)} tokens per compressed row are not served")
    page = _up(own * layer.compressor_row_bytes, multiple)
    return rows, Spec(SLIDING_LATENT, own, page, ("compressor", layer), layer.compressor_rows, True)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
