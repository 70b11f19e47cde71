"""*Pod*: one pod's memory, pool, limits and signals."""

from dashboards.building.parts import LOAD, MODELS, PODS, USAGE, About, Panel, Query, board, figure, fill, lines
from grafana_foundation_sdk.builders.dashboard import Dashboard


def made() -> Dashboard:
    """The dashboard."""
    about = "One pod: what its memory is and should be, what its pool holds, which limit binds."
    return fill(
        board("pod", "kvgauge / Pod", about, one_pod=True),
        [
            ("Now", _now()),
            ("GPU memory", _memory()),
            ("KV pool", _pool()),
            ("Waste", _waste()),
            ("Limits", _limits()),
            ("Signals", _signals()),
        ],
    )


def _now() -> list[Panel]:
    return [
        figure(
            About(
                "Load",
                "Demand over safe capacity, the queue included. From 1 on send less or add pods.",
                "percentunit",
                "kv-pressure",
                LOAD,
            ),
            Query(f"max(kvgauge_load_ratio{{{MODELS}}})"),
        ),
        figure(
            About(
                "Safe concurrency",
                "Requests that may run together: the smallest limit. Missing while too few requests have ended.",
                "short",
                "kv-pressure",
            ),
            Query(f"sum(kvgauge_safe_concurrency{{{MODELS}}})"),
        ),
        figure(
            About(
                "Binding limit",
                "Which limit holds it there: kv wants memory, max_num_seqs is a setting, latency and token_rate want "
                "compute, state_slots wants room for recurrent states.",
                "short",
                "max-num-seqs-saturated",
            ),
            Query(f"kvgauge_binding_limit{{{MODELS}}} == 1", "{{limit}}"),
            by_name=True,
        ),
        figure(
            About(
                "KV usage",
                "Slots that running requests hold, over the capacity. Near 1 requests lose their place: send less, or "
                "add pods.",
                "percentunit",
                "kv-pressure",
                USAGE,
            ),
            Query(f"max(kvgauge_kv_usage_ratio{{{MODELS}}})"),
        ),
        figure(
            About(
                "Pool full in",
                "By the trend, or by what those running grow to; 24 h stands for later and for never. Missing is not "
                "known. Below 10 minutes send less or add pods.",
                "s",
                "kv-exhaustion-near",
                ((60.0, "orange"), (600.0, "green")),
                "red",
            ),
            Query(f"min(clamp_max(kvgauge_kv_exhaustion_seconds{{{MODELS}}}, 86400))"),
        ),
        figure(
            About(
                "Advice valid",
                "Whether the advice stands on fresh facts. If not, look at the sources below. An engine that was put "
                "to sleep gets none; where it does not tell whether it sleeps, only the first is shown.",
                "short",
                "advice-invalid",
                ((1.0, "green"),),
                "red",
            ),
            Query(f"min(kvgauge_advice_valid{{{PODS}}})", "valid"),
            Query(f"max(kvgauge_engine_asleep{{{PODS}}})", "asleep"),
            yes_or_no=True,
        ),
    ]


