"""What each layer of llama.cpp's architectures keeps, by the keys of a GGUF file's metadata.

Which layers slide, keep a state or share a cache: llama.cpp's `llama-model.cpp: load_hparams`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvmodel.errors import ModelError, show
from kvmodel.layers import (
    Block,
    ChunkedLocalAttention,
    CrossAttention,
    FullAttention,
    LatentAttention,
    Layer,
    SlidingWindowAttention,
)
from kvmodel.states import (
    GatedDeltaNetState,
    KimiDeltaState,
    Mamba1State,
    Mamba2State,
    RwkvState,
    ShortConvState,
)

_LARGEST = 2**40


@dataclass(frozen=True, slots=True)
class Reader:
    """Typed look-ups under the architecture's prefix."""

    name: str
    metadata: Mapping[str, object]

    def value(self, key: str) -> object:
        return self.metadata.get(f"{self.name}.{key}")

    def optional(self, key: str, least: int = 1) -> int | None:
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise ModelError(f"{self.name}.{key}", f"{show(value)} is not a number in {least}..{_LARGEST}")
        return value

    def count(self, key: str, least: int = 1) -> int:
        value = self.optional(key, least)
        if value is None:
            raise ModelError(f"{self.name}.{key}", "is missing")
        return value

    def per_layer(self, key: str, layers: int, default: int | None = None) -> list[int]:
        """One number per layer, from a list or from one for all."""
        value = self.value(key)
        items = getattr(value, "values", value)
        if value is not None and not isinstance(value, int) and items is None:
            raise ModelError(f"{self.name}.{key}", "is a list too long to be one per layer")
        if isinstance(items, Sequence) and not isinstance(items, (str, bytes)):
            if len(items) < layers:
                raise ModelError(f"{self.name}.{key}", f"has {len(items)} entries for {layers} layers")
            for item in items[:layers]:
                if not isinstance(item, int) or not 0 <= item <= _LARGEST:
                    raise ModelError(f"{self.name}.{key}", f"{show(item)} is not a size")
            return [int(item) for item in items[:layers]]
        given = self.optional(key, least=0)
        if given is None:
            given = default
        if given is None:
            raise ModelError(f"{self.name}.{key}", "is missing")
        return [given] * layers


@dataclass(frozen=True, slots=True)
class Facts:
    """What every architecture states."""

    reader: Reader
    layers: int
    hidden: int
    heads: list[int]
    kv_heads: list[int]
    key: int
    value: int

    def full(self, index: int) -> FullAttention:
        return FullAttention(self.kv_heads[index], self.key, self.value)

    def attention(self, index: int) -> Block:
        """Attention over everything, or nothing where the layer has no KV heads."""
        return Block((self.full(index),)) if self.kv_heads[index] else Block()


def _plain(facts: Facts) -> list[Block]:
    return [facts.attention(index) for index in range(facts.layers)]


def _windows(period: int, *, first_full: bool = False, size: int = 0) -> Callable[[Facts], list[Block]]:
    """Windows but for each `period`-th layer, or for the layers 0, n, 2n, ... where those come first."""

    def slides(index: int) -> bool:
        return bool(index % period) if first_full else (index + 1) % period != 0

    return lambda facts: _windowed(facts, slides, size)


def _windowed(facts: Facts, default: Callable[[int], bool], size: int) -> list[Block]:
    """The file's own list of windows, else the architecture's pattern; no window at all without its size."""
    reader = facts.reader
    window = reader.optional("attention.sliding_window", least=0)
    if window is None:
        window = size
    if not window:
        return _plain(facts)
    pattern = reader.value("attention.sliding_window_pattern")
    if pattern is None:
        slides = [default(index) for index in range(facts.layers)]
    elif isinstance(pattern, int) and not isinstance(pattern, bool):
        slides = [pattern > 0 and (index + 1) % pattern != 0 for index in range(facts.layers)]
    else:
        slides = [bool(each) for each in reader.per_layer("attention.sliding_window_pattern", facts.layers)]
    key = reader.optional("attention.key_length_swa") or facts.key
    value = reader.optional("attention.value_length_swa") or facts.value
    return [
        Block((SlidingWindowAttention(facts.kv_heads[index], key, value, window),))
        if slides[index] and facts.kv_heads[index]
        else facts.attention(index)
        for index in range(facts.layers)
    ]


