"""Layer layouts of attention models: what each decoder layer keeps, in model order."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.layers import (
    Block,
    ChunkedLocalAttention,
    FullAttention,
    HeadsLayer,
    Layer,
    SlidingWindowAttention,
)
from kvmodel.shape import MOST_LAYERS, Shape

Blocks = tuple[Block, ...]


def blocks_of(layers: Iterable[Layer]) -> Blocks:
    """One cache per layer. Equal layers become one object."""
    blocks: dict[Layer, Block] = {}
    return tuple(blocks.setdefault(layer, Block((layer,))) for layer in layers)


def full(shape: Shape) -> Blocks:
    """Every layer attends to the whole sequence."""
    return blocks_of([shape.full()] * shape.layers)


def by_types(
    shape: Shape,
    slides: Callable[[int], bool],
    full_layer: FullAttention | None = None,
    window_layer: SlidingWindowAttention | None = None,
) -> Blocks:
    """Full and sliding layers as `layer_types` lists them, else as `slides` (by layer index) has it.

    Layers of a geometry of their own are read from `per_layer_config`.
    """
    layer_types = shape.layer_types({"full_attention", "sliding_attention"})
    if layer_types is None:
        sliding = [slides(index) for index in range(shape.layers)]
    else:
        sliding = [kind == "sliding_attention" for kind in layer_types]
    whole: HeadsLayer = full_layer or shape.full()
    window: HeadsLayer = (window_layer or shape.sliding()) if any(sliding) else whole
    layers = [window if inside else whole for inside in sliding]
    for index, fields in shape.per_layer().items():
        layers[index] = overridden(layers[index], fields)
    return blocks_of(layers)


def overridden(layer: HeadsLayer, fields: Fields) -> HeadsLayer:
    """The layer with the heads and head sizes that one layer's own fields give."""
    dim = fields.optional_count("head_dim") or layer.head_dim_k
    dim_v = fields.optional_count("v_head_dim") or (layer.head_dim_v if dim == layer.head_dim_k else dim)
    heads = fields.optional_count("num_key_value_heads") or layer.kv_heads
    changed = replace(layer, kv_heads=heads, head_dim_k=dim, head_dim_v=dim_v)
    window = fields.optional_count("sliding_window")
    if window is not None and isinstance(changed, SlidingWindowAttention):
        changed = replace(changed, window_tokens=window)
    return changed


def listed(shape: Shape) -> Blocks:
    """As `layer_types` lists them; without the list every layer attends to everything."""
    return by_types(shape, lambda _: False)


def one_window(shape: Shape) -> Blocks:
    """Every layer has the window `sliding_window`, where it is set; `layer_types` may say otherwise."""
    windowed = shape.fields.optional_count("sliding_window") is not None
    return by_types(shape, lambda _: windowed)


def qwen_window(shape: Shape) -> Blocks:
    """A window only where `use_sliding_window` says so, and then from layer `max_window_layers` on."""
    if not shape.fields.flag("use_sliding_window", False) or shape.fields.value("sliding_window") is None:
        return full(shape)
    first = shape.fields.count("max_window_layers", MOST_LAYERS, least=0)
    return by_types(shape, lambda index: index >= first)


def dots1(shape: Shape) -> Blocks:
    """A window from layer `max_window_layers` on, where one is set."""
    if shape.fields.value("sliding_window") is None:
        return full(shape)
    first = shape.fields.count("max_window_layers", MOST_LAYERS, least=0)
    return by_types(shape, lambda index: index >= first)


def qwen2_moe_window(shape: Shape) -> Blocks:
    """Every other layer below `max_window_layers`, where `use_sliding_window` says so."""
    if not shape.fields.flag("use_sliding_window", False):
        return full(shape)
    end = shape.fields.count("max_window_layers", MOST_LAYERS, least=0)
    return by_types(shape, lambda index: index % 2 == 0 and index < end)


