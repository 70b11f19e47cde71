"""Keeps on each pod what it would cost to lose it, so that scale-in takes the one that holds the least KV.

The ReplicaSet controller takes pods of a low `controller.kubernetes.io/pod-deletion-cost` first, among those that are
ready; a pod without the annotation counts as 0. No other controller heeds it, so only pods of Deployments are marked.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeGuard

from kubernetes.aio.client import ApiClient, CoreV1Api

from kvgauge.cluster.leading import Leading
from kvgauge.cluster.names import DELETION_COST, DEPLOYMENT, DOMAIN
from kvgauge.cluster.records import Pod, PodState, Reading, Workload, WorkloadKey, is_fresh
from kvgauge.cluster.store import Store
from kvgauge.cluster.writing import TROUBLE, WRITE_SECONDS, Clock, Refusals, in_a_word, status_of
from kvgauge.logs import logger

MANAGED = f"{DOMAIN}/deletion-cost-managed"
"""Annotation: the cost as this helper wrote it. A cost that differs from it is somebody else's."""
HELPER = f"{DOMAIN}/scale-in-helper"
"""Label of a Deployment, "false": its pods are not marked, and marks that this helper made are taken off."""
MAX_COST = 2**31 - 1

_GONE = (404, 409, 422)
"""No such pod, or another one of that name by now: the API server refuses a patch with another's uid."""
_USAGE_COSTS = 1000.0
"""Cost of a full pool where usage is all that is told."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how finely; in seconds unless the name says otherwise."""

    interval_seconds: float = 10.0
    patches_per_second: float = 5.0
    """Of the whole cluster."""
    pod_seconds: float = 30.0
    """Least time between two patches of one pod. The watch shows the first long before it is over."""
    step_ratio: float = 0.05
    """Part of a pool that makes a difference: pods that differ by so much stand in the right order."""
    stale_seconds: float = 10.0
    """Age at which what a pod said is not believed any more."""
    silent_seconds: float = 60.0
    """From when a silent pod no longer keeps the cost that it had."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written on one pod; None takes the mark off."""

    pod: Pod
    cost: int | None


def managed_cost(pod: Pod) -> int | None:
    """The cost that this helper wrote, if it still stands."""
    mark = pod.annotations.get(MANAGED)
    if mark is None or mark != pod.deletion_cost or not (mark.isascii() and mark.isdigit() and len(mark) <= 10):
        return None
    return int(mark)


def is_anothers(pod: Pod) -> bool:
    """Somebody else set a cost."""
    return pod.deletion_cost is not None and managed_cost(pod) is None


def changes(states: Iterable[PodState], pace: Pace, now_seconds: float) -> list[Change]:
    """What to write on the pods of one workload.

    The cost is the tokens that running requests hold in the pool, or thousandths of the pool where that is all that is
    told. A cost stays as it is until the pod holds half a step more or less than that, so small movements write
    nothing; that a pod holds nothing or no longer nothing always counts, since that is the pod to take.

    A silent pod is not an empty one: it keeps its cost for a while, then it is held for as full as the fullest that is
    heard, as long as it is ready and so presumably serves. Where none is heard, nothing is written.
    """
    # A pod that is not ready, or is going, is taken first whatever it costs.
    there = [state for state in states if _counts(state.pod)]
    if len(there) < 2:
        return []
    held, pool = _held(there, pace.stale_seconds, now_seconds)
    if not held:
        return []
    fullest = max(held.values())
    half_step = max(pace.step_ratio * max(pool, fullest) / 2, 1.0)
    found = []
    for state in there:
        if is_anothers(state.pod):
            continue
        written = managed_cost(state.pod) or 0
        if state.pod.uid in held:
            cost = _cost_of_heard(written, held[state.pod.uid], half_step)
        elif _is_silent(state, pace, now_seconds):
            cost = _cost_of_silent(written, fullest, half_step)
        else:
            cost = written
        if cost != written:
            found.append(Change(state.pod, cost))
    return found


def clearings(states: Iterable[PodState]) -> list[Change]:
    """The marks to take off where the helper is not wanted."""
    return [Change(state.pod, None) for state in states if managed_cost(state.pod) is not None]


def in_turns(wanted: Sequence[Sequence[Change]], patched: Mapping[str, float], first: int) -> Iterator[Change]:
    """One of each workload in turn, from the `first` workload on; within a workload whose last patch is longest ago.
    So neither a large workload nor a restless pod keeps the others waiting. `patched`: uid -> when."""
    start = first % len(wanted) if wanted else 0
    queues = [
        sorted(of_one, key=lambda change: patched.get(change.pod.uid, -math.inf))
        for of_one in (*wanted[start:], *wanted[:start])
    ]
    for turn in zip_longest(*queues):
        yield from (change for change in turn if change is not None)


