"""A random Llama-family model small enough to serve on a CPU, written with the standard library alone.

Nothing here needs the engine's environment: the weights are safetensors (an eight-byte length, a JSON header, raw
numbers), the tokenizer is a byte-level BPE described in JSON.
"""

import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

BF16_BYTES = 2
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True, slots=True)
class TinyShape:
    """The shape of the model; the defaults keep every ratio of a real one (GQA, several layers, two-byte weights)."""

    layers: int = 4
    hidden: int = 256
    intermediate: int = 512
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 512
    max_position: int = 4096

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one more token adds: keys and values of every layer at two bytes a number."""
        return self.layers * self.kv_heads * self.head_dim * 2 * BF16_BYTES


def write(folder: Path, shape: TinyShape | None = None, seed: int = 7) -> TinyShape:
    """Writes config, tokenizer and weights into `folder`, made if absent; the same seed gives the same bytes."""
    shape = shape or TinyShape()
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "tokenizer.json", _tokenizer(shape.vocab))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": shape.max_position,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_safetensors(folder / "model.safetensors", dict(_tensor_shapes(shape)), random.Random(seed))
    return shape


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _config(shape: TinyShape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_position,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": SPECIAL_TOKENS.index("<s>"),
        "eos_token_id": SPECIAL_TOKENS.index("</s>"),
    }


def _tokenizer(vocab: int) -> dict[str, object]:
    """Byte-level BPE with exactly `vocab` entries: the specials, 256 byte symbols, then merges of two letters."""
    symbols = sorted(_byte_symbols())
    pairs = list(product("abcdefghijklmnopqrstuvwxyz", repeat=2))[: vocab - len(SPECIAL_TOKENS) - len(symbols)]
    entries = [*SPECIAL_TOKENS, *symbols, *("".join(pair) for pair in pairs)]
    if len(entries) != vocab:
        raise ValueError(f"vocab: this tokenizer can't have {vocab} entries")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(entries)},
            "merges": [list(pair) for pair in pairs],
        },
    }


def _byte_symbols() -> list[str]:
    """The 256 characters by which byte-level BPE writes bytes: itself where printable, else from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + index) for index in range(others))]


def _tensor_shapes(shape: TinyShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.intermediate, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (shape.intermediate, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, shape.intermediate)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab, hidden)


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], rng: random.Random) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    data: list[bytes] = []
    for name, dims in shapes.items():
        count = dims[0] * (dims[1] if len(dims) > 1 else 1)
        data.append(_ones(count) if len(dims) == 1 else _small_numbers(count, rng))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + count * BF16_BYTES]}
        offset += count * BF16_BYTES
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.writelines(data)


def _ones(count: int) -> bytes:
    return b"\x80\x3f" * count


# The upper byte of a bf16 is the sign and seven bits of the exponent: a random sign is kept, the exponent is set so
# that every magnitude lies in 2**-7..2**-5, where a model is usually initialised.
_UPPER = bytes((byte & 0x80) | 0x3C for byte in range(256))


def _small_numbers(count: int, rng: random.Random) -> bytes:
    mixed = bytearray(count * BF16_BYTES)
    mixed[0::2] = rng.randbytes(count)
    mixed[1::2] = rng.randbytes(count).translate(_UPPER)
    return bytes(mixed)
