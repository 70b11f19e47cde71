"""The fleet's JSON: from a store filled by hand, and over HTTP as the plain port answers it."""

import asyncio
import gzip
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kvgauge.cluster.fleet import MOST_CHOSEN_PODS, MOST_PODS, MOST_WORKLOADS, Choice, Fleet, Now
from kvgauge.cluster.fleet_past import LOOK_SECONDS, PAST_SECONDS, FleetPast
from kvgauge.cluster.fleet_records import FleetFigures, WorkloadFigures
from kvgauge.cluster.fleet_routes import add_fleet, figures_of
from kvgauge.cluster.health import create_health_app
from kvgauge.cluster.measuring import Sources
from kvgauge.cluster.metrics import Figures
from kvgauge.cluster.records import PodState, Required, WorkloadKey
from kvgauge.cluster.store import Store

from .serving import Answer, get, served
from .stocking import LLAMA, NOW_SECONDS, WALL_SECONDS, pod, put, reading, required, stocked, workload


@dataclass
class FakeClock:
    """Monotonic seconds that pass when a test says so."""

    seconds: float = NOW_SECONDS

    def __call__(self) -> float:
        return self.seconds


def fleet_of(store: Store, clock: FakeClock | None = None, published: float = 1.0) -> tuple[Fleet, FleetPast]:
    """`published`: what an autoscaler reads, over what is required."""
    clock = clock or FakeClock()

    def thousandths(found: Required) -> int | None:
        return None if found.replicas is None else round(1000 * published * found.replicas)

    figures = Figures(store, thousandths, stale_after_seconds=10.0, clock=clock)
    fleet = Fleet(
        Sources(store, Counter(), 10.0, clock=clock), figures,
        wall_clock=lambda: WALL_SECONDS + clock.seconds - NOW_SECONDS,
    )  # fmt: skip
    return fleet, FleetPast(fleet, clock=clock)


def seen(fleet: Fleet, past: FleetPast, choice: Choice | None = None) -> FleetFigures:
    return figures_of(fleet.now(), fleet, past, choice, 1.25)


def told(store: Store, choice: Choice | None = None) -> FleetFigures:
    return seen(*fleet_of(store), choice)


def only(store: Store) -> WorkloadFigures:
    found = told(store).workloads
    assert len(found) == 1
    return found[0]


def llama(*loads: float | None, silent: int = 0, replicas: int | None = None, wanted: int | None = None) -> Store:
    """One Deployment whose pods tell these loads."""
    store = Store()
    there = replicas if replicas is not None else len(loads) + silent
    store.put_workload(workload(spec_replicas=there, status_replicas=there))
    if wanted is not None:
        store.put_required(required(wanted))
    for number, load in enumerate(loads):
        put(store, pod(f"llama-{number}"), reading(load_ratio=load))
    for number in range(silent):
        put(store, pod(f"silent-{number}"), reading(read_seconds=NOW_SECONDS - 60 - number))
    return store


def test_the_figures_of_a_fleet() -> None:
    found = told(stocked())
    assert (found.wall_seconds, found.api_server_age_seconds) == (WALL_SECONDS, 1.2)
    assert found.standing == "over"
    assert found.totals.workloads == 1
    assert found.totals.workloads_by_standing == {"over": 1, "silent": 0, "near": 0, "safe": 1, "none": 0}
    assert found.totals.pods == {"telling": 3, "silent": 1, "starting": 0, "terminating": 1}
    # 0.8401 + 1.25 and 0.8401, each to a thousandth.
    assert found.totals.load_ratio_sum == 2.93
    assert (found.totals.running, found.totals.waiting) == (63, 9)
    assert (found.totals.required_replicas, found.totals.actual_replicas) == (3, 2)
    first, second = found.workloads
    assert (first.namespace, first.kind, first.name) == ("llm", "Deployment", "llama")
    assert (first.required_replicas, first.published_replicas, first.required_unknown) == (3, 3.0, None)
    assert (first.pods_ready, first.pods_telling, first.pods_silent, first.pods_terminating) == (3, 2, 1, 1)
    assert (first.load_ratio_sum, first.load_ratio_most) == (2.09, 1.25)
    assert (first.safe_concurrency, first.running, first.waiting) == (74, 42, 6)
    assert (first.kv_usage_ratio_most, first.kv_exhaustion_seconds, first.oldest_age_seconds) == (0.5, 90.9, 60)
    assert (second.namespace, second.kind, second.name, second.actual_replicas) == ("elsewhere", None, None, None)
    assert second.required_unknown == "the pods belong to no workload that is known"


