"""What SGLang counts for all ranks together."""

from dataclasses import dataclass

from kvgauge.observe.engines.rows import Rows
from kvgauge.observe.exposition import label
from kvgauge.observe.records import Histogram

_TTFT = "time_to_first_token_seconds"
# Up to 0.4.5 the second name.
_INTER_TOKEN = ("inter_token_latency_seconds", "time_per_output_token_seconds")
_FINISHED = "num_requests_total"
COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "cached_tokens_total", _FINISHED)
HISTOGRAMS = ("prompt_tokens_histogram", "generation_tokens_histogram", _TTFT, *_INTER_TOKEN)

# Prefix tokens found in host memory or in a store were not in this pool.
_CACHE_OUTSIDE = ("host", "storage")


@dataclass(frozen=True, slots=True)
class Totals:
    """What SGLang's HTTP server counts, of all ranks together: lengths and tokens when requests finish, times as they
    come."""

    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    cached_tokens: float | None = None
    prompt_lengths: Histogram | None = None
    output_lengths: Histogram | None = None
    ttft_seconds: Histogram | None = None
    inter_token_seconds: Histogram | None = None
    finished: float | None = None

    @classmethod
    def read(cls, page: Rows, rank: Rows) -> "Totals":
        """Sums over the rows: there is one for streamed and one for other requests, one per priority. What is missing
        becomes the reason of `rank`."""
        page.unstated = rank.unstated
        in_pool = page.where(lambda sample: not (label(sample, "cache_source") or "").startswith(_CACHE_OUTSIDE))
        in_pool.unstated = page.unstated
        totals = cls(
            page.value("prompt_tokens_total", "prompt_tokens_total", pick=sum),
            page.value("generation_tokens_total", "generation_tokens_total", pick=sum),
            in_pool.value("prefix_hits_tokens_total", "cached_tokens_total", pick=sum),
            page.histogram("prompt_lengths", "prompt_tokens_histogram", pick=sum),
            page.histogram("output_lengths", "generation_tokens_histogram", pick=sum),
            page.histogram("ttft_seconds", _TTFT, pick=sum),
            page.histogram("inter_token_seconds", *_INTER_TOKEN, pick=sum),
            page.value("finished_total", _FINISHED, pick=sum),
        )
        rank.missing |= page.missing | in_pool.missing
        rank.missing["prefix_queries_tokens_total"] = page.missing.get("prompt_tokens_total", "")
        rank.bad_values += in_pool.bad_values
        return totals