def gated_window(shape: Shape) -> Blocks:
    """`sliding_window` in every layer, only where `use_sliding_window` says so."""
    return one_window(shape) if shape.fields.flag("use_sliding_window", False) else full(shape)


def smollm3_window(shape: Shape) -> Blocks:
    """A window in the layers without rotary embedding, where `use_sliding_window` says so."""
    if not shape.fields.flag("use_sliding_window", False) or shape.fields.value("sliding_window") is None:
        return full(shape)
    return by_types(shape, lambda index: not _has_rope(shape, index))


def window_except_each_nth(shape: Shape) -> Blocks:
    """Windows but for each n-th layer (`sliding_window_pattern`), where `layer_types` does not say it layer by layer.

    EXAONE 4 writes the pattern as letters: L for local, G for global.
    """
    if shape.fields.value("sliding_window") is None:
        return full(shape)
    pattern = shape.fields.value("sliding_window_pattern")
    if isinstance(pattern, str):
        if not pattern or set(pattern) - set("LG"):
            raise shape.fields.refuse("sliding_window_pattern", "is not made of L and G")
        return by_types(shape, lambda index: pattern[index % len(pattern)] == "L")
    period = shape.fields.count("sliding_window_pattern", MOST_LAYERS)
    return by_types(shape, lambda index: (index + 1) % period != 0)


def window_after_each_nth(shape: Shape) -> Blocks:
    """Full attention in layers 0, n, 2n, ... (`sliding_window_pattern`), windows in the others."""
    if shape.fields.value("sliding_window") is None:
        return full(shape)
    period = shape.fields.count("sliding_window_pattern", MOST_LAYERS)
    return by_types(shape, lambda index: index % period != 0)


def modernbert_decoder(shape: Shape) -> Blocks:
    """Full attention in each third layer from the first on; the window is half of `local_attention`."""
    window = shape.fields.optional_count("sliding_window") or shape.fields.count("local_attention") // 2
    dim = shape.head_dim
    period = shape.fields.count("global_attn_every_n_layers", MOST_LAYERS)
    return by_types(
        shape,
        lambda index: index % period != 0,
        window_layer=SlidingWindowAttention(shape.kv_heads, dim, dim, window),
    )


def gpt_neo(shape: Shape) -> Blocks:
    """`attention_types` lists kinds and how often they repeat, `attention_layers` the kind of each layer."""
    kinds = shape.fields.items("attention_layers")
    if kinds is None:
        kinds = []
        for index, entry in enumerate(shape.fields.items("attention_types") or []):
            pair = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, None)
            names, times = pair
            if (
                not isinstance(names, (list, tuple))
                or isinstance(times, bool)
                or not isinstance(times, int)
                or not 0 <= len(names) * times <= MOST_LAYERS
            ):
                raise ModelError(f"attention_types[{index}]", "is not a list of kinds and a number of times")
            kinds += list(names) * times
    if len(kinds) != shape.layers or any(kind not in ("global", "local") for kind in kinds):
        raise ModelError("attention_types", f"does not name global or local for each of {shape.layers} layers")
    window = shape.fields.count("window_size")
    local = SlidingWindowAttention(shape.kv_heads, shape.head_dim, shape.head_dim, window)
    return blocks_of(local if kind == "local" else shape.full() for kind in kinds)


def gemma4(shape: Shape) -> Blocks:
    """Windows but for each sixth and the last layer; full layers have a head size and KV heads of their own.

    The last `num_kv_shared_layers` layers read the cache of the last earlier layer of their kind.
    """
    types = shape.layer_types({"full_attention", "sliding_attention"})
    if types and types[-1] != "full_attention":
        raise ModelError("layer_types", f"ends in {show(types[-1])}: the last layer attends to everything")
    last = shape.layers - 1
    if shape.fields.value("per_layer_config") is None:
        dim = shape.fields.count("global_head_dim")
        heads = shape.kv_heads
        if shape.fields.flag("attention_k_eq_v", False):
            heads = shape.fields.optional_count("num_global_key_value_heads") or heads
        whole = FullAttention(heads, dim, dim)
    else:
        whole = shape.full()
    blocks = by_types(shape, lambda index: (index + 1) % 6 != 0 and index != last, whole)
    return share_last(blocks, shape.fields.count("num_kv_shared_layers", shape.layers - 1, least=0))


