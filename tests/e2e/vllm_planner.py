"""Run by the python of an environment with vLLM: what its own planning code makes of given layers.

Reads a JSON list of cases from stdin and writes a JSON list of plans to stdout. A case names the layers of a model and
the settings that the planning code looks at; the code is vLLM's (`v1/core/kv_cache_utils.py`, `kv_cache_interface.py`,
`platforms/interface.py`), its configuration objects are stand-ins that hold those settings.
"""

import importlib
import itertools
import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import vllm.model_executor.models as vllm_models
from vllm.model_executor.layers.attention.attention import _largest_kernel_block_within
from vllm.model_executor.layers.attention.mla_attention import MLACommonBackend
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateDtypeCalculator as Dtypes
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
from vllm.model_executor.layers.quantization.turboquant.config import TurboQuantConfig
from vllm.platforms.interface import Platform
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE, get_dtype_size
from vllm.v1.attention.backend import AttentionBackend, MultipleOf
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.attention.backends.turboquant_attn import TurboQuantAttentionBackend
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SinkFullAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
    get_kv_quant_mode,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

# FlashInfer's kernels are no part of the plan, and of an environment without a GPU.
for name in ("", ".decode", ".prefill", ".utils"):
    sys.modules[f"flashinfer{name}"] = mock.MagicMock(__spec__=ModuleSpec(f"flashinfer{name}", None))
FlashInferBackend = importlib.import_module("vllm.v1.attention.backends.flashinfer").FlashInferBackend

Case = dict[str, Any]
COMPRESSED_ROW_BYTES = 584
COMPRESSOR_BLOCKS = {4: 4, 128: 8}


class Backend(AttentionBackend):
    """A backend whose kernels take any multiple of 16 tokens."""

    @classmethod
    def get_supported_kernel_block_sizes(cls, kv_cache_spec: Any = None) -> list[Any]:
        return [MultipleOf(16)]

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        mode = spec.kv_quant_mode
        if mode.is_nvfp4:
            return FlashInferBackend.customize_spec(spec)
        owner = TurboQuantAttentionBackend if mode.is_turboquant else TritonAttentionBackend
        return owner.customize_spec(spec)


class Machine(Platform):
    """A platform that asks that backend."""

    @classmethod
    def _find_non_ssm_backends(cls, vllm_config: Any) -> list[Any]:
        return [Backend]


def state(layer: Case, tp: int, drafts: int, named: str) -> tuple[Any, Any]:
    """Shapes and dtypes of a state layer's tensors on one rank, `named` the flag for the recurrent one."""
    kind, shape = layer["kind"], layer["shape"]
    half, wide = torch.bfloat16, torch.float32
    if kind == "mamba1":
        return Shapes.mamba1_state_shape(tp_world_size=tp, **shape), Dtypes.mamba1_state_dtype(half, "auto", named)
    if kind == "lightning":
        return Shapes.linear_attention_state_shape(tp_size=tp, **shape), Dtypes.linear_attention_state_dtype(
            half, named
        )
    if kind == "short_conv":
        return Shapes.short_conv_state_shape(tp_world_size=tp, num_spec=drafts, **shape), (half,)
    of = {
        "mamba2": Shapes.mamba2_state_shape,
        "gated_delta_net": Shapes.gated_delta_net_state_shape,
        "kimi_delta": Shapes.kda_state_shape,
    }[kind]
    shapes = of(tp_world_size=tp, num_spec=drafts, **shape)
    if named != "auto":
        return shapes, Dtypes.kda_state_dtype(half, "auto", named)
    return shapes, (half, wide if layer["wide"] else half)


