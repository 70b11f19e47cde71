"""The facts every decoder shares, read from its config, and the layer layouts that families choose from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.layers import (
    ChunkedLocalAttention,
    FullAttention,
    LatentAttention,
    Layer,
    LayerGroup,
    SlidingWindowAttention,
    group_layers,
)

_MOST_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Shape:
    """One config read through its family's names. Every property raises ModelError naming the field at fault."""

    fields: Fields
    default_kv_heads: Callable[["Shape"], int] | None = None
    default_intermediate: Callable[["Shape"], int] | None = None
    rotary: bool = True
    default_rotary_factor: float = 1.0

    @property
    def layers(self) -> int:
        return self.fields.count("num_hidden_layers", _MOST_LAYERS)

    @property
    def hidden_size(self) -> int:
        return self.fields.count("hidden_size")

    @property
    def heads(self) -> int:
        return self.fields.count("num_attention_heads")

    @property
    def vocab_size(self) -> int:
        return self.fields.count("vocab_size")

    @property
    def intermediate_size(self) -> int:
        given = self.fields.optional_count("intermediate_size")
        if given is None and self.default_intermediate is not None:
            return self.default_intermediate(self)
        return self.fields.count("intermediate_size") if given is None else given

    @property
    def kv_heads(self) -> int:
        """KV heads: given, else the family's rule, else one per attention head. They must divide those."""
        if self.default_kv_heads is not None:
            return self.default_kv_heads(self)
        given = self.fields.optional_count("num_key_value_heads")
        if given is None:
            return self.heads
        if self.heads % given:
            raise self.fields.refuse("num_key_value_heads", f"does not divide {self.heads} attention heads")
        return given

    @property
    def head_dim(self) -> int:
        given = self.fields.optional_count("head_dim")
        if given is not None:
            return given
        if self.hidden_size % self.heads:
            raise self.fields.refuse("hidden_size", f"is not divided by {self.heads} heads and head_dim is missing")
        return self.hidden_size // self.heads

    @property
    def is_latent(self) -> bool:
        return self.fields.value("kv_lora_rank") is not None

    @property
    def qk_nope_head_dim(self) -> int | None:
        return self.fields.count("qk_nope_head_dim") if self.is_latent else None

    @property
    def v_head_dim(self) -> int | None:
        if not self.is_latent:
            return None
        given = self.fields.optional_count("v_head_dim")
        return self.hidden_size // self.heads if given is None else given

    @property
    def rotary_dim(self) -> int | None:
        """Rotated elements of a head: given as such, or as a share of the head."""
        if not self.rotary:
            return None
        if self.is_latent:
            return self.fields.count("qk_rope_head_dim")
        given = self.fields.optional_count("rotary_dim")
        if given is not None:
            return given
        factor = self.fields.ratio("partial_rotary_factor")
        if factor is None:
            factor = Fields(self.fields.section("rope_parameters"), aliases={}, defaults={}).ratio(
                "partial_rotary_factor"
            )
        return int(self.head_dim * (factor or self.default_rotary_factor))

    def cached_heads(self, groups: tuple[LayerGroup, ...]) -> int:
        """KV heads of the layers with a cache, the most where they differ; a latent counts as one."""
        return max(getattr(group.layer, "kv_heads", 1) for group in groups)

    def cached_head_dim(self, groups: tuple[LayerGroup, ...]) -> int:
        """Elements of one K row, of the first kind of layer; the whole latent for MLA."""
        layer = groups[0].layer
        if isinstance(layer, LatentAttention):
            return layer.kv_lora_rank + layer.qk_rope_head_dim
        return self.head_dim


def full(shape: Shape) -> tuple[LayerGroup, ...]:
    """Every layer attends to the whole sequence."""
    return group_layers([_full(shape)] * shape.layers)


def one_window(shape: Shape) -> tuple[LayerGroup, ...]:
    """Every layer has the window `sliding_window`, where it is set."""
    window = shape.fields.optional_count("sliding_window")
    return group_layers([_full(shape) if window is None else _sliding(shape, window)] * shape.layers)


