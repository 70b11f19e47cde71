"""What the engine files need alike: sound figures out of labels, samples and JSON, with a reason for each that is not.

A `Figures` belongs to one record (a rank, or the engine as a whole): its `missing` is that record's.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.samples import Sample

from kvgauge.observe.engines.contract import Json
from kvgauge.observe.exposition import MAX_LABEL_CHARACTERS, Page
from kvgauge.observe.records import EngineReading, Histogram, RankReading, SourceError

MAX_USAGE_RATIO = 1.05
"""Engines state fractions; a little above 1 is rounding, more is another unit and is refused rather than guessed."""
MAX_RANKS = 256
_MAX_COUNT = 2**53
"""No count of tokens or requests is larger; a float that is cannot be exact."""


def field_of(answer: object, name: str) -> object:
    """`answer[name]` where `answer` is a JSON object that has it; else None."""
    return answer.get(name) if isinstance(answer, Mapping) else None


def objects_of(answer: object) -> list[Mapping[str, object]]:
    """The JSON objects among the items of `answer`; none where it is no array."""
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        return []
    return [item for item in answer if isinstance(item, Mapping)]


def served_model(models: Json, model: str = "") -> Mapping[str, object]:
    """The entry of an OpenAI-like `/v1/models` answer that is called `model`, or the first one; empty without any."""
    entries = objects_of(field_of(models, "data"))
    return next((entry for entry in entries if entry.get("id") == model), entries[0] if entries else {})


def text(value: object) -> str | None:
    """A text, cut to MAX_LABEL_CHARACTERS; None when it is none, empty, or Python's word for it ("None")."""
    return value[:MAX_LABEL_CHARACTERS] if isinstance(value, str) and value not in {"", "None"} else None


def number(value: object, *, allow_infinity: bool = False) -> float | None:
    """A number, or a label that reads as one; None when it is NaN, infinite or no number at all."""
    try:
        read = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(read) or (math.isinf(read) and not allow_infinity) else read


def size(value: object) -> int | None:
    """A number of things of which there is at least one; engines print zero for what they do not know (yet)."""
    read = number(value)
    return int(read) if read is not None and 1 <= read <= _MAX_COUNT else None


def rank_order(rank: str) -> tuple[int, str]:
    """Sorting key that puts rank 2 before rank 10."""
    return (len(rank), rank)


def ranks_in_order(ranks: Iterable[str]) -> list[str]:
    """Data-parallel ranks, each once. Raises SourceError `too_many_ranks` beyond MAX_RANKS."""
    ordered = sorted(set(ranks), key=rank_order)
    if len(ordered) > MAX_RANKS:
        raise SourceError("too_many_ranks", f"the page tells of more than {MAX_RANKS} data-parallel ranks")
    return ordered


def reasons_for(reading: EngineReading | RankReading, *reasons: Mapping[str, str]) -> dict[str, str]:
    """Of `reasons`, by field, those whose field is None in `reading`; a later one replaces an earlier one."""
    merged = {"request_token_seconds": "the engine does not count times per token by request"}
    merged |= {field: why for table in reasons for field, why in table.items()}
    return {field: why for field, why in merged.items() if hasattr(reading, field) and getattr(reading, field) is None}


