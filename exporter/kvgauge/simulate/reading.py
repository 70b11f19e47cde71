"""A simulated engine as a sidecar beside it would have read it.

The same record that the reader of vLLM's page makes of the simulated page, without the page: a fleet has hundreds of
thousands of readings. A test holds the two equal.
"""

from kvgauge.observe.records import EngineReading, Histogram, Observation, RankReading, SourceState
from kvgauge.simulate.spec import EngineSpec
from kvgauge.simulate.state import EngineState
from kvgauge.simulate.tally import Distribution

ENGINE_VERSION = "0.32.0"


def reading_of(state: EngineState, spec: EngineSpec, model: str) -> EngineReading:
    """The engine's figures at one moment."""
    used = state.used_blocks
    # The page states the capacity as concurrency times length, rounded down.
    capacity = int(spec.num_blocks / spec.blocks_for(spec.max_model_len) * spec.max_model_len)
    active = min(used * spec.block_tokens, capacity)
    prompts = float(state.prompt_tokens_total)
    hits, queries = float(state.prefix_hits_total), float(state.prefix_queries_total)
    rank = RankReading(
        rank="0",
        model=model,
        capacity_tokens=capacity,
        block_tokens=spec.block_tokens,
        num_blocks=spec.num_blocks,
        used_blocks=used,
        active_tokens=active,
        free_tokens=capacity - active,
        usage_ratio=used / spec.usable_blocks,
        running=state.running,
        waiting=state.waiting,
        preemptions_total=float(state.preemptions_total),
        prompt_tokens_total=prompts,
        generation_tokens_total=float(state.generation_tokens_total),
        prefix_queries_tokens_total=queries,
        prefix_hits_tokens_total=hits,
        prompt_lengths=_histogram(state.prompt_tokens),
        output_lengths=_histogram(state.output_tokens),
        ttft_seconds=_histogram(state.ttft_seconds),
        queue_seconds=_histogram(state.queue_seconds),
        inter_token_seconds=_histogram(state.inter_token_seconds),
        request_token_seconds=_histogram(state.token_seconds),
        step_tokens=_histogram(state.step_tokens),
        prompt_computed_tokens_total=max(prompts - hits, 0.0),
        finished_total=float(state.finished_total),
    )
    return EngineReading(
        engine="vllm",
        version=ENGINE_VERSION,
        model=model,
        ranks=(rank,),
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        prefix_caching=spec.prefix_caching,
        asleep=False,
    )


def observation_of(reading: EngineReading, seconds: float) -> Observation:
    """What the sidecar's look at that time gives: the engine, and nothing of a GPU or a model's files."""
    source = SourceState("engine", up=True, age_seconds=0.0, read_seconds=0.0, reason=None, message=None)
    return Observation(seconds, seconds, gpus=(), engine=reading, model=None, sources=(source,))


def _histogram(distribution: Distribution) -> Histogram:
    return Histogram(distribution.bounds, distribution.cumulative, distribution.total)
