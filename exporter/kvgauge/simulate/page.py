"""The embedded engine's metrics page, in the names, labels and order of vLLM 0.32."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kvgauge.simulate.spec import EngineSpec
from kvgauge.simulate.state import EngineState

# Labels that set a series apart from its neighbours, and its value.
_Rows = list[tuple[dict[str, str], float]]

_WAITING_BY_REASON = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
    "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
    "vllm:num_requests_waiting."
)
_SLEEP_STATE = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 "
    "means sleep level 1; discard_all = 1 means sleep level 2."
)

# Labels of cache_config_info that this engine has no say in; the values are those of a plain start.
_UNTOUCHED_CACHE_CONFIG = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "False",
}


def cache_config_labels(spec: EngineSpec, gpu_memory_utilization: float) -> dict[str, str]:
    """The labels of `vllm:cache_config_info`, all strings.

    Concurrency and size follow vLLM 0.32 (`v1/core/kv_cache_utils.py`): all blocks, the null block too, over the blocks
    of one request of `max_model_len`; and that many times `max_model_len`, rounded down.
    """
    concurrency = spec.num_blocks / spec.blocks_for(spec.max_model_len)
    return _UNTOUCHED_CACHE_CONFIG | {
        "engine": "0",
        "block_size": str(spec.block_tokens),
        # An engine without is told apart from one whose cache holds something to reuse.
        "enable_prefix_caching": str(spec.prefix_caching),
        "effective_attention_block_size": str(spec.block_tokens),
        "gpu_memory_utilization": str(gpu_memory_utilization),
        "kv_cache_max_concurrency": str(concurrency),
        "kv_cache_size_tokens": str(int(concurrency * spec.max_model_len)),
        "num_gpu_blocks": str(spec.num_blocks),
    }


class VllmPage(Collector):
    """Turns the engine's state into vLLM's metric families, anew at each collection.

    Prefix cache figures stay zero without prefix caching, as vLLM's do.
    """

    def __init__(
        self,
        state: Callable[[], EngineState],
        spec: EngineSpec,
        *,
        model_name: str,
        gpu_memory_utilization: float,
        started_seconds: float,
    ) -> None:
        self._state = state
        self._spec = spec
        self._labels = {"engine": "0", "model_name": model_name}
        self._cache_config = cache_config_labels(spec, gpu_memory_utilization)
        self._started_seconds = started_seconds

    def render(self) -> bytes:
        """The page in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering the page must not read the engine."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families, in vLLM's order."""
        state = self._state()
        start = "Start time of the process since unix epoch in seconds."
        yield GaugeMetricFamily("process_start_time_seconds", start, self._started_seconds)
        yield from self._gauges(state)
        yield from self._counters(state)
        yield from self._histograms(state)
        config = GaugeMetricFamily("vllm:cache_config_info", "Information of the LLMEngine CacheConfig")
        config.add_sample(config.name, self._cache_config, 1)
        yield config

    def _gauges(self, state: EngineState) -> Iterable[Metric]:
        running, waiting = float(state.running), float(state.waiting)
        usage = state.used_blocks / self._spec.usable_blocks
        yield self._gauge("num_requests_running", "Number of requests in model execution batches.", [({}, running)])
        yield self._gauge("num_requests_waiting", "Number of requests waiting to be processed.", [({}, waiting)])
        by_reason: _Rows = [({"reason": "capacity"}, waiting), ({"reason": "deferred"}, 0)]
        yield self._gauge("num_requests_waiting_by_reason", _WAITING_BY_REASON, by_reason)
        sleep: _Rows = [
            ({"sleep_state": name}, float(name == "awake")) for name in ("awake", "weights_offloaded", "discard_all")
        ]
        yield self._gauge("engine_sleep_state", _SLEEP_STATE, sleep)
        yield self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [({}, usage)])

    def _counters(self, state: EngineState) -> Iterable[Metric]:
        ended = {"stop": state.finished_stop_total, "length": state.finished_length_total}
        reasons = ("stop", "length", "abort", "error", "repetition")
        counters: tuple[tuple[str, str, _Rows], ...] = (
            (
                "prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                [({}, state.prefix_queries_total)],
            ),
            (
                "prefix_cache_hits",
                "Prefix cache hits, in terms of number of cached tokens.",
                [({}, state.prefix_hits_total)],
            ),
            (
                "num_preemptions",
                "Cumulative number of preemption from the engine.",
                [({}, state.preemptions_total)],
            ),
            ("prompt_tokens", "Number of prefill tokens processed.", [({}, state.prompt_tokens_total)]),
            ("generation_tokens", "Number of generation tokens processed.", [({}, state.generation_tokens_total)]),
            (
                "request_success",
                "Count of successfully processed requests.",
                [({"finished_reason": reason}, ended.get(reason, 0)) for reason in reasons],
            ),
        )
        for name, documentation, rows in counters:
            family = CounterMetricFamily(f"vllm:{name}", documentation)
            for labels, value in rows:
                family.add_sample(f"{family.name}_total", self._labels | labels, value)
                family.add_sample(f"{family.name}_created", self._labels | labels, self._started_seconds)
            yield family

    def _histograms(self, state: EngineState) -> Iterable[Metric]:
        for name, documentation, distribution in (
            ("request_prompt_tokens", "Number of prefill tokens processed.", state.prompt_tokens),
            ("request_generation_tokens", "Number of generation tokens processed.", state.output_tokens),
            ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", state.step_tokens),
            ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", state.ttft_seconds),
            ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", state.inter_token_seconds),
            (
                "request_time_per_output_token_seconds",
                "Histogram of time_per_output_token_seconds per request.",
                state.token_seconds,
            ),
            ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", state.e2e_seconds),
            (
                "request_queue_time_seconds",
                "Histogram of time spent in WAITING phase for request.",
                state.queue_seconds,
            ),
            (
                "request_num_preemptions",
                "Histogram of the number of times a request was preempted.",
                state.preemptions,
            ),
        ):
            family = HistogramMetricFamily(f"vllm:{name}", documentation)
            for bound, count in zip(distribution.bounds, distribution.cumulative, strict=True):
                le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
                family.add_sample(f"{family.name}_bucket", self._labels | {"le": le}, count)
            family.add_sample(f"{family.name}_count", self._labels, distribution.count)
            family.add_sample(f"{family.name}_sum", self._labels, distribution.total)
            family.add_sample(f"{family.name}_created", self._labels, self._started_seconds)
            yield family

    def _gauge(self, name: str, documentation: str, rows: _Rows) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", documentation)
        for labels, value in rows:
            family.add_sample(family.name, self._labels | labels, value)
        return family