def settings(case: Case) -> Any:
    """What the planning code reads of a `VllmConfig`."""
    align = case["prefix_caching"] and any("shape" in layer for layer in case["layers"])
    packed = any("entry_tokens" in layer or layer["kind"] == "rows" for layer in case["layers"])
    layout = KVCacheLayout.BLHNC if packed else KVCacheLayout.LBNHC
    attention = next((layer for layer in case["layers"] if layer["kind"] in ("full", "latent", "sliding")), None)
    heads = max(1, attention.get("kv_heads", 1) // case["tp"]) if attention else 1
    skips = set(case["kv_dtype_skip_layers"])
    if case["kv_dtype"].startswith("turboquant") and not any("shape" in layer for layer in case["layers"]):
        text = SimpleNamespace(num_hidden_layers=sum(case["stages"]))
        skips |= set(TurboQuantConfig.get_boundary_skip_layers(SimpleNamespace(is_hybrid=False, hf_text_config=text)))
    batches = case["pp"] + 1 if case["async_scheduling"] else case["pp"]
    return SimpleNamespace(
        max_in_flight_tokens=batches * case["max_num_batched_tokens"],
        num_prefill_lookahead_tokens=case["speculative_tokens"]
        if min(case["draft_layers"], case["speculative_tokens"]) > 1
        else 0,
        num_speculative_tokens=case["speculative_tokens"],
        speculative_config=None,
        kv_transfer_config=None,
        attention_config=SimpleNamespace(hisparse_config=None),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=not case["hybrid_kv_cache"],
            max_num_encoder_input_tokens=case["encoder_tokens"],
        ),
        cache_config=SimpleNamespace(
            block_size=case["block_tokens"],
            cache_dtype=case["kv_dtype"],
            enable_prefix_caching=case["prefix_caching"],
            get_resolved_kv_cache_layout=lambda: layout,
            kv_cache_dtype_skip_layers=sorted(skips),
            skip_page_size_padded=None,
            mamba_block_size=None,
            mamba_cache_mode="align" if align else "none",
            mamba_page_size_padded=None,
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
        ),
        model_config=SimpleNamespace(
            architecture="",
            dtype=torch.bfloat16,
            get_head_size=lambda: (attention or {}).get("head_dim_k") or (attention or {}).get("width"),
            get_num_kv_heads=lambda _parallel: heads,
            max_model_len=case["max_model_len"],
            original_max_model_len=case["max_model_len"],
            use_mla=attention is not None and attention["kind"] == "latent",
        ),
        parallel_config=SimpleNamespace(decode_context_parallel_size=case["dcp"], tensor_parallel_size=case["tp"]),
    )


def align(case: Case, config: Any) -> None:
    """Grow the attention block over the state's page, as the platform does for hybrids."""
    states = [layer for layer in case["layers"] if "shape" in layer]
    if not states or not any(layer["kind"] in ("full", "latent") for layer in case["layers"]):
        return
    pages = [state(layer, case["tp"], case["speculative_tokens"], case["state_dtype"]) for layer in states]
    shapes, dtypes = max(
        pages, key=lambda page: sum(math.prod(s) * get_dtype_size(d) for s, d in zip(*page, strict=True))
    )
    model = SimpleNamespace(
        get_mamba_state_shape_from_config=lambda _config: shapes,
        get_mamba_state_dtype_from_config=lambda _config: dtypes,
    )
    registry = SimpleNamespace(resolve_model_cls=lambda *_args, **_named: (model, ""))
    with mock.patch.object(vllm_models, "ModelRegistry", registry):
        Machine._align_hybrid_block_size(config, Backend)