def qwen_window(shape: Shape) -> tuple[LayerGroup, ...]:
    """A window only where `use_sliding_window` says so, and then from layer `max_window_layers` on."""
    if not shape.fields.flag("use_sliding_window", False) or shape.fields.value("sliding_window") is None:
        return full(shape)
    first = shape.fields.count("max_window_layers", _MOST_LAYERS, least=0)
    return _by_types(shape, lambda index: index >= first)


def qwen2_moe_window(shape: Shape) -> tuple[LayerGroup, ...]:
    """Every other layer below `max_window_layers`, where `use_sliding_window` says so."""
    if not shape.fields.flag("use_sliding_window", False):
        return full(shape)
    end = shape.fields.count("max_window_layers", _MOST_LAYERS, least=0)
    return _by_types(shape, lambda index: index % 2 == 0 and index < end)


def gated_window(shape: Shape) -> tuple[LayerGroup, ...]:
    """`sliding_window` in every layer, only where `use_sliding_window` says so."""
    return one_window(shape) if shape.fields.flag("use_sliding_window", False) else full(shape)


def smollm3_window(shape: Shape) -> tuple[LayerGroup, ...]:
    """A window in the layers without rotary embedding, where `use_sliding_window` says so."""
    if not shape.fields.flag("use_sliding_window", False) or shape.fields.value("sliding_window") is None:
        return full(shape)
    return _by_types(shape, lambda index: not _has_rope(shape, index))


def window_except_each_nth(shape: Shape) -> tuple[LayerGroup, ...]:
    """Windows but for each n-th layer (`sliding_window_pattern`), where `layer_types` does not say it layer by layer.

    EXAONE 4 writes the pattern as letters: L for local, G for global.
    """
    if shape.fields.value("sliding_window") is None:
        return full(shape)
    pattern = shape.fields.value("sliding_window_pattern")
    if isinstance(pattern, str):
        if not pattern or set(pattern) - set("LG"):
            raise shape.fields.refuse("sliding_window_pattern", "is not made of L and G")
        return _by_types(shape, lambda index: pattern[index % len(pattern)] == "L")
    period = shape.fields.count("sliding_window_pattern", _MOST_LAYERS)
    return _by_types(shape, lambda index: (index + 1) % period != 0)


def gemma4(shape: Shape) -> tuple[LayerGroup, ...]:
    """Windows but for each sixth and the last layer; full layers have a head size and KV heads of their own."""
    if shape.fields.count("num_kv_shared_layers", _MOST_LAYERS, least=0):
        raise shape.fields.refuse("num_kv_shared_layers", "layers share their cache: not modelled")
    if shape.fields.value("per_layer_config") is not None:
        raise ModelError("per_layer_config", "geometry per layer is not modelled")
    dim = shape.fields.count("global_head_dim")
    kv_heads = shape.kv_heads
    if shape.fields.flag("attention_k_eq_v", False):
        kv_heads = shape.fields.optional_count("num_global_key_value_heads") or kv_heads
    listed = shape.fields.items("layer_types")
    if listed and listed[-1] != "full_attention":
        raise ModelError("layer_types", f"ends in {show(listed[-1])}: the last layer attends to everything")
    last = shape.layers - 1
    return _by_types(shape, lambda index: (index + 1) % 6 != 0 and index != last, FullAttention(kv_heads, dim, dim))


def step3(shape: Shape) -> tuple[LayerGroup, ...]:
    """`layer_types` says it all; the two kinds must agree in their KV geometry."""
    other = shape.fields.section("attention_other_setting")
    for key, same in (("num_attention_groups", shape.kv_heads), ("head_dim", shape.head_dim)):
        if other.get(key, same) != same:
            raise ModelError(f"attention_other_setting.{key}", f"{show(other[key])} differs from {same}: not modelled")
    if shape.fields.items("layer_types") is None:
        raise ModelError("layer_types", "is missing")
    return _by_types(shape, lambda _: False)


def llama4(shape: Shape) -> tuple[LayerGroup, ...]:
    """Chunks of `attention_chunk_size` in the layers with rotary embedding, the whole sequence in the others."""
    layer_types = _layer_types(shape, {"full_attention", "chunked_attention"})
    if layer_types is None:
        local = [_has_rope(shape, index) for index in range(shape.layers)]
    else:
        local = [kind == "chunked_attention" for kind in layer_types]
    chunk = shape.fields.optional_count("attention_chunk_size")
    if chunk is None or not any(local):
        return full(shape)
    chunked = ChunkedLocalAttention(shape.kv_heads, shape.head_dim, shape.head_dim, chunk)
    return group_layers(chunked if inside else _full(shape) for inside in local)


