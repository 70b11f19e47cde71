"""Run by a Python that has torch and transformers: fills caches with known lengths, and stands still to be compared.

`python transformers_agent.py SCENE [DEVICE]`. At each standstill it writes one line of JSON to stdout, what a spool
file should say by a count that needs no agent, and goes on when a line comes on stdin. The last line is {"done": true}.
It imports nothing of the agent.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LAYERS = 4
KV_HEADS = 2
HEAD_DIM = 16
ELEMENT_BYTES = 2
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * ELEMENT_BYTES
"""Keys and values of one token in one layer."""
WINDOW = 8
BLOCK_TOKENS = 16
NUM_BLOCKS = 40
PROMPTS = (5, 16, 33, 70)
LATE_PROMPTS = (9, 20, 40)
BATCHING_WINDOW = 24
OUTPUT_TOKENS = 24
HOLD_AT_FORWARD = 12
PROMPT = 21

torch: Any = import_module("torch")
transformers: Any = import_module("transformers")


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def hold(**expected: object) -> None:
    """Says what should be found now, and stands still until the test has looked."""
    say(**expected, transformers=transformers.__version__)
    sys.stdin.readline()


def model(device: str, **changes: Any) -> Any:
    """A random Llama of bf16 numbers."""
    torch.manual_seed(0)
    known = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "attn_implementation": "sdpa",
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    kind = changes.pop("kind", "Llama")
    config = getattr(transformers, f"{kind}Config")(**(known | changes))
    config._name_or_path = "tiny/random"
    made = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    made.generation_config.eos_token_id = -1
    return made.to(device).eval()


def prompt(tokens: int, device: str, sequences: int = 1) -> Any:
    return torch.ones((sequences, tokens), dtype=torch.long, device=device)


def entry(kind: str, **figures: int) -> dict[str, object]:
    return {"kind": kind, **figures}


def growing(kind: str, layers: int, sequences: int, tokens: int, slack_tokens: int = 0) -> dict[str, object]:
    per_token = layers * TOKEN_BYTES * sequences
    return entry(
        kind,
        layers=layers,
        sequences=sequences,
        live_tokens=sequences * tokens,
        live_bytes=per_token * tokens,
        allocated_bytes=per_token * (tokens + slack_tokens),
    )


def reserved(kind: str, layers: int, sequences: int, tokens: int, slots: int) -> dict[str, object]:
    found = growing(kind, layers, sequences, tokens, slack_tokens=slots - tokens)
    return found | {"capacity_tokens": sequences * slots}


def kept(device: str) -> None:
    """Caches that a program fills by hand and keeps."""
    llama = model(device)
    grown = transformers.DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(prompt(PROMPT, device, sequences=3), past_key_values=grown, use_cache=True)
    hold(caches=[growing("dynamic", LAYERS, 3, PROMPT)])
    grown.crop(-1 if transformers.__version__.startswith("5") else PROMPT - 1)
    # A view: the slot that was cut off stays allocated until the next token comes.
    hold(caches=[growing("dynamic", LAYERS, 3, PROMPT - 1, slack_tokens=1)])
    del grown
    hold(caches=[])

    mistral = model(device, kind="Mistral", sliding_window=WINDOW)
    windowed = transformers.DynamicCache(config=mistral.config)
    with torch.no_grad():
        mistral(prompt(PROMPT, device), past_key_values=windowed, use_cache=True)
        hold(caches=[growing("sliding", LAYERS, 1, WINDOW - 1, slack_tokens=PROMPT - WINDOW + 1)])
        mistral(prompt(1, device), past_key_values=windowed, use_cache=True)
    hold(caches=[growing("sliding", LAYERS, 1, WINDOW - 1, slack_tokens=1)])


def held_generation(device: str, caches: list[dict[str, object]], static: bool = False, **settings: Any) -> None:
    """`generate` with a cache that it makes itself, held in the middle of a step."""
    llama = model(device, **settings)
    on_forward(llama, {HOLD_AT_FORWARD: lambda: hold(caches=caches, model="tiny/random")})
    chosen = {"cache_implementation": "static", "disable_compile": True} if static else {}
    llama.generate(prompt(PROMPT, device, sequences=2), max_new_tokens=OUTPUT_TOKENS, do_sample=False, **chosen)


def on_forward(made: Any, do: dict[int, Callable[[], object]]) -> None:
    """Calls each function before the forward pass of its number, counted from 1."""
    calls = 0

    def counted(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        do.get(calls, int)()

    made.register_forward_pre_hook(counted)


# The last token made is in no cache yet: the step that is held would put it there.
GENERATED = PROMPT + HOLD_AT_FORWARD - 2
# The last token of all is never cached.
STATIC_SLOTS = PROMPT + OUTPUT_TOKENS - 1


def dynamic(device: str) -> None:
    held_generation(device, [growing("dynamic", LAYERS, 2, GENERATED)])


def static(device: str) -> None:
    held_generation(device, [reserved("static", LAYERS, 2, GENERATED, STATIC_SLOTS)], static=True)


def static_sliding(device: str) -> None:
    caches = [reserved("sliding", LAYERS, 2, WINDOW, WINDOW)]
    held_generation(device, caches, static=True, kind="Mistral", sliding_window=WINDOW)


def offloaded(device: str) -> None:
    """For a GPU: on it lie only the layer that was used last and those that are fetched ahead."""
    llama = model(device)
    cache = transformers.DynamicCache(config=llama.config, offloading=True)
    with torch.no_grad():
        llama(prompt(PROMPT, device), past_key_values=cache, use_cache=True)
    on_device = sum(layer.keys.device.type != "cpu" for layer in cache.layers)
    size = on_device * TOKEN_BYTES * PROMPT
    figures = {"layers": LAYERS, "sequences": 1, "live_tokens": PROMPT, "live_bytes": size}
    hold(caches=[entry("dynamic", allocated_bytes=size, **figures)])


def static_by_hand(device: str) -> None:
    """For a GPU: nobody but the device knows how far this cache is filled."""
    llama = model(device)
    cache = transformers.StaticCache(config=llama.config, max_cache_len=STATIC_SLOTS)
    with torch.no_grad():
        llama(prompt(PROMPT, device), past_key_values=cache, use_cache=True)
    full = reserved("static", LAYERS, 1, PROMPT, STATIC_SLOTS)
    unknown = ("live_tokens", "live_bytes")
    known = {name: figure for name, figure in full.items() if name not in unknown}
    hold(caches=[known], missing=[f"caches.static.{name}" for name in unknown])


def quantized(device: str) -> None:
    """Numbers of four bits, in groups that each have a scale and a shift, and the newest tokens in full precision."""
    llama = model(device)
    cache = transformers.QuantizedCache("quanto", config=llama.config, residual_length=64, q_group_size=HEAD_DIM)
    with torch.no_grad():
        llama(prompt(32, device), past_key_values=cache, use_cache=True)
        llama(prompt(3, device), past_key_values=cache, use_cache=True)
    layer = cache.layers[0]
    packed = [
        part.nbytes
        for number in (layer._quantized_keys, layer._quantized_values)
        for part in (number._data._data, number._scale, number._shift)
    ]
    if packed[0] != 32 * KV_HEADS * HEAD_DIM // 2:
        raise AssertionError(f"four bits a number were expected: {packed}")
    size = LAYERS * (sum(packed) + 3 * TOKEN_BYTES)
    figures = {"layers": LAYERS, "sequences": 1, "live_tokens": 35, "live_bytes": size}
    # The newest tokens were concatenated to nothing, so no slack.
    hold(caches=[entry("quantized", allocated_bytes=size, **figures)])


def batching(device: str) -> None:
    """Continuous batching, held in the middle of a forward pass with every request's length known."""
    held = [tokens + HOLD_AT_FORWARD - 1 for tokens in PROMPTS]
    used = sum(map(blocks, held))
    limited = "max_requests_per_batch" in batching_fields()
    expected = {
        "running_tokens": [[tokens, now] for tokens, now in zip(PROMPTS, held, strict=True)],
        "used_blocks": used,
        "live_tokens": sum(held),
        "tail_tokens": used * BLOCK_TOKENS - sum(held),
        "live_bytes": sum(held) * LAYERS * TOKEN_BYTES,
        "num_blocks": NUM_BLOCKS,
        "block_tokens": BLOCK_TOKENS,
        "capacity_tokens": NUM_BLOCKS * BLOCK_TOKENS,
        "running": len(PROMPTS),
        "waiting": len(LATE_PROMPTS) if limited else 0,
    }
    llama = model(device)
    on_forward(llama, {HOLD_AT_FORWARD: lambda: hold(**expected)})
    batched(llama, PROMPTS + LATE_PROMPTS if limited else PROMPTS)