def specs(layer: Case, case: Case, config: Any) -> list[KVCacheSpec]:
    """A layer's caches, as vLLM's layers describe them."""
    cache, kind = config.cache_config, layer["kind"]
    skips = cache.kv_cache_dtype_skip_layers
    numbered = str(layer["block"]) in skips and not layer.get("draft")
    skipped = numbered or (kind == "sliding" and "sliding_window" in skips)
    name = "auto" if skipped else case["kv_dtype"]
    dtype = STR_DTYPE_TO_TORCH_DTYPE.get(name, torch.bfloat16)
    block, heads = cache.block_size, max(1, layer.get("kv_heads", 1) // case["tp"])
    quantised = get_kv_quant_mode(name)
    if "shape" in layer:
        shapes, dtypes = state(layer, case["tp"], case["speculative_tokens"], case["state_dtype"])
        return [
            MambaSpec(
                block_size=cache.mamba_block_size or case["max_model_len"],
                shapes=tuple(shapes),
                dtypes=dtypes,
                page_size_padded=cache.mamba_page_size_padded,
                mamba_cache_mode=cache.mamba_cache_mode,
                num_speculative_blocks=case["speculative_tokens"],
                num_prefill_checkpoint_blocks=1 if kind == "mamba2" else 0,
            )
        ]
    rows = {"num_kv_heads": 1, "dtype": dtype, "kv_quant_mode": quantised}
    if kind == "latent":
        return [MLACommonBackend.customize_spec(MLAAttentionSpec(block_size=block, head_size=layer["width"], **rows))]
    if kind == "index" and layer["entry_tokens"] == 1:
        return [MLAAttentionSpec(block_size=block, num_kv_heads=1, head_size=layer["width"], dtype=torch.uint8)]
    if kind in ("rows", "compressed", "index"):
        return compressed(layer, block)
    heads_of = {"num_kv_heads": heads, "head_size": layer["head_dim_k"], "head_size_v": layer["head_dim_v"]}
    heads_of |= {"block_size": block, "dtype": dtype, "kv_quant_mode": quantised}
    if kind == "sliding":
        spec: Any = sliding(layer["window"], heads_of, cache.skip_page_size_padded)
    elif layer.get("sinks"):
        spec = SinkFullAttentionSpec(sink_len=layer["sinks"], **heads_of)
    elif kind == "chunked":
        spec = ChunkedLocalAttentionSpec(attention_chunk_size=layer["window"], **heads_of)
    else:
        spec = (CrossAttentionSpec if kind == "cross" else FullAttentionSpec)(**heads_of)
    return [Backend.customize_spec(spec)]


def sliding(window: int, heads_of: Case, shared_page: int | None) -> Any:
    """A window's cache: in the largest block that the shared page holds (`Attention.get_kv_cache_spec`)."""
    one = Backend.customize_spec(SlidingWindowSpec(sliding_window=window, **{**heads_of, "block_size": 1}))
    token, block = one.real_page_size_bytes, heads_of["block_size"]
    own = _largest_kernel_block_within(Backend, token, shared_page or token * block, block, one)
    return SlidingWindowSpec(sliding_window=window, page_size_padded=shared_page, **{**heads_of, "block_size": own})


def compressed(layer: Case, block: int) -> list[KVCacheSpec]:
    """DeepSeek-V4's rows in its packed fp8 and the compressor's float32 window beside them."""
    packed = {"num_kv_heads": 1, "dtype": torch.uint8, "alignment": 576}
    if layer["kind"] == "rows":
        return [
            SlidingWindowMLASpec(
                block_size=64,
                head_size=512,
                sliding_window=layer["window"],
                state_content_bytes=COMPRESSED_ROW_BYTES,
                model_version="deepseek_v4",
                cache_dtype_str="fp8_ds_mla",
                **packed,
            )
        ]
    ratio = layer["entry_tokens"]
    overlap = 2 if ratio == 4 else 1
    index = layer["kind"] == "index"
    return [
        MLAAttentionSpec(
            block_size=block,
            head_size=layer["width"],
            tokens_per_state=ratio,
            state_content_bytes=None if index else COMPRESSED_ROW_BYTES,
            **packed,
        ),
        SlidingWindowMLASpec(
            block_size=COMPRESSOR_BLOCKS[ratio],
            num_kv_heads=1,
            head_size=2 * overlap * layer["head_dim"],
            dtype=torch.float32,
            sliding_window=overlap * ratio,
            alignment=576,
        ),
    ]


def plan(case: Case) -> Case:
    """One plan, or the reason why vLLM makes none."""
    config = settings(case)
    try:
        align(case, config)
        if config.cache_config.kv_cache_dtype_skip_layers:
            Machine._align_heterogeneous_kv_block_size(config, Backend)
        described = [spec for layer in case["layers"] for spec in specs(layer, case, config)]
        named = {f"layer.{place}": spec for place, spec in enumerate(described)}
        stages = list(itertools.pairwise([0, *itertools.accumulate(case["stages"])]))
        owned = [layer["block"] for layer in case["layers"] for _ in specs(layer, case, config)]
        workers = [
            {name: spec for (name, spec), place in zip(named.items(), owned, strict=True) if first <= place < last}
            for first, last in stages
        ]
        configs = kv_cache_utils.get_kv_cache_configs(config, workers, [case["kv_bytes"]] * len(workers))
    except (AssertionError, NotImplementedError, TypeError, ValueError, ZeroDivisionError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    scheduled = kv_cache_utils.generate_scheduler_kv_cache_config(configs)
    tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(config, scheduled)
    global_groups = kv_cache_utils.get_kv_cache_groups(config, dict(named))
    return {
        "num_blocks": configs[0].num_blocks,
        "bytes_per_block": max(kv_cache_utils._pool_bytes_per_block(config, c.kv_cache_groups) for c in configs),
        "capacity_tokens": tokens,
        "max_concurrency": concurrency,
        "groups": sorted(
            [
                len(group.layer_names),
                0 if isinstance(group.kv_cache_spec, MambaSpec) else group.kv_cache_spec.block_size,
                group.kv_cache_spec.page_size_bytes,
            ]
            for group in global_groups
        ),
        "uniform": any(isinstance(group.kv_cache_spec, UniformTypeKVCacheSpecs) for group in global_groups),
    }


if __name__ == "__main__":
    json.dump([plan(case) for case in json.load(sys.stdin)], sys.stdout)