def latent(shape: Shape) -> tuple[LayerGroup, ...]:
    """MLA in every layer."""
    if not shape.fields.flag("use_mla", True):
        raise shape.fields.refuse("use_mla", "the model caches expanded heads: not modelled")
    rank = shape.fields.count("kv_lora_rank")
    rope = shape.fields.count("qk_rope_head_dim")
    return group_layers([LatentAttention(rank, rope)] * shape.layers)


def nemotron_nas(shape: Shape) -> tuple[LayerGroup, ...]:
    """One entry of `block_configs` per layer: its own number of heads per KV head, or no attention at all."""
    blocks = shape.fields.items("block_configs")
    if blocks is None or len(blocks) != shape.layers:
        raise ModelError("block_configs", f"does not have one entry for each of {shape.layers} layers")
    layers: list[Layer] = []
    for index, block in enumerate(blocks):
        name = f"block_configs[{index}].attention"
        attention = block.get("attention") if isinstance(block, Mapping) else None
        if not isinstance(attention, Mapping):
            raise ModelError(name, "is missing")
        if attention.get("no_op") or attention.get("replace_with_linear"):
            continue
        if attention.get("window_length") is not None or attention.get("num_sink_tokens") is not None:
            raise ModelError(name, "windows and sink tokens per block are not modelled")
        per_kv_head = attention.get("n_heads_in_group")
        if isinstance(per_kv_head, bool) or not isinstance(per_kv_head, int) or per_kv_head < 1:
            raise ModelError(f"{name}.n_heads_in_group", f"{show(per_kv_head)} is not a number of heads")
        if shape.heads % per_kv_head:
            raise ModelError(f"{name}.n_heads_in_group", f"{per_kv_head} does not divide {shape.heads} heads")
        layers.append(FullAttention(shape.heads // per_kv_head, shape.head_dim, shape.head_dim))
    if not layers:
        raise ModelError("block_configs", "has no layer with attention")
    return group_layers(layers)


def _full(shape: Shape) -> FullAttention:
    return FullAttention(shape.kv_heads, shape.head_dim, shape.head_dim)


def _sliding(shape: Shape, window_tokens: int) -> SlidingWindowAttention:
    return SlidingWindowAttention(shape.kv_heads, shape.head_dim, shape.head_dim, window_tokens)


def _by_types(
    shape: Shape, slides: Callable[[int], bool], full_layer: FullAttention | None = None
) -> tuple[LayerGroup, ...]:
    """Full and sliding layers as `layer_types` lists them, else as `slides` (by layer index) has it."""
    layer_types = _layer_types(shape, {"full_attention", "sliding_attention"})
    if layer_types is None:
        sliding = [slides(index) for index in range(shape.layers)]
    else:
        sliding = [kind == "sliding_attention" for kind in layer_types]
    whole = full_layer or _full(shape)
    if not any(sliding):
        return group_layers([whole] * shape.layers)
    window = _sliding(shape, shape.fields.count("sliding_window"))
    return group_layers(window if inside else whole for inside in sliding)


def _layer_types(shape: Shape, known: set[str]) -> list[object] | None:
    kinds = shape.fields.items("layer_types")
    if kinds is None:
        return None
    if len(kinds) != shape.layers:
        raise ModelError("layer_types", f"has {len(kinds)} entries for {shape.layers} layers")
    for index, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in known:
            raise ModelError(f"layer_types[{index}]", f"{show(kind)} is not one of {', '.join(sorted(known))}")
    return kinds


def _has_rope(shape: Shape, index: int) -> bool:
    """`no_rope_layers` holds 1 where a layer does rotate, its name notwithstanding (transformers 5.23)."""
    given = shape.fields.items("no_rope_layers")
    if not given:
        return (index + 1) % shape.fields.count("no_rope_layer_interval", _MOST_LAYERS) != 0
    if len(given) != shape.layers:
        raise ModelError("no_rope_layers", f"has {len(given)} entries for {shape.layers} layers")
    return bool(given[index])