class CostKeeper:
    """Writes the changes, within the pace, while this replica leads."""

    def __init__(
        self,
        client: ApiClient,
        store: Store,
        leadership: Leading,
        pace: Pace | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._api = CoreV1Api(client)
        self._store = store
        self._leadership = leadership
        self._pace = pace or Pace()
        self._clock = clock
        self._refusals = Refusals("pod-deletion-cost", clock=clock)
        self._patched: dict[str, float] = {}
        self._looks = 0
        self._troubled = False

    async def look(self) -> int:
        """Looks once at all workloads; the number of patches sent."""
        if not self._leadership.is_leader:
            return 0
        pace = self._pace
        self._forget()
        budget = max(1, int(pace.interval_seconds * pace.patches_per_second))
        queue = list(in_turns(self._wanted(), self._patched, self._looks))[:budget]
        self._looks += 1
        count = 0
        for change in queue:
            if self._refusals.forbids(change.pod.key.namespace):
                continue
            if not await self._patch(change):
                break
            count += 1
            await asyncio.sleep(1 / pace.patches_per_second)
        return count

    def _wanted(self) -> list[list[Change]]:
        now = self._clock()
        found = []
        for key, states in _by_deployment(self._store).items():
            workload = self._store.workload(key)
            if workload is None or self._refusals.forbids(key.namespace):
                continue
            wanted = changes(states, self._pace, now) if _is_helped(workload) else clearings(states)
            due = [change for change in wanted if self._is_due(change.pod, now)]
            if due:
                found.append(due)
        return found

    def _is_due(self, pod: Pod, now: float) -> bool:
        return now - self._patched.get(pod.uid, -math.inf) >= self._pace.pod_seconds

    def _forget(self) -> None:
        there = {state.pod.uid for state in self._store.pods()}
        self._patched = {uid: when for uid, when in self._patched.items() if uid in there}

    async def _patch(self, change: Change) -> bool:
        """Whether to go on with the next one."""
        # Leadership may end at any time, also while this waits.
        if not self._leadership.is_leader:
            return False
        pod, cost = change.pod, None if change.cost is None else str(change.cost)
        self._patched[pod.uid] = self._clock()
        # The uid makes it an error where another pod has taken the name.
        body = {"metadata": {"uid": pod.uid, "annotations": {DELETION_COST: cost, MANAGED: cost}}}
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._api.patch_namespaced_pod(
                    pod.key.name,
                    pod.key.namespace,
                    body,
                    field_manager="kvgauge",
                    _content_type="application/merge-patch+json",
                )
        except TROUBLE as error:
            if status_of(error) in _GONE or self._refusals.note(pod.key.namespace, error):
                return True
            if not self._troubled:
                logger.warning("pod-deletion-cost: not written (%s); tried again", in_a_word(error))
            self._troubled = True
            return False
        self._troubled = False
        return True


async def keep_costs(
    client: ApiClient, store: Store, leadership: Leading, pace: Pace | None = None, clock: Clock = time.monotonic
) -> None:
    """Until it is cancelled. Marks that it made stay: another replica goes on with them."""
    pace = pace or Pace()
    keeper = CostKeeper(client, store, leadership, pace, clock)
    while True:
        started = clock()
        await keeper.look()
        await asyncio.sleep(max(pace.interval_seconds - (clock() - started), pace.interval_seconds / 10))


def _counts(pod: Pod) -> bool:
    return pod.ready and not pod.deleting and pod.phase == "Running"


def _is_helped(workload: Workload) -> bool:
    return workload.labels.get(HELPER, "").lower() != "false"


def _by_deployment(store: Store) -> dict[WorkloadKey, list[PodState]]:
    found: dict[WorkloadKey, list[PodState]] = {}
    for state in store.pods():
        key = state.pod.workload
        if key is not None and (key.group, key.resource) == (DEPLOYMENT.group, DEPLOYMENT.resource):
            found.setdefault(key, []).append(state)
    return found


def _held(states: Iterable[PodState], stale_seconds: float, now: float) -> tuple[dict[str, float], float]:
    """(uid -> what the pod holds, size of the largest pool), in tokens or, if more pods tell that, in thousandths."""
    heard = {state.pod.uid: reading for state in states if is_fresh(reading := state.reading, now, stale_seconds)}
    tokens = {uid: reading.kv_active_tokens for uid, reading in heard.items() if _is_figure(reading.kv_active_tokens)}
    usages = {uid: reading.kv_usage_ratio for uid, reading in heard.items() if _is_figure(reading.kv_usage_ratio)}
    if len(tokens) >= len(usages):
        return tokens, max(map(_pool, heard.values()), default=0.0)
    return {uid: usage * _USAGE_COSTS for uid, usage in usages.items()}, _USAGE_COSTS


def _is_figure(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value >= 0


def _pool(reading: Reading) -> float:
    """Tokens of the pool; 0 where what is held is too little to tell it."""
    held, usage = reading.kv_active_tokens, reading.kv_usage_ratio
    if held is None or usage is None or not 0.001 <= usage <= 1 or not math.isfinite(held):
        return 0.0
    return held / usage


def _is_silent(state: PodState, pace: Pace, now: float) -> bool:
    """Of a pod that is not heard: not if it only was not asked yet, nor if it said something a moment ago."""
    if state.reading is None:
        return state.failure is not None
    age = now - state.reading.read_seconds
    return age <= pace.stale_seconds or age > pace.silent_seconds


def _cost_of_heard(written: int, held: float, half_step: float) -> int:
    if (held > 0) == (written > 0) and abs(held - written) <= half_step:
        return written
    return _as_cost(held)


def _cost_of_silent(written: int, fullest: float, half_step: float) -> int:
    if written > 0 and written >= fullest - half_step:
        return written
    return _as_cost(max(fullest, 1.0))


def _as_cost(held: float) -> int:
    """An int32; 0 only for a pod that holds nothing."""
    return min(max(math.ceil(held), 0), MAX_COST)
