"""The simulated engine and the safe number of requests against vLLM's own scheduler, step by step.

Steps of the simulated engine take exactly a second here, so that both count the same steps. vLLM's scheduler runs
without a model: nothing it decides depends on what is sampled, but for prefixes of generated tokens, see below.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kvgauge.simulate import FinishedRequest, PagedEngine

from .load import Load, random_job
from .processes import until
from .scheduler_loads import ANY, CACHING, COARSE, HYBRID, LAWFUL, PLAIN, REQUESTS, Alike, Mix
from .vllm_server import BLOCK_TOKENS, MAX_MODEL_LEN, MODEL_NAME, NUM_BLOCKS, VllmServer

pytestmark = [pytest.mark.engines, pytest.mark.timeout(360)]

DRIVER = Path(__file__).with_name("vllm_scheduler.py")
MOST_STEPS = 20_000


@pytest.fixture(scope="module")
def vllm(vllm_python: Path, tiny_folder: Path) -> dict[Any, dict[str, Any]]:
    """vLLM's answers by case: its environment is slow to start, so all are asked at once."""
    traces, limits = [*PLAIN, *CACHING, *COARSE], [*LAWFUL, *HYBRID, *ANY]
    one_layer = [{"window": None, "kv_heads": 1, "head_dim": 64}]
    asked = {
        "model": str(tiny_folder),
        "traces": [asdict(case) | {"layers": one_layer, "most_steps": MOST_STEPS} for case in traces],
        "limits": [
            asdict(case)
            | {"layers": case.layers(), "max_model_len": case.max_model_len, "max_num_seqs": 512}
            | {"advised": case.advised()}
            for case in limits
        ],
    }
    ran = subprocess.run(
        [vllm_python, DRIVER], input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    return dict(zip([*traces, *limits], [*answer["traces"], *answer["limits"]], strict=True))


def simulated(load: Mix, steps: int) -> tuple[list[list[int]], list[list[int]]]:
    """(running, waiting, used blocks, preemptions, cached blocks that nobody holds and hits, once each step has begun;
    the ends of all requests)."""
    engine, ends = engine_of(load)
    rows = []
    for step in range(steps):
        engine.advance(step + 0.5)
        state = engine.state()
        row = [state.running, state.waiting, state.used_blocks, state.preemptions_total]
        rows.append([*row, state.cached_blocks, state.prefix_hits_total])
    engine.advance(steps + 1.0)
    return rows, ends()


def engine_of(load: Mix) -> tuple[PagedEngine, Callable[[], list[list[int]]]]:
    """The simulated engine with all requests submitted, and their (first token's step, last one's, preemptions)."""
    found: dict[int, list[int]] = {}

    def note(finished: FinishedRequest) -> None:
        steps = finished.first_token_seconds - 1, finished.finished_seconds - 1
        found[id(finished.request)] = [*map(round, steps), finished.preemptions]

    engine = PagedEngine(load.spec(), note)
    requests = load.simulated_requests()
    for request in requests:
        engine.submit(request)
    return engine, lambda: [found.get(id(request), []) for request in requests]


def first_difference(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            return f"step {step}: {mine}, vLLM's {other}"
    return None


def most(answer: dict[str, Any]) -> dict[str, int]:
    names = ("running", "waiting", "used", "preemptions", "cached", "hits")
    return dict(zip(names, map(max, zip(*answer["rows"], strict=True)), strict=True))


@pytest.mark.parametrize("load", [*PLAIN, *CACHING], ids=lambda load: load.name)
def test_every_step_is_that_of_vllms_scheduler(vllm: dict[Any, dict[str, Any]], load: Mix) -> None:
    theirs = vllm[load]
    assert None not in theirs["ends"]
    rows, ends = simulated(load, len(theirs["rows"]))
    assert first_difference(rows, theirs["rows"]) is None
    assert ends == theirs["ends"]
    # The same in as long leaps as there are.
    engine, all_ends = engine_of(load)
    engine.advance(float(MOST_STEPS))
    assert all_ends() == theirs["ends"]


@pytest.mark.parametrize("load", COARSE, ids=lambda load: load.name)
def test_units_of_many_blocks_are_found_nearly_as_often(vllm: dict[Any, dict[str, Any]], load: Mix) -> None:
    # A trace's unit is forgotten whole with its first block; vLLM still finds the blocks before that one. Neither are
    # generated tokens found that come again in a later prompt: a trace does not tell which those are.
    theirs = vllm[load]
    rows, ends = simulated(load, len(theirs["rows"]))
    assert all(ends)
    ours = most({"rows": rows})
    assert ours["hits"] == pytest.approx(most(theirs)["hits"], rel=0.1)
    assert ours["preemptions"] == pytest.approx(most(theirs)["preemptions"], rel=0.1, abs=2)
    lasted, real = (sum(last - first for first, last, _ in each) for each in (ends, theirs["ends"]))
    assert lasted == pytest.approx(real, rel=0.05)


def test_the_loads_queue_preempt_evict_and_fill_the_pool(vllm: dict[Any, dict[str, Any]]) -> None:
    found = {load.name: most(vllm[load]) for load in [*PLAIN, *CACHING]}
    assert found["few blocks"]["waiting"] > 10
    assert found["few blocks"]["preemptions"] > 50
    assert found["few places"]["running"] == 6
    assert found["all at once"]["used"] == 19
    assert sum(each["preemptions"] > 10 for each in found.values()) >= 10
    assert found["roomy"]["hits"] > 1.2 * found["evicting"]["hits"] > 0
    assert found["evicting and preempting"]["preemptions"] > 20
    assert found["evicting and preempting"]["hits"] > 0


@pytest.mark.parametrize("case", LAWFUL, ids=lambda case: case.name)
def test_as_many_alike_requests_are_safe_as_vllm_runs_together(vllm: dict[Any, dict[str, Any]], case: Alike) -> None:
    assert case.advised() == vllm[case]["requests"]


@pytest.mark.parametrize("case", HYBRID, ids=lambda case: case.name)
def test_as_many_are_safe_beside_windows(vllm: dict[Any, dict[str, Any]], case: Alike) -> None:
    groups = [[group.layers, group.block_tokens, group.window_tokens] for group in case.plan().groups]
    assert sorted(groups, key=str) == sorted(vllm[case]["groups"], key=str)
    assert case.advised() == vllm[case]["requests"]


def test_no_alike_request_loses_its_place_where_as_many_run_as_advised(vllm: dict[Any, dict[str, Any]]) -> None:
    # Where outputs end before all prompts are in, or windows still hold whole prompts, some wait; none is thrown out.
    assert {case.name: vllm[case]["preemptions"] for case in ANY if vllm[case]["preemptions"]} == {}
    few = [case.name for case in ANY if case.advised() < 0.85 * vllm[case]["requests"]]
    assert not few


def test_a_serving_engine_does_what_the_simulated_one_does(engine: VllmServer) -> None:
    # Over HTTP requests come in no fixed order and at no fixed step, so only sums can be compared.
    draw = random.Random(11)
    lengths = [(draw.randint(20, 200), draw.randint(20, 150)) for _ in range(REQUESTS)]
    jobs = [random_job(prompt, output, seed=20_000 + place) for place, (prompt, output) in enumerate(lengths)]
    until(lambda: engine.figures().running + engine.figures().waiting == 0, 30, "an idle engine")
    before = engine.figures()
    with Load(engine.url, MODEL_NAME, jobs) as load:
        looks = [before]
        while load.running:
            looks.append(engine.figures())
            # Nothing is awaited here: it only spaces the looks at the page out.
            time.sleep(0.1)
    after = engine.figures()
    assert [outcome.output_tokens for outcome in load.outcomes()] == [output for _, output in lengths]
    assert after.prompt_tokens_total - before.prompt_tokens_total == sum(prompt for prompt, _ in lengths)
    assert after.generation_tokens_total - before.generation_tokens_total == sum(output for _, output in lengths)

    requests = tuple((0, prompt, output, ()) for prompt, output in lengths)
    served = Mix("served", NUM_BLOCKS, BLOCK_TOKENS, MAX_MODEL_LEN, 64, 2048, requests)
    rows, ends = simulated(served, 5000)
    assert all(ends)
    ours = most({"rows": rows})
    assert max(look.running for look in looks) == pytest.approx(ours["running"], rel=0.25)
    assert max(look.used_blocks for look in looks) == pytest.approx(ours["used"], rel=0.03)
    assert after.preemptions_total - before.preemptions_total == pytest.approx(ours["preemptions"], rel=0.5)
