"""The fleet as `/v1/fleet` and the page tell it: who is safe, who is not and why, made anew from the store each time.

It reads; nothing scales by it. In the event loop others get their turn meanwhile: a thousand pods take some
milliseconds.
"""

import asyncio
import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from kvgauge.cluster.answers import Failure
from kvgauge.cluster.fleet_records import FleetTotals, PodFigures, Standing, WorkloadFigures
from kvgauge.cluster.measuring import STATES, Sources
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.records import PodState, Reading, WorkloadKey, is_fresh

TARGET_LOAD_RATIO = 0.85
"""The AverageValue that the HPA example scales on."""
MOST_WORKLOADS = 50
MOST_PODS = 30
MOST_CHOSEN_PODS = 60
_PODS_A_STEP = 500
_PODS_A_WORKLOAD = 10
"""A workload takes as long as so many pods, beside those it has."""
STANDINGS: tuple[Standing, ...] = ("over", "silent", "near", "safe", "none")
"""The worst first."""

_READY = frozenset({"telling", "silent"})

Owner = tuple[str, WorkloadKey | None]
"""A workload; None in its place: the pods of that namespace whose workload is not known."""

_SILENCE: Mapping[str, str] = {
    "refused": "the connection is refused: nothing listens on the sidecar's port, or a NetworkPolicy forbids it",
    "timeout": "no answer in time: the pod hangs, or a NetworkPolicy drops the packets",
    "stale": "the sidecar answers, and has no fresh figures itself",
    "http_status": "the sidecar's port answers with an error: is it another program's?",
    "protocol": "the connection breaks off",
    "address": "its address is not one that may be asked",
    "internal": "asking it failed here, in the aggregator: see its log",
}
_NO_READING = "what the sidecar's port answers is not its advice ({reason}): another program, or another version"


@dataclass(frozen=True, slots=True)
class Choice:
    """A workload by name. `kind` None: whichever has the name; `name` None: the pods of no known workload."""

    namespace: str
    name: str | None
    kind: str | None = None

    def fits(self, figures: WorkloadFigures) -> bool:
        same = (figures.namespace, figures.name) == (self.namespace, self.name)
        return same and (self.kind is None or figures.kind == self.kind)


class Ambiguous(Exception):  # noqa: N818 - it is an answer, not an error
    """Workloads of several kinds have the chosen name."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A pod, its state, and its figures where they are fit to be told."""

    pod: PodState
    state: str
    told: Reading | None


