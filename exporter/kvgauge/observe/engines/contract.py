"""What a file in this folder has to give, and what it may ask for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from kvgauge.observe.exposition import Page
from kvgauge.observe.records import EngineReading

Json: TypeAlias = Mapping[str, object] | Sequence[object]
"""A JSON page: an object or an array."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What the operator says of an engine whose pages do not tell it. None: not said."""

    capacity_tokens: int | None = None
    """KV slots of one rank, where no page states them (TGI's --max-batch-total-tokens, a line of the engine's log)."""
    kv_dtype: str | None = None
    max_model_len: int | None = None
    parallel: int | None = None
    """Requests that one model serves at a time (Ollama's OLLAMA_NUM_PARALLEL)."""
    kv_unified: bool | None = None
    """Whether llama.cpp's slots share one pool (--kv-unified)."""
    read_iteration_stats: bool = False
    """Nobody else reads trtllm-serve's JSON records, which each read takes away from the others."""


class Pages(Protocol):
    """One engine's pages. All reads are bounded in size and time; all failures are SourceError."""

    @property
    def hints(self) -> Hints: ...

    def metrics(self, path: str, wanted: frozenset[bytes]) -> Page:
        """The wanted samples of a metrics page. Raises SourceError, `not_metrics` when the answer is no such page."""
        ...

    def json(self, path: str) -> Json:
        """A JSON page, read now. Raises SourceError, `not_json` when the answer is neither object nor array."""
        ...

    def seldom(self, path: str) -> Json:
        """A JSON page that hardly ever changes, read again every half a minute. Empty when it could not be read."""
        ...

    def why(self, path: str) -> str:
        """Why `seldom(path)` is empty, in words for `missing`."""
        ...


@dataclass(frozen=True, slots=True)
class Marks:
    """How an engine is told from others; each mark alone is enough. Never its port: ports are configured."""

    page: Callable[[frozenset[bytes], bytes], bool] = lambda _names, _body: False
    """Given the sample names of a metrics page and the page: is it this engine's?"""
    json: tuple[tuple[str, Callable[[Json], bool]], ...] = ()
    """Paths of JSON pages, each with a test that only this engine's answer passes."""
    owned_by: frozenset[str] = frozenset()
    """What its `/v1/models` says of `owned_by`."""
    wraps: bool = False
    """It passes other engines' series through on its own page, and reads them itself."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of engine: how it is recognised and how it is read."""

    name: str
    """What `--engine` and the label call it."""
    title: str
    """Its name as its makers write it, for docs/engines.md."""
    marks: Marks
    read: Callable[[Pages], EngineReading]
    """Raises SourceError when the page it stands on could not be read. Never raises on odd values: what cannot be
    understood is None with a reason. A reading without ranks means that the engine's series are not there (yet)."""
    versions: str
    """The versions whose contract was read, for docs/engines.md."""
    facts: Mapping[str, str]
    """How each fact is had, for docs/engines.md: fact -> `exact`, `derived: how` or `unavailable: why`; the facts are
    those of `FACTS`."""


FACTS = (
    "capacity",
    "active",
    "reclaimable",
    "free",
    "live tokens",
    "reserved",
    "block size",
    "running",
    "waiting",
    "swapped",
    "preemptions",
    "prefix hits",
    "length histograms",
    "latency histograms",
    "steps",
    "computed prompts",
    "finished requests",
    "max length",
    "KV dtype",
    "parallelism",
    "version",
    "freshness",
)


def names_start_with(*prefixes: bytes) -> Callable[[frozenset[bytes], bytes], bool]:
    """A page mark: some sample's name starts with one of `prefixes`."""
    return lambda names, _body: any(name.startswith(prefixes) for name in names)


def sample_names_of(bases: Iterable[str], *prefixes: str) -> frozenset[bytes]:
    """The names to be read: each of `bases` behind each of `prefixes`."""
    return frozenset((prefix + base).encode() for prefix in prefixes or ("",) for base in bases)