def test_pods_stand_the_worst_first_and_old_figures_are_no_figures() -> None:
    found = told(stocked())
    assert [each.name for each in found.pods] == ["b", "silent", "c", "a", "going"]
    silent = found.pods[1]
    assert (silent.state, silent.ready, silent.age_seconds) == ("silent", True, 60)
    assert (silent.load_ratio, silent.running, silent.waiting, silent.kv_usage_ratio) == (None, None, None, None)
    assert silent.silent_reason == "it was not heard again"
    assert (found.pods[0].workload, found.pods[0].load_ratio, found.pods[0].binding_limit) == ("llama", 1.25, "kv")
    assert found.pods[2].workload is None
    assert found.pods[0].created_age_seconds == 600


@pytest.mark.parametrize(
    ("store", "standing"),
    [
        (llama(0.5, 0.8), "safe"),
        (llama(0.85, 0.849), "safe"),
        (llama(0.85, 0.85), "near"),
        (llama(1.001, 0.1, 0.1), "near"),
        (llama(0.84, 0.84, 0.84), "safe"),
        (llama(0.1, 0.1, wanted=3), "near"),
        (llama(0.1, 0.1, wanted=2), "safe"),
        (llama(1.0, 1.0), "near"),
        (llama(1.001, 1.0), "over"),
        (llama(1.5, 1.0, silent=1), "over"),
        (llama(0.1, silent=1), "silent"),
        (llama(silent=2), "silent"),
        (llama(None), "silent"),
        (llama(wanted=0), "none"),
        (llama(wanted=1), "near"),
    ],
)
def test_how_a_workload_stands(store: Store, standing: str) -> None:
    assert only(store).standing == told(store).standing == standing


def test_a_load_ratio_that_still_follows_a_fall_is_near_and_not_over() -> None:
    store = llama(1.4, 1.3)
    put(store, pod("llama-0"), reading(load_ratio=1.4, load_now_ratio=0.2))
    put(store, pod("llama-1"), reading(load_ratio=1.3, load_now_ratio=1.6))
    figures, found = only(store), told(store)
    assert (figures.standing, figures.load_ratio_sum, figures.load_now_ratio_sum) == ("near", 2.7, 1.5)
    assert [(each.name, each.load_now_ratio) for each in found.pods] == [("llama-1", 1.3), ("llama-0", 0.2)]


def test_what_nobody_told_is_null_and_never_0() -> None:
    figures = only(llama(silent=1))
    numbers = (
        figures.load_ratio_sum, figures.load_ratio_most, figures.safe_concurrency, figures.running, figures.waiting,
        figures.kv_usage_ratio_most, figures.kv_exhaustion_seconds, figures.required_replicas,
    )  # fmt: skip
    assert numbers == (None,) * 8
    assert figures.required_unknown == "kvgauge_required_replicas is not known at present"
    assert told(Store()).totals.load_ratio_sum is None
    assert told(Store()).totals.required_replicas is None
    assert told(Store()).standing == "none"


