"""What stands in GPU memory with the weights but not in the checkpoint's files."""

from kvmodel.architecture import Architecture
from kvmodel.layers import LatentAttention

_MXFP4_BITS = 4.25
_MXFP4_PADDING = 256


def resident_extras(architecture: Architecture, *, tp: int = 1, pp: int = 1) -> dict[str, int]:
    """Bytes on one rank, by what takes them: rotary tables, MLA's absorbed projections, padded MXFP4 experts.

    Rotary tables are `max_position * rotary_dim` elements of 2 bytes, on every rank alike. MLA keeps `W_UK` and `W_UV`
    a second time, in the shape the latent needs (vLLM `v1/attention/backends/mla`). MXFP4 expert matrices are padded
    to rows of 256 (vLLM on Hopper: gpt-oss 2880 to 3072). Layers are cut evenly over `pp`.
    """
    layers = -(-architecture.num_layers // pp)
    extras: dict[str, int] = {}
    if architecture.rotary_dim is not None and architecture.max_position_embeddings is not None:
        extras["rotary tables"] = architecture.max_position_embeddings * architecture.rotary_dim * 2
    absorbed = 0
    for group in architecture.groups:
        if isinstance(group.layer, LatentAttention):
            expanded = (architecture.qk_nope_head_dim or 0) + (architecture.v_head_dim or 0)
            heads = architecture.num_attention_heads // tp
            absorbed += -(-group.count // pp) * heads * group.layer.kv_lora_rank * expanded * 2
    if absorbed:
        extras["absorbed MLA projections"] = absorbed
    experts = architecture.experts
    if experts is not None and architecture.quantization == "mxfp4":
        width = experts.intermediate_size // tp
        padded = -(-width // _MXFP4_PADDING) * _MXFP4_PADDING
        sparse = min(layers, experts.sparse_layers)
        elements = sparse * experts.count * 3 * (padded - width) * architecture.hidden_size
        if elements:
            extras["padded MXFP4 experts"] = int(elements * _MXFP4_BITS / 8)
    return extras
