"""Layer layouts of models with recurrent layers, alone or beside attention."""

from collections.abc import Callable

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.latents import latent_layer, owns_indexer
from kvmodel.layers import Block, IndexKeys, Layer, SlidingWindowAttention
from kvmodel.layouts import Blocks, blocks_of
from kvmodel.shape import MOST_LAYERS, Shape
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
)

_BOTH = {"full_attention", "linear_attention"}


def _mixed(kinds: list[str], state: Layer, attention: Layer) -> Blocks:
    """A state where a layer is linear, attention elsewhere."""
    return blocks_of(state if kind == "linear_attention" else attention for kind in kinds)


def _state_size(shape: Shape) -> int:
    return shape.fields.count("state_size")


def _conv_kernel(shape: Shape) -> int:
    return shape.fields.count("conv_kernel", MOST_LAYERS)


def _expanded(shape: Shape) -> int:
    """Channels of the state layers: `expand` times the hidden size."""
    factor = shape.fields.number("expand")
    if factor is None:
        raise ModelError(shape.fields.key("expand"), "is missing")
    return int(factor * shape.hidden_size)


def mamba1_inner(shape: Shape) -> int:
    """Channels of a Mamba-1 layer."""
    return shape.fields.optional_count("mamba_inner") or _expanded(shape)


def _mamba1(shape: Shape) -> Mamba1State:
    return Mamba1State(_conv_kernel(shape), mamba1_inner(shape), _state_size(shape))


def _mamba2(shape: Shape) -> Mamba2State:
    """Heads and head size, one of which may follow from the width; `auto` means so."""
    fields = shape.fields
    heads = fields.count("state_heads")
    dim = None if fields.value("state_head_dim") == "auto" else fields.optional_count("state_head_dim")
    if dim is None:
        width = fields.optional_count("mamba_inner") or _expanded(shape)
        if width % heads:
            raise fields.refuse("state_heads", f"does not divide {width} channels")
        dim = width // heads
    return Mamba2State(_conv_kernel(shape), heads, dim, _state_size(shape), fields.count("state_groups"))


def mamba1(shape: Shape) -> Blocks:
    """Mamba-1 in every layer."""
    return blocks_of([_mamba1(shape)] * shape.layers)


def mamba2(shape: Shape) -> Blocks:
    """Mamba-2 in every layer."""
    return blocks_of([_mamba2(shape)] * shape.layers)


def jamba(shape: Shape) -> Blocks:
    """Attention in layers whose number leaves `attn_layer_offset` over `attn_layer_period`, Mamba-1 elsewhere."""
    kinds = shape.layer_types(_BOTH)
    if kinds is None:
        period = shape.fields.count("attn_layer_period", MOST_LAYERS)
        offset = shape.fields.count("attn_layer_offset", MOST_LAYERS, least=0)
        kinds = ["full_attention" if index % period == offset else "linear_attention" for index in range(shape.layers)]
    return _mixed(kinds, _mamba1(shape), shape.full())


def bamba(shape: Shape) -> Blocks:
    """Attention in the layers `attn_layer_indices` names, Mamba-2 elsewhere."""
    kinds = shape.layer_types(_BOTH)
    if kinds is None:
        named = shape.fields.items("attn_layer_indices") or []
        for index in named:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < shape.layers:
                raise ModelError("attn_layer_indices", f"{show(index)} is not one of {shape.layers} layers")
        chosen = set(named)
        kinds = ["full_attention" if index in chosen else "linear_attention" for index in range(shape.layers)]
    return _mixed(kinds, _mamba2(shape), shape.full())


def granite_hybrid(shape: Shape) -> Blocks:
    """As `layer_types` lists them; all Mamba-2 without the list (transformers' default)."""
    kinds = shape.layer_types(_BOTH) or ["linear_attention"] * shape.layers
    if "linear_attention" not in kinds:
        return blocks_of([shape.full()] * shape.layers)
    return _mixed(kinds, _mamba2(shape), shape.full())