def test_required_is_what_autoscalers_read_and_null_with_the_reason_when_it_is_old() -> None:
    store = llama(0.5, wanted=1)
    figures = seen(*fleet_of(store, published=1.111)).workloads[0]
    assert (figures.required_replicas, figures.published_replicas) == (1, 1.111)
    store.put_required(required(7, read_seconds=NOW_SECONDS - 61))
    assert only(store).required_replicas is None
    store.put_required(required(None))
    assert only(store).required_unknown == "kvgauge_required_replicas is not known: nothing was ever heard of the pods"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (PodState(pod("x"), None, "refused"), "nothing listens"),
        (PodState(pod("x"), None, "timeout"), "no answer in time"),
        (PodState(pod("x"), None, "stale"), "no fresh figures itself"),
        (PodState(pod("x"), None, "body_too_large"), "not its advice (body too large)"),
        (PodState(pod("x"), reading(valid=False)), "its advice is not valid"),
        (PodState(pod("x", address=None)), "no address yet"),
        (PodState(pod("x")), "not asked yet"),
    ],
)
def test_why_a_pod_is_silent_is_told_in_words(state: PodState, words: str) -> None:
    store = Store()
    put(store, state.pod, state.reading)
    if state.failure is not None:
        store.put_failure(state.pod.key, state.pod.uid, state.failure)
    found = told(store).pods[0]
    assert found.state == "silent"
    assert words in (found.silent_reason or "")
    assert (found.age_seconds is None) == (state.reading is None)


def test_a_failed_poll_does_not_silence_a_pod_whose_figures_are_fresh() -> None:
    store = llama(0.5)
    store.put_failure(pod("llama-0").key, "uid-llama-0", "timeout")
    found = told(store).pods[0]
    assert (found.state, found.load_ratio, found.silent_reason) == ("telling", 0.5, None)


def test_a_chosen_workload_has_its_own_pods_and_its_reasons() -> None:
    store = stocked()
    store.put_required(required(3, explanation=("Played against the last minutes, 3 pods keep the promise.",)))
    found = told(store, Choice("llm", "llama"))
    assert found.chosen is not None
    assert found.chosen.name == "llama"
    assert {each.name for each in found.pods} == {"a", "b", "silent", "going"}
    assert found.explanation == ("Played against the last minutes, 3 pods keep the promise.",)
    assert {each.name for each in told(store, Choice("elsewhere", None)).pods} == {"c"}
    nobody = told(store, Choice("llm", "nobody"))
    assert (nobody.chosen, nobody.pods, nobody.explanation) == (None, (), ())


