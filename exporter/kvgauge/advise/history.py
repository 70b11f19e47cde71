"""The recent past, as much of it as advice needs, in little memory: looks of ten minutes, lengths of hours.

Every few seconds a look at the counters is kept. What lies between two looks is what finished meanwhile; when a look
gets too old, that goes into a memory of lengths which fades over hours. All times are those of observations.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvgauge.advise.drifting import lengths_drift, resident_drift
from kvgauge.advise.learning import (
    ENOUGH,
    Counted,
    Learned,
    ages_of,
    between,
    counted,
    from_counts,
    from_means,
    from_occupancy,
    from_running,
    grown_ages,
    stood_on,
)
from kvgauge.advise.lengths import Lengths
from kvgauge.advise.looking import Look, has_restarted, look_at, running_tokens
from kvgauge.advise.recent import Arrivals, Damper, Trend
from kvgauge.advise.residing import Resident
from kvgauge.advise.stepping import StepLearner
from kvgauge.advise.stepping_records import StepRecord
from kvgauge.assess import Memo
from kvgauge.observe.records import EngineReading, Histogram, Observation

if TYPE_CHECKING:
    from kvgauge.advise.demand import Demand
    from kvgauge.advise.grounds import Grounds

LENGTH_WINDOW_SECONDS = 600.0
LOOK_SECONDS = 5.0
MEMORY_HALF_LIFE_SECONDS = 7200.0
GAP_SECONDS = 15.0
"""Between two ticks: what was held in a longer time is not known."""
_RECENT_SECONDS = (30.0, 60.0)
"""Spans in which a change of the mix is looked for, one and the other in turn."""
_FEWEST_SECONDS = 20.0
_TURNOVERS = 3.0
_FILLING_RATIO = 1.3
_MOST_SAMPLED = 16


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What a running request holds on average, as it was seen."""

    mean_slots: float
    settled: bool
    """Whether enough came and went meanwhile. Else requests may be younger than they will be, never older."""
    requests: float
    """That took part."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the mix that was noticed."""

    at_seconds: float
    what: str


@dataclass(frozen=True, slots=True)
class _Known:
    """Against what a change is looked for: standard deviations of lengths, and what a running request holds."""

    prompt_deviation: float
    output_deviation: float
    resident: Resident | None