class Fleet:
    """Reads one store."""

    def __init__(self, sources: Sources, figures: Figures, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._figures = figures
        self._wall_clock = wall_clock
        self._last: tuple[float, Now] | None = None
        self._looking = asyncio.Lock()

    async def soon(self, within_seconds: float = 0.0) -> "Now":
        """All workloads, as they are, or as they were so long ago at most; in steps, between which others run."""
        async with self._looking:
            if self._last is None or self._sources.clock() - self._last[0] >= within_seconds:
                steps = self._steps()
                while (found := next(steps)) is None:
                    await asyncio.sleep(0)
                self._last = self._sources.clock(), found
            return self._last[1]

    def now(self) -> "Now":
        """The same at once."""
        return next(found for found in self._steps() if found is not None)

    def _steps(self) -> Iterator["Now | None"]:
        """None after each step, and at last what was found."""
        by_key: defaultdict[tuple[str, WorkloadKey | None], list[_Member]] = defaultdict(list)
        store = self._sources.store
        for required in store.all_required():
            by_key[required.workload.key.namespace, required.workload.key] = []
        # Between the steps the store may change.
        for number, state in enumerate(list(store.pods())):
            by_key[state.pod.key.namespace, state.pod.workload].append(self._member(state))
            if number % _PODS_A_STEP == _PODS_A_STEP - 1:
                yield None
        members: dict[Owner, list[_Member]] = {}
        for (namespace, key), found in by_key.items():
            known = key if key is not None and store.workload(key) is not None else None
            members.setdefault((namespace, known), []).extend(found)
        workloads: dict[Owner, WorkloadFigures] = {}
        pods = 0
        for owner, of_one in members.items():
            workloads[owner] = self._workload(owner, of_one)
            pods += len(of_one) + _PODS_A_WORKLOAD
            if pods > _PODS_A_STEP:
                pods = 0
                yield None
        yield Now(self._wall_clock(), workloads, members, self._sources)

    def explanation(self, key: WorkloadKey) -> tuple[str, ...]:
        """Why it needs so many pods; empty where that is not known at present."""
        required = self._sources.store.required(key)
        try:
            self._figures.workload(key)
        except Failure:
            return ()
        return required.explanation if required is not None else ()

    def _member(self, state: PodState) -> _Member:
        name, reading = self._sources.state_of(state), state.reading
        heard = name == "telling" or (_is_fresh(reading, self._sources) and reading.valid)
        return _Member(state, name, reading if heard else None)

    def _workload(self, owner: Owner, members: Sequence[_Member]) -> WorkloadFigures:
        namespace, key = owner
        workload = self._sources.store.workload(key) if key is not None else None
        states = Counter(member.state for member in members)
        told = [member.told for member in members if member.state == "telling" and member.told is not None]
        # As they are told, so that who adds up what the answer holds comes to the same.
        loads = [round(reading.load_ratio, 3) for reading in told if reading.load_ratio is not None]
        present = [round(load, 3) for reading in told if (load := reading.present_load_ratio) is not None]
        replicas, published, unknown = self._required(key)
        actual = workload.status_replicas if workload is not None else None
        short = replicas is not None and actual is not None and replicas > actual
        read = [
            member.pod.reading.read_seconds
            for member in members
            if member.pod.reading is not None and member.state in _READY
        ]
        return WorkloadFigures(
            namespace=namespace,
            kind=workload.kind if workload is not None else None,
            name=key.name if key is not None else None,
            standing=_standing(loads, present, states["telling"], states["silent"], short=short),
            standing_seconds=None,
            spec_replicas=workload.spec_replicas if workload is not None else None,
            actual_replicas=actual,
            required_replicas=replicas,
            published_replicas=published,
            required_unknown=unknown,
            pods_ready=states["telling"] + states["silent"],
            pods_telling=states["telling"],
            pods_silent=states["silent"],
            pods_starting=states["starting"],
            pods_terminating=states["terminating"],
            load_ratio_sum=_rounded(math.fsum(loads), 3) if loads else None,
            load_now_ratio_sum=_rounded(math.fsum(present), 3) if present else None,
            load_ratio_most=max(loads, default=None),
            load_now_ratio_most=max(present, default=None),
            safe_concurrency=_sum(reading.safe_concurrency for reading in told),
            running=_sum(reading.running for reading in told),
            waiting=_sum(reading.waiting for reading in told),
            kv_usage_ratio_most=_rounded(_extreme(max, (reading.kv_usage_ratio for reading in told)), 3),
            kv_exhaustion_seconds=_rounded(_extreme(min, (reading.kv_exhaustion_seconds for reading in told)), 1),
            oldest_age_seconds=round(max(self._sources.clock() - min(read), 0.0), 1) if read else None,
        )

    def _required(self, key: WorkloadKey | None) -> tuple[int | None, float | None, str | None]:
        """(by the rule, as published, why there is none)."""
        if key is None:
            return None, None, "the pods belong to no workload that is known"
        try:
            value = self._figures.workload(key)
        except Failure as failure:
            return None, None, failure.message
        required = self._sources.store.required(key)
        return required.replicas if required is not None else None, value.thousandths / 1000, None


@dataclass(frozen=True, slots=True)
class Now:
    """The fleet at one moment, before it is cut to what an answer may hold."""

    wall_seconds: float
    workloads: Mapping[Owner, WorkloadFigures]
    members: Mapping[Owner, Sequence[_Member]]
    sources: Sources

    def standing(self) -> Standing:
        """Of the whole: the worst of any workload."""
        found = {each.standing for each in self.workloads.values()}
        return next((standing for standing in STANDINGS if standing in found), "none")

    def totals(self) -> FleetTotals:
        every = list(self.workloads.values())
        named = [each for each in every if each.name is not None]
        required = [each.required_replicas for each in named if each.required_replicas is not None]
        loads = [each.load_ratio_sum for each in every if each.load_ratio_sum is not None]
        standings = Counter(each.standing for each in every)
        states = Counter(member.state for members in self.members.values() for member in members)
        return FleetTotals(
            workloads=len(named),
            workloads_by_standing={standing: standings[standing] for standing in STANDINGS},
            pods={state: states[state] for state in STATES},
            load_ratio_sum=_rounded(math.fsum(loads), 3) if loads else None,
            running=_sum(each.running for each in every),
            waiting=_sum(each.waiting for each in every),
            actual_replicas=sum(each.actual_replicas or 0 for each in named),
            required_replicas=sum(required) if required else None,
            workloads_without_required=len(named) - len(required),
        )

    def worst_workloads(self, most: int) -> list[Owner]:
        return heapq.nsmallest(most, self.workloads, key=lambda owner: _rank_of_workload(self.workloads[owner]))

    def chosen(self, choice: Choice) -> Owner | None:
        """Raises Ambiguous."""
        found = [owner for owner, figures in self.workloads.items() if choice.fits(figures)]
        if len(found) > 1:
            raise Ambiguous
        return found[0] if found else None

    def pods(self, owner: Owner | None, most: int) -> tuple[tuple[PodFigures, ...], int]:
        """The worst of one workload's, or of all, and how many are left out."""
        owners = self.members if owner is None else [owner]
        found = [(each, member) for each in owners for member in self.members[each]]
        worst = heapq.nsmallest(most, found, key=lambda pair: _rank_of_pod(pair[1]))
        return tuple(self._pod(each, member) for each, member in worst), len(found) - len(worst)

    def _pod(self, owner: Owner, member: _Member) -> PodFigures:
        told, pod, figures = member.told, member.pod.pod, self.workloads[owner]
        return PodFigures(
            namespace=pod.key.namespace,
            name=pod.key.name,
            kind=figures.kind,
            workload=figures.name,
            state=member.state,
            ready=pod.ready,
            load_ratio=_rounded(told.load_ratio, 3) if told is not None else None,
            load_now_ratio=_rounded(told.present_load_ratio, 3) if told is not None else None,
            safe_concurrency=told.safe_concurrency if told is not None else None,
            running=told.running if told is not None else None,
            waiting=told.waiting if told is not None else None,
            kv_usage_ratio=_rounded(told.kv_usage_ratio, 3) if told is not None else None,
            kv_exhaustion_seconds=_rounded(told.kv_exhaustion_seconds, 1) if told is not None else None,
            binding_limit=told.binding_limit if told is not None else None,
            age_seconds=_rounded(self.sources.reading_age(member.pod), 1),
            # 0 stands for a time that the API server did not tell.
            created_age_seconds=round(max(self.wall_seconds - made, 0.0))
            if (made := pod.created_wall_seconds)
            else None,
            silent_reason=_why_silent(member.pod, self.sources) if member.state == "silent" else None,
        )


def _standing(loads: Sequence[float], present: Sequence[float], telling: int, silent: int, *, short: bool) -> Standing:
    if present and round(math.fsum(present), 3) > len(present):
        return "over"
    if silent or telling > len(loads):
        return "silent"
    if not telling:
        return "near" if short else "none"
    near = round(math.fsum(loads), 3) >= TARGET_LOAD_RATIO * len(loads) or max(present) > 1 or short
    return "near" if near else "safe"


def _rank_of_workload(figures: WorkloadFigures) -> tuple[int, float, str, str]:
    each = (figures.load_ratio_sum or 0.0) / max(figures.pods_telling, 1)
    worse = figures.pods_silent if figures.standing == "silent" else each
    return STANDINGS.index(figures.standing), -worse, figures.namespace, figures.name or ""


def _rank_of_pod(member: _Member) -> tuple[int, float, str, str]:
    """Over its limit, silent, telling, starting, going: within each the fuller, or the longer silent, first."""
    load = member.told.load_ratio if member.told is not None else None
    present = member.told.present_load_ratio if member.told is not None else None
    key = member.pod.pod.key
    if member.state == "silent":
        reading = member.pod.reading
        return 1, reading.read_seconds if reading is not None else -math.inf, key.namespace, key.name
    order = 0 if present is not None and present > 1 else 2
    later = {"starting": 3, "terminating": 4}
    return later.get(member.state, order), -(load or 0.0), key.namespace, key.name


def _why_silent(state: PodState, sources: Sources) -> str:
    if state.failure is not None:
        return _SILENCE.get(state.failure) or _NO_READING.format(reason=state.failure.replace("_", " "))
    if _is_fresh(state.reading, sources):
        return "its sidecar says that its advice is not valid: an input is missing or too old"
    if state.pod.address is None:
        return "it has no address yet"
    if state.reading is None:
        return "it was not asked yet"
    return "it was not heard again"


def _is_fresh(reading: Reading | None, sources: Sources) -> TypeGuard[Reading]:
    return is_fresh(reading, sources.clock(), sources.stale_after_seconds)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _extreme(choose: Callable[[Iterable[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None
