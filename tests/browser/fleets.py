"""Fleets made up by hand, served as the aggregator's plain port serves them."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from kvgauge.cluster.fleet import Fleet
from kvgauge.cluster.fleet_past import LOOK_SECONDS, PAST_SECONDS, FleetPast
from kvgauge.cluster.fleet_routes import add_fleet
from kvgauge.cluster.health import create_health_app
from kvgauge.cluster.measuring import Sources
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.records import Pod, Reading, Required, WorkloadKey
from kvgauge.cluster.serving import serve
from kvgauge.cluster.store import Store
from kvgauge.listening import bind
from tests.cluster.stocking import NOW_SECONDS, pod, put, reading, required, workload
from tests.support.process import eventually

SAFE_CONCURRENCY = 48


@dataclass
class Stage:
    """A served store. What is changed is changed in the server's own thread."""

    store: Store
    url: str = ""
    ready: bool = True
    api_server_age_seconds: float | None = 1.0
    now_seconds: float = NOW_SECONDS
    wall_offset_seconds: float = 0.0
    frozen_wall_seconds: float | None = None
    """Its clock stands still, at this time."""
    _loop: asyncio.AbstractEventLoop | None = None

    def wall(self) -> float:
        return self.frozen_wall_seconds or time.time() + self.wall_offset_seconds

    def change(self, how: Callable[[], object]) -> None:
        assert self._loop is not None
        done = threading.Event()

        def there() -> None:
            how()
            done.set()

        self._loop.call_soon_threadsafe(there)
        assert done.wait(10)


@contextmanager
def staged(store: Store, past: Sequence[Callable[[], object]] = ()) -> Iterator[Stage]:
    """The page over a store. `past`: what happened to the store before, a look for each."""
    stage = Stage(store)
    figures = Figures(store, _thousandths, stale_after_seconds=10.0, clock=lambda: stage.now_seconds)
    fleet = Fleet(Sources(store, Counter(), 10.0, clock=lambda: stage.now_seconds), figures, wall_clock=stage.wall)
    memory = FleetPast(fleet, clock=lambda: stage.now_seconds + stage.wall_offset_seconds)
    for number, happened in enumerate(past):
        stage.wall_offset_seconds = LOOK_SECONDS * (number + 1 - len(past))
        happened()
        memory.remember(fleet.now())
    app = create_health_app(CollectorRegistry(), lambda: stage.ready)
    add_fleet(
        app, fleet, memory, ready=lambda: stage.ready, api_server_age_seconds=lambda: stage.api_server_age_seconds
    )
    listener = bind("127.0.0.1", 0)
    stop = asyncio.Event()

    async def run() -> None:
        stage._loop = asyncio.get_running_loop()
        await serve(app, listener, stop)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        eventually(lambda: stage._loop is not None, what="the server's start")
        stage.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield stage
    finally:
        stage.change(stop.set)
        thread.join()
        listener.close()


def _thousandths(found: Required) -> int | None:
    return None if found.replicas is None else 1000 * found.replicas


@dataclass
class Deployment:
    """A workload of a scene. `loads`: of the pods that tell; `silent`: why each silent pod is."""

    namespace: str
    name: str
    loads: Sequence[float]
    wanted: int | None
    silent: Sequence[str] = ()
    starting: int = 0
    there: int | None = None
    asked: int | None = None
    key: WorkloadKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = WorkloadKey(self.namespace, "apps", "deployments", self.name)

    def put(self, store: Store) -> None:
        pods = len(self.loads) + len(self.silent) + self.starting
        there = self.there if self.there is not None else pods
        asked = self.asked if self.asked is not None else there
        store.put_workload(workload(self.key, spec_replicas=asked, status_replicas=there))
        words = (
            "4.20 requests/s came in the last minute; the level is between 3.10 and 5.40.",
            f"Played against the last 15 minutes, {self.wanted} pods keep the promise.",
        )
        known = store.workload(self.key)
        store.put_required(required(self.wanted, workload=known, explanation=words))
        self.tell(store)
        for number, failure in enumerate(self.silent):
            one = self._pod(len(self.loads) + number)
            put(store, one, reading(read_seconds=NOW_SECONDS - 95 - 140 * number) if number % 3 < 2 else None)
            store.put_failure(one.key, one.uid, failure)
        for number in range(self.starting):
            put(store, self._pod(len(self.loads) + len(self.silent) + number, ready=False), None)

    def tell(self, store: Store, factor: float = 1.0) -> None:
        """Its pods tell their load, so many times over."""
        for number, load in enumerate(self.loads):
            put(store, self._pod(number), told(load * factor))

    def _pod(self, number: int, *, ready: bool = True) -> Pod:
        middle = f"{sum(self.name.encode()) * 7919 % 0xFFFFFFFF:08x}"
        name = f"{self.name}-{middle}-{number * 7 + 11:05x}"
        made = time.time() - (86_400 if ready else 40)
        return pod(name, self.namespace, workload=self.key, ready=ready, created_wall_seconds=made)