def batching_shared(device: str) -> None:
    """A prompt that comes again a little later shares the full blocks of its beginning, which count once."""
    late, again = 4, [7] * 40
    held = [len(again) + HOLD_AT_FORWARD - 1, len(again) + HOLD_AT_FORWARD - late]
    shared = (len(again) - 1) // BLOCK_TOKENS
    used = sum(map(blocks, held)) - shared
    live = sum(held) - shared * BLOCK_TOKENS
    expected = {"used_blocks": used, "live_tokens": live, "tail_tokens": used * BLOCK_TOKENS - live, "running": 2}
    llama = model(device)
    manager = batching_manager(llama)
    add = functools.partial(manager.add_request, again, max_new_tokens=OUTPUT_TOKENS)
    on_forward(llama, {late - 1: add, HOLD_AT_FORWARD: lambda: hold(**expected)})
    add()
    run(manager, 2)


def batching_hybrid(device: str) -> None:
    """Two layers that attend to everything, two with a window: each pair has blocks of its own."""
    held = [tokens + HOLD_AT_FORWARD - 1 for tokens in PROMPTS]
    in_window = [min(tokens, BATCHING_WINDOW) for tokens in held]
    expected = {
        "groups": {
            kind: {
                "block_tokens": BLOCK_TOKENS,
                "layers": LAYERS // 2,
                "layer_bytes_per_block": BLOCK_TOKENS * LAYERS // 2 * TOKEN_BYTES,
                "used_blocks": sum(map(blocks, tokens)),
                "live_tokens": sum(tokens),
            }
            for kind, tokens in (("full", held), ("sliding_window", in_window))
        },
        "live_bytes": (sum(held) + sum(in_window)) * LAYERS // 2 * TOKEN_BYTES,
        "capacity_tokens": NUM_BLOCKS * BLOCK_TOKENS,
        "running": len(PROMPTS),
    }
    hybrid = model(
        device, kind="Qwen2", use_sliding_window=True, sliding_window=BATCHING_WINDOW, max_window_layers=LAYERS // 2
    )
    on_forward(hybrid, {HOLD_AT_FORWARD: lambda: hold(**expected)})
    batched(hybrid, PROMPTS)


def blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def batched(made: Any, prompts: tuple[int, ...]) -> None:
    manager = batching_manager(made)
    for tokens in prompts:
        manager.add_request([1 + tokens] * tokens, max_new_tokens=OUTPUT_TOKENS)
    run(manager, len(prompts))


def run(manager: Any, requests: int) -> None:
    """Until all requests are done; then the pool is held, empty, and once more after it is gone."""
    manager.start()
    finished = 0
    while finished < requests:
        result = manager.get_result(timeout=1)
        finished += result is not None
        if result is None and not manager.is_running():
            sys.exit("the manager has ended before its requests")
    hold(used_blocks=0, live_tokens=0, running=0, waiting=0)
    manager.stop(block=True)
    hold(caches=[])


def batching_fields() -> dict[str, Any]:
    config_class = getattr(transformers, "ContinuousBatchingConfig", None)
    return {} if config_class is None else config_class.__dataclass_fields__


def batching_manager(made: Any) -> Any:
    names = batching_fields()
    sizes = {
        "num_blocks": NUM_BLOCKS,
        "page_size": BLOCK_TOKENS,
        "block_size": BLOCK_TOKENS,
        "max_batch_tokens": 256,
        "max_requests_per_batch": len(PROMPTS),
        # Each forward pass is to run through Python, one after the other, where it can be held.
        "use_async_batching": False,
        "use_cuda_graph": False,
        "auto_switch_to_flash": False,
    }
    settings = transformers.GenerationConfig(max_new_tokens=OUTPUT_TOKENS, do_sample=False, eos_token_id=-1)
    if names:
        config = transformers.ContinuousBatchingConfig(**{key: sizes[key] for key in names if key in sizes})
        return made.init_continuous_batching(generation_config=settings, continuous_batching_config=config)
    for key, value in sizes.items():
        setattr(settings, key, value)
    made.set_attn_implementation("sdpa_paged")
    return made.init_continuous_batching(generation_config=settings)


SCENES: dict[str, Callable[[str], None]] = {
    scene.__name__: scene
    for scene in (
        kept,
        dynamic,
        static,
        static_sliding,
        offloaded,
        static_by_hand,
        quantized,
        batching,
        batching_shared,
        batching_hybrid,
    )
}


def main() -> None:
    transformers.logging.set_verbosity_error()
    SCENES[sys.argv[1]]((sys.argv[2:] or ["cpu"])[0])
    say(done=True)


if __name__ == "__main__":
    main()
