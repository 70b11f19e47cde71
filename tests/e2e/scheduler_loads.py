"""Loads and sets of alike requests that the simulated engine, the advice and vLLM's scheduler are all given."""

import random
from dataclasses import dataclass, replace
from typing import Any

from kvgauge.advise import History, advise
from kvgauge.assess import EngineFlags, assess
from kvgauge.simulate import EngineSpec, Request
from kvmodel import EnginePlan, plan_pool, read_architecture
from kvmodel.layers import HeadsLayer, SlidingWindowAttention
from tests.advise.test_lengths import page
from tests.model.known import LLAMA_8B, known_config
from tests.support.facts import ENGINE, RANK, model, observation

REQUESTS = 200
VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class Mix:
    """A load on one engine. Requests are (step of arrival, prompt, output, names of the prompt's units)."""

    name: str
    num_blocks: int
    block_tokens: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    requests: tuple[tuple[int, int, int, tuple[int, ...]], ...]
    prefix_caching: bool = False
    unit_tokens: int = 16

    def spec(self) -> EngineSpec:
        return EngineSpec(
            num_blocks=self.num_blocks,
            max_model_len=self.max_model_len,
            kv_bytes_per_token=0,
            weights_bytes=1,
            parameters=1,
            # What is computed and read takes no time that a float beside one second could show.
            bandwidth_bytes_per_second=1e30,
            flops_per_second=1e30,
            step_overhead_seconds=1.0,
            block_tokens=self.block_tokens,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_caching=self.prefix_caching,
        )

    def simulated_requests(self) -> list[Request]:
        return [
            Request(float(step), prompt, output, units, self.unit_tokens)
            for step, prompt, output, units in self.requests
        ]


def mix(
    name: str,
    seed: int,
    *,
    blocks: int,
    block: int = 16,
    longest: int = 512,
    seqs: int = 64,
    budget: int = 2048,
    prompts: tuple[int, int],
    outputs: tuple[int, int],
    gap: int,
) -> Mix:
    draw = random.Random(seed)
    step, requests = 0, []
    for _ in range(REQUESTS):
        step += draw.randint(0, gap)
        prompt = draw.randint(*prompts)
        requests.append((step, prompt, min(draw.randint(*outputs), longest - prompt), ()))
    return Mix(name, blocks, block, longest, seqs, budget, tuple(requests))