def _memory() -> list[Panel]:
    gpu = "GPU {{gpu}}"
    return [
        lines(
            About(
                "Predicted memory by part",
                "What each part of a GPU's memory should take, from model, flags and version. Compare with the "
                "measured parts beside it; what is far off is in the runbook.",
                "bytes",
                "vram-nearly-full",
            ),
            Query(f"kvgauge_memory_predicted_bytes{{{PODS}}}", f"{{{{component}}}} {gpu}"),
            span=8,
            stacked=True,
        ),
        lines(
            About(
                "Measured memory by part",
                "What a part takes, where the engine or the agent tells it. Parts nobody measured are missing, so the "
                "sum is no total.",
                "bytes",
                "vram-nearly-full",
            ),
            Query(f"kvgauge_memory_actual_bytes{{{PODS}}}", f"{{{{component}}}} {gpu}"),
            span=8,
            stacked=True,
        ),
        lines(
            About(
                "Memory in use, and what it should be",
                "The driver's figure beside the prediction with its bounds. Above the bounds and rising: a leak or "
                "another process. Near the total the next allocation fails.",
                "bytes",
                "vram-nearly-full",
            ),
            Query(f"kvgauge_gpu_memory_used_bytes{{{PODS}}}", f"in use {gpu}"),
            Query(f"kvgauge_gpu_memory_total_bytes{{{PODS}}}", f"total {gpu}"),
            Query(f"kvgauge_memory_predicted_total_bytes{{{PODS}}}", f"predicted {{{{bound}}}} {gpu}"),
            span=8,
        ),
        lines(
            About(
                "Prediction error",
                "(measured - predicted) / measured; above 0 there is more than was predicted, and less room than "
                "planned. Beyond 5 % look which part it is; a total that goes on rising is drift.",
                "percentunit",
                "vram-nearly-full",
                ((-0.1, "orange"), (-0.05, "green"), (0.05, "orange"), (0.1, "red")),
                "red",
            ),
            Query(f"kvgauge_memory_prediction_error_ratio{{{PODS}}}", f"{{{{component}}}} {gpu}"),
        ),
        lines(
            About(
                "Drift",
                "By how much memory has moved from where it settled. leak: restart it at a quiet time and report it; "
                "foreign_process: find the other process; flags: settings have changed.",
                "bytes",
                "memory-leak",
                ((268435456.0, "red"),),
            ),
            Query(f"kvgauge_memory_drift_bytes{{{PODS}}}", f"{{{{kind}}}} {gpu}"),
        ),
    ]


def _pool() -> list[Panel]:
    return [
        lines(
            About(
                "KV slots by state",
                "active: held by running requests; reclaimable: cached, given up when needed; free. They add up to "
                "the capacity. Where reclaimable is missing, free holds it.",
                "short",
                "kv-pressure",
            ),
            Query(f"kvgauge_kv_tokens{{{MODELS}}}", "{{state}} rank {{rank}}"),
            stacked=True,
        ),
        lines(
            About(
                "Live tokens in active slots",
                "Slots that hold a token of a live request, beside those that are held and the capacity. The method "
                "says whether it was measured or estimated. A wide gap is waste.",
                "short",
                "waste",
            ),
            Query(f"kvgauge_kv_live_tokens{{{MODELS}}}", "live ({{method}}) rank {{rank}}"),
            Query(f'kvgauge_kv_tokens{{{MODELS},state="active"}}', "active rank {{rank}}"),
            Query(f"kvgauge_kv_capacity_tokens{{{MODELS}}}", "capacity rank {{rank}}"),
        ),
        lines(
            About(
                "Usage and preemptions",
                "Preemptions a second (right) beside usage. Preemptions at high usage: too much concurrency; keep to "
                "the safe one.",
                "percentunit",
                "preemption-storm",
                USAGE,
            ),
            Query(f"kvgauge_kv_usage_ratio{{{MODELS}}}", "usage rank {{rank}}"),
            Query(f"rate(kvgauge_preemptions_total{{{MODELS}}}[$__rate_interval])", "preemptions/s rank {{rank}}"),
            right="preemptions.*",
        ),
        lines(
            About(
                "Time until the pool is full",
                "By the trend, or by what those running grow to; 24 h stands for later and for never. A gap is not "
                "known. Below 10 minutes send less or add pods; below what a pod of the namespace took to start (as "
                "the aggregator saw it; 120 s where it saw none) and a load above 1 it is an alert.",
                "s",
                "kv-exhaustion-near",
                ((60.0, "orange"), (600.0, "green")),
                "red",
            ),
            Query(f"clamp_max(kvgauge_kv_exhaustion_seconds{{{MODELS}}}, 86400)", "full in, rank {{rank}}"),
            Query('max by (namespace) (kvgauge_start_up_seconds{namespace=~"$namespace"})', "a pod took to start"),
        ),
    ]