class Figures:
    """Checks the figures of one record: absent, NaN, infinite and negative ones are None.

    `missing` says why, by the record's field; one that is asked for again and found leaves it. `bad_values` counts the
    figures that were stated and cannot be what they claim.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.bad_values = 0
        self.unstated: str | None = None
        """Why nothing at all is stated, where that is the case."""

    def number(self, field: str, name: str, value: object) -> float | None:
        """The figure that the engine calls `name`. None as `value` means that it is not stated."""
        return self._best(field, name, [] if value is None else [number(value, allow_infinity=True)], max)

    def count(self, field: str, name: str, value: object) -> int | None:
        """A number of things, 0 included."""
        return self._whole(field, name, self.number(field, name, value))

    def size(self, field: str, name: str, value: object) -> int | None:
        """A number of things of which 0 means that the engine does not know it (yet)."""
        return self._known(field, name, self.count(field, name, value))

    def ratio(self, field: str, name: str, value: object) -> float | None:
        """One fraction of 1."""
        return self._fraction(field, name, self.number(field, name, value))

    def _best(
        self, field: str, name: str, stated: Sequence[float | None], pick: Callable[[Iterable[float]], float]
    ) -> float | None:
        if not stated:
            self.missing[field] = self.unstated or f"{name} is not stated"
            return None
        sound = [value for value in stated if value is not None and math.isfinite(value) and value >= 0]
        if not sound:
            self.refuse(field, f"{name} is {'no number' if stated[0] is None else f'{stated[0]:g}'}")
            return None
        picked = pick(sound)
        if math.isinf(picked):
            self.refuse(field, f"the rows of {name} add up to infinity")
            return None
        self.missing.pop(field, None)
        return picked

    def _whole(self, field: str, name: str, value: float | None) -> int | None:
        if value is not None and value > _MAX_COUNT:
            self.refuse(field, f"{name} is {value:g}, more than can be counted")
            return None
        return None if value is None else round(value)

    def _known(self, field: str, name: str, value: int | None) -> int | None:
        if value == 0:
            self.missing[field] = f"{name} is 0: not known (yet)"
        return value or None

    def _fraction(self, field: str, name: str, value: float | None) -> float | None:
        if value is not None and value > MAX_USAGE_RATIO:
            self.refuse(field, f"a {name} of {value:g} is no fraction of 1")
            return None
        return None if value is None else min(value, 1.0)

    def refuse(self, field: str, reason: str) -> None:
        """Counts a figure that cannot be what it claims, and says why its field is None."""
        self.bad_values += 1
        self.missing[field] = reason


class Rows(Figures):
    """The samples of a page that one record is about.

    `prefixes` are what an engine's names may stand behind; `keep` chooses the record's rows by their labels.
    """

    def __init__(self, page: Page, *prefixes: str, keep: Callable[[Sample], bool] = lambda _sample: True) -> None:
        super().__init__()
        self._page = page
        self._prefixes = prefixes or ("",)
        self._keep = keep

    def where(self, keep: Callable[[Sample], bool]) -> "Rows":
        """The rows among these that `keep` chooses, for another record."""
        chosen = self._keep
        return Rows(self._page, *self._prefixes, keep=lambda sample: chosen(sample) and keep(sample))

    def of(self, *names: str) -> list[Sample]:
        """Rows of the first of `names` that stands on the page, under the first prefix that it has there."""
        rows = self._page.rows(*(prefix + name for name in names for prefix in self._prefixes))
        return [sample for sample in rows if self._keep(sample)]

    def has(self, *names: str) -> bool:
        """Whether there is a row of any of `names`."""
        return any(self.of(name) for name in names)

    def value(self, field: str, *names: str, pick: Callable[[Iterable[float]], float] = max) -> float | None:
        """One gauge or counter. Where several rows tell the same thing, the largest is the live one; `pick` chooses
        otherwise (`sum` over kinds of requests, say)."""
        return self._best(field, names[0], [sample.value for sample in self.of(*names)], pick)

    def whole(self, field: str, *names: str, pick: Callable[[Iterable[float]], float] = max) -> int | None:
        """`value`, of a number of things, 0 included."""
        return self._whole(field, names[0], self.value(field, *names, pick=pick))

    def positive(self, field: str, *names: str, pick: Callable[[Iterable[float]], float] = max) -> int | None:
        """`whole`, where 0 means that the engine does not know it (yet)."""
        return self._known(field, names[0], self.whole(field, *names, pick=pick))

    def fraction(self, field: str, *names: str) -> float | None:
        """`value`, of a fraction of 1."""
        return self._fraction(field, names[0], self.value(field, *names))

    def histogram(self, field: str, *names: str, pick: Callable[[Iterable[float]], float] = max) -> Histogram | None:
        """One histogram, its buckets in rising order. Several rows of a bucket are one by `pick`, as in `value`."""
        for name in names:
            buckets: dict[float, list[float]] = {}
            for sample in self.of(name + "_bucket"):
                bound = number(sample.labels.get("le"), allow_infinity=True)
                if bound is not None and bound >= 0 and math.isfinite(sample.value) and sample.value >= 0:
                    buckets.setdefault(bound, []).append(sample.value)
            bounds = tuple(sorted(buckets))
            cumulative = tuple(pick(buckets[bound]) for bound in bounds)
            rising = list(cumulative) == sorted(cumulative) and math.isfinite(max(cumulative, default=0.0))
            complete = bounds[-1:] == (math.inf,) and rising
            total = self.value(field, name + "_sum", pick=pick) if complete else None
            if total is not None:
                return Histogram(bounds, cumulative, total)
        self.missing[field] = self.unstated or f"the page has no complete histogram {names[0]}"
        return None
