"""Transformers: continuous batching (`transformers serve` too) and plain `generate`.

It serves no page of its own caches. Its agent, in its process, writes what they hold into the spool, and
`kvgauge.observe.merging` makes the reading of that; this file says what comes of it.
"""

from kvgauge.observe.engines.contract import Engine, Marks, Pages
from kvgauge.observe.records import EngineReading, SourceError


def _read(_: Pages) -> EngineReading:
    raise SourceError("no_page", "Transformers serves no page of its caches; its agent tells of them")


ENGINE = Engine(
    name="transformers",
    title="Transformers",
    marks=Marks(),
    read=_read,
    versions="4.57 to 5.23, with the agent",
    facts={
        "capacity": "exact for paged and static caches; unavailable for those that grow: they have no size",
        "active": "exact: blocks in use, or slots of the caches that live",
        "reclaimable": "unavailable: kept prefixes are not told apart from free blocks",
        "free": "derived: capacity - active; what is allocated in full has none",
        "live tokens": "exact where a cache keeps its length on the host; otherwise unavailable",
        "reserved": "exact: a static cache's slots",
        "block size": "exact for paged caches",
        "running": "exact for continuous batching",
        "waiting": "exact for continuous batching",
        "swapped": "unavailable: there is no such state",
        "preemptions": "unavailable: not counted",
        "prefix hits": "unavailable: not counted",
        "length histograms": "unavailable: not kept",
        "latency histograms": "unavailable: not kept",
        "steps": "unavailable: counted without their tokens",
        "computed prompts": "unavailable: not counted",
        "finished requests": "unavailable: not counted",
        "max length": "unavailable: requests name their own",
        "KV dtype": "unavailable: the caches follow the model's type",
        "parallelism": "unavailable; --tp tells it",
        "version": "exact",
        "freshness": "exact for continuous batching: steps",
    },
)
