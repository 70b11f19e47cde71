"""The loads that scaling advice is judged on: recorded traces of four kinds, and llm-d's published episode.

The traces are not part of the project; they lie beside its checkout.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kvgauge.simulate.deployment import Deployment
from kvgauge.simulate.scenario import LLM_D, LLM_D_ENGINE, Scenario

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"

ONE_H100 = Deployment(
    kv_tokens=48_000,
    kv_bytes_per_token=262_144,
    weights_bytes=65_500_000_000,
    parameters=32_800_000_000,
    bandwidth_bytes_per_second=0.78 * 3.35e12,
    flops_per_second=0.62 * 989e12,
    step_overhead_seconds=0.0007,
    attention_flop_per_pair=4 * 64 * 64 * 128,
    prefix_caching=True,
)
"""Qwen3-32B on one H100: weights leave little, so memory binds."""
TWO_H100 = replace(LLM_D_ENGINE, prefix_caching=True)
"""The same on two: the pool is large, so prefill or the step time bind."""

CONV = Scenario(
    name="conv",
    source=TRACES / "azure_conv_2023.csv.gz",
    engine=ONE_H100,
    scale=4,
    slo_ttft_seconds=2,
    slo_tpot_seconds=0.08,
    initial_replicas=11,
)
"""An hour of chat, steady."""

M_LARGE = Scenario(
    name="m-large",
    source=TRACES / "servegen_mlarge_day1_6h.csv.gz",
    engine=ONE_H100,
    scale=3,
    duration_seconds=4 * 3600,
    slo_ttft_seconds=2,
    slo_tpot_seconds=0.08,
    initial_replicas=12,
)
"""Four hours of many clients with their own habits: the mix of lengths shifts."""

CODE = Scenario(
    name="code",
    source=TRACES / "azure_code_2023.csv.gz",
    engine=TWO_H100,
    scale=2,
    slo_ttft_seconds=2,
    slo_tpot_seconds=0.08,
    initial_replicas=4,
)
"""An hour of code completion: long prompts, short outputs, bursts with whole minutes of nothing between."""

MOONCAKE = Scenario(
    name="mooncake",
    source=TRACES / "mooncake_synth_fast25.csv.gz",
    engine=TWO_H100,
    slo_ttft_seconds=10,
    slo_tpot_seconds=0.1,
    initial_replicas=8,
)
"""A quarter of an hour of very long prompts that share their beginnings."""

MOONCAKE_WITHOUT_PREFIXES = replace(
    MOONCAKE, name="mooncake-no-prefixes", engine=replace(TWO_H100, prefix_caching=False)
)
"""The same with every prompt computed in full."""

EVALUATION: Mapping[str, Scenario] = {one.name: one for one in (LLM_D, CONV, M_LARGE, CODE, MOONCAKE)}
"""The loads of the evaluation by name; start-up 120 s, 300 s of warm-up left out and 1 to 24 replicas but for llm-d."""