def large(pods: int, pods_each: int) -> Store:
    """A fleet with names and figures of the usual lengths."""
    chance = random.Random(1)
    store = Store()
    for number in range(pods // pods_each):
        key = WorkloadKey(f"team-{number % 7}", "apps", "deployments", f"llama-3-70b-instruct-{number}")
        store.put_workload(workload(key, spec_replicas=pods_each, status_replicas=pods_each))
        store.put_required(required(chance.randint(8, 14), workload=store.workload(key)))
        for _ in range(pods_each):
            one = pod(f"{key.name}-{chance.randbytes(8).hex()}", key.namespace, workload=key)
            figures = reading(
                load_ratio=chance.random() * 1.3, read_seconds=NOW_SECONDS - chance.random() * 1.5,
                running=chance.randint(0, 60), waiting=chance.randint(0, 9), kv_usage_ratio=chance.random(),
                safe_concurrency=chance.randint(20, 70),
            )  # fmt: skip
            put(store, one, None if chance.random() < 0.02 else figures)
    return store


@pytest.mark.parametrize("pods_each", [10, 1000])
def test_a_large_fleet_is_cut_to_what_a_page_can_show_and_says_so(pods_each: int) -> None:
    store = large(2000, pods_each)
    found = told(store)
    workloads = 2000 // pods_each
    assert len(found.workloads) == min(workloads, MOST_WORKLOADS)
    assert found.workloads_left_out == workloads - len(found.workloads)
    assert (len(found.pods), found.pods_left_out) == (MOST_PODS, 2000 - MOST_PODS)
    assert sum(found.totals.pods.values()) == 2000
    loads = [each.load_ratio for each in found.pods]
    assert loads == sorted(loads, reverse=True)  # type: ignore[type-var]
    of_one = told(store, Choice("team-1", "llama-3-70b-instruct-1"))
    assert len(of_one.pods) + of_one.pods_left_out == pods_each
    assert len(of_one.pods) <= MOST_CHOSEN_PODS


def test_since_when_a_workload_stands_so_is_remembered() -> None:
    store, clock = llama(0.5, 0.5), FakeClock()
    fleet, past = fleet_of(store, clock)
    assert seen(fleet, past).workloads[0].standing_seconds is None
    past.remember(fleet.now())
    clock.seconds += 30
    heard_anew(store, clock, 0.5)
    past.remember(fleet.now())
    assert seen(fleet, past).workloads[0].standing_seconds == 30
    clock.seconds += 1
    heard_anew(store, clock, 1.5)
    assert seen(fleet, past).workloads[0].standing_seconds == 0
    past.remember(fleet.now())
    clock.seconds += 5
    found = seen(fleet, past)
    assert (found.standing, found.standing_seconds, found.watched_seconds) == ("over", 5, 36)


def heard_anew(store: Store, clock: FakeClock, load: float) -> None:
    for number in range(2):
        put(store, pod(f"llama-{number}"), reading(load_ratio=load, read_seconds=clock.seconds))


def test_the_past_is_bounded_and_what_is_gone_is_forgotten() -> None:
    store, clock = llama(0.5), FakeClock()
    fleet, past = fleet_of(store, clock)
    for _ in range(200):
        clock.seconds += LOOK_SECONDS
        past.remember(fleet.now())
    points = past.points(("llm", LLAMA))
    assert len(points) == len(past.points(None)) == PAST_SECONDS / LOOK_SECONDS
    # The pod told once, at the beginning: silence is a gap, not a load of 0.
    assert {(point.load_ratio_sum, point.pods_silent) for point in points} == {(None, 1)}
    store.replace_pods(())
    store.drop_workload(LLAMA)
    past.remember(fleet.now())
    assert past.points(("llm", LLAMA)) == []
    assert past.points(None)[-1].pods_silent == 0


def answers(store: Store, *paths: str, ready: bool = True, headers: Mapping[str, str] | None = None) -> list[Answer]:
    """Over HTTP, from a real port."""
    fleet, past = fleet_of(store)
    past.remember(fleet.now())
    app = create_health_app(CollectorRegistry(), lambda: ready)
    add_fleet(app, fleet, past, ready=lambda: ready, api_server_age_seconds=lambda: 2.0)

    async def ask() -> list[Answer]:
        async with served(app) as server:
            return [await get(server.port, None, path, *(headers or {}).items()) for path in paths]

    return asyncio.run(ask())


def test_the_answer_over_http() -> None:
    (whole, one, old, new) = answers(
        stocked(), "/v1/fleet", "/v1/fleet?namespace=llm&workload=llama&kind=Deployment",
        "/v1/fleet/history", f"/v1/fleet/history?after_wall_seconds={WALL_SECONDS}",
    )  # fmt: skip
    assert (whole.code, whole.headers["cache-control"]) == (200, "no-store")
    assert [each["name"] for each in whole.body["workloads"]] == ["llama", None]
    assert (whole.body["chosen"], whole.body["api_server_age_seconds"]) == (None, 2.0)
    assert one.body["chosen"] == one.body["workloads"][0]
    assert old.body == [{"wall_seconds": WALL_SECONDS, "load_ratio_sum": 2.93, "pods_telling": 3, "pods_silent": 1}]
    assert new.body == []


def test_no_label_annotation_address_or_node_is_told() -> None:
    store = stocked()
    put(store, pod("a", labels={"app": "secret-label"}, annotations={"note": "secret-note"}), reading())
    (answer,) = answers(store, "/v1/fleet")
    text = json.dumps(answer.body)
    assert not [word for word in ("secret", "10.0.0.1", "9838", "node-1", "uid-") if word in text]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("workload=llama", "namespace"),
        ("namespace=llm", "workload"),
        ("kind=Deployment", "namespace"),
        ("namespace=llm&workload=llama&workload=other", "workload"),
        (f"namespace=llm&workload={'x' * 254}", "workload"),
        ("namespace=llm&workloads=<b>llama</b>", "namespace"),
        ("after_wall_seconds=1", "unknown"),
    ],
)
def test_a_bad_query_is_422_with_one_line_that_repeats_nothing(query: str, word: str) -> None:
    (answer,) = answers(stocked(), f"/v1/fleet?{query}")
    assert answer.code == 422
    assert word in answer.body["detail"]
    assert "\n" not in answer.body["detail"]
    assert "llama" not in answer.body["detail"]
    assert "<b>" not in answer.body["detail"]


