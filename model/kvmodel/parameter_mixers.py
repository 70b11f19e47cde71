"""What mixes tokens in a layer, by family: attention, latent attention, a state space, or one of them by turns."""

from kvmodel import parameter_blocks as blocks
from kvmodel.errors import ModelError, show
from kvmodel.parameter_config import Config, Tally
from kvmodel.parameter_mlps import Block, routed, truth


def attention(
    qkv_bias: bool | str = False,
    out_bias: bool | str = False,
    qk_norm: str = "",
    gated: bool = False,
    sinks: bool = False,
) -> Block:
    def add(config: Config, _: int, tally: Tally) -> None:
        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        tally.attention += blocks.attention(
            config.hidden,
            heads,
            kv_heads,
            dim,
            qkv_bias=truth(config, qkv_bias),
            out_bias=truth(config, out_bias),
            gated=gated,
        )
        wanted = qk_norm.removeprefix("if:")
        if wanted and (wanted == qk_norm or config.flag("use_qk_norm")):
            tally.norms += 2 * dim if wanted == "head" else (heads + kv_heads) * dim
        if sinks:
            tally.attention += heads

    return add


def gemma4(config: Config, index: int, tally: Tally) -> None:
    """Full layers have heads of their own, and no V projection where V is K."""
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers", "enable_moe_block"):
        if config.find(name):
            raise ModelError(name, f"{show(config.find(name))}: parameters of such layers are not counted")
    kinds = config.items("layer_types")
    last = config.layers - 1
    if kinds is None:
        full = (index + 1) % 6 == 0 or index == last
    elif index < len(kinds):
        full = kinds[index] == "full_attention"
    else:
        raise ModelError("layer_types", f"does not name layer {index}")
    hidden, heads, kv_heads, dim = config.hidden, config.heads, config.kv_heads, config.head_dim
    same = full and config.flag("attention_k_eq_v")
    if full:
        # transformers writes what differs under the layer's number, checkpoints under names of their own.
        own = config.keyed("per_layer_config", index)
        dim = own.count("head_dim", default=config.count("global_head_dim", default=dim))
        shared = config.count("num_global_key_value_heads", default=kv_heads) if same else kv_heads
        kv_heads = own.count("num_key_value_heads", default=shared)
    bias = config.flag("attention_bias")
    projections = blocks.attention(hidden, heads, kv_heads, dim, qkv_bias=bias, out_bias=bias)
    tally.attention += projections - (blocks.linear(hidden, kv_heads * dim, bias) if same else 0)
    tally.norms += 2 * dim


def falcon_attention(config: Config, _: int, tally: Tally) -> None:
    new = config.flag("new_decoder_architecture")
    multi_query = config.flag("multi_query", True)
    kv_heads = config.kv_heads if new or not multi_query else 1
    bias = config.flag("bias")
    dim = config.hidden // config.heads
    tally.attention += blocks.attention(config.hidden, config.heads, kv_heads, dim, qkv_bias=bias, out_bias=bias)
    # New decoders norm attention and MLP apart, older parallel ones once for both.
    parallel = config.flag("parallel_attn", True)
    two = config.count("num_ln_in_parallel_attn", default=2) == 2 if new else not parallel
    tally.norms += 2 * config.hidden * (2 if two else 1)


def bigcode_attention(config: Config, _: int, tally: Tally) -> None:
    kv_heads = 1 if config.flag("multi_query", True) else config.heads
    tally.attention += blocks.attention(
        config.hidden, config.heads, kv_heads, config.hidden // config.heads, qkv_bias=True, out_bias=True
    )