_NEMOTRON_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def nemotron_h_kinds(shape: Shape) -> list[str]:
    """Kinds of Nemotron-H layers: a list, or a pattern of M, *, - and E. Their number is the number of layers."""
    listed = shape.fields.items("layer_types")
    known = set(_NEMOTRON_LETTERS.values())
    if listed is not None:
        if not 0 < len(listed) <= MOST_LAYERS:
            raise ModelError(shape.fields.key("layer_types"), f"has {len(listed)} entries")
        names = {"mamba": "linear_attention", "attention": "full_attention"}
        kinds = [names.get(kind, kind) if isinstance(kind, str) else "" for kind in listed]
        for index, kind in enumerate(kinds):
            if kind not in known:
                raise ModelError(f"{shape.fields.key('layer_types')}[{index}]", f"{show(listed[index])} is not known")
        return kinds
    pattern = shape.fields.value("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern:
        raise ModelError("hybrid_override_pattern", "is missing" if pattern is None else "is not a pattern")
    if set(pattern) - set(_NEMOTRON_LETTERS) or len(pattern) > MOST_LAYERS:
        raise shape.fields.refuse("hybrid_override_pattern", "is not made of M, *, - and E")
    return [_NEMOTRON_LETTERS[letter] for letter in pattern]


def nemotron_h(shape: Shape) -> Blocks:
    """Mamba-2, attention and MLPs each as a layer of its own."""
    kinds = nemotron_h_kinds(shape)
    blocks = {"mlp": Block(), "moe": Block()}
    if "linear_attention" in kinds:
        blocks["linear_attention"] = Block((_mamba2(shape),))
    if "full_attention" in kinds:
        blocks["full_attention"] = Block((shape.full(),))
    return tuple(blocks[kind] for kind in kinds)


def falcon_h1(shape: Shape) -> Blocks:
    """Attention and Mamba-2 side by side in every layer."""
    return (Block((shape.full(), _mamba2(shape))),) * shape.layers


def zamba(shape: Shape) -> Blocks:
    """Mamba-1 in every layer; before some of them attention whose weights are shared, not its caches."""
    return _zamba(shape, _mamba1(shape), lambda index: index == 2 or (index > 2 and _zamba_turn(shape, index - 3)))


def zamba2(shape: Shape) -> Blocks:
    """As `zamba`, with Mamba-2."""
    named = shape.fields.items("hybrid_layer_ids")
    if named is None and shape.fields.value("layer_types") is None:
        raise ModelError("layers_block_type", "is missing")
    for index in named or []:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < shape.layers:
            raise ModelError("hybrid_layer_ids", f"{show(index)} is not one of {shape.layers} layers")
    chosen = set(named or [])
    return _zamba(shape, _mamba2(shape), lambda index: index in chosen)


def _zamba(shape: Shape, state: Layer, attends: Callable[[int], bool]) -> Blocks:
    kinds = shape.layer_types({"linear_attention", "hybrid"})
    hybrid = [attends(i) for i in range(shape.layers)] if kinds is None else [kind == "hybrid" for kind in kinds]
    plain, both = Block((state,)), Block((shape.full(), state))
    return tuple(both if each else plain for each in hybrid)


def _zamba_turn(shape: Shape, index: int) -> bool:
    period = shape.fields.count("attn_layer_period", MOST_LAYERS)
    return index % period == shape.fields.count("attn_layer_offset", MOST_LAYERS, least=0)


def _each_nth_full(shape: Shape) -> list[str]:
    kinds = shape.layer_types(_BOTH)
    if kinds is not None:
        return kinds
    period = shape.fields.count("full_attention_interval", MOST_LAYERS)
    return ["linear_attention" if (index + 1) % period else "full_attention" for index in range(shape.layers)]


def gated_delta(shape: Shape) -> Blocks:
    """Gated DeltaNet but for each fourth layer (`full_attention_interval`), where `layer_types` is silent."""
    fields = shape.fields
    state = GatedDeltaNetState(
        fields.count("linear_conv_kernel_dim", MOST_LAYERS),
        fields.count("linear_num_key_heads"),
        fields.count("linear_num_value_heads"),
        fields.count("linear_key_head_dim"),
        fields.count("linear_value_head_dim"),
    )
    return _mixed(_each_nth_full(shape), state, shape.full())


def _kimi_state(shape: Shape) -> tuple[KimiDeltaState, Fields]:
    """The delta-rule layer; checkpoints keep its sizes in `linear_attn_config`."""
    fields = shape.fields
    linear = Fields(fields.section("linear_attn_config"), aliases={}, defaults={})
    kernel = linear.optional_count("short_conv_kernel_size", MOST_LAYERS)
    state = KimiDeltaState(
        kernel or fields.count("linear_conv_kernel_dim", MOST_LAYERS),
        linear.optional_count("num_heads") or fields.count("linear_num_heads"),
        linear.optional_count("head_dim") or fields.count("linear_head_dim"),
    )
    return state, linear


def kimi_linear(shape: Shape) -> Blocks:
    """Kimi Delta Attention and MLA. `linear_attn_config` numbers the layers of each kind from 1 on."""
    state, linear = _kimi_state(shape)
    kinds = shape.layer_types(_BOTH)
    if kinds is None and linear.value("full_attn_layers") is not None:
        full_layers = linear.counts("full_attn_layers", most=shape.layers) if linear.items("full_attn_layers") else []
        chosen = {index - 1 for index in full_layers}
        kinds = ["full_attention" if index in chosen else "linear_attention" for index in range(shape.layers)]
    if kinds is None:
        kinds = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(shape.layers)]
    attention: Layer = latent_layer(shape) if shape.is_latent else shape.full()
    return _mixed(kinds, state, attention)


