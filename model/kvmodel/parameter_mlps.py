"""What stands behind attention in a layer, by family: a dense MLP, or experts."""

from collections.abc import Callable

from kvmodel import parameter_blocks as blocks
from kvmodel.parameter_config import Config, Tally

Block = Callable[[Config, int, Tally], None]
"""Adds one part of layer `index` to the tally."""


def mlp(gated: bool = True, bias: bool | str = False) -> Block:
    def add(config: Config, _: int, tally: Tally) -> None:
        tally.dense += blocks.mlp(config.hidden, config.width, gated=gated, bias=truth(config, bias))

    return add


def lfm2_mlp(config: Config, _: int, tally: Tally) -> None:
    width = config.count("intermediate_size", "block_ff_dim")
    if config.flag("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        factor = config.find("block_ffn_dim_multiplier")
        width = int(factor * width) if isinstance(factor, (int, float)) else width
        multiple = config.count("block_multiple_of", default=256, least=1)
        width = -(-width // multiple) * multiple
    tally.dense += blocks.mlp(config.hidden, width)


def no_mlp(config: Config, index: int, tally: Tally) -> None:
    """The mixer is the whole layer."""


def routed(tally: Tally, hidden: int, experts: int, per_token: int, each: int, *, bias: bool = False) -> None:
    tally.router += blocks.linear(hidden, experts, bias)
    tally.experts += experts * each
    tally.active_experts += min(experts, per_token) * each


def experts(router_bias: bool = False, expert_bias: bool = False) -> Block:
    """Experts of `intermediate_size` in every layer (Mixtral, gpt-oss, MiniMax)."""

    def add(config: Config, _: int, tally: Tally) -> None:
        hidden = config.hidden
        each = blocks.mlp(hidden, config.width, bias=expert_bias)
        experts = config.count("num_local_experts", "num_experts")
        routed(tally, hidden, experts, config.count("num_experts_per_tok"), each, bias=router_bias)

    return add


def deepseek_experts(config: Config, index: int, tally: Tally) -> None:
    """Dense layers first, then routed and shared experts. V3's correction bias is a buffer and not counted."""
    hidden = config.hidden
    experts = config.optional("n_routed_experts")
    first = config.count("first_k_dense_replace", default=0)
    if not experts or index < first or index % config.count("moe_layer_freq", default=1, least=1):
        tally.dense += blocks.mlp(hidden, config.width)
        return
    width = config.count("moe_intermediate_size")
    routed(tally, hidden, experts, config.count("num_experts_per_tok"), blocks.mlp(hidden, width))
    tally.dense += blocks.mlp(hidden, config.stated("n_shared_experts") * width)


def qwen_experts(config: Config, index: int, tally: Tally) -> None:
    """Experts in each `decoder_sparse_step`-th layer; Qwen2's and Qwen3-Next's add a gated shared one."""
    hidden = config.hidden
    dense = config.items("mlp_only_layers") or []
    experts = config.count("num_experts", "num_local_experts")
    step = config.count("decoder_sparse_step", default=1, least=1)
    if not experts or index in dense or (index + 1) % step:
        tally.dense += blocks.mlp(hidden, config.width)
        return
    each = blocks.mlp(hidden, config.count("moe_intermediate_size"))
    routed(tally, hidden, experts, config.count("num_experts_per_tok"), each)
    shared = config.optional("shared_expert_intermediate_size")
    if shared:
        tally.dense += blocks.mlp(hidden, shared) + hidden


def llama4_experts(config: Config, index: int, tally: Tally) -> None:
    hidden = config.hidden
    listed = config.items("moe_layers")
    step = config.count("interleave_moe_layer_step", default=1, least=1)
    if not (index in listed if listed is not None else (index + 1) % step == 0):
        tally.dense += blocks.mlp(hidden, config.count("intermediate_size_mlp"))
        return
    each = blocks.mlp(hidden, config.width)
    routed(tally, hidden, config.count("num_local_experts"), config.count("num_experts_per_tok"), each)
    tally.dense += each


def jamba_experts(config: Config, index: int, tally: Tally) -> None:
    period, offset = config.count("expert_layer_period", least=1), config.count("expert_layer_offset")
    each = blocks.mlp(config.hidden, config.width)
    experts = config.count("num_experts", "num_local_experts")
    if index % period == offset and experts > 1:
        routed(tally, config.hidden, experts, config.count("num_experts_per_tok"), each)
    else:
        tally.dense += each


def granite_hybrid_experts(config: Config, _: int, tally: Tally) -> None:
    tally.dense += blocks.mlp(config.hidden, config.count("shared_intermediate_size"))
    experts = config.count("num_local_experts", default=0)
    if experts:
        each = blocks.mlp(config.hidden, config.width)
        routed(tally, config.hidden, experts, config.count("num_experts_per_tok"), each)


def dbrx_experts(config: Config, _: int, tally: Tally) -> None:
    section = config.section("ffn_config")
    each = blocks.mlp(config.hidden, section.count("ffn_hidden_size"))
    routed(tally, config.hidden, section.count("moe_num_experts"), section.count("moe_top_k"), each)


def truth(config: Config, flag: bool | str) -> bool:
    """A flag of the config by its name, one that is true where it is absent by its name and "!", or itself."""
    if isinstance(flag, bool):
        return flag
    return config.flag(flag.removesuffix("!"), default=flag.endswith("!"))
