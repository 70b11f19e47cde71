"""Our plans against vLLM's own planning code, on random set-ups of every known model."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvmodel import Architecture, EnginePlan, ModelError, plan_pool, read_architecture
from kvmodel.engines.vllm.stages import stage_sizes
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
)
from kvmodel.states import (
    GatedDeltaNetState,
    KimiDeltaState,
    LightningState,
    Mamba1State,
    Mamba2State,
    ShortConvState,
    StateLayer,
)
from tests.model.known import LLAMA_8B, known_models
from tests.model.known_caches import known_caches

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

CONFIGS = {model.id: model.config for model in known_models()} | {cache.id: cache.config for cache in known_caches()}
SINKS = {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "param_sink_number": 128}
CONFIGS["openPangu with sinks"] = {**LLAMA_8B, **SINKS}
CASES = 400
SEED = 20261124
KV_DTYPES = ["auto", "auto", "fp8", "int8_per_token_head", "int4_per_token_head", "nvfp4", "turboquant_k8v4"]
VERSION = "0.32.0"
PLANNER = Path(__file__).with_name("vllm_planner.py")


def described(layer: Layer, architecture: Architecture) -> dict[str, Any]:
    """A layer in the planner's words. Raises ModelError for a kind that vLLM has not."""
    match layer:
        case StateLayer():
            return described_state(layer, architecture)
        case SlidingLatentAttention():
            raise ModelError("architecture", "windows of MLA have other specs")
        case LatentAttention() if architecture.model_type == "minicpm3":
            width = (architecture.qk_nope_head_dim or 0) + layer.qk_rope_head_dim
            heads = architecture.num_attention_heads
            return {"kind": "full", "kv_heads": heads, "head_dim_k": width, "head_dim_v": width}
        case LatentAttention():
            return {"kind": "latent", "width": layer.kv_lora_rank + layer.qk_rope_head_dim}
        case IndexKeys(packed=True):
            width = layer.dim + 4 * -(-layer.dim // 128)
            return {"kind": "index", "width": width, "head_dim": layer.dim, "entry_tokens": layer.tokens_per_entry}
        case WindowLatent():
            return {"kind": "rows", "window": layer.window_tokens}
        case CompressedLatentAttention():
            width = layer.head_dim
            return {"kind": "compressed", "width": width, "head_dim": width, "entry_tokens": layer.tokens_per_entry}
        case FullAttention(sink_tokens=sinks) if sinks:
            widths = {"kv_heads": layer.kv_heads, "head_dim_k": layer.head_dim_k, "head_dim_v": layer.head_dim_v}
            return {"kind": "full", "sinks": sinks, **widths}
        case HeadsLayer():
            kinds = {SlidingWindowAttention: "sliding", ChunkedLocalAttention: "chunked", CrossAttention: "cross"}
            widths = {"kv_heads": layer.kv_heads, "head_dim_k": layer.head_dim_k, "head_dim_v": layer.head_dim_v}
            window = getattr(layer, "window_tokens", None) or getattr(layer, "chunk_tokens", None)
            return {"kind": kinds.get(type(layer), "full"), "window": window, **widths}
    raise ModelError("architecture", f"no words for {type(layer).__name__}")


def described_state(layer: StateLayer, architecture: Architecture) -> dict[str, Any]:
    # The two families whose configs vLLM asks for the type; Nemotron-H has 32 bits where its config is silent.
    named = {"qwen3_5": architecture.state_dtype, "nemotron_h": architecture.state_dtype or "float32"}
    types = [dtype for family, dtype in named.items() if architecture.model_type.startswith(family)]
    wide = layer.recurrent_always_32bit or types == ["float32"]
    match layer:
        case Mamba1State():
            kind = "mamba1"
            shape = {"intermediate_size": layer.inner, "state_size": layer.state, "conv_kernel": layer.conv_kernel}
        case Mamba2State():
            kind = "mamba2"
            shape = {"intermediate_size": layer.heads * layer.head_dim, "n_groups": layer.groups}
            shape |= {"num_heads": layer.heads, "head_dim": layer.head_dim, "state_size": layer.state}
            shape |= {"conv_kernel": layer.conv_kernel}
        case GatedDeltaNetState():
            kind = "gated_delta_net"
            shape = {"num_k_heads": layer.key_heads, "num_v_heads": layer.value_heads, "head_k_dim": layer.key_dim}
            shape |= {"head_v_dim": layer.value_dim, "conv_kernel_size": layer.conv_kernel}
        case KimiDeltaState():
            kind = "kimi_delta"
            shape = {"num_heads": layer.heads, "head_dim": layer.head_dim, "conv_kernel_size": layer.conv_kernel}
        case LightningState():
            kind, shape = "lightning", {"num_heads": layer.heads, "head_dim": layer.head_dim}
        case ShortConvState():
            kind, shape = "short_conv", {"intermediate_size": layer.width, "conv_kernel": layer.conv_kernel}
        case _:
            raise ModelError("architecture", f"no words for {type(layer).__name__}")
    return {"kind": kind, "shape": shape, "wide": wide}


def skipped_layers(chance: random.Random, layers: list[dict[str, Any]], count: int) -> list[str]:
    """None most of the time; else windows, or some layers."""
    compressed = any("entry_tokens" in layer or layer["kind"] == "rows" for layer in layers)
    widths = {(layer.get("kv_heads"), layer.get("head_dim_k")) for layer in layers if "shape" not in layer}
    if chance.random() < 0.7 or compressed or len(widths) != 1:
        return []
    windows = ["sliding_window"] if any(layer["kind"] == "sliding" for layer in layers) else []
    return chance.choice([windows, [str(place) for place in sorted(chance.sample(range(count), 2))]])


def random_case(chance: random.Random, model_id: str) -> dict[str, Any]:
    """A set-up for both: the planner's words beside what is said to us."""
    architecture = read_architecture(CONFIGS[model_id])
    layers = [
        {"block": place, **described(layer, architecture)}
        for place, block in enumerate(architecture.blocks)
        for layer in block.caches
    ]
    heads = [layer["kv_heads"] for layer in layers if "kv_heads" in layer]
    compressed = any(layer["kind"] == "rows" for layer in layers)
    tp = chance.choice([1, 1, 2, 4, 8])
    if architecture.num_attention_heads % tp or any(head % tp and tp % head for head in heads):
        tp = 1
    pp = chance.choice([1, 1, 1, 2, 3])
    drafts = chance.choice([0, 0, 0, 1, 3])
    case: dict[str, Any] = {
        "block_tokens": 256 if compressed else chance.choice([16, 16, 16, 32, 64, 128]),
        "max_model_len": chance.choice([1000, 2048, 8192, 16000, 32768, 131072, 262144, 1000000]),
        "max_num_batched_tokens": chance.choice([512, 2048, 5000, 8192, 16384]),
        "async_scheduling": chance.random() < 0.5,
        "hybrid_kv_cache": chance.random() < 0.75,
        "prefix_caching": chance.random() < 0.5,
        "kv_dtype": chance.choice(KV_DTYPES),
        "state_dtype": chance.choice(["auto", "auto", "float32", "bfloat16"]),
        "tp": tp,
        "pp": min(pp, architecture.num_layers),
        "dcp": chance.choice([1, 1, 1, 2]),
        "speculative_tokens": drafts,
        "draft_layers": chance.choice([0, 1, drafts]) if drafts else 0,
        "encoder_tokens": architecture.encoder_tokens or (512 if architecture.has_cross_attention else 0),
        "kv_bytes": chance.randrange(1 << 30, 150 << 30),
    }
    if any("sinks" in layer for layer in layers):
        # Only the managers, not the planner, refuse blocks that the sinks do not fill.
        case["kv_dtype"] = "auto"
    packed = case["kv_dtype"] in ("nvfp4", "turboquant_k8v4")
    widths = {(layer.get("kv_heads"), layer.get("head_dim_k")) for layer in layers if "shape" not in layer}
    if packed and (any(layer["kind"] == "latent" for layer in layers) or len(widths) != 1):
        case["kv_dtype"] = "auto"
    sparse = any(layer["kind"] == "index" for layer in layers) and not compressed
    if sparse or architecture.kv_cache_dtype is not None:
        case["kv_dtype"] = "auto"
    case["kv_dtype_skip_layers"] = skipped_layers(chance, layers, architecture.num_layers)
    if packed and any("shape" in layer for layer in layers):
        case["kv_dtype_skip_layers"] = []
    if any(layer["kind"] in ("sliding", "chunked", "rows", "compressed") or "shape" in layer for layer in layers):
        case["dcp"] = 1
    attention = [layer for layer in layers if "shape" not in layer]
    if not attention:
        case["draft_layers"] = 0
    last = [layer for layer in attention if layer["block"] == attention[-1]["block"]]
    layers += [{**layer, "block": architecture.num_layers - 1, "draft": True} for layer in last] * case["draft_layers"]
    return {"id": model_id, "layers": layers, "stages": stage_sizes(architecture.num_layers, case["pp"]), **case}


def ours(case: dict[str, Any]) -> EnginePlan | ModelError:
    settings = {name: value for name, value in case.items() if name not in ("id", "layers", "stages")}
    settings["encoder_tokens"] = case["encoder_tokens"] or None
    try:
        return plan_pool(read_architecture(CONFIGS[case["id"]]), engine_version=VERSION, **settings)
    except ModelError as error:
        return error


def difference(case: dict[str, Any], plan: EnginePlan | ModelError, theirs: dict[str, Any]) -> str | None:
    """What the two plans differ in, None where they agree."""
    if "error" in theirs:
        if "larger than the available KV cache" in theirs["error"] or "No available memory" in theirs["error"]:
            refused = isinstance(plan, ModelError) or any("does not start" in warning for warning in plan.warnings)
        else:
            refused = isinstance(plan, ModelError)
        return None if refused else f"{theirs['error']} where we plan"
    if isinstance(plan, ModelError):
        return f"{plan} where vLLM plans"
    mine = {
        "num_blocks": plan.num_blocks,
        "bytes_per_block": plan.bytes_per_block,
        "capacity_tokens": plan.capacity_tokens,
        "max_concurrency": plan.max_concurrency,
        "groups": sorted([group.layers, group.block_tokens or 0, group.page_bytes] for group in plan.groups),
    }
    wrong = {name: (value, theirs[name]) for name, value in mine.items() if value != theirs[name]}
    return f"{wrong}" if wrong else None


def known_to_vllm() -> list[str]:
    """Models whose kinds of layers the planner has words for."""
    found = []
    for model_id, config in CONFIGS.items():
        architecture = read_architecture(config)
        try:
            for group in architecture.groups:
                described(group.layer, architecture)
        except ModelError:
            continue
        found.append(model_id)
    return found


def test_plans_are_those_of_vllms_own_code(vllm_python: Path) -> None:
    chance = random.Random(SEED)
    models = known_to_vllm()
    assert len(models) > 20
    cases = [random_case(chance, chance.choice(models)) for _ in range(CASES)]
    ran = subprocess.run(
        [vllm_python, PLANNER],
        input=json.dumps([{name: value for name, value in case.items() if name != "id"} for case in cases]),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs = json.loads(ran.stdout.splitlines()[-1])
    wrong = [
        f"{ ({name: value for name, value in case.items() if name != 'layers'}) }: {found}"
        for case, plan in zip(cases, theirs, strict=True)
        if (found := difference(case, ours(case), plan)) is not None
    ]
    assert not wrong, "\n".join(wrong[:10])
    assert sum("error" not in plan for plan in theirs) > CASES // 2