def lightning(shape: Shape) -> Blocks:
    """Lightning attention, full attention in between. MiniMax lists them (`attn_type_list`: 1 is full)."""
    kinds = shape.layer_types(_BOTH)
    if kinds is None:
        flags = shape.flags("attn_type_list")
        if flags is None:
            kinds = ["linear_attention" if index % 2 else "full_attention" for index in range(shape.layers)]
        else:
            kinds = ["full_attention" if flag else "linear_attention" for flag in flags]
    return _mixed(kinds, LightningState(shape.heads, shape.head_dim), shape.full())


def bailing_linear(shape: Shape) -> Blocks:
    """Linear attention but for the last layer of each `layer_group_size` (vLLM 0.32 `bailing_moe_linear.py`).

    Version 3, which its architecture's name tells, has Kimi Delta Attention, and full attention in a last group that
    is not complete (`bailing_moe_v3.py`).
    """
    size = shape.fields.count("layer_group_size", MOST_LAYERS)
    attention: Layer = latent_layer(shape) if shape.is_latent else shape.full()
    names = Fields(shape.outer, aliases={}, defaults={}).items("architectures") or []
    if not any(isinstance(name, str) and name.startswith("BailingMoeV3") for name in names):
        linear = LightningState(shape.heads, shape.head_dim)
        return blocks_of(linear if (index + 1) % size else attention for index in range(shape.layers))
    kernel = shape.fields.optional_count("short_conv_kernel_size", MOST_LAYERS) or 4
    delta = KimiDeltaState(kernel, shape.heads, shape.head_dim)
    whole = shape.layers // size * size
    return blocks_of(delta if (index + 1) % size and index < whole else attention for index in range(shape.layers))


def short_conv(shape: Shape) -> Blocks:
    """LFM2: short convolutions, attention in the layers listed (all of them without a list)."""
    kinds = shape.layer_types({"full_attention", "conv"})
    if kinds is None:
        named = shape.fields.items("full_attn_idxs")
        if named is None:
            return blocks_of([shape.full()] * shape.layers)
        for index in named:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < shape.layers:
                raise ModelError("full_attn_idxs", f"{show(index)} is not one of {shape.layers} layers")
        chosen = set(named)
        kinds = ["full_attention" if index in chosen else "conv" for index in range(shape.layers)]
    state = ShortConvState(shape.fields.count("conv_L_cache", MOST_LAYERS), shape.hidden_size)
    attention = shape.full()
    return blocks_of(state if kind == "conv" else attention for kind in kinds)


def recurrent_gemma(shape: Shape) -> Blocks:
    """RG-LRU and windows, in the order of `block_types` over and over."""
    pattern = shape.fields.items("block_types")
    if not pattern or any(kind not in ("recurrent", "attention") for kind in pattern):
        raise ModelError("block_types", "is not a list of recurrent and attention")
    width = shape.fields.optional_count("lru_width") or shape.hidden_size
    state = RgLruState(shape.fields.count("conv1d_width", MOST_LAYERS), width)
    window = SlidingWindowAttention(
        shape.kv_heads, shape.head_dim, shape.head_dim, shape.fields.count("attention_window_size")
    )
    return blocks_of(state if pattern[index % len(pattern)] == "recurrent" else window for index in range(shape.layers))


def rwkv4(shape: Shape) -> Blocks:
    """RWKV-4: numerator, denominator and maximum per attention channel."""
    width = shape.fields.optional_count("attention_hidden_size") or shape.hidden_size
    return blocks_of([RwkvState(shape.hidden_size, 3 * width)] * shape.layers)