def any_mix(seed: int) -> Mix:
    draw = random.Random(seed)
    block = draw.choice([16, 32, 128])
    longest = draw.choice([256, 500, 1000])
    seqs = draw.choice([4, 16, 100])
    prompt, output = draw.randint(1, longest // 2), draw.randint(1, longest // 2)
    return mix(
        f"mix {seed}",
        seed,
        blocks=-(-longest // block) + 1 + draw.choice([0, 3, 30, 100]),
        block=block,
        longest=longest,
        seqs=seqs,
        budget=max(seqs, draw.choice([20, 100, 512, 4096])),
        prompts=(draw.randint(1, prompt), prompt),
        outputs=(draw.randint(1, output), output),
        gap=draw.choice([0, 1, 3, 10]),
    )


def with_shared_prefixes(
    name: str, seed: int, *, blocks: int, unit: int = 16, tail: int = 1, seqs: int = 8, outputs: int = 100, gap: int
) -> Mix:
    """Prompts that go down a tree of units, up to five of them, and then have at least `tail` tokens of their own."""
    draw = random.Random(seed)
    step, requests = 0, []
    for _ in range(REQUESTS):
        step += draw.randint(0, gap)
        path: list[int] = []
        for _ in range(draw.randint(0, 5)):
            path.append(3 * (path[-1] if path else 0) + draw.randint(1, 3))
        own = draw.randint(tail if path else 1, 100)
        requests.append((step, len(path) * unit + own, draw.randint(1, outputs), tuple(path)))
    longest = 5 * unit + 100 + outputs
    return Mix(name, blocks, 16, longest, seqs, 300, tuple(requests), prefix_caching=True, unit_tokens=unit)


PLAIN = (
    mix("few blocks", 1, blocks=65, prompts=(8, 200), outputs=(1, 200), gap=6),
    mix("chunks", 2, blocks=48, block=32, longest=1024, seqs=32, budget=40, prompts=(20, 700), outputs=(1, 99), gap=8),
    mix("few places", 3, blocks=800, seqs=6, budget=256, prompts=(1, 300), outputs=(1, 100), gap=5),
    mix("all at once", 4, blocks=20, block=128, longest=1280, budget=512, prompts=(1, 900), outputs=(1, 300), gap=0),
    *(any_mix(seed) for seed in (12, 15, 16, 17, 21, 27, 31, 35, 36, 39, 40, 43)),
)
CACHING = (
    *(replace(load, name=f"{load.name}, cached", prefix_caching=True) for load in PLAIN[:4]),
    with_shared_prefixes("roomy", 5, blocks=4000, tail=0, seqs=64, gap=3),
    with_shared_prefixes("roomy, long units", 6, blocks=4000, unit=64, seqs=16, gap=3),
    with_shared_prefixes("evicting", 7, blocks=120, gap=12),
    with_shared_prefixes("evicting and preempting", 8, blocks=40, seqs=64, outputs=250, gap=8),
    with_shared_prefixes("evicting whole prompts", 9, blocks=60, tail=0, seqs=64, outputs=150, gap=8),
)
COARSE = (
    with_shared_prefixes("units of four blocks", 8, blocks=100, unit=64, gap=12),
    with_shared_prefixes("units of eight blocks", 10, blocks=150, unit=128, seqs=64, outputs=200, gap=12),
)


@dataclass(frozen=True, slots=True)
class Alike:
    """Requests of equal length, of which as many are wanted as run together."""

    model: str
    prompt: int
    output: int
    num_blocks: int
    block_tokens: int = 16
    max_num_batched_tokens: int = 1 << 16
    async_scheduling: bool = False
    rounds: int = 2

    @property
    def name(self) -> str:
        overlapped = ", overlapped" if self.async_scheduling else ""
        return f"{self.model} {self.prompt}+{self.output} in {self.num_blocks} x {self.block_tokens}{overlapped}"

    @property
    def max_model_len(self) -> int:
        return -(-(self.prompt + self.output) // self.block_tokens) * self.block_tokens

    def layers(self) -> list[dict[str, int | None]]:
        return [
            {
                "window": layer.window_tokens if isinstance(layer, SlidingWindowAttention) else None,
                "kv_heads": layer.kv_heads,
                "head_dim": layer.head_dim_k,
            }
            for layer in read_architecture(config_of(self.model)).layers
            if isinstance(layer, HeadsLayer)
        ]

    def plan(self) -> EnginePlan:
        return plan_pool(
            read_architecture(config_of(self.model)),
            engine_version=VERSION,
            num_blocks=self.num_blocks,
            block_tokens=self.block_tokens,
            max_model_len=self.max_model_len,
            max_num_batched_tokens=self.max_num_batched_tokens,
            async_scheduling=self.async_scheduling,
            prefix_caching=False,
        )

    def advised(self) -> int:
        """What the sidecar says of the KV pool once it has seen 60 such requests end."""
        capacity = self.plan().capacity_tokens
        rank = replace(
            RANK,
            capacity_tokens=capacity,
            block_tokens=self.block_tokens,
            num_blocks=self.num_blocks,
            used_blocks=0,
            active_tokens=0,
            free_tokens=capacity,
            usage_ratio=0.0,
            running=0,
            prompt_lengths=page([self.prompt] * 60),
            output_lengths=page([self.output] * 60),
        )
        reading = replace(
            ENGINE, version=VERSION, max_model_len=self.max_model_len, prefix_caching=False, ranks=(rank,)
        )
        served = replace(model(), architecture=read_architecture(config_of(self.model)))
        seen = observation(engine=reading, with_model=served)
        history = History()
        history.remember(seen)
        return advise(assess(seen, EngineFlags()), history).limits["kv"]


def config_of(model: str) -> dict[str, Any]:
    return LLAMA_8B if model == "llama" else known_config(model)


def any_alike(seed: int) -> Alike:
    draw = random.Random(seed)
    sketch = Alike(
        draw.choice(["llama", "openai/gpt-oss-20b", "openai/gpt-oss-20b", "google/gemma-3-1b-it"]),
        draw.choice([1, 20, 100, 250, 500, 900]) + draw.randrange(20),
        draw.choice([1, 2, 5, 10, 30, 100, 300]),
        1 << 14,
        draw.choice([16, 32]),
        draw.choice([512, 2048, 8192, 1 << 16]),
        draw.random() < 0.5,
    )
    longest = sum(group.blocks_per_request or 0 for group in sketch.plan().groups)
    return replace(sketch, num_blocks=draw.randint(longest + 1, max(2 * longest, 300)))


LAWFUL = (
    Alike("llama", 200, 400, 200, 32),
    Alike("llama", 200, 400, 500, 32, async_scheduling=True),
    Alike("llama", 100, 100, 120),
    Alike("llama", 33, 17, 64),
    Alike("llama", 500, 20, 400),
    Alike("llama", 1, 300, 100),
    Alike("llama", 128, 129, 41, 128),
    Alike("llama", 160, 1, 101),
    Alike("llama", 160, 2, 101),
    Alike("llama", 1000, 500, 1000, async_scheduling=True),
    # Prompts in chunks, so that not all are equally old.
    Alike("llama", 500, 300, 400, max_num_batched_tokens=512),
    Alike("llama", 500, 300, 400, max_num_batched_tokens=2048, async_scheduling=True),
    Alike("llama", 300, 100, 500, max_num_batched_tokens=1024),
)
HYBRID = tuple(
    Alike(model, prompt, output, blocks, max_num_batched_tokens=budget, async_scheduling=overlapped)
    for model, blocks, prompt, output in (
        ("openai/gpt-oss-20b", 2731, 1000, 200),
        ("openai/gpt-oss-20b", 1000, 100, 300),
        ("google/gemma-3-1b-it", 5000, 600, 150),
        ("google/gemma-3-12b-it", 9000, 1500, 100),
    )
    for budget, overlapped in ((8192, True), (2048, False))
)
ANY = tuple(any_alike(seed) for seed in range(40))