def told(load: float) -> Reading:
    """What a pod with that load tells."""
    demand = round(load * SAFE_CONCURRENCY)
    return reading(
        read_seconds=NOW_SECONDS - 0.4,
        load_ratio=load,
        safe_concurrency=SAFE_CONCURRENCY,
        running=min(demand, SAFE_CONCURRENCY),
        waiting=max(demand - SAFE_CONCURRENCY, 0),
        kv_usage_ratio=min(load * 0.93, 0.992),
        kv_exhaustion_seconds=42.0 if 0.9 < load <= 1 else None,
    )


HEALTHY = (
    Deployment("chat", "llama-3.1-70b-instruct", (0.62, 0.58, 0.71, 0.55), 4),
    Deployment("chat", "qwen3-32b", (0.41, 0.44), 2),
    Deployment("search", "embedding-rerank-8b", (0.2, 0.31, 0.22), 3),
)
TROUBLED = (
    Deployment("chat", "llama-3.1-70b-instruct", (1.34, 1.21, 1.18, 1.02), 6, starting=1, there=5, asked=5),
    Deployment("search", "embedding-rerank-8b", (0.5, 0.61), 4, silent=("refused", "timeout"), there=4),
    Deployment("agents", "deepseek-r1-distill", (0.9, 0.88, 1.12), 4, there=3, asked=3),
    Deployment("chat", "qwen3-32b", (0.41, 0.44), 2),
)


def fleet(*deployments: Deployment) -> Store:
    store = Store()
    for deployment in deployments:
        deployment.put(store)
    return store


def a_past(store: Store, deployments: Sequence[Deployment], quiet: float = 0.55) -> list[Callable[[], object]]:
    """A quarter of an hour in which demand rose from that share of now."""
    chance = random.Random(3)
    looks = int(PAST_SECONDS / LOOK_SECONDS)

    def at(number: int) -> Callable[[], object]:
        level = min(quiet + (1 - quiet) * max(number - looks // 3, 0) / (looks / 3), 1.0)
        factor = level * (1 + 0.05 * (chance.random() - 0.5)) if number < looks - 1 else 1.0
        return lambda: tell(store, deployments, factor)

    return [at(number) for number in range(looks)]


def tell(store: Store, deployments: Sequence[Deployment], factor: float) -> None:
    """Their pods tell their load, so many times over."""
    for deployment in deployments:
        deployment.tell(store, factor)


def large(pods: int = 2000, pods_each: int = 10) -> Store:
    """Many workloads, some pods of each over their limit or silent."""
    chance = random.Random(1)
    return fleet(
        *(
            Deployment(
                f"team-{number % 7}",
                f"llama-3-70b-instruct-{number}",
                [chance.random() * 1.2 for _ in range(pods_each - number % 2)],
                chance.randint(pods_each - 2, pods_each + 3),
                silent=("timeout",) * (number % 2),
            )
            for number in range(pods // pods_each)
        )
    )


def hostile(text: str) -> Store:
    """Every name and word is `text`."""
    store = Store()
    key = WorkloadKey(text, "apps", "deployments", text)
    store.put_workload(workload(key, kind=text))
    store.put_required(required(3, workload=store.workload(key), explanation=(text,)))
    put(store, pod(text, text, workload=key), reading(binding_limit=text[:40]))
    silent = pod(f"{text}2", text, workload=key)
    put(store, silent, None)
    store.put_failure(silent.key, silent.uid, text)
    return store
