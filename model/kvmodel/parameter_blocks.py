"""Parameters of one building block each, from its widths. All figures are numbers of elements."""


def linear(inputs: int, outputs: int, bias: bool = False) -> int:
    """A matrix, and one bias per output."""
    return inputs * outputs + (outputs if bias else 0)


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    gated: bool = False,
) -> int:
    """Q, K, V and output projections; `gated` doubles Q (an output gate of the same width)."""
    value_dim = head_dim if value_dim is None else value_dim
    queries = linear(hidden, heads * head_dim * (2 if gated else 1), qkv_bias)
    keys = linear(hidden, kv_heads * head_dim, qkv_bias)
    values = linear(hidden, kv_heads * value_dim, qkv_bias)
    return queries + keys + values + linear(heads * value_dim, hidden, out_bias)


def latent_attention(
    hidden: int, heads: int, *, query_rank: int | None, kv_rank: int, nope: int, rope: int, value_dim: int
) -> int:
    """MLA (arXiv 2405.04434): down- and up-projections with a norm on each latent; `query_rank` may be absent."""
    head = nope + rope
    if query_rank is None:
        queries = linear(hidden, heads * head)
    else:
        queries = linear(hidden, query_rank) + query_rank + linear(query_rank, heads * head)
    down = linear(hidden, kv_rank + rope) + kv_rank
    return queries + down + linear(kv_rank, heads * (nope + value_dim)) + linear(heads * value_dim, hidden)


def sparse_indexer(hidden: int, query_rank: int, heads: int, dim: int) -> int:
    """DeepSeek's sparse-attention indexer: queries from the query latent, one key, its norm, head weights."""
    return linear(query_rank, heads * dim) + linear(hidden, dim) + 2 * dim + linear(hidden, heads)


def mlp(hidden: int, width: int, *, gated: bool = True, bias: bool = False) -> int:
    """Up (twice where gated) and down projections."""
    return linear(hidden, width, bias) * (2 if gated else 1) + linear(width, hidden, bias)


def mamba1(hidden: int, inner: int, state: int, kernel: int, rank: int, *, bias: bool, conv_bias: bool) -> int:
    """Mamba (arXiv 2312.00752): input, convolution, selection, time step, A, D and output."""
    convolution = inner * kernel + (inner if conv_bias else 0)
    selection = linear(inner, rank + 2 * state) + linear(rank, inner, bias=True)
    return (
        linear(hidden, 2 * inner, bias) + convolution + selection + inner * state + inner + linear(inner, hidden, bias)
    )


def mamba2(
    hidden: int,
    inner: int,
    state: int,
    kernel: int,
    heads: int,
    groups: int,
    *,
    bias: bool,
    conv_bias: bool,
    norm: bool,
) -> int:
    """Mamba-2 (arXiv 2405.21060): A, D and the time step's bias are one number per head."""
    channels = inner + 2 * groups * state
    convolution = channels * kernel + (channels if conv_bias else 0)
    projections = linear(hidden, inner + channels + heads, bias) + linear(inner, hidden, bias)
    return projections + convolution + 3 * heads + (inner if norm else 0)


def gated_delta(hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int) -> int:
    """Gated DeltaNet as in Qwen3-Next: Q, K, V and the gate, decay and write strength per head, convolution, norm."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    projections = linear(hidden, 2 * keys + 2 * values) + linear(hidden, 2 * value_heads) + linear(values, hidden)
    return projections + (2 * keys + values) * kernel + 2 * value_heads + value_dim


def lightning(hidden: int, heads: int, head_dim: int) -> int:
    """Lightning attention of MiniMax-01: Q, K, V, an output gate, a norm and the output."""
    width = heads * head_dim
    return linear(hidden, 3 * width) + linear(hidden, width) + width + linear(width, hidden)


def short_convolution(hidden: int, kernel: int, *, bias: bool) -> int:
    """LFM2's gated short convolution."""
    return linear(hidden, 3 * hidden, bias) + hidden * kernel + (hidden if bias else 0) + linear(hidden, hidden, bias)
