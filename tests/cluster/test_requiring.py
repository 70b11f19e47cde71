"""The fleet rule over the store, on a clock that is wound by hand."""

import asyncio
import json

from kvgauge.advise.demand import Demand, read_demand, to_json
from kvgauge.advise.lengths import Lengths
from kvgauge.advise.served import Served
from kvgauge.cluster.records import Required
from kvgauge.cluster.requiring import LOOK_SECONDS, Requirer
from kvgauge.cluster.store import Store
from kvmodel.latency import StepCost

from .stocking import LLAMA, pod, put, reading, workload

DEMAND = Demand(
    arrived_total=0.0,
    prompts=Lengths((1000.0, 3000.0), (0.5, 0.5), 500.0),
    outputs=Lengths((100.0, 300.0), (0.5, 0.5), 500.0),
    computed_ratio=1.0,
    resident=None,
    pool_slots=100_000.0,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    cost=StepCost(0.01, 1e-8, 2e-5),
    slo_ttft_seconds=3.0,
    slo_tpot_seconds=0.1,
    finished=500.0,
)


class World:
    """A Deployment's pods, each of which gets an equal share of the requests, looked at every few seconds."""

    def __init__(self, replicas: int, *, demand: Demand | None = DEMAND) -> None:
        self.now = 1000.0
        self.store = Store()
        self.requirer = Requirer(self.store, clock=lambda: self.now)
        self.demand = demand
        self.arrived: dict[str, float] = {}
        self.names = [f"pod-{number}" for number in range(replicas)]
        self.silent: set[str] = set()
        self.invalid: set[str] = set()
        self.starting: set[str] = set()
        self.spec_replicas = replicas

    def run(self, seconds: float, per_second: float = 0.0, load_ratio: float | None = None) -> Required:
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.now += LOOK_SECONDS
            ready = [name for name in self.names if name not in self.starting]
            for name in self.names:
                one = pod(name, ready=name in ready)
                self.store.put_pod(one)
                if name not in ready:
                    continue
                self.arrived[name] = self.arrived.get(name, 0.0) + per_second * LOOK_SECONDS / len(ready)
                if name in self.silent:
                    continue
                told = reading(
                    read_seconds=self.now,
                    valid=name not in self.invalid,
                    demand=self.demand,
                    served=Served(self.arrived[name], None, None),
                    load_ratio=load_ratio,
                    waiting=0,
                )
                put(self.store, one, told)
            self.store.put_workload(workload(spec_replicas=self.spec_replicas))
            asyncio.run(self.requirer.look())
        required = self.store.required(LLAMA)
        assert required is not None
        return required


def test_more_requests_need_more_pods_and_the_terms_say_why() -> None:
    quiet, busy = World(2).run(300, per_second=0.5), World(2).run(300, per_second=40)
    assert quiet.replicas is not None
    assert busy.replicas is not None
    assert busy.replicas > quiet.replicas
    assert 38 < float(busy.terms["arrivals_per_second"] or 0) < 42
    assert any("requests/s came in the last minute" in sentence for sentence in busy.explanation)


def test_after_a_restart_it_keeps_what_there_is() -> None:
    world = World(7)
    assert world.run(20, per_second=0.1).replicas == 7
    world.requirer = Requirer(world.store, clock=lambda: world.now)
    assert world.run(20, per_second=0.1).replicas == 7


def test_nothing_ever_heard_is_not_a_number() -> None:
    world = World(3)
    world.silent = set(world.names)
    required = world.run(120)
    assert required.replicas is None


def test_a_silent_pod_keeps_the_others_and_counts_as_full() -> None:
    world = World(4)
    shrunk = World(4)
    assert shrunk.run(1500, per_second=0.2).replicas == 1
    world.run(900, per_second=0.2)
    world.silent = {"pod-0"}
    assert world.run(1200, per_second=0.2).replicas == 4


def test_advice_that_is_not_valid_is_silence() -> None:
    world = World(4)
    world.run(900, per_second=0.2)
    world.invalid = {"pod-0"}
    required = world.run(1200, per_second=0.2)
    assert required.replicas == 4
    assert required.terms["pods_silent"] == 1


