"""What fits: the inverse questions, answered by bisection over the plan."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvgauge.complaints import InputError
from kvgauge.planner.figures import Plan, figures, tokens_per_request

LONGEST_TOKENS = 2**30
MOST_REQUESTS = 2**20


@dataclass(frozen=True, slots=True)
class Cards:
    """One way to carry the load."""

    tp: int
    replicas: int
    gpus: int
    concurrency: int
    """Requests that all replicas hold together."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer. `value` is None where nothing fits."""

    question: str
    """`context`, `concurrency` or `cards`."""
    value: int | None
    """Tokens, requests or cards."""
    concurrency: int | None
    tokens: int | None
    """Tokens of each request; None: the model's longest."""
    result: Mapping[str, object]
    """The plan at the answer (of one replica), or the one that shows why nothing fits."""
    options: tuple[Cards, ...] = ()
    """The set-ups that carry the load, the best first."""

    def to_json(self) -> dict[str, object]:
        """The answer as JSON."""
        keys = {"context": "max_model_len", "concurrency": "concurrency", "cards": "gpus"}
        return {
            "fit": self.question,
            "concurrency": self.concurrency,
            "tokens_per_request": self.tokens,
            keys[self.question]: self.value,
            "options": [
                {"tp": cards.tp, "replicas": cards.replicas, "gpus": cards.gpus, "concurrency": cards.concurrency}
                for cards in self.options
            ],
            "plan": dict(self.result),
        }


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest n in 1..most for which `holds`, 0 if none; `holds` must be true up to a point and false beyond."""
    if not holds(1):
        return 0
    low = 1
    while low < most and holds(min(2 * low, most)):
        low = min(2 * low, most)
    high = min(2 * low, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def fit_context(plan: Plan, case: Mapping[str, object], concurrency: int) -> Fit:
    """The largest `max_model_len`, within the model's own limit, of which `concurrency` requests fit at once.

    Raises InputError for a case that is bad whatever the length.
    """
    case = _with_seats(case, concurrency)
    start = plan({**case, "max_model_len": 1})
    _refuse(start)
    limit = _limit_tokens(plan, case)

    def holds(tokens: int) -> bool:
        found = figures(plan({**case, "max_model_len": tokens}))
        return found.error is None and found.max_concurrency is not None and found.max_concurrency >= concurrency

    tokens = largest(holds, limit)
    result = plan({**case, "max_model_len": tokens}) if tokens else start
    return Fit("context", tokens or None, concurrency, tokens or None, result)


def fit_concurrency(plan: Plan, case: Mapping[str, object]) -> Fit:
    """The most requests of `tokens_per_request` (else of the longest length) that run at once.

    Each further request needs a seat in the batch, and seats cost memory: `max_num_seqs` follows unless it is given,
    and then caps the answer. Raises InputError for a bad case.
    """
    tokens = _whole_or_none(case.get("tokens_per_request")) or _whole_or_none(case.get("max_model_len"))
    start = plan(case)
    _refuse(start)
    seats = _whole_or_none(case.get("max_num_seqs"))

    def holds(requests: int) -> bool:
        held = _held(plan, _with_seats(case, requests))
        return held is not None and held >= requests

    requests = largest(holds, seats or MOST_REQUESTS)
    result = plan(_with_seats(case, requests)) if requests else start
    return Fit("concurrency", requests or None, requests or None, tokens, result)


def fit_cards(plan: Plan, case: Mapping[str, object], concurrency: int, gpus_max: int) -> Fit:
    """The fewest cards, as replicas of a tensor-parallel group, that hold `concurrency` requests.

    Every `tp` up to `gpus_max` that the plan accepts is tried; of equal answers the one that holds the most requests
    comes first. Raises InputError where no `tp` is valid.
    """
    tokens = _whole_or_none(case.get("tokens_per_request")) or _whole_or_none(case.get("max_model_len"))
    refused = plan({**case, "tp": 1})
    results: dict[int, Mapping[str, object]] = {}
    options: list[Cards] = []
    other = (_whole_or_none(case.get("pp")) or 1) * (_whole_or_none(case.get("dp")) or 1)
    for tp in range(1, gpus_max // other + 1):
        result = plan({**case, "tp": tp})
        if result["error"] is not None:
            continue
        fit = fit_concurrency(plan, {**case, "tp": tp})
        results[tp] = fit.result
        if fit.value is not None:
            replicas = -(-concurrency // fit.value)
            options.append(Cards(tp, replicas, replicas * tp * other, replicas * fit.value))
    options = [cards for cards in options if cards.gpus <= gpus_max]
    if not results:
        _refuse(refused)
    options.sort(key=lambda cards: (cards.gpus, -cards.concurrency, cards.tp))
    if options:
        best = options[0]
        return Fit("cards", best.gpus, concurrency, tokens, results[best.tp], tuple(options))
    return Fit("cards", None, concurrency, tokens, results[max(results)] if results else refused)


def _held(plan: Plan, case: Mapping[str, object]) -> float | None:
    """Requests that fit at once: of `tokens_per_request`, else of the longest length."""
    result = plan(case)
    found = figures(result)
    if found.error is not None:
        return None
    usual = tokens_per_request(plan, case, result)
    return found.max_concurrency if usual is None else usual[1]


def _with_seats(case: Mapping[str, object], requests: int) -> dict[str, object]:
    return {**case, "max_num_seqs": case.get("max_num_seqs", max(1, requests))}


def _limit_tokens(plan: Plan, case: Mapping[str, object]) -> int:
    """`max_model_len` as given, else as the plan resolves it from the model."""
    given = _whole_or_none(case.get("max_model_len"))
    resolved = None if given else _whole_or_none(plan(case).get("max_model_len")) or _positions(case)
    return min(given or resolved or LONGEST_TOKENS, LONGEST_TOKENS)


def _positions(case: Mapping[str, object]) -> int | None:
    """The model's own limit, where the plan does not state the length it took."""
    from kvmodel.architecture import load_architecture, read_architecture
    from kvmodel.errors import ModelError

    config, model = case.get("config"), case.get("model")
    try:
        if isinstance(config, Mapping):
            return read_architecture(config).max_position_embeddings
        return load_architecture(model).max_position_embeddings if isinstance(model, str) else None
    except ModelError:
        return None


def _whole_or_none(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 1:
        return None
    return int(value)


def _refuse(result: Mapping[str, object]) -> None:
    error = figures(result).error
    if error is not None:
        raise InputError(": ".join(error))
