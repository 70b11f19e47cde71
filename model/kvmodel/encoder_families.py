"""Families whose decoder attends to an encoder's output. What is modelled is the decoder."""

from collections.abc import Mapping
from dataclasses import replace

from kvmodel import encoders
from kvmodel.family import Family
from kvmodel.family_rules import one_per_head

_T5 = Family(
    encoders.encoder_decoder,
    aliases={
        "num_hidden_layers": ("num_layers",),
        "num_attention_heads": ("num_heads",),
        "hidden_size": ("d_model",),
        "intermediate_size": ("d_ff",),
        "head_dim": ("d_kv",),
        "max_position_embeddings": ("n_positions",),
        "encoder_tokens": ("n_positions",),
    },
    layers=encoders.decoder_layers,
    kv_heads=one_per_head,
    encoder=True,
    tied_embeddings=True,
    rotary=False,
)
_BART = Family(
    encoders.encoder_decoder,
    aliases={
        "num_hidden_layers": ("decoder_layers",),
        "num_attention_heads": ("decoder_attention_heads",),
        "hidden_size": ("d_model",),
        "intermediate_size": ("decoder_ffn_dim",),
        "encoder_tokens": ("max_position_embeddings",),
    },
    layers=encoders.decoder_layers,
    kv_heads=one_per_head,
    encoder=True,
    tied_embeddings=True,
    rotary=False,
)
_WHISPER = replace(
    _BART,
    aliases={
        **_BART.aliases,
        "max_position_embeddings": ("max_target_positions",),
        "encoder_tokens": ("max_source_positions",),
    },
)

ENCODER_FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("mt5", "t5", "umt5", "switch_transformers", "longt5"), _T5),
    **dict.fromkeys(
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "m2m_100",
            "marian",
            "mbart",
            "mvp",
            "nllb-moe",
            "pegasus",
            "pegasus_x",
            "plbart",
        ),
        _BART,
    ),
    "cohere_asr": Family(encoders.encoder_decoder, encoder=True, rotary=False),
    "mllama_text_model": Family(encoders.mllama, encoder=True),
    "moonshine": Family(
        encoders.encoder_decoder,
        aliases={
            "num_hidden_layers": ("decoder_num_hidden_layers", "num_hidden_layers"),
            "num_attention_heads": ("decoder_num_attention_heads", "num_attention_heads"),
            "num_key_value_heads": ("decoder_num_key_value_heads", "num_key_value_heads"),
        },
        encoder=True,
        rotary_factor=0.9,
    ),
    "speech_to_text": _WHISPER,
    "t5_gemma_module": Family(
        encoders.t5gemma, encoder=True, class_name="t5_gemma_module", defaults={"sliding_window_pattern": 2}
    ),
    "whisper": _WHISPER,
}