def _shared(layout: Callable[[Facts], list[Block]], default: int) -> Callable[[Facts], list[Block]]:
    """The last layers read the cache of the last earlier layer of their kind."""

    def blocks(facts: Facts) -> list[Block]:
        own = layout(facts)
        shared = facts.reader.optional("attention.shared_kv_layers", least=0)
        owners = facts.layers - (default if shared is None else shared)
        if owners < 1:
            raise ModelError(f"{facts.reader.name}.attention.shared_kv_layers", f"leaves no layer of {facts.layers}")
        latest = {type(block.caches[0]): index for index, block in enumerate(own[:owners]) if block.caches}
        for index in range(owners, facts.layers):
            kind = type(own[index].caches[0]) if own[index].caches else None
            if kind not in latest:
                raise ModelError(f"{facts.reader.name}.block_count", f"layer {index} has none to share with")
            own[index] = Block(shares_with=latest[kind])
        return own

    return blocks


def _llama4(facts: Facts) -> list[Block]:
    """Chunks of 8192 tokens but in each fourth layer."""
    chunk = facts.reader.optional("attention.chunk_size") or 8192
    period = facts.reader.optional("interleave_moe_layer_step_nope") or 4
    return [
        Block((ChunkedLocalAttention(facts.kv_heads[index], facts.key, facts.value, chunk),))
        if (index + 1) % period
        else facts.attention(index)
        for index in range(facts.layers)
    ]


def latent_layer(facts: Facts) -> Layer | None:
    """The latent, where the file is of the kind that caches it: older ones cache expanded heads."""
    reader = facts.reader
    if reader.optional("attention.kv_lora_rank") is None or reader.optional("attention.key_length_mla") is None:
        return None
    return LatentAttention(reader.count("attention.kv_lora_rank"), reader.count("rope.dimension_count"))


def _latent(facts: Facts) -> list[Block]:
    layer = latent_layer(facts)
    if layer is None:
        heads = FullAttention(max(facts.heads), facts.key, facts.value)
        return [Block((heads,))] * facts.layers
    return [Block((layer,))] * facts.layers