def gemma3n(shape: Shape) -> Blocks:
    """Windows but for each fifth layer; the last `num_kv_shared_layers` read an earlier layer's cache."""
    blocks = by_types(shape, lambda index: (index + 1) % 5 != 0)
    return share_last(blocks, shape.fields.count("num_kv_shared_layers", shape.layers - 1, least=0))


def share_last(blocks: Blocks, shared: int) -> Blocks:
    """The last `shared` layers read the cache of the last layer of their kind that has one of its own."""
    owners = len(blocks) - shared
    found: list[Block] = list(blocks[:owners])
    latest = {type(block.caches[0]): index for index, block in enumerate(found)}
    for index in range(owners, len(blocks)):
        kind = type(blocks[index].caches[0])
        if kind not in latest:
            raise ModelError("num_kv_shared_layers", f"layer {index} has no earlier layer of its kind to share with")
        found.append(Block(shares_with=latest[kind]))
    return tuple(found)


def hunyuan(shape: Shape) -> Blocks:
    """Cross-layer attention (arXiv 2405.12981): each `cla_share_factor`-th layer owns what the next ones read."""
    layer = shape.full()
    if not shape.fields.flag("use_cla", False):
        return blocks_of([layer] * shape.layers)
    factor = shape.fields.count("cla_share_factor", MOST_LAYERS)
    owner = Block((layer,))
    return tuple(
        owner if index % factor == 0 else Block(shares_with=index - index % factor) for index in range(shape.layers)
    )


def mimo_v2(shape: Shape) -> Blocks:
    """`hybrid_layer_pattern` holds 1 where a layer slides; K and V differ in width, windows have twice the heads."""
    pattern = shape.flags("hybrid_layer_pattern")
    fields = shape.fields
    dim, dim_v = shape.head_dim, fields.optional_count("v_head_dim") or shape.head_dim
    window = SlidingWindowAttention(
        fields.optional_count("swa_num_key_value_heads") or 2 * shape.kv_heads,
        fields.optional_count("swa_head_dim") or dim,
        fields.optional_count("swa_v_head_dim") or dim_v,
        shape.window(),
    )
    return by_types(
        shape,
        lambda index: pattern[index] if pattern is not None else index != 0 and (index + 1) % 6 != 0,
        FullAttention(shape.kv_heads, dim, dim_v),
        window,
    )


def step3(shape: Shape) -> Blocks:
    """`layer_types` says it all, entries for draft layers at its end left out; windows may have heads of their own."""
    other = Fields(shape.fields.section("attention_other_setting"), aliases={}, defaults={})
    kinds = shape.fields.items("layer_types")
    if kinds is None:
        raise ModelError("layer_types", "is missing")
    drafts = shape.fields.optional_count("num_nextn_predict_layers", MOST_LAYERS, least=0) or 0
    if len(kinds) not in (shape.layers, shape.layers + drafts):
        raise ModelError("layer_types", f"has {len(kinds)} entries for {shape.layers} layers")
    for index, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(f"layer_types[{index}]", f"{show(kind)} is not full_attention or sliding_attention")
    heads = other.optional_count("num_attention_groups") or shape.kv_heads
    dim = other.optional_count("head_dim") or shape.head_dim
    sliding = [kind == "sliding_attention" for kind in kinds[: shape.layers]]
    whole: Layer = shape.full()
    window: Layer = SlidingWindowAttention(heads, dim, dim, shape.window()) if any(sliding) else whole
    return blocks_of(window if inside else whole for inside in sliding)