class History:
    """Remembers what earlier ticks saw. Owned by the loop. A restart of the engine empties the window, not the memory;
    another model empties both."""

    def __init__(self, length_window_seconds: float = LENGTH_WINDOW_SECONDS) -> None:
        self._window_seconds = length_window_seconds
        self._looks: deque[Look] = deque()
        self._samples: deque[tuple[float, tuple[tuple[int, int], ...]]] = deque()
        self._last: Look | None = None
        self._memory: Counted | None = None
        self._served: tuple[str, str, int | None] | None = None
        self._uncounted_tokens = 0.0
        self._running_tokens: tuple[tuple[int, int], ...] = ()
        self._known: _Known | None = None
        self._trend = Trend()
        self.arrivals = Arrivals()
        self.change: Change | None = None
        self._kept_looks = 0
        self.steps = StepLearner()
        self.memo = Memo()
        self.damper = Damper()
        self.grounds: Grounds | None = None
        """What advice stood on at the last tick: it holds for some seconds."""
        self.demand: tuple[Grounds, Demand] | None = None
        """What was told of it to who reckons with a fleet."""

    def remember(self, observation: Observation) -> None:
        """Adds one tick. A tick without an engine is skipped: nothing was seen, so nothing is known of it."""
        engine = observation.engine
        if engine is None:
            return
        self._follow(engine)
        look = look_at(observation, engine)
        before = self._last
        if before is not None and has_restarted(before, look):
            self._begin_anew()
            before = None
        look = self._integrated(look, before)
        self._last = look
        self._running_tokens = running_tokens(observation)
        self.arrivals.add(look)
        if look.active is not None:
            if before is not None and look.at_seconds - before.at_seconds > 4 * GAP_SECONDS:
                self._trend.clear()
            self._trend.add(look.at_seconds, look.active)
        if look.running == 0 and look.unfinished_tokens is not None:
            self._uncounted_tokens = look.unfinished_tokens
        if not self._looks or look.at_seconds - self._looks[-1].at_seconds >= LOOK_SECONDS:
            self._keep(look)

    @property
    def finished(self) -> float:
        """Requests that finished since the engine's start, as far as it is told; it moves when there is more to learn
        from."""
        if self._last is None:
            return 0.0
        return self._last.outputs.count if self._last.outputs is not None else self._last.finished or 0.0

    @property
    def token_seconds(self) -> Histogram | None:
        """Time per output token of each request that finished since the engine's start, where it is told."""
        return self._last.token_seconds if self._last is not None else None

    @property
    def window_seconds(self) -> float:
        """Length of the window so far."""
        return self._last.at_seconds - self._looks[0].at_seconds if self._last is not None and self._looks else 0.0

    @property
    def running_tokens(self) -> tuple[tuple[int, int], ...]:
        """(prompt tokens, tokens held) of running requests at the last tick, where an agent tells."""
        return self._running_tokens

    def learned(self, longest_tokens: float = math.inf) -> Learned | None:
        """The lengths of requests, from the best that there is. None when nothing tells of them."""
        last, first = self._last, self._looks[0] if self._looks else None
        if last is None or first is None:
            return None
        window = between(last, first)
        if window is None:
            return (
                from_running([each for _, sample in self._samples for each in sample], last, first)
                or from_means(last, first)
                or from_occupancy(last, first)
            )
        found, source, finished = stood_on(window, self._memory, counted(first))
        ages = self._censored(first, last, longest_tokens)
        return from_counts(found, source, finished, window.requests, ages, longest_tokens)

    def occupancy(self) -> Occupancy | None:
        """What a running request held on average over the window. None before it was seen for a while."""
        last, first = self._last, self._looks[0] if self._looks else None
        if last is None or first is None or last.running is None:
            return None
        requests = last.request_seconds - first.request_seconds
        seconds = last.at_seconds - first.at_seconds
        if requests < _FEWEST_SECONDS or seconds < _FEWEST_SECONDS:
            return None
        running = requests / seconds
        ended = (last.finished or 0.0) - (first.finished or 0.0)
        settled = ended >= max(ENOUGH, _TURNOVERS * running) and last.running <= _FILLING_RATIO * running + 2
        return Occupancy((last.slot_seconds - first.slot_seconds) / requests, settled, running + ended)

    def computed_ratio(self) -> float:
        """Share of prompt tokens that is not found in a cache: over the window, else since the engine's start."""
        last, first = self._last, self._looks[0] if self._looks else None
        if last is None or first is None or last.prefix_queries is None or last.prefix_hits is None:
            return 1.0
        queries = last.prefix_queries - (first.prefix_queries or 0.0)
        hits = last.prefix_hits - (first.prefix_hits or 0.0)
        if queries <= 0:
            queries, hits = last.prefix_queries, last.prefix_hits
        return 1.0 - min(max(hits / queries, 0.0), 1.0) if queries > 0 else 1.0

    def trend_tokens_per_second(self) -> float | None:
        """Least-squares slope of the active tokens over the last minute; None before ten seconds were seen."""
        return self._trend.slots_per_second()

    def trend_is_clear(self) -> bool:
        """Whether the slope is more than the ups and downs of the minute make of nothing."""
        return self._trend.is_clear()

    def seconds_per_token(self) -> float | None:
        """How long a running request takes for a token, over the last half minute. None where nothing was generated."""
        last = self._last
        if last is None or last.generated is None:
            return None
        first = self._since(last, _RECENT_SECONDS[0]) or last
        generated = last.generated - (first.generated or 0.0)
        requests = last.request_seconds - first.request_seconds
        return requests / generated if generated > 0 and requests > 0 and first.generated is not None else None

    def note(self, prompts: Lengths, outputs: Lengths, resident: Resident | None) -> None:
        """What was made of it, against which a change is looked for."""
        self._known = _Known(_deviation(prompts), _deviation(outputs), resident)

    def kept(self) -> Counted | None:
        """The lengths of recent hours, the window's among them: what is worth keeping over a restart. None when nothing
        finished."""
        window = between(self._last, self._looks[0]) if self._last is not None and self._looks else None
        if window is None or window.requests <= 0:
            return self._memory
        return window if self._memory is None else window.plus(self._memory)

    def restore(self, memory: Counted) -> None:
        """Takes up the lengths that an earlier process kept."""
        self._memory = memory

    def restore_steps(self, record: StepRecord) -> None:
        """Takes up what an earlier process knew of the engine's steps."""
        self.steps = StepLearner(record)

    def _follow(self, engine: EngineReading) -> None:
        """Lengths are those of one model behind one engine."""
        served = engine.engine, engine.model, engine.max_model_len
        if self._served is not None:
            same = self._served[:2] == served[:2] and (None in (self._served[2], served[2]) or self._served == served)
            if not same:
                self._begin_anew()
                self._memory = None
                self.steps = StepLearner()
            elif served[2] is None:
                served = self._served
        self._served = served

    def _begin_anew(self) -> None:
        while self._looks:
            self._drop_oldest()
        self._samples.clear()
        self._trend.clear()
        self.arrivals.restart()
        self.damper.clear()
        self._last = self._known = self.change = self.grounds = self.demand = None
        self._uncounted_tokens = 0.0

    def _integrated(self, look: Look, before: Look | None) -> Look:
        if before is None:
            return look
        slots, requests = before.slot_seconds, before.request_seconds
        elapsed = look.at_seconds - before.at_seconds
        if 0 < elapsed <= GAP_SECONDS and None not in (look.active, look.running, before.active, before.running):
            slots += elapsed * ((look.active or 0.0) + (before.active or 0.0)) / 2
            requests += elapsed * ((look.running or 0) + (before.running or 0)) / 2
        return replace(look, slot_seconds=slots, request_seconds=requests)

    def _keep(self, look: Look) -> None:
        self._looks.append(look)
        if self._running_tokens:
            stride = -(-len(self._running_tokens) // _MOST_SAMPLED)
            self._samples.append((look.at_seconds, self._running_tokens[::stride]))
        while look.at_seconds - self._looks[0].at_seconds > self._window_seconds:
            self._drop_oldest()
        self._look_for_change(look)

    def _drop_oldest(self) -> None:
        """What finished until the next look goes into the memory."""
        oldest = self._looks.popleft()
        newer = self._looks[0] if self._looks else self._last
        found = between(newer, oldest) if newer is not None else None
        while self._samples and self._samples[0][0] <= oldest.at_seconds:
            self._samples.popleft()
        if newer is None or found is None or found.requests <= 0:
            return
        if self._memory is None or not self._memory.fits(found):
            self._memory = found
        else:
            fade = 0.5 ** ((newer.at_seconds - oldest.at_seconds) / MEMORY_HALF_LIFE_SECONDS)
            self._memory = found.plus(self._memory, fade)

    def _look_for_change(self, look: Look) -> None:
        """Cuts the window to its last part where that is clearly of another mix."""
        self._kept_looks += 1
        since = self._since(look, _RECENT_SECONDS[self._kept_looks % len(_RECENT_SECONDS)])
        if self._known is None or since is None or since is self._looks[0] or since is look:
            return
        what = self._changed(self._known, self._looks[0], since, look)
        if what is not None:
            while self._looks[0] is not since:
                self._drop_oldest()
            self.change = Change(look.at_seconds, what)

    def _changed(self, known: _Known, first: Look, since: Look, look: Look) -> str | None:
        recent, before = between(look, since), between(since, first)
        if recent is not None and before is not None:
            what = lengths_drift("prompts", recent.prompts, before.prompts, known.prompt_deviation) or lengths_drift(
                "outputs", recent.outputs, before.outputs, known.output_deviation
            )
            if what is not None:
                return what
        held, held_before = _mean_held(look, since), _mean_held(since, first)
        if held is None or held_before is None:
            return None
        seconds = look.at_seconds - since.at_seconds
        return resident_drift(
            held, held_before, (look.request_seconds - since.request_seconds) / seconds, known.resident
        )

    def _since(self, look: Look, seconds: float) -> Look | None:
        """The oldest look that is no older than so many seconds."""
        found = None
        for each in reversed(self._looks):
            if look.at_seconds - each.at_seconds > seconds:
                break
            found = each
        return found

    def _censored(self, first: Look, last: Look, longest_tokens: float) -> list[float]:
        most = min(longest_tokens, 1e9)
        then = ages_of(first, self._uncounted_tokens, most)
        if self._running_tokens:
            now = [float(max(held - prompt, 0)) for prompt, held in self._running_tokens]
        else:
            now = ages_of(last, self._uncounted_tokens, most)
        return grown_ages(now, then)


def _mean_held(newer: Look, older: Look) -> float | None:
    requests = newer.request_seconds - older.request_seconds
    return (newer.slot_seconds - older.slot_seconds) / requests if requests >= _FEWEST_SECONDS else None


def _deviation(lengths: Lengths) -> float:
    mean = lengths.mean
    return math.sqrt(max(lengths.moment(2) - mean * mean, 0.0))