def _mamba(facts: Facts) -> Layer:
    reader = facts.reader
    inner, state = reader.count("ssm.inner_size"), reader.count("ssm.state_size")
    kernel = reader.count("ssm.conv_kernel")
    groups = reader.optional("ssm.group_count", least=0) or 0
    if reader.name in ("mamba", "jamba") or not groups:
        return Mamba1State(kernel, inner, state)
    heads = reader.count("ssm.time_step_rank")
    if inner % heads:
        raise ModelError(f"{reader.name}.ssm.time_step_rank", f"{heads} does not divide {inner} channels")
    return Mamba2State(kernel, heads, inner // heads, state, groups)


def _all_mamba(facts: Facts) -> list[Block]:
    return [Block((_mamba(facts),))] * facts.layers


def _mamba_where_no_heads(facts: Facts) -> list[Block]:
    """Layers without KV heads keep a state, but for MLPs that are a layer of their own (Nemotron-H)."""
    state = Block((_mamba(facts),))
    widths = facts.reader.per_layer("feed_forward_length", facts.layers, default=0)
    own_mlp = facts.reader.name.startswith("nemotron_h")
    return [
        facts.attention(index) if facts.kv_heads[index] else Block() if own_mlp and widths[index] else state
        for index in range(facts.layers)
    ]


def _parallel(facts: Facts) -> list[Block]:
    state = _mamba(facts)
    return [Block((facts.full(index), state)) for index in range(facts.layers)]


def _short_conv(facts: Facts) -> list[Block]:
    state = Block((ShortConvState(facts.reader.count("shortconv.l_cache"), facts.hidden),))
    return [facts.attention(index) if facts.kv_heads[index] else state for index in range(facts.layers)]


def _gated_delta(facts: Facts) -> list[Block]:
    """Value heads are the time-step rank, key heads the groups, a key is as wide as the state."""
    reader = facts.reader
    values, inner = reader.count("ssm.time_step_rank"), reader.count("ssm.inner_size")
    if inner % values:
        raise ModelError(f"{reader.name}.ssm.time_step_rank", f"{values} does not divide {inner} channels")
    state = GatedDeltaNetState(
        reader.count("ssm.conv_kernel"),
        reader.count("ssm.group_count"),
        values,
        reader.count("ssm.state_size"),
        inner // values,
    )
    period = reader.optional("full_attention_interval") or 4
    return [
        Block((state,)) if (index + 1) % period or not facts.kv_heads[index] else facts.attention(index)
        for index in range(facts.layers)
    ]


def _kimi_linear(facts: Facts) -> list[Block]:
    reader = facts.reader
    state = Block((KimiDeltaState(reader.count("ssm.conv_kernel"), max(facts.heads), reader.count("kda.head_dim")),))
    latent = latent_layer(facts)
    return [
        (facts.attention(index) if latent is None else Block((latent,))) if facts.kv_heads[index] else state
        for index in range(facts.layers)
    ]


def _rwkv(facts: Facts) -> list[Block]:
    return [Block((RwkvState(facts.hidden, facts.hidden * facts.reader.count("wkv.head_size")),))] * facts.layers


def _t5(facts: Facts) -> list[Block]:
    cross = CrossAttention(max(facts.kv_heads), facts.key, facts.value)
    return [Block((facts.full(index), cross)) for index in range(facts.layers)]


_PLAIN = {
    "apertus": "apertus",
    "arcee": "arcee",
    "arctic": "arctic",
    "baichuan": "baichuan",
    "bailingmoe": "bailing_moe",
    "bailingmoe2": "bailing_moe",
    "bitnet": "bitnet",
    "bloom": "bloom",
    "chatglm": "chatglm",
    "command-r": "cohere",
    "dbrx": "dbrx",
    "deci": "nemotron-nas",
    "deepseek": "deepseek",
    "dots1": "dots1",
    "ernie4_5": "ernie4_5",
    "ernie4_5-moe": "ernie4_5_moe",
    "exaone": "exaone",
    "falcon": "falcon",
    "gemma": "gemma",
    "glm4": "glm4",
    "glm4moe": "glm4_moe",
    "gpt2": "gpt2",
    "gptj": "gptj",
    "gptneox": "gpt_neox",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "grok": "grok-1",
    "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe",
    "internlm2": "internlm2",
    "llama": "llama",
    "minicpm": "minicpm",
    "minimax-m2": "minimax_m2",
    "mistral3": "ministral3",
    "mpt": "mpt",
    "nemotron": "nemotron",
    "olmo": "olmo",
    "olmoe": "olmoe",
    "openelm": "openelm",
    "orion": "orion",
    "phi2": "phi",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "qwen": "qwen",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen2vl": "qwen2_vl_text",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "qwen3vl": "qwen3_vl_text",
    "qwen3vlmoe": "qwen3_vl_moe_text",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
}
"""llama.cpp gives Phi-3 no windows, whatever the file says of them."""

LAYOUTS: Mapping[str, tuple[str, Callable[[Facts], list[Block]]]] = {
    **{name: (model_type, _plain) for name, model_type in _PLAIN.items()},
    "afmoe": ("afmoe", _windows(4)),
    "cohere2": ("cohere2", _windows(4)),
    "deepseek2": ("deepseek_v2", _latent),
    "exaone4": ("exaone4", _windows(4)),
    "falcon-h1": ("falcon_h1", _parallel),
    "gemma2": ("gemma2", _windows(2, size=4096)),
    "gemma3": ("gemma3_text", _windows(6)),
    "gemma3n": ("gemma3n_text", _shared(_windows(5), 15)),
    "gemma4": ("gemma4_text", _shared(_windows(6), 0)),
    "gpt-oss": ("gpt_oss", _windows(2)),
    "granitehybrid": ("granitemoehybrid", _mamba_where_no_heads),
    "jamba": ("jamba", _mamba_where_no_heads),
    "kimi-linear": ("kimi_linear", _kimi_linear),
    "lfm2": ("lfm2", _short_conv),
    "lfm2moe": ("lfm2_moe", _short_conv),
    "llama4": ("llama4_text", _llama4),
    "mamba": ("mamba", _all_mamba),
    "mamba2": ("mamba2", _all_mamba),
    "mimo2": ("mimo_v2_flash", _windows(6)),
    "minicpm3": ("minicpm3", _latent),
    "nemotron_h": ("nemotron_h", _mamba_where_no_heads),
    "nemotron_h_moe": ("nemotron_h", _mamba_where_no_heads),
    "olmo2": ("olmo3", _windows(4)),
    "qwen35": ("qwen3_5_text", _gated_delta),
    "qwen35moe": ("qwen3_5_moe_text", _gated_delta),
    "qwen3next": ("qwen3_next", _gated_delta),
    "rwkv6": ("rwkv6", _rwkv),
    "rwkv7": ("rwkv7", _rwkv),
    "step35": ("step3p5", _windows(4, first_full=True)),
    "t5": ("t5", _t5),
}

ATTENTION_FREE = frozenset({"mamba", "mamba2", "rwkv6", "rwkv7"})
