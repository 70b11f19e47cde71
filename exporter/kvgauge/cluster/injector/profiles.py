"""What is known of each engine's command line: how it is recognised, where it serves, which of its options the sidecar
wants. From each engine's own help text and documentation; a new engine is one entry."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine. Option names are written with dashes; those with underscores mean the same."""

    kind: str | None
    """What `--engine` is told; None: it tells itself by its page."""
    programs: tuple[tuple[str, ...], ...] = ()
    """Words that its command begins with; the first is a program's name without its folder, `python` is any Python."""
    images: tuple[str, ...] = ()
    """Parts of an image's name without registry and tag."""
    port: int | None = None
    """Where it serves its metrics unless told otherwise; None: not at all unless told."""
    port_options: tuple[str, ...] = ("--port",)
    port_variables: tuple[str, ...] = ()
    port_names: tuple[str, ...] = ("http",)
    """Names of the container's ports, the likeliest first."""
    model_options: tuple[str, ...] = ()
    model_variables: tuple[str, ...] = ()
    model_follows: bool = False
    """The model may stand right after the words of the program."""
    cache_options: tuple[str, ...] = ()
    """Options that name a Hugging Face cache."""
    hub_cache: str = "/root/.cache/huggingface/hub"
    """Where that is unless somebody says otherwise."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By the sidecar's setting, the engine's options that state it, the last one first of those that mean the same."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The same for environment variables; an option wins."""
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_VLLM = Profile(
    kind="vllm",
    programs=(("vllm", "serve"), ("python", "-m", "vllm.entrypoints.openai.api_server")),
    images=("vllm",),
    port=8000,
    model_options=("--model",),
    model_follows=True,
    cache_options=("--download-dir",),
    options={
        "tp": ("--tensor-parallel-size", "-tp"),
        "pp": ("--pipeline-parallel-size", "-pp"),
        "max_num_seqs": ("--max-num-seqs",),
        "max_num_batched_tokens": ("--max-num-batched-tokens",),
    },
    switches={"enforce_eager": ("--enforce-eager",)},
)
_SGLANG = Profile(
    kind="sglang",
    programs=(("python", "-m", "sglang.launch_server"), ("sglang", "serve")),
    images=("sglang",),
    port=30000,
    model_options=("--model-path", "--model"),
    cache_options=("--download-dir",),
    options={
        "tp": ("--tensor-parallel-size", "--tp-size", "--tp"),
        "pp": ("--pipeline-parallel-size", "--pp-size", "--pp"),
        "max_num_seqs": ("--max-running-requests",),
    },
    switches={"enforce_eager": ("--disable-cuda-graph",)},
)
_TGI = Profile(
    kind="tgi",
    programs=(("text-generation-launcher",),),
    images=("text-generation-inference",),
    # The official image sets PORT=80; the launcher by itself takes 3000.
    port=80,
    port_options=("--port", "-p"),
    port_variables=("PORT",),
    model_options=("--model-id",),
    model_variables=("MODEL_ID",),
    cache_options=("--huggingface-hub-cache",),
    hub_cache="/data/hub",
    options={
        "tp": ("--num-shard",),
        "engine_capacity_tokens": ("--max-batch-total-tokens",),
        "engine_kv_dtype": ("--kv-cache-dtype",),
    },
    variables={
        "tp": "NUM_SHARD",
        "engine_capacity_tokens": "MAX_BATCH_TOTAL_TOKENS",
        "engine_kv_dtype": "KV_CACHE_DTYPE",
    },
)
_TENSORRT_LLM = Profile(
    kind="tensorrt-llm",
    programs=(("trtllm-serve", "serve"), ("trtllm-serve",)),
    images=("tensorrt-llm",),
    port=8000,
    model_follows=True,
    options={
        "tp": ("--tp-size",),
        "pp": ("--pp-size",),
        "max_num_seqs": ("--max-batch-size",),
        "max_num_batched_tokens": ("--max-num-tokens",),
        "engine_max_model_len": ("--max-seq-len",),
    },
)
_TRITON = Profile(
    # It serves other backends too, which the page tells.
    kind=None,
    programs=(("tritonserver",),),
    images=("tritonserver",),
    port=8002,
    port_options=("--metrics-port",),
    port_names=("metrics", "http-metrics"),
)
_DYNAMO = Profile(
    kind="dynamo",
    programs=(
        ("python", "-m", "dynamo.vllm"),
        ("python", "-m", "dynamo.sglang"),
        ("python", "-m", "dynamo.trtllm"),
    ),
    images=("ai-dynamo", "dynamo-runtime"),
    port=8081,
    port_options=(),
    port_variables=("DYN_SYSTEM_PORT",),
    port_names=("system", "metrics"),
    model_options=("--model-path", "--model"),
    options={"tp": ("--tensor-parallel-size", "--tp-size", "--tp", "-tp")},
)
_NIM = Profile(
    kind="nim",
    images=("/nim/",),
    port=8000,
    port_options=(),
    port_variables=("NIM_SERVER_PORT",),
)
_LLAMACPP = Profile(
    kind="llama.cpp",
    programs=(("llama-server",),),
    images=("llama.cpp", "llama-cpp"),
    port=8080,
    port_variables=("LLAMA_ARG_PORT",),
    model_options=("--model", "-m"),
    model_variables=("LLAMA_ARG_MODEL",),
    options={"engine_kv_dtype": ("--cache-type-k", "-ctk")},
    variables={"engine_kv_dtype": "LLAMA_ARG_CACHE_TYPE_K"},
    switches={"llamacpp_kv_unified": ("--kv-unified", "-kvu")},
)
_OLLAMA = Profile(
    kind="ollama",
    programs=(("ollama", "serve"),),
    images=("ollama",),
    port=11434,
    port_options=(),
    port_variables=("OLLAMA_HOST",),
    variables={"engine_parallel": "OLLAMA_NUM_PARALLEL", "engine_kv_dtype": "OLLAMA_KV_CACHE_TYPE"},
)
_LMDEPLOY = Profile(
    kind="lmdeploy",
    programs=(("lmdeploy", "serve", "api-server"), ("lmdeploy", "serve", "api_server")),
    images=("lmdeploy",),
    port=23333,
    port_options=("--server-port",),
    model_follows=True,
    cache_options=("--download-dir",),
    options={"tp": ("--tp",), "max_num_seqs": ("--max-batch-size",), "engine_max_model_len": ("--session-len",)},
)
_MAX = Profile(
    kind="max",
    programs=(("max", "serve"),),
    images=("max-nvidia", "max-full", "max-openai"),
    # It serves requests on --port, and its metrics on another.
    port=8001,
    port_options=(),
    port_variables=("MAX_SERVE_METRICS_ENDPOINT_PORT",),
    port_names=("metrics",),
    model_options=("--model-path", "--model"),
)
_TRANSFORMERS = Profile(
    kind="transformers",
    programs=(("transformers", "serve"), ("python", "-m", "kvgauge_agent")),
    images=(),
    port=8000,
)
PROFILES: tuple[Profile, ...] = (
    # Those whose images carry another's name in theirs stand before it.
    _DYNAMO,
    _NIM,
    _TRITON,
    _TENSORRT_LLM,
    _SGLANG,
    _TGI,
    _LLAMACPP,
    _OLLAMA,
    _LMDEPLOY,
    _MAX,
    _TRANSFORMERS,
    _VLLM,
)
UNKNOWN = Profile(
    kind=None,
    port=None,
    port_options=("--port", "--http-port"),
    port_names=("http", "http1", "api", "openai", "metrics"),
    model_options=("--model-path", "--model-dir", "--model-id", "--model"),
    model_variables=("MODEL_ID",),
)
"""Anything else: the sidecar tells it by what it answers."""


def profile_of(kind: str) -> Profile:
    """That of `--engine KIND`; UNKNOWN where none is written here."""
    named = {"triton-tensorrt-llm": _TRITON}
    return named.get(kind) or next((each for each in PROFILES if each.kind == kind), UNKNOWN)
