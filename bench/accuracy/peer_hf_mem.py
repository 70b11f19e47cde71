"""Runs hf-mem on local configs, by the Python that it is installed in: `python peer_hf_mem.py < asked.json`.

In: `{"configs": {model: config}, "lengths": [...]}`. Out: `{model: {"bytes": {length: int | null}, "why": text}}`.
Only hf-mem's two fetching functions are replaced; what it makes of a config is its own. Standard library beside hf-mem.
"""

import copy
import importlib
import json
import sys
import warnings
from typing import Any

peer: Any = importlib.import_module("hf_mem.run")
_NO_TOKEN = "-"
_HEADER = {"weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
_FILES = [{"path": name, "type": "file"} for name in ("config.json", "model.safetensors")]


def run(model: str, config: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
    """hf-mem's KV cache in 16 bits for each length; None, and its first complaint, where it gives none."""

    async def get_json(client: object, url: str, headers: object = None) -> object:  # noqa: ARG001
        return copy.deepcopy(config) if url.endswith("/config.json") else _FILES

    async def get_header(*_arguments: object, **_named: object) -> object:
        return _HEADER

    peer.get_json_file = get_json
    peer.fetch_safetensors_metadata = get_header
    sizes: dict[str, int | None] = {}
    why = ""
    for length in lengths:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                # A token is given so that none is looked up; nothing is sent anywhere.
                found = peer.run(
                    model, hf_token=_NO_TOKEN, experimental=True, max_model_len=length, kv_cache_dtype="bfloat16"
                )
                sizes[str(length)] = found.kv_cache
                complaints = [str(warning.message) for warning in caught]
            except Exception as error:
                sizes[str(length)] = None
                complaints = [f"{type(error).__name__}: {error}"]
        if sizes[str(length)] is None and complaints:
            why = complaints[-1]
    return {"bytes": sizes, "why": why}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump({model: run(model, config, given["lengths"]) for model, config in given["configs"].items()}, sys.stdout)
