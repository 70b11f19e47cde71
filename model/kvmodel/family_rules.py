"""Heads, widths and numbers of layers that single families' configs leave to a rule."""

from collections.abc import Mapping

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.shape import MOST_LAYERS, Shape


def four_times_hidden(shape: Shape) -> int:
    """The usual width of an MLP that the config does not give."""
    return 4 * shape.hidden_size


def mpt_intermediate(shape: Shape) -> int:
    return shape.fields.count("expansion_ratio") * shape.hidden_size


def one_per_head(shape: Shape) -> int:
    """A KV head per attention head, whatever else the config holds."""
    return shape.heads


def multi_query(shape: Shape) -> int:
    return 1 if shape.fields.flag("multi_query", True) else shape.heads


def falcon_kv_heads(shape: Shape) -> int:
    """`num_kv_heads` counts only in the new decoder; the old one has one head or all."""
    if not shape.fields.flag("new_decoder_architecture", False):
        return multi_query(shape)
    given = shape.fields.optional_count("num_kv_heads") or shape.heads
    if shape.heads % given:
        raise shape.fields.refuse("num_kv_heads", f"does not divide {shape.heads} attention heads")
    return given


def refined_web_kv_heads(shape: Shape) -> int:
    given = shape.fields.optional_count("num_key_value_heads")
    return multi_query(shape) if given is None else given


def chatglm_kv_heads(shape: Shape) -> int:
    if not shape.fields.flag("multi_query_attention", False):
        return shape.heads
    return shape.fields.count("multi_query_group_num")


def dbrx_kv_heads(shape: Shape) -> int:
    attention = Fields(shape.fields.section("attn_config"), aliases={}, defaults={})
    given = attention.optional_count("kv_n_heads") or shape.fields.count("num_key_value_heads")
    if shape.heads % given:
        raise ModelError("attn_config.kv_n_heads", f"{given} does not divide {shape.heads} attention heads")
    return given


def dbrx_intermediate(shape: Shape) -> int:
    return Fields(shape.fields.section("ffn_config"), aliases={}, defaults={}).count("ffn_hidden_size")


def jetmoe_heads(shape: Shape) -> int:
    """Experts choose query heads too; KV heads are those of one expert."""
    return shape.fields.count("num_key_value_heads")


def nas_intermediate(shape: Shape) -> int:
    """The widest MLP of `block_configs`: DeciLM rounds `2 / 3 * ffn_mult * hidden_size` up to 256."""
    blocks = shape.fields.items("block_configs") or []
    widths = []
    for block in blocks:
        ffn = block.get("ffn") if isinstance(block, Mapping) else None
        ratio = ffn.get("ffn_mult") if isinstance(ffn, Mapping) else None
        if ratio is None:
            continue
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1000:
            raise ModelError("block_configs.ffn.ffn_mult", f"{show(ratio)} is not a ratio")
        widths.append(-(-int(2 * ratio * shape.hidden_size / 3) // 256) * 256)
    if not widths:
        raise ModelError("block_configs.ffn.ffn_mult", "is missing")
    return max(widths)


def openelm_intermediate(shape: Shape) -> int:
    """The widest of `ffn_multipliers`, rounded to `ffn_dim_divisor`."""
    ratios = shape.fields.items("ffn_multipliers") or []
    widest = 0.0
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1000:
            raise ModelError("ffn_multipliers", f"{show(ratio)} is not a ratio")
        widest = max(widest, float(ratio))
    if not widest:
        raise ModelError("ffn_multipliers", "is missing")
    divisor = shape.fields.count("ffn_dim_divisor")
    return max(divisor, int(widest * shape.hidden_size + divisor / 2) // divisor * divisor)


def openelm_query_heads(shape: Shape) -> int:
    return max(shape.fields.counts("num_attention_heads"))


def openelm_heads(shape: Shape) -> int:
    return max(shape.fields.counts("num_kv_heads"))


def hrm_layers(shape: Shape) -> int:
    """Each pass of each stack keeps a cache of its own; older configs give the layers of one stack."""
    if shape.fields.value("num_layers_per_stack") is not None:
        return shape.fields.count("num_hidden_layers", MOST_LAYERS)
    turns = shape.fields.count("H_cycles", 1000) * (shape.fields.count("L_cycles", 1000) + 1)
    return min(turns * shape.fields.count("num_hidden_layers", MOST_LAYERS), MOST_LAYERS)


def moe_width(shape: Shape) -> int:
    """Models of experts only give no dense width."""
    return shape.fields.count("moe_intermediate_size")
