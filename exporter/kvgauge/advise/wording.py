"""The advice in sentences."""

import math

from kvgauge.advise.grounds import Grounds, Limit
from kvgauge.advise.history import History
from kvgauge.advise.learning import ENOUGH, Learned
from kvgauge.advise.loading import Load, Presence

_ORIGINS = {
    "window": "lately",
    "memory": "in the last hours",
    "lifetime": "since the engine started",
}

_CALM_RATIO = 0.05
"""So far the published load and the present one are the same to a reader."""


def sentences(
    presence: Presence,
    grounds: Grounds,
    binding: Limit,
    load: Load,
    load_ratio: float,
    exhaustion_seconds: float | None,
    history: History,
) -> tuple[str, ...]:
    """What binds, what it stands on, what changed, how many are here, and the outlook, in this order. `load_ratio` is
    the load that is published, which follows `load` with some calm."""
    number = "1 request" if binding.requests == 1 else f"{binding.requests} requests"
    found = [f"{number} may run together: {binding.why}", _basis(presence, grounds)]
    change = history.change
    if change is not None:
        ago = max(grounds.at_seconds - change.at_seconds, 0.0)
        found.append(f"The mix of requests changed {ago:.0f} s ago ({change.what}): what finished before counts less.")
    found.append(_here(presence, load, load_ratio, binding))
    found.append(_outlook(exhaustion_seconds))
    return tuple(found)


def _basis(presence: Presence, grounds: Grounds) -> str:
    learned, held = grounds.learned, grounds.resident
    if learned is None or held is None:
        return _nothing_finished(presence)
    lengths = f"{grounds.prompt_tokens:.0f} prompt and {grounds.output_tokens:.0f} output tokens on average"
    size = f"{held.mean_slots:.0f} slots each while they run"
    if grounds.observed_slots is not None:
        size += ", as was seen"
    if learned.source in ("means", "agent", "occupancy"):
        return f"{_without_histograms(learned)} {lengths}: {size}. How far lengths differ is a guess."
    origin = " and ".join(_ORIGINS.get(part, part) for part in learned.source.split("+"))
    sentence = f"The {learned.finished:.0f} requests that finished {origin} had {lengths}: {size}."
    if learned.sure:
        return sentence
    return f"{sentence} Until {ENOUGH:.0f} have finished, only what is safe at max_model_len is promised."


def _without_histograms(learned: Learned) -> str:
    if learned.source == "agent":
        return "The engine has no length histograms; by the requests that run, they have"
    if learned.source == "means":
        return f"The engine has no length histograms; the {learned.finished:.0f} requests that finished had"
    return "The engine tells no lengths; by what running requests hold, they have"


def _nothing_finished(presence: Presence) -> str:
    if presence.running and presence.active_tokens:
        block = presence.block_tokens
        so_far = max(math.ceil(presence.active_tokens / presence.running / block), 1) * block
        return (
            f"No request has finished yet, so only what is safe at max_model_len is promised; those running hold "
            f"{so_far} slots each so far, and the load is at least what they hold."
        )
    return "No request was seen yet, so each is counted at max_model_len."


def _here(presence: Presence, load: Load, load_ratio: float, binding: Limit) -> str:
    here = f"{presence.running} run and {presence.waiting} wait"
    if presence.swapped:
        here += f" and {presence.swapped} are swapped out"
    few = presence.running + presence.queued <= binding.requests
    if few and load.by_rate_ratio == load.ratio and load.arrivals_per_second and load.safe_requests_per_second:
        arrivals, safe = load.arrivals_per_second, load.safe_requests_per_second
        here += f"; {arrivals:.2g} requests arrive a second, {safe:.2g} can safely be finished"
    if abs(load_ratio - load.ratio) <= _CALM_RATIO:
        return f"{here}, which is {load_ratio:.0%} of what is safe."
    return (
        f"{here}, which is {load.ratio:.0%} of what is safe; the load ratio is still {load_ratio:.0%} and follows "
        "within a minute."
    )


def _outlook(exhaustion_seconds: float | None) -> str:
    if exhaustion_seconds is None:
        return "The trend of the KV pool is not known yet."
    if math.isinf(exhaustion_seconds):
        return "The KV pool is not filling."
    if exhaustion_seconds < 1:
        return "The KV pool is full."
    return f"At the present trend the KV pool is full in {exhaustion_seconds:.0f} s."