def llama4(shape: Shape) -> Blocks:
    """Chunks of `attention_chunk_size` in the layers with rotary embedding, the whole sequence in the others."""
    layer_types = shape.layer_types({"full_attention", "chunked_attention"})
    if layer_types is None:
        local = [_has_rope(shape, index) for index in range(shape.layers)]
    else:
        local = [kind == "chunked_attention" for kind in layer_types]
    chunk = shape.fields.optional_count("attention_chunk_size")
    if chunk is None or not any(local):
        return full(shape)
    chunked = ChunkedLocalAttention(shape.kv_heads, shape.head_dim, shape.head_dim, chunk)
    return blocks_of(chunked if inside else shape.full() for inside in local)


def nemotron_nas(shape: Shape) -> Blocks:
    """One entry of `block_configs` per layer: its own number of heads per KV head, or no attention at all."""
    entries = shape.fields.items("block_configs")
    if entries is None or len(entries) != shape.layers:
        raise ModelError("block_configs", f"does not have one entry for each of {shape.layers} layers")
    blocks: list[Block] = []
    for index, entry in enumerate(entries):
        name = f"block_configs[{index}].attention"
        attention = entry.get("attention") if isinstance(entry, Mapping) else None
        if not isinstance(attention, Mapping):
            raise ModelError(name, "is missing")
        if attention.get("no_op") or attention.get("replace_with_linear"):
            blocks.append(Block())
            continue
        fields = Fields(attention, aliases={}, defaults={})
        if fields.value("num_sink_tokens"):
            raise ModelError(f"{name}.num_sink_tokens", "sink tokens per block are not modelled")
        per_kv_head = attention.get("n_heads_in_group")
        if isinstance(per_kv_head, bool) or not isinstance(per_kv_head, int) or per_kv_head < 1:
            raise ModelError(f"{name}.n_heads_in_group", f"{show(per_kv_head)} is not a number of heads")
        if shape.heads % per_kv_head:
            raise ModelError(f"{name}.n_heads_in_group", f"{per_kv_head} does not divide {shape.heads} heads")
        heads = shape.heads // per_kv_head
        window = fields.optional_count("window_length")
        if window is None:
            blocks.append(Block((FullAttention(heads, shape.head_dim, shape.head_dim),)))
        else:
            blocks.append(Block((SlidingWindowAttention(heads, shape.head_dim, shape.head_dim, window),)))
    if not any(block.caches for block in blocks):
        raise ModelError("block_configs", "has no layer with attention")
    return tuple(blocks)


def openelm(shape: Shape) -> Blocks:
    """`num_kv_heads` lists the KV heads of each layer."""
    heads = shape.fields.counts("num_kv_heads")
    if len(heads) != shape.layers:
        raise ModelError("num_kv_heads", f"has {len(heads)} entries for {shape.layers} layers")
    return blocks_of(FullAttention(each, shape.head_dim, shape.head_dim) for each in heads)


def sink_tokens(shape: Shape) -> Blocks:
    """Full attention behind `param_sink_number` learned K/V rows (openPangu); V may be of another width."""
    sinks = shape.fields.optional_count("param_sink_number", least=0) or 0
    dim_v = shape.fields.optional_count("v_channels") or shape.head_dim
    return blocks_of([FullAttention(shape.kv_heads, shape.head_dim, dim_v, sinks)] * shape.layers)


def _has_rope(shape: Shape, index: int) -> bool:
    """`no_rope_layers` holds 1 where a layer does rotate, its name notwithstanding (transformers 5.23)."""
    given = shape.fields.items("no_rope_layers")
    if not given:
        return (index + 1) % shape.fields.count("no_rope_layer_interval", MOST_LAYERS) != 0
    if len(given) != shape.layers:
        raise ModelError("no_rope_layers", f"has {len(given)} entries for {shape.layers} layers")
    return bool(given[index])
