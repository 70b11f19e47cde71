"""*Capacity*: how many requests fit at other lengths, and how good the predictions are."""

from dashboards.building.parts import (
    MODELS,
    PODS,
    About,
    Column,
    Panel,
    Query,
    board,
    figure,
    fill,
    lines,
    listing,
    number,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard

_POD = "namespace, pod, model"
_POOL = f"sum by ({_POD}) (kvgauge_kv_capacity_tokens{{{MODELS}}})"
# A state takes as many slots as its bytes would hold tokens.
_STATE = f"avg by ({_POD}) (kvgauge_kv_state_bytes_per_request{{{MODELS}}} / kvgauge_kv_bytes_per_token{{{MODELS}}})"
_PROMPT, _OUTPUT = (f'kvgauge_request_tokens{{{MODELS},part="{part}"}}' for part in ("prompt", "output"))
_LENGTHS = f"avg by ({_POD}, stat) ({_PROMPT} + ignoring (part) {_OUTPUT})"
_FIT = f"{_POOL} / on ({_POD}) group_right () ({_LENGTHS} + on ({_POD}) group_left () {_STATE})"
_MEAN = f'avg by ({_POD}) (kvgauge_request_tokens{{{MODELS},part="prompt",stat="mean"}} + ignoring (part) {_OUTPUT})'
_FIT_MEAN = f"({_POOL} / on ({_POD}) ({_MEAN} + on ({_POD}) {_STATE}))"
# Of a model's mean pod: means first, since a join of a pod's series at each point of a week takes a second.
_MEAN_STATE = (
    f"avg by (model) (kvgauge_kv_state_bytes_per_request{{{MODELS}}})"
    f" / avg by (model) (kvgauge_kv_bytes_per_token{{{MODELS}}})"
)
_FEW = 'stat=~"mean|p95"'
_MEAN_PROMPT, _MEAN_OUTPUT = (
    f'avg by (model, stat) (kvgauge_request_tokens{{{MODELS},part="{part}",{_FEW}}})' for part in ("prompt", "output")
)
_MEAN_LENGTHS = f"({_MEAN_PROMPT} + {_MEAN_OUTPUT})"
_FIT_OF_MODEL = (
    f"avg by (model) ({_POOL}) / on (model) group_right () ({_MEAN_LENGTHS} + on (model) group_left () ({_MEAN_STATE}))"
)
_FIT_ASKED = f"{_POOL} / on ({_POD}) ($tokens + {_STATE})"


def made() -> Dashboard:
    """The dashboard."""
    about = "What would fit at other lengths, and how far predictions and memory drift from what is measured."
    empty = board("capacity", "kvgauge / Capacity", about)
    tokens = "Prompt and output of one request together, for the what-if."
    empty.with_variable(number("tokens", "Tokens of a request", "4000", tokens))
    empty.with_variable(number("requests", "Requests at once", "100", "How many of them are to run together."))
    return fill(
        empty,
        [
            ("What if", _what_if()),
            ("Lengths", _lengths()),
            ("Calibration", _calibration()),
            ("Drift", _drift()),
        ],
    )


def _what_if() -> list[Panel]:
    return [
        figure(
            About(
                "Requests of that length in a pod",
                "Mean over the pods: the pool over the length chosen above. An upper bound, with no room for chance; "
                "safe concurrency is what may be relied on.",
                "short",
                "requests-cannot-fit",
            ),
            Query(f"avg by (model) ({_FIT_ASKED})", "{{model}}"),
            span=8,
        ),
        figure(
            About(
                "Pods for so many requests",
                "The least pods whose pools hold the requests chosen above at that length. Plan for more: see the "
                "safe share on the right.",
                "short",
                "requests-cannot-fit",
            ),
            Query(f"ceil($requests / avg by (model) ({_FIT_ASKED}))", "{{model}}"),
            span=8,
        ),
        figure(
            About(
                "Safe share of the mean fit",
                "Safe concurrency over what fits if each request had the mean length. Small: lengths vary much, or "
                "a limit other than the pool binds.",
                "percentunit",
                "kv-pressure",
            ),
            Query(
                f"avg by (model) (sum by ({_POD}) (kvgauge_safe_concurrency{{{MODELS}}}) / on ({_POD}) {_FIT_MEAN})",
                "{{model}}",
            ),
            span=8,
        ),
        listing(
            About(
                "What fits in each pod",
                "Requests that fit if all had the mean, p50, p95 or p99 of the lengths seen lately (p95 of prompt and "
                "output together is taken as their sum, which is careful). Estimated.",
                "short",
                "requests-cannot-fit",
            ),
            Column(_LENGTHS, "Tokens of a request", "short"),
            Column(_FIT, "Requests that fit", "short"),
        ),
    ]


def _lengths() -> list[Panel]:
    return [
        lines(
            About(
                "Length of requests",
                "Mean and p95 of prompt and output of those that finished lately, averaged over the pods; p50 and p99 "
                "are in the table above. Longer requests mean fewer at once.",
                "short",
                "requests-cannot-fit",
            ),
            Query(
                f"avg by (model, part, stat) (kvgauge_request_tokens{{{MODELS},{_FEW}}})",
                "{{part}} {{stat}} {{model}}",
            ),
        ),
        lines(
            About(
                "What fits, by length",
                "Requests that fit in the mean pod if all had that length; and the mean safe concurrency.",
                "short",
                "requests-cannot-fit",
            ),
            Query(_FIT_OF_MODEL, "all of {{stat}} {{model}}"),
            Query(f"avg by (model) (sum by ({_POD}) (kvgauge_safe_concurrency{{{MODELS}}}))", "safe {{model}}"),
            Query(
                f'avg by (model) (sum by ({_POD}) (kvgauge_concurrency_limit{{{MODELS},limit="kv_worst_case"}}))',
                "all of max_model_len {{model}}",
            ),
        ),
    ]


def _calibration() -> list[Panel]:
    error = "(measured - predicted) / measured"
    return [
        lines(
            About(
                "Error of the predicted memory",
                f"{error}, the largest of the pods by part, sign left out. More than 5 %: see the pod's page for "
                "which part, and tell us.",
                "percentunit",
                "vram-nearly-full",
                ((0.05, "orange"), (0.1, "red")),
            ),
            Query(f"max by (component) (abs(kvgauge_memory_prediction_error_ratio{{{PODS}}}))", "{{component}}"),
            span=8,
        ),
        lines(
            About(
                "Error of the predicted pool",
                "Slots that the engine states over those predicted, less 1; by pod, the 10 farthest off.",
                "percentunit",
                "vram-nearly-full",
                ((0.05, "orange"), (0.1, "red")),
            ),
            Query(
                f"topk(10, abs({_POOL} / sum by ({_POD}) (kvgauge_kv_predicted_capacity_tokens{{{MODELS}}}) - 1))",
                "{{namespace}}/{{pod}}",
            ),
            span=8,
        ),
        # Of now: it changes with a restart at most, and its lines over a week would be the dearest of all.
        listing(
            About(
                "Correction by calibration",
                "Calibrated less predicted bytes of each part, averaged over the GPUs: what the model is off by. "
                "Missing until an engine has run steadily and been measured.",
                "bytes",
                "vram-nearly-full",
            ),
            Column(
                f"avg by (component) (kvgauge_memory_calibrated_bytes{{{PODS}}}"
                f" - kvgauge_memory_predicted_bytes{{{PODS}}})",
                "Correction",
                "bytes",
            ),
            span=8,
        ),
    ]


def _drift() -> list[Panel]:
    return [
        lines(
            About(
                "Drift by kind",
                "The most that memory of any GPU has moved from where it settled. 0 was looked for and not found; "
                "missing could not be looked for.",
                "bytes",
                "memory-leak",
                ((268435456.0, "orange"), (1073741824.0, "red")),
            ),
            Query(f"max by (kind) (abs(kvgauge_memory_drift_bytes{{{PODS}}}))", "{{kind}}"),
        ),
        listing(
            About(
                "GPUs that drift",
                "Each GPU and kind of drift. For a leak restart at a quiet time; for a foreign process find it.",
                "bytes",
                "foreign-process",
            ),
            Column(
                f"max by (namespace, pod, gpu, kind) (kvgauge_memory_drift_bytes{{{PODS}}}) != 0",
                "Drift",
                "bytes",
                ((268435456.0, "red"),),
            ),
            span=12,
        ),
    ]