def test_one_name_of_two_kinds_needs_the_kind() -> None:
    store = llama(0.5)
    twin = WorkloadKey("llm", "apps", "statefulsets", "llama")
    store.put_workload(workload(twin, kind="StatefulSet"))
    put(store, pod("twin-0", workload=twin), reading())
    path = "/v1/fleet?namespace=llm&workload=llama"
    either, one = answers(store, path, f"{path}&kind=StatefulSet")
    assert (either.code, "kind" in either.body["detail"]) == (422, True)
    assert [each["name"] for each in one.body["pods"]] == ["twin-0"]


def test_before_the_pods_were_listed_there_is_no_answer_but_there_is_a_page() -> None:
    page, figures, history, bad = answers(
        Store(), "/", "/v1/fleet", "/v1/fleet/history", "/v1/fleet/history?after_wall_seconds=soon", ready=False
    )
    assert [figures.code, history.code, bad.code] == [503, 503, 422]
    assert figures.body == {"detail": "the pods were not listed yet"}
    assert (page.code, page.headers["x-content-type-options"]) == (200, "nosniff")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_an_update_is_small_on_the_wire_with_2000_pods() -> None:
    chosen = "?namespace=team-1&workload=llama-3-70b-instruct-1"
    paths, zipped = ("/v1/fleet", f"/v1/fleet{chosen}"), {"Accept-Encoding": "gzip"}
    for pods_each in (10, 1000):
        for answer in answers(large(2000, pods_each), *paths, headers=zipped):
            assert answer.headers["content-encoding"] == "gzip"
            # One every two seconds, and the history beside it.
            assert len(answer.body) <= 2 * 4500
            found: Any = json.loads(gzip.decompress(answer.body))
            assert found["totals"]["pods"]["silent"] > 0


def test_others_run_while_2000_pods_are_reckoned_up_and_who_asks_at_once_is_answered_by_one_look() -> None:
    store = large(2000, 10)
    fleet, _ = fleet_of(store)

    async def look() -> tuple[int, list[Now]]:
        turns = 0
        asking = [asyncio.create_task(fleet.soon(0.5)) for _ in range(3)]
        while not all(task.done() for task in asking):
            await asyncio.sleep(0)
            turns += 1
            if turns == 3:
                # What was begun goes on with what there was.
                store.replace_pods(())
        return turns, [task.result() for task in asking]

    turns, found = asyncio.run(look())
    assert turns > 8
    assert found[0] is found[1] is found[2]
    assert sum(found[0].totals().pods.values()) == 2000
    assert sum(fleet.now().totals().pods.values()) == 0


def test_the_injector_has_neither() -> None:
    async def ask() -> list[int]:
        async with served(create_health_app(CollectorRegistry(), lambda: True)) as server:
            return [(await get(server.port, None, path)).code for path in ("/", "/v1/fleet")]

    assert asyncio.run(ask()) == [404, 404]