def dbrx_attention(config: Config, _: int, tally: Tally) -> None:
    kv_heads = config.section("attn_config").count("kv_n_heads", least=1)
    tally.attention += blocks.attention(config.hidden, config.heads, kv_heads, config.hidden // config.heads)


def latent(config: Config, index: int, tally: Tally) -> None:
    query_rank = config.optional("q_lora_rank")
    tally.attention += blocks.latent_attention(
        config.hidden,
        config.heads,
        query_rank=query_rank,
        kv_rank=config.count("kv_lora_rank"),
        nope=config.count("qk_nope_head_dim"),
        rope=config.count("qk_rope_head_dim"),
        value_dim=config.count("v_head_dim", default=config.hidden // config.heads),
    )
    kinds = config.items("indexer_types")
    if config.find("index_head_dim") is not None and (kinds is None or (index < len(kinds) and kinds[index] == "full")):
        dim, heads = config.count("index_head_dim"), config.count("index_n_heads")
        tally.attention += blocks.sparse_indexer(config.hidden, query_rank or config.hidden, heads, dim)


def mamba1(config: Config, _: int, tally: Tally) -> None:
    hidden = config.hidden
    expand = config.count("mamba_expand", "expand", default=2)
    rank = config.find("mamba_dt_rank", "time_step_rank")
    rank = config.count("mamba_dt_rank", "time_step_rank") if isinstance(rank, int) else -(-hidden // 16)
    state = config.count("mamba_d_state", "state_size", "ssm_state_size", default=16)
    tally.attention += blocks.mamba1(
        hidden,
        expand * hidden,
        state,
        config.count("mamba_d_conv", "conv_kernel", default=4),
        rank,
        bias=config.flag("mamba_proj_bias") or config.flag("use_bias"),
        conv_bias=config.flag("mamba_conv_bias", True) and config.flag("use_conv_bias", True),
    )


def jamba(config: Config, index: int, tally: Tally) -> None:
    period, offset = config.count("attn_layer_period", least=1), config.count("attn_layer_offset")
    if index % period == offset:
        attention()(config, index, tally)
        return
    mamba1(config, index, tally)
    rank = config.count("mamba_dt_rank", default=-(-config.hidden // 16))
    tally.norms += rank + 2 * config.count("mamba_d_state")


def mamba2(config: Config, norm: bool = True) -> int:
    heads = config.count("mamba_n_heads", "mamba_num_heads")
    inner = heads * config.count("mamba_d_head", "mamba_head_dim")
    return blocks.mamba2(
        config.hidden,
        config.count("mamba_d_ssm", default=inner),
        config.count("mamba_d_state", "ssm_state_size"),
        config.count("mamba_d_conv", "conv_kernel"),
        heads,
        config.count("mamba_n_groups", "n_groups"),
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias", True) and config.flag("use_conv_bias", True),
        norm=norm,
    )


def mamba2_or_attention(config: Config, index: int, tally: Tally) -> None:
    kinds = config.items("layer_types") or config.items("layers_block_type")
    attends = config.items("attn_layer_indices")
    if kinds is not None:
        is_attention = index < len(kinds) and kinds[index] in ("attention", "full_attention")
    else:
        is_attention = index in (attends or [])
    if is_attention:
        attention("attention_bias", "attention_bias")(config, index, tally)
    else:
        tally.attention += mamba2(config)


def falcon_h1(config: Config, index: int, tally: Tally) -> None:
    attention("attention_bias", "attention_bias")(config, index, tally)
    tally.attention += mamba2(config, norm=config.flag("mamba_rms_norm"))


_NEMOTRON_LETTERS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _nemotron_letter(config: Config, index: int) -> str:
    listed = config.items("layers_block_type")
    if listed is not None and index < len(listed):
        return _NEMOTRON_LETTERS.get(str(listed[index]), str(listed[index]))
    pattern = config.find("hybrid_override_pattern")
    if not isinstance(pattern, str) or index >= len(pattern):
        raise ModelError("hybrid_override_pattern", f"{show(pattern)} does not name layer {index}")
    return pattern[index]


def nemotron_h(config: Config, index: int, tally: Tally) -> None:
    """One block per layer, by letter: M a Mamba-2, * attention, - an MLP, E experts."""
    kind = _nemotron_letter(config, index)
    hidden = config.hidden
    if kind == "M":
        tally.attention += mamba2(config)
    elif kind == "*":
        attention("attention_bias", "attention_bias")(config, index, tally)
    elif kind == "-":
        tally.dense += blocks.mlp(hidden, config.width, gated=False, bias=config.flag("mlp_bias"))
    elif kind == "E":
        experts = config.count("n_routed_experts")
        each = blocks.mlp(hidden, config.count("moe_intermediate_size"), gated=False)
        routed(tally, hidden, experts, config.count("num_experts_per_tok"), each)
        shared = config.count("moe_shared_expert_intermediate_size") * config.count("n_shared_experts")
        tally.dense += blocks.mlp(hidden, shared, gated=False)
    else:
        raise ModelError("hybrid_override_pattern", f"{show(kind)} is not one of M, *, - and E")


def qwen_hybrid(config: Config, index: int, tally: Tally) -> None:
    kinds = config.items("layer_types")
    interval = config.count("full_attention_interval", default=4, least=1)
    full = kinds[index] == "full_attention" if kinds is not None and index < len(kinds) else (index + 1) % interval == 0
    if full:
        attention("attention_bias", "attention_bias", qk_norm="head", gated=True)(config, index, tally)
        return
    tally.attention += blocks.gated_delta(
        config.hidden,
        config.count("linear_num_key_heads"),
        config.count("linear_num_value_heads"),
        config.count("linear_key_head_dim"),
        config.count("linear_value_head_dim"),
        config.count("linear_conv_kernel_dim"),
    )


def minimax(config: Config, index: int, tally: Tally) -> None:
    kinds = config.items("layer_types") or config.items("attn_type_list")
    if kinds is None or index >= len(kinds):
        raise ModelError("layer_types", "is missing or too short")
    if kinds[index] in ("full_attention", 1):
        attention()(config, index, tally)
    else:
        tally.attention += blocks.lightning(config.hidden, config.heads, config.head_dim)


def lfm2(config: Config, index: int, tally: Tally) -> None:
    kinds = config.items("layer_types")
    if kinds is None or index >= len(kinds):
        raise ModelError("layer_types", "is missing or too short")
    if kinds[index] == "full_attention":
        attention(qk_norm="head")(config, index, tally)
    else:
        tally.attention += blocks.short_convolution(
            config.hidden, config.count("conv_L_cache"), bias=config.flag("conv_bias")
        )
