"""Start-up logs of vLLM on H100 (79.19 GiB), in GiB.

0.19.0: gpu_memory_utilization 0.95, max_model_len 8192, 1024 sequences, 8192 tokens; jgchn/llm-d-planner,
accuracy/results/v0.19.0 (Apache-2.0); the files' share per rank is the sum of the checkpoints' headers, gpt-oss-20b's
its published size. 0.11-0.16: llm-d-incubation/llm-d-planner, docs/empirical-vllm-memory-results.md (Apache-2.0).
"""

from dataclasses import dataclass
from typing import Any

from .known import LLAMA_8B, known_config


@dataclass(frozen=True, slots=True)
class Startup:
    """One log."""

    model: str
    config: dict[str, Any]
    tp: int
    file: float
    weights: float
    activations: float
    graphs: float
    pool: float


def deepseek(vocab: int, positions: int, intermediate: int) -> dict[str, Any]:
    """DeepSeek-V2-Lite and the language model of Kimi-VL, which share its shape."""
    return {
        **known_config("deepseek-ai/DeepSeek-V2-Lite"),
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "intermediate_size": intermediate,
    }


def gemma2(layers: int, heads: int, kv_heads: int, head_dim: int, hidden: int, intermediate: int) -> dict[str, Any]:
    return {
        **known_config("google/gemma-2-27b"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 8192,
    }


def gemma3(layers: int, heads: int, kv_heads: int, hidden: int, intermediate: int) -> dict[str, Any]:
    text = {
        "model_type": "gemma3_text",
        "torch_dtype": "bfloat16",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    }
    return {"model_type": "gemma3", "text_config": text}


GRANITE_2B = {
    **LLAMA_8B,
    "model_type": "granite",
    "num_hidden_layers": 40,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "vocab_size": 49155,
}
QWEN_7B_8BIT = {
    **LLAMA_8B,
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "quantization_config": {"quant_method": "compressed-tensors"},
}
QWEN_72B = {
    **LLAMA_8B,
    "model_type": "qwen2",
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
QWEN_30B_A3B = {
    **LLAMA_8B,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
MISTRAL_SMALL = {
    "model_type": "mistral3",
    "text_config": {
        **LLAMA_8B,
        "model_type": "mistral",
        "num_hidden_layers": 40,
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "vocab_size": 131072,
    },
}
QUANTIZED_LLAMA = {**LLAMA_8B, "quantization_config": {"quant_method": "compressed-tensors"}}
LLAMA_70B = {
    **LLAMA_8B,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "quantization_config": {"quant_method": "compressed-tensors"},
}


def qwen3(layers: int, heads: int, hidden: int, intermediate: int) -> dict[str, Any]:
    return {
        **known_config("Qwen/Qwen3-8B"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
    }


VLLM_019 = (
    Startup("DeepSeek-V2-Lite-Chat", deepseek(102400, 163840, 10944), 1, 29.2556, 29.43, 1.93, 1.57, 43.61),
    Startup("Qwen2.5-7B-Instruct-fp8-dynamic", QWEN_7B_8BIT, 1, 8.1106, 8.14, 2.21, 0.81, 64.64),
    Startup("gemma-2-27b-it", gemma2(46, 32, 16, 128, 4608, 36864), 1, 50.7145, 50.72, 3.66, 1.23, 20.59),
    Startup("gemma-2-9b-it", gemma2(42, 16, 8, 256, 3584, 14336), 1, 17.214, 17.22, 3.65, 1.09, 54.12),
    Startup("gemma-3-12b-it", gemma3(48, 16, 8, 3840, 15360), 1, 22.7007, 23.31, 3.94, 0.94, 47.72),
    Startup("gemma-3-4b-it", gemma3(34, 8, 4, 2560, 10240), 1, 8.0095, 8.58, 3.89, 0.67, 62.51),
    Startup("granite-3.1-2b-instruct", GRANITE_2B, 1, 4.7191, 4.74, 0.75, 0.84, 69.28),
    Startup(
        "granite-vision-3.3-2b",
        {"model_type": "llava_next", "text_config": {**GRANITE_2B, "vocab_size": 49156}},
        1,
        5.5421,
        5.54,
        0.79,
        0.82,
        68.65,
    ),
    Startup("Llama-3.1-8B-Instruct", LLAMA_8B, 1, 14.9575, 14.99, 1.89, 0.91, 58.11),
    Startup("Llama-3.1-8B-Instruct", LLAMA_8B, 2, 7.4788, 7.51, 1.89, 0.76, 63.76),
    Startup("Llama-3.1-8B-Instruct", LLAMA_8B, 4, 3.7394, 3.77, 1.89, 0.67, 67.44),
    Startup("Mistral-Small-3.1-24B-Instruct-2503", MISTRAL_SMALL, 1, 44.7246, 44.76, 2.03, 1.06, 28.19),
    Startup(
        "Mixtral-8x7B-Instruct-v0.1", known_config("mistralai/Mixtral-8x7B-v0.1"), 2, 43.4954, 43.51, 1.21, 0.93, 28.44
    ),
    Startup(
        "Kimi-VL-A3B-Instruct",
        {"model_type": "kimi_vl", "text_config": deepseek(163840, 131072, 11264)},
        1,
        30.5616,
        30.74,
        2.92,
        1.5,
        41.32,
    ),
    Startup("Qwen2.5-72B-Instruct", QWEN_72B, 2, 67.7129, 67.8, 2.29, 1.61, 3.04),
    Startup("Qwen3-30B-A3B", QWEN_30B_A3B, 1, 56.8705, 56.88, 2.68, 1.41, 15.41),
    Startup("Qwen3-8B", known_config("Qwen/Qwen3-8B"), 1, 15.2564, 15.27, 2.21, 0.96, 57.5),
    Startup("Meta-Llama-3.1-8B-Instruct-quantized.w4a16", QUANTIZED_LLAMA, 1, 5.3417, 5.38, 1.89, 0.96, 67.71),
    Startup("Meta-Llama-3.1-8B-Instruct-quantized.w8a8", QUANTIZED_LLAMA, 1, 8.4601, 8.49, 1.89, 0.94, 64.6),
    Startup("Qwen2.5-7B-Instruct-quantized.w8a8", QWEN_7B_8BIT, 1, 8.1106, 8.14, 2.21, 0.88, 64.64),
    Startup(
        "gpt-oss-20b",
        {**known_config("openai/gpt-oss-20b"), "quantization_config": {"quant_method": "mxfp4"}},
        1,
        12.8,
        13.64,
        2.87,
        1.84,
        58.47,
    ),
)

# Weights as the engine printed them, so without the files' share; 16000 tokens of context, utilization 0.9.
VLLM_011_016 = (
    Startup(
        "gpt-oss-20b",
        {**known_config("openai/gpt-oss-20b"), "quantization_config": {"quant_method": "mxfp4"}},
        1,
        0,
        13.47,
        7.38,
        0.39,
        50.28,
    ),
    Startup("Llama-3.3-70B-FP8", LLAMA_70B, 2, 0, 33.88, 4.84, 0, 32.0),
    Startup("Llama-3.1-8B", LLAMA_8B, 1, 0, 14.99, 4.76, 0, 51.38),
    Startup("Qwen3-0.6B", qwen3(28, 16, 1024, 3072), 1, 0, 1.12, 5.56, 0.1, 64.45),
    Startup("Qwen3-32B", qwen3(64, 64, 5120, 25600), 1, 0, 61.03, 5.64, 0, 4.45),
    Startup("Qwen3-32B", qwen3(64, 64, 5120, 25600), 2, 0, 30.59, 5.64, 0, 34.49),
)