def _waste() -> list[Panel]:
    return [
        lines(
            About(
                "Waste by kind",
                "Bytes on each GPU of a rank that are taken and hold nothing, or a copy. Kinds do not overlap. A kind "
                "that can't be known is missing.",
                "bytes",
                "waste",
            ),
            Query(f"kvgauge_waste_bytes{{{MODELS}}}", "{{kind}} ({{method}}) rank {{rank}}"),
            stacked=True,
        ),
        lines(
            About(
                "torch's allocator",
                "What torch holds, by state: reserved from the driver, allocated to tensors; inactive_split can't go "
                "back. reserved far above allocated, and growing: see the runbook. Needs the agent in the engine.",
                "bytes",
                "allocator-fragmentation",
            ),
            Query(f"kvgauge_allocator_bytes{{{PODS}}}", "{{state}} GPU {{gpu}}"),
            span=6,
        ),
        lines(
            About(
                "Allocator fragmentation",
                "Of the memory that torch holds free, the share outside its largest piece. High and growing, with much "
                "in inactive_split: restart it at a quiet time. Needs the agent.",
                "percentunit",
                "allocator-fragmentation",
                ((0.5, "orange"), (0.8, "red")),
            ),
            Query(f"kvgauge_allocator_fragmentation_ratio{{{PODS}}}", "GPU {{gpu}}"),
            span=6,
        ),
    ]


def _limits() -> list[Panel]:
    return [
        lines(
            About(
                "Requests and limits",
                "Each limit on concurrency, with what runs and waits. The lowest binds; kv_worst_case never does. "
                "Running above the lowest: preemptions or slow tokens are next.",
                "short",
                "kv-pressure",
            ),
            Query(f"kvgauge_concurrency_limit{{{MODELS}}}", "limit {{limit}} rank {{rank}}"),
            Query(f"kvgauge_requests{{{MODELS}}}", "{{state}} rank {{rank}}"),
        ),
        lines(
            About(
                "Load",
                "Demand over safe capacity, the queue included. The scaling signal: from 1 on send less or add pods.",
                "percentunit",
                "kv-pressure",
                LOAD,
            ),
            Query(f"kvgauge_load_ratio{{{MODELS}}}", "rank {{rank}}"),
            span=6,
        ),
        lines(
            About(
                "Which limit binds",
                "1 for the limit that binds, 0 for the others. kv wants memory, max_num_seqs a higher setting, latency "
                "and token_rate more pods.",
                "short",
                "max-num-seqs-saturated",
            ),
            Query(f"kvgauge_binding_limit{{{MODELS}}}", "{{limit}} rank {{rank}}"),
            span=6,
        ),
    ]


def _signals() -> list[Panel]:
    return [
        lines(
            About(
                "Age of each source's reading",
                "Seconds since a source was last read well. From 5 s on (--stale-after) its facts are dropped, and "
                "without the engine's there is no advice. See what the runbook says of that source.",
                "s",
                "source-down",
                ((2.0, "orange"), (5.0, "red")),
            ),
            Query(f"kvgauge_source_age_seconds{{{PODS}}}", "{{source}}"),
            span=8,
        ),
        lines(
            About(
                "Sources that answer",
                "1 when the last read succeeded. At 0 the runbook says what to look at.",
                "short",
                "source-down",
                ((1.0, "green"),),
                "red",
            ),
            Query(f"kvgauge_source_up{{{PODS}}}", "{{source}}"),
            span=8,
        ),
        lines(
            About(
                "Errors and slow reads",
                "How long the last read took; on the right failed reads and unusable lines a second, by reason.",
                "s",
                "source-down",
                ((1.0, "orange"),),
            ),
            Query(f"kvgauge_source_read_seconds{{{PODS}}}", "{{source}}"),
            Query(f"rate(kvgauge_source_errors_total{{{PODS}}}[$__rate_interval])", "errors/s {{source}} {{reason}}"),
            span=8,
            right="errors.*",
        ),
    ]
