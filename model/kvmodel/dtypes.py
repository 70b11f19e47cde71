"""Element types: of the KV cache, of the model and of safetensors files."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvmodel.errors import ModelError, show


@dataclass(frozen=True, slots=True)
class KvDtype:
    """How one row of the cache, the K or V vector of one head and one token, lies in memory.

    `element_bits` per element; `row_scale_bytes` once per row (scales kept per token and head);
    `group_scale_bytes` once per `group_elements` elements (block formats). Scales kept per tensor cost nothing here.
    `latent_rope_bits`, where set, marks a format of latents only, which keeps the rotated elements in that width and
    without scales.
    """

    name: str
    element_bits: int
    row_scale_bytes: int = 0
    group_elements: int = 0
    group_scale_bytes: int = 0
    latent_rope_bits: int = 0
    value: "KvDtype | None" = None
    """How V rows lie where they differ from K's. The two together then take an even number of bytes (vLLM)."""

    @property
    def is_packed(self) -> bool:
        """Whether K and V of a token share one packed slot (TurboQuant, UltraQuant)."""
        return self.value is not None or self.name.startswith(("turboquant", "ultraquant"))

    def pair_bytes(self, keys: int, values: int) -> int:
        """Bytes of one K row of `keys` elements and one V row of `values`."""
        if self.value is None:
            return self.row_bytes(keys) + self.row_bytes(values)
        both = self.row_bytes(keys) + self.value.row_bytes(values)
        return both + both % 2

    def row_bytes(self, elements: int) -> int:
        """Bytes of one row of `elements` elements, its scales included.

        Raises ModelError with field `kv_dtype` for a format of latents only.
        """
        if self.latent_rope_bits:
            raise ModelError("kv_dtype", f"{self.name} is a format of MLA latents, not of K and V rows")
        return self._scaled_bytes(elements)

    def latent_row_bytes(self, rank: int, rope: int) -> int:
        """Bytes of one MLA latent: `rank` elements and `rope` rotated ones (656 for fp8_ds_mla, 512 and 64).

        Where scales are kept per token and head, a latent has two, as if it were a K and a V row (vLLM 0.32
        `mla_attention.py: customize_spec`).
        """
        if self.value is not None:
            raise ModelError("kv_dtype", f"{self.name} is a format of K and V rows, not of MLA latents")
        if self.latent_rope_bits:
            return self._scaled_bytes(rank) + rope * self.latent_rope_bits // 8
        return self.row_bytes(rank + rope) + (self.row_scale_bytes if self.name.endswith("per_token_head") else 0)

    def shared_row_bytes(self, elements: int, rope: int) -> int:
        """Bytes of a DeepSeek-V4 row, K and V in one, `rope` of its elements rotated.

        Its fp8 keeps the rotated elements in 16 bits and one byte of scale per 64 others, in steps of 8 bytes: 584 of
        512 elements (vLLM 0.32 `models/deepseek_v4/attention.py`). Raises ModelError with field `kv_dtype` for types
        that have no such row.
        """
        if self.element_bits >= 16:
            return self.row_bytes(elements)
        if not self.name.startswith("fp8") or self.row_scale_bytes:
            raise ModelError("kv_dtype", f"{self.name} is not a format of compressed latents")
        scales = -(-(elements - rope) // 64)
        return elements - rope + -(-scales // 8) * 8 + 2 * rope

    def _scaled_bytes(self, elements: int) -> int:
        scales = self.row_scale_bytes
        if self.group_elements:
            scales += -(-elements // self.group_elements) * self.group_scale_bytes
        return -(-elements * self.element_bits // 8) + scales


MODEL_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "bfloat16": "bfloat16",
        "bf16": "bfloat16",
        "float16": "float16",
        "half": "float16",
        "fp16": "float16",
        "float32": "float32",
        "float": "float32",
        "fp32": "float32",
    }
)
"""Names of the dtypes a model computes in, to the name used here."""

# vLLM 0.32 `quantization/turboquant/config.py`: V rows carry a scale and a zero point of 16 bits, K rows a norm.
_TURBO_V4 = KvDtype("turboquant V, 4 bits", 4, row_scale_bytes=4)
_TURBO_V3 = KvDtype("turboquant V, 3 bits", 3, row_scale_bytes=4)

# Sizes: vLLM 0.32 (per-token-head, nvfp4, ds_mla), SGLang 0.5 (mxfp8), LMDeploy's TurboMind (scale and zero point of 16
# bits each per token and head), KIVI (arXiv 2402.02750, its residual not counted), ggml's block formats for llama.cpp.
_KV_DTYPES = {
    kv.name: kv
    for kv in (
        KvDtype("bfloat16", 16),
        KvDtype("float16", 16),
        KvDtype("float32", 32),
        KvDtype("fp8", 8),
        KvDtype("fp8_e4m3", 8),
        KvDtype("fp8_e5m2", 8),
        KvDtype("int8", 8),
        KvDtype("int8_per_token_head", 8, row_scale_bytes=4),
        KvDtype("fp8_per_token_head", 8, row_scale_bytes=4),
        KvDtype("int4_per_token_head", 4, row_scale_bytes=4),
        KvDtype("nvfp4", 4, group_elements=16, group_scale_bytes=1),
        KvDtype("mxfp8", 8, group_elements=32, group_scale_bytes=1),
        KvDtype("fp8_ds_mla", 8, group_elements=128, group_scale_bytes=4, latent_rope_bits=16),
        KvDtype("nvfp4_ds_mla", 4, group_elements=16, group_scale_bytes=1, latent_rope_bits=8),
        KvDtype("turboquant_k8v4", 8, value=_TURBO_V4),
        KvDtype("turboquant_4bit_nc", 4, row_scale_bytes=2, value=_TURBO_V4),
        KvDtype("turboquant_k3v4_nc", 3, row_scale_bytes=2, value=_TURBO_V4),
        KvDtype("turboquant_3bit_nc", 3, row_scale_bytes=2, value=_TURBO_V3),
        KvDtype("ultraquant_4bit", 4, group_elements=32, group_scale_bytes=1),
        KvDtype("turbomind_int8", 8, row_scale_bytes=4),
        KvDtype("turbomind_int4", 4, row_scale_bytes=4),
        KvDtype("kivi_2bit", 2, group_elements=32, group_scale_bytes=4),
        KvDtype("q8_0", 8, group_elements=32, group_scale_bytes=2),
        KvDtype("q5_1", 5, group_elements=32, group_scale_bytes=4),
        KvDtype("q5_0", 5, group_elements=32, group_scale_bytes=2),
        KvDtype("q4_1", 4, group_elements=32, group_scale_bytes=4),
        KvDtype("q4_0", 4, group_elements=32, group_scale_bytes=2),
        KvDtype("iq4_nl", 4, group_elements=32, group_scale_bytes=2),
    )
}
_KV_ALIASES = {
    **MODEL_DTYPES,
    "f16": "float16",
    "f32": "float32",
    "fp8_e4m3fn": "fp8_e4m3",
    "fp8_inc": "fp8_e4m3",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "fp4_e2m1": "nvfp4",
    "nvfp4_4over6": "nvfp4",
}
"""Other spellings: vLLM's Gaudi type and its second NVFP4 encoding, SGLang's four bits (a scale per 16 as well)."""


def model_dtype(name: object, field: str = "dtype", file: str | None = None) -> str:
    """The name used here (`bfloat16`, `float16`, `float32`) of a model's dtype, `torch.` prefix allowed."""
    known = MODEL_DTYPES.get(name.removeprefix("torch.").lower()) if isinstance(name, str) else None
    if known is None:
        raise ModelError(field, f"unknown model dtype {show(name)}", file)
    return known


def kv_dtype(name: str, model: str) -> KvDtype:
    """The cache dtype an engine's flag names; `auto` is the model's own dtype.

    Raises ModelError with field `kv_dtype` for a name that is not known.
    """
    if name == "auto":
        return _KV_DTYPES[model_dtype(model)]
    lowered = name.removeprefix("torch.").lower() if isinstance(name, str) else ""
    found = _KV_DTYPES.get(_KV_ALIASES.get(lowered, lowered))
    if found is None:
        raise ModelError("kv_dtype", f"unknown cache dtype {show(name)}")
    return found


# https://github.com/huggingface/safetensors, `Dtype`; F6 types are six bits, F4 four.
_SAFETENSORS_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


def safetensors_bits(name: object, file: str | None = None) -> int:
    """Bits per element of a safetensors dtype. Raises ModelError with field `dtype` when it is not one."""
    bits = _SAFETENSORS_BITS.get(name) if isinstance(name, str) else None
    if bits is None:
        raise ModelError("dtype", f"unknown safetensors dtype {show(name)}", file)
    return bits
