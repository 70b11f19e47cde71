"""A tiny model as llama.cpp reads it: all its weights are zero, so that every token is as likely as any other."""

import math
from dataclasses import dataclass
from pathlib import Path

from tests.model.gguf_files import ARRAY, STRING, UINT32, header, pair, tensor, write

_INT32, _FLOAT32 = 5, 6
_ALIGNMENT = 32
_FLOAT_BYTES = 4
# Kinds of tokens in llama.cpp's vocabularies.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


@dataclass(frozen=True, slots=True)
class TinyGguf:
    """A Llama. Its vocabulary is the control tokens, the 256 bytes, and a few words."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    words: int = 41
    max_tokens: int = 8192

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def vocab(self) -> int:
        return len(self._tokens())

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of every layer in float16, llama.cpp's own choice."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def write(self, file: Path) -> Path:
        """Writes the model; returns the file."""
        offset, tensors = 0, []
        for name, shape in self._shapes().items():
            tensors.append(tensor(name, shape, 0, offset))
            offset += -(-math.prod(shape) * _FLOAT_BYTES // _ALIGNMENT) * _ALIGNMENT
        return write(file, header(self._metadata(), tensors), offset, _ALIGNMENT)

    def _metadata(self) -> list[bytes]:
        tokens = self._tokens()
        counts = {
            "context_length": self.max_tokens,
            "embedding_length": self.hidden,
            "block_count": self.layers,
            "feed_forward_length": self.intermediate,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "rope.dimension_count": self.head_dim,
        }
        ids = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return [
            pair("general.architecture", STRING, "llama"),
            pair("general.name", STRING, "tiny"),
            *(pair(f"llama.{name}", UINT32, count) for name, count in counts.items()),
            pair("llama.attention.layer_norm_rms_epsilon", _FLOAT32, 1e-5),
            pair("tokenizer.ggml.model", STRING, "llama"),
            pair("tokenizer.ggml.tokens", ARRAY, (STRING, [token for token, _ in tokens])),
            pair("tokenizer.ggml.scores", ARRAY, (_FLOAT32, [-float(index) for index in range(len(tokens))])),
            pair("tokenizer.ggml.token_type", ARRAY, (_INT32, [kind for _, kind in tokens])),
            *(pair(f"tokenizer.ggml.{name}", UINT32, number) for name, number in ids.items()),
        ]

    def _tokens(self) -> list[tuple[str, int]]:
        controls = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
        spelled = [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
        return controls + spelled + [(f"w{index}", _NORMAL) for index in range(self.words)]

    def _shapes(self) -> dict[str, list[int]]:
        """Tensors by name; the contiguous dimension first."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"token_embd.weight": [self.hidden, self.vocab], "output_norm.weight": [self.hidden]}
        shapes["output.weight"] = [self.hidden, self.vocab]
        for layer in range(self.layers):
            shapes |= {
                f"blk.{layer}.attn_norm.weight": [self.hidden],
                f"blk.{layer}.attn_q.weight": [self.hidden, wide],
                f"blk.{layer}.attn_k.weight": [self.hidden, narrow],
                f"blk.{layer}.attn_v.weight": [self.hidden, narrow],
                f"blk.{layer}.attn_output.weight": [wide, self.hidden],
                f"blk.{layer}.ffn_norm.weight": [self.hidden],
                f"blk.{layer}.ffn_gate.weight": [self.hidden, self.intermediate],
                f"blk.{layer}.ffn_up.weight": [self.hidden, self.intermediate],
                f"blk.{layer}.ffn_down.weight": [self.intermediate, self.hidden],
            }
        return shapes