def test_all_silent_pods_keep_what_there_is() -> None:
    world = World(4)
    world.run(900, per_second=0.2)
    world.silent = set(world.names)
    assert world.run(1200, per_second=0.2).replicas == 4


def test_pods_that_start_are_counted_on() -> None:
    world = World(2)
    needed = world.run(300, per_second=40).replicas
    assert needed is not None
    world.names = [f"pod-{number}" for number in range(needed)]
    world.spec_replicas = needed
    world.starting = set(world.names[2:])
    # The same load on the same two pods does not ask for yet more while the others are on their way.
    again = world.run(60, per_second=40).replicas
    assert again is not None
    assert again <= needed + 1


def test_scaled_to_zero_stays_there() -> None:
    world = World(2)
    world.run(300, per_second=1)
    for name in world.names:
        world.store.drop_pod(pod(name).key)
    world.names, world.spec_replicas = [], 0
    required = world.run(60)
    assert required.replicas == 0
    assert "scaled to zero" in required.explanation[0]


def test_without_a_step_cost_it_goes_by_the_load() -> None:
    fields = to_json(DEMAND) | {"cost": None, "max_num_batched_tokens": None}
    world = World(2, demand=read_demand(json.loads(json.dumps(fields))))
    required = world.run(300, per_second=5, load_ratio=1.7)
    assert required.replicas == 4
    assert required.terms["load_ratio"] == 3.4


def test_workloads_that_are_gone_are_forgotten() -> None:
    world = World(2)
    world.run(60, per_second=1)
    world.store.drop_workload(LLAMA)
    asyncio.run(world.requirer.look())
    assert world.store.required(LLAMA) is None
    assert list(world.store.all_required()) == []


def test_a_rollout_with_a_surge_changes_nothing() -> None:
    world = World(3)
    before = world.run(600, per_second=10).replicas
    assert before is not None
    world.names = [f"pod-{number}" for number in range(before)]
    world.spec_replicas = before
    wanted = {world.run(300, per_second=10).replicas}
    for name in list(world.names):
        fresh = f"new-{name}"
        world.names.append(fresh)
        world.starting.add(fresh)
        wanted.add(world.run(60, per_second=10).replicas)
        world.starting.clear()
        wanted.add(world.run(10, per_second=10).replicas)
        world.names.remove(name)
        world.store.drop_pod(pod(name).key)
        wanted.add(world.run(30, per_second=10).replicas)
    assert wanted == {before}


def test_a_pod_that_comes_back_under_its_old_name_brings_no_arrivals_of_its_past() -> None:
    world = World(2)
    rate = float(world.run(300, per_second=4).terms["arrivals_per_second"] or 0)
    world.arrived["pod-0"] = 0.0
    again = float(world.run(120, per_second=4).terms["arrivals_per_second"] or 0)
    assert abs(again - rate) < 0.5


def test_two_aggregators_that_are_asked_in_turn_do_not_undo_each_other() -> None:
    world = World(2)
    world.run(300, per_second=40)
    other = Requirer(world.store, clock=lambda: world.now)
    sizes = []
    for turn in range(40):
        answer = world.run(15, per_second=40).replicas
        asyncio.run(other.look())
        told = world.store.required(LLAMA)
        assert told is not None
        # An autoscaler that is answered by one, then by the other, and follows at once.
        size = answer if turn % 2 else told.replicas
        assert size is not None
        world.spec_replicas = size
        world.names = [f"pod-{number}" for number in range(size)]
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2
    assert sizes[-1] == world.run(15, per_second=40).replicas


def test_how_long_a_pod_took_to_start_is_told_once_it_is_ready() -> None:
    world = World(1)
    assert world.run(60, per_second=1).start_up_seconds is None
    world.names.append("pod-1")
    world.starting.add("pod-1")
    assert world.run(60, per_second=1).start_up_seconds is None
    world.starting.clear()
    assert world.run(10, per_second=1).start_up_seconds == 60
    world.spec_replicas = 0
    assert world.run(10).start_up_seconds == 60