def rwkv_matrix(shape: Shape) -> Blocks:
    """RWKV-5 to 7: one square matrix per head."""
    width = shape.fields.optional_count("attention_hidden_size") or shape.hidden_size
    dim = shape.fields.count("rwkv_head_dim")
    if width % dim:
        raise shape.fields.refuse("rwkv_head_dim", f"does not divide {width} channels")
    return blocks_of([RwkvState(shape.hidden_size, width * dim)] * shape.layers)


def xlstm(shape: Shape) -> Blocks:
    """mLSTM in every layer; widths are factors of the hidden size, in steps of 64."""
    heads = shape.fields.count("state_heads")
    dims = []
    for name, default in (("qk_dim_factor", 0.5), ("v_dim_factor", 1.0)):
        factor = shape.fields.number(name)
        width = shape.hidden_size * (default if factor is None else factor)
        dims.append(int((width + 63) // 64) * 64 // heads)
    return blocks_of([MatrixState(heads, *dims)] * shape.layers)


def phi4_flash(shape: Shape) -> Blocks:
    """SambaY (arXiv 2507.06607): a self-decoder of Mamba-1 and windows, one full layer, and layers that only read it.

    Of the upper half, Mamba layers but for the first are gates without a state.
    """
    every = shape.fields.count("mb_per_layer", MOST_LAYERS)
    half = shape.layers // 2
    windows = shape.fields.value("sliding_window")
    listed = list(windows) if isinstance(windows, (list, tuple)) else None
    if listed is not None and len(listed) != shape.layers:
        raise ModelError("sliding_window", f"has {len(listed)} entries for {shape.layers} layers")
    state, whole = _mamba1(shape), shape.full()
    blocks: list[Block] = []
    for index in range(shape.layers):
        if index % every == 0:
            blocks.append(Block((state,)) if index <= half else Block())
        elif index > half + 1:
            blocks.append(Block(shares_with=half + 1))
        elif index == half + 1:
            blocks.append(Block((whole,)))
        else:
            window = shape.window() if listed is None else listed[index]
            if window is None:
                blocks.append(Block((whole,)))
                continue
            if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window < 2**40:
                raise ModelError(f"sliding_window[{index}]", f"{show(window)} is not a window")
            blocks.append(Block((SlidingWindowAttention(whole.kv_heads, whole.head_dim_k, whole.head_dim_v, window),)))
    return tuple(blocks)


def glm5_next(shape: Shape) -> Blocks:
    """Kimi Delta Attention, and in each fourth layer an indexed latent: index keys pool `index_kpool` tokens."""
    state, _ = _kimi_state(shape)
    kinds = shape.layer_types({"linear_attention", "indexed_attention", "full_attention"})
    if kinds is None:
        kinds = ["linear_attention" if index % 4 != 3 else "indexed_attention" for index in range(shape.layers)]
    pool = shape.fields.count("index_kpool", MOST_LAYERS)
    keys = IndexKeys(shape.fields.count("index_head_dim"), tokens_per_entry=pool)
    linear, shared = Block((state,)), Block((latent_layer(shape),))
    own = Block((*shared.caches, keys))
    return tuple(
        linear if kind == "linear_attention" else own if owns else shared
        for kind, owns in zip(kinds, owns_indexer(shape), strict=True)
    )


def inkling(shape: Shape) -> Blocks:
    """Windows but for each sixth layer, with KV heads of their own; four short convolutions in every layer."""
    fields = shape.fields
    kinds = shape.layer_types({"hybrid", "hybrid_sliding"})
    if kinds is None:
        named = fields.items("local_layer_ids")
        local = (
            {index for index in range(shape.layers) if (index + 1) % 6}
            if named is None
            else set(fields.counts("local_layer_ids", most=shape.layers - 1, least=0))
            if named
            else set()
        )
        kinds = ["hybrid_sliding" if index in local else "hybrid" for index in range(shape.layers)]
    whole = shape.full()
    dim = fields.optional_count("swa_head_dim") or shape.head_dim
    heads = fields.optional_count("swa_num_key_value_heads") or shape.kv_heads
    window = SlidingWindowAttention(heads, dim, dim, shape.window())
    kernel = fields.count("conv_kernel_size", MOST_LAYERS)
    by_kind = {}
    for kind, layer in (("hybrid", whole), ("hybrid_sliding", window)):
        width = 2 * layer.kv_heads * layer.head_dim_k + 2 * shape.hidden_size
        by_kind[kind] = Block((layer, ShortConvState(kernel, width)))
    return tuple(by_kind[kind] for kind in kinds)
