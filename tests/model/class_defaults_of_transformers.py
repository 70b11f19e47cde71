"""Writes `kvmodel/class_defaults.py` from the config classes of the transformers that is installed where this runs.

    python -m tests.model.class_defaults_of_transformers > model/kvmodel/class_defaults.py

Only what a class itself sets is taken, not what it derives from other fields.
"""

import dataclasses
import re
from collections.abc import Mapping
from importlib import import_module

from kvmodel.families import FAMILIES

KEPT = re.compile(
    r"num_hidden_layers|num_attention_heads|num_key_value_heads|hidden_size|head_dim|v_head_dim|intermediate_size"
    r"|vocab_size|max_position_embeddings|sliding_window|max_window_layers|tie_word_embeddings|window_size"
    r"|kv_lora_rank|qk_rope_head_dim|qk_nope_head_dim|index_head_dim|index_kpool"
    r"|num_kv_shared_layers|attention_chunk_size|local_attention|global_attn_every_n_layers"
    r"|linear_(?!lower|a_|dt_|allow)\w+|mamba_(d_\w+|n_heads|n_groups|expand|num_heads|head_dim)|conv_kernel"
    r"|conv_L_cache|expand|state_size|ssm_state_size|n_groups|num_heads|n_mamba_heads|mamba_ngroups"
    r"|attn_layer_(period|offset)|expert_layer_(period|offset)|attention_window_size|conv1d_width|lru_width"
    r"|num_experts|num_local_experts|n_routed_experts|num_experts_per_tok|moe_num_experts|moe_k|moe_topk"
    r"|top_k_experts|moe_intermediate_size|shared_expert_intermediate_size|first_k_dense_replace"
    r"|moe_layer_(freq|start_index|end_index|interval)|num_dense_layers|decoder_sparse_step"
    r"|interleave_moe_layer_step|d_model|d_kv|d_ff|num_layers|decoder_layers|decoder_attention_heads"
    r"|decoder_ffn_dim|max_source_positions|max_target_positions|kv_channels|dense_intermediate_size"
    r"|decoder_num_hidden_layers|decoder_num_attention_heads|decoder_num_key_value_heads"
    r"|n_embd|n_head|n_layer|n_positions|attention_heads|ffn_dim|n_heads|n_layers|max_seq_len"
)


def defaults_of(config_class: type) -> Mapping[str, object]:
    """Plain values among the class's own field defaults, under the names transformers reads them by."""
    names = {real: canonical for canonical, real in config_class.attribute_map.items()}  # type: ignore[attr-defined]
    found: dict[str, object] = {}
    for each in dataclasses.fields(config_class):
        if isinstance(each.default, (bool, int)) and KEPT.fullmatch(each.name):
            found[each.name] = each.default
            if each.name in names and KEPT.fullmatch(names[each.name]):
                found[names[each.name]] = each.default
    return dict(sorted(found.items()))


def main() -> None:
    """Print the module."""
    version = import_module("transformers").__version__
    classes = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    print('"""Defaults of the config classes of Hugging Face transformers ' + version + ", by `model_type`.")
    print("\nWritten by `tests/model/class_defaults_of_transformers.py`, not by hand: one line per class, what the")
    print('class itself sets and memory depends on.\n"""\n')
    print("from collections.abc import Mapping\n")
    print("# fmt: off\n# ruff: noqa: E501")
    print("CLASS_DEFAULTS: Mapping[str, Mapping[str, object]] = {")
    for model_type in sorted({*FAMILIES, *(row.class_name or "" for row in FAMILIES.values())}):
        if model_type in classes:
            found = defaults_of(classes[model_type])
            written = ", ".join(f'"{name}": {value}' for name, value in found.items())
            print(f'    "{model_type}": {{{written}}},')
    print("}")


if __name__ == "__main__":
    main()
