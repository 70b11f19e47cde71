"""The agent in a real vLLM on the CPU, compared with counts made anew at every step of its scheduler."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from . import tiny_model, vllm_saboteur
from .agent_engine import AgentEngine, Facts, write_hybrid_model
from .load import Job, Load, Outcome, random_job, random_jobs
from .processes import until
from .sidecar import Sidecar, SidecarPage
from .vllm_server import BLOCK_TOKENS, MODEL_NAME, NUM_BLOCKS

pytestmark = [pytest.mark.engines, pytest.mark.timeout(400)]

WINDOW_TOKENS = 128
STALE_AFTER_SECONDS = 5.0


@pytest.fixture(scope="module")
def server(vllm_python: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEngine]:
    server = AgentEngine(vllm_python, tiny_folder, tmp_path_factory.mktemp("agent"))
    yield from serving(server)


def serving(server: AgentEngine) -> Iterator[AgentEngine]:
    try:
        server.start()
        yield server
    finally:
        server.close()


def run(server: AgentEngine, jobs: Sequence[Job]) -> tuple[dict[int, Facts], list[Outcome]]:
    """Runs a load to its end; every reading of the scheduler's meanwhile, and how the requests went."""
    with Load(server.url, MODEL_NAME, jobs) as load:
        seen = server.watched(iter(lambda: load.running, None))
    outcomes = load.outcomes()
    assert [outcome.error for outcome in outcomes] == [None] * len(jobs)
    return seen, outcomes


def check_readings(server: AgentEngine, seen: dict[int, Facts]) -> int:
    """Compares each reading with the recorder's count at the same step; returns how many were compared."""
    truths = {record["steps"]: record for record in server.records()}
    compared = 0
    for steps, reading in seen.items():
        if steps == 0:
            continue
        truth = dict(truths[steps])
        if reading["cached_blocks_age_seconds"] > 0:
            # Left idle by a step that nobody had asked to count the pool.
            del truth["cached_blocks"]
        groups = [{key: group[key] for key in truth["groups"][0]} for group in reading["groups"]]
        pairs = sorted(map(list, reading["running_tokens"]))
        found = {**{key: reading[key] for key in truth}, "groups": groups, "running_tokens": pairs}
        assert found == truth
        assert reading["used_blocks"] + reading["cached_blocks"] + reading["free_blocks"] == reading["num_blocks"] - 1
        compared += 1
    return compared


def test_the_idle_engine_is_described(server: AgentEngine, tiny_folder: Path) -> None:
    until(lambda: server.settled_file(), 10, "the scheduler's file")
    facts = server.scheduler_file()
    assert facts["schema"] == 1
    assert (facts["engine"], facts["engine_version"]) == ("vllm", "0.32.0")
    assert facts["model"] == str(tiny_folder)
    assert (facts["dp_rank"], facts["dp"], facts["tp"], facts["pp"]) == (0, 1, 1, 1)
    scheduler = facts["scheduler"]
    assert (scheduler["num_blocks"], scheduler["null_blocks"]) == (NUM_BLOCKS, 1)
    assert (scheduler["used_blocks"], scheduler["cached_blocks"]) == (0, 0)
    assert (scheduler["max_num_seqs"], scheduler["kv_dtype"], scheduler["prefix_caching"]) == (64, "bfloat16", True)
    (group,) = scheduler["groups"]
    assert (group["kind"], group["block_tokens"], group["layers"]) == ("full", BLOCK_TOKENS, 4)
    assert group["layer_bytes_per_block"] == scheduler["bytes_per_block"]
    assert scheduler["kv_pool_bytes"] == scheduler["bytes_per_block"] * NUM_BLOCKS

    worker = server.file("worker")
    assert (worker["tp_rank"], worker["pp_rank"]) == (0, 0)
    assert worker["memory"]["kv_pool_bytes"] == scheduler["kv_pool_bytes"]
    assert worker["missing"]["allocators"]
    assert worker["instance"] == facts["instance"]
    assert {worker["pid"], facts["pid"]} == {int(path.stem.split("-")[-1]) for path in server.spool.glob("*.json")}


def test_whole_blocks_of_ended_requests_stay_reusable(server: AgentEngine) -> None:
    before = server.settled_file()["scheduler"]["cached_blocks"]
    jobs = [random_job(100 + 13 * index, 60, seed=900 + index) for index in range(4)]
    run(server, jobs)
    # The last token is sampled but never stored.
    whole = sum((len(job.prompt) + job.output_tokens - 1) // BLOCK_TOKENS for job in jobs)
    assert server.settled_file()["scheduler"]["cached_blocks"] == before + whole

    run(server, [Job(jobs[0].prompt, 1)])
    assert server.settled_file()["scheduler"]["cached_blocks"] == before + whole


def test_every_reading_is_exact_through_queueing_preemption_and_shared_prefixes(server: AgentEngine) -> None:
    prefix = random_job(140, 1, seed=5).prompt
    sharing = [Job(prefix + random_job(20 + index, 1, seed=index).prompt, 300) for index in range(8)]
    seen, _ = run(server, random_jobs(22, 200, 400) + sharing)
    assert check_readings(server, seen) >= 20
    assert max(reading["used_blocks"] for reading in seen.values()) > 0.9 * NUM_BLOCKS
    assert any(reading["waiting"] for reading in seen.values())
    assert any(reading["cached_blocks"] for reading in seen.values())
    last = server.settled_file()["scheduler"]
    assert last["used_blocks"] == last["live_tokens"] == last["tail_tokens"] == 0
    assert last["preemptions"] == server.figures().preemptions_total > 0


def test_the_file_of_a_stopped_scheduler_agrees_with_the_engines_page(server: AgentEngine) -> None:
    agreed = 0
    for attempt in range(15):
        jobs = [random_job(150 + 13 * index, 900, seed=1000 * attempt + index) for index in range(4)]
        with Load(server.url, MODEL_NAME, jobs) as load:
            while load.running and agreed < 3:
                with server.frozen() as page:
                    reading = server.scheduler_file()["scheduler"]
                    steps = server.last_steps()
                if reading["steps"] == steps and page.running:
                    # Else the process was stopped between the end of a step and the writing of the file.
                    assert reading["used_blocks"] == page.used_blocks
                    assert (reading["running"], reading["waiting"]) == (page.running, page.waiting)
                    assert reading["used_blocks"] * BLOCK_TOKENS == reading["live_tokens"] + reading["tail_tokens"]
                    agreed += 1
                time.sleep(0.05)
        if agreed >= 3:
            break
    assert agreed >= 3


def test_the_sidecar_tells_what_the_scheduler_holds(server: AgentEngine, tiny_folder: Path, tmp_path: Path) -> None:
    compared = 0
    with closing(Sidecar(server.url, tiny_folder, tmp_path / "sidecar.log", "--spool", str(server.spool))) as sidecar:
        run(server, random_jobs(4, 200, 50, seed=70))
        for attempt in range(6):
            with Load(server.url, MODEL_NAME, random_jobs(12, 150, 300, seed=71 + attempt)) as load:
                while load.running:
                    with server.frozen():
                        sidecar.await_read()
                        page, facts = sidecar.page(), server.scheduler_file()["scheduler"]
                    compared += check_page(page, facts, server)
                    time.sleep(0.2)
            # A busy machine leaves time for a look or two in the seconds that one load takes.
            if compared >= 3:
                break
    assert compared >= 3


def check_page(page: SidecarPage, facts: Facts, server: AgentEngine) -> int:
    """Compares the sidecar's page with the recorder's count at the step that the file is of; 1, or 0 where nothing
    ran then or the file was of too early a step."""
    truth = server.record(facts["steps"])
    if truth is None or not truth["live_tokens"] or page.value("kvgauge_kv_live_tokens", method="measured") is None:
        return 0
    assert page.number("kvgauge_kv_live_tokens", method="measured") == truth["live_tokens"]
    assert page.number("kvgauge_kv_tokens", state="active") == truth["used_blocks"] * BLOCK_TOKENS
    assert page.number("kvgauge_kv_tokens", state="reclaimable") == facts["cached_blocks"] * BLOCK_TOKENS
    tail_bytes = truth["tail_tokens"] * page.number("kvgauge_kv_bytes_per_token")
    assert page.number("kvgauge_waste_bytes", kind="block_tail", method="measured") == tail_bytes
    states = sum(row.value for row in page.rows("kvgauge_kv_tokens"))
    assert states == page.number("kvgauge_kv_capacity_tokens") == NUM_BLOCKS * BLOCK_TOKENS
    assert page.value("kvgauge_source_up", source="agent") == 1
    return 1


def test_a_spool_that_is_no_folder_for_a_while_costs_one_line(server: AgentEngine) -> None:
    before = server.settled_file()["sequence"]
    folder = server.spool.resolve()
    server.point_spool_to(Path("/dev/full"))
    until(lambda: "can't be written" in server.log.read_text(errors="replace"), 10, "the agent's complaint")
    run(server, random_jobs(3, 100, 100, seed=11))
    server.point_spool_to(folder)
    until(lambda: server.files() and server.scheduler_file()["sequence"] > before, 10, "the agent's new file")
    run(server, random_jobs(2, 100, 100, seed=12))
    complaints = [line for line in server.log.read_text(errors="replace").splitlines() if "can't be written" in line]
    # One of each of the two processes that write.
    assert len(complaints) == 2


def test_a_killed_engine_leaves_a_file_that_grows_stale(server: AgentEngine) -> None:
    server.kill()
    facts = server.scheduler_file()
    assert time.monotonic() - facts["monotonic_seconds"] >= 0
    until(
        lambda: time.monotonic() - server.scheduler_file()["monotonic_seconds"] > STALE_AFTER_SECONDS,
        10,
        "a stale file",
    )
    assert server.scheduler_file() == facts


def test_each_group_of_a_hybrid_model_is_exact(vllm_python: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_model.write(model)
    write_hybrid_model(model, WINDOW_TOKENS)
    server = AgentEngine(
        vllm_python, model, tmp_path, arguments=["--load-format", "dummy", "--num-gpu-blocks-override", "600"]
    )
    for _ in serving(server):
        idle = server.settled_file()["scheduler"]
        kinds = [group["kind"] for group in idle["groups"]]
        assert set(kinds) == {"full", "sliding_window"}
        assert sum(group["layers"] for group in idle["groups"]) == 12
        prefix = random_job(150, 1, seed=5).prompt
        sharing = [Job(prefix + random_job(20 + index, 1, seed=index).prompt, 150) for index in range(4)]
        # One after the other, so that the later ones find the prefix of the first.
        run(server, sharing[:1])
        seen, _ = run(server, [*sharing, *random_jobs(2, 200, 300)])
        assert check_readings(server, seen) >= 20
        assert not any("scheduler.groups.used_blocks" in file["missing"] for file in server.files())


def test_no_failure_of_the_agent_reaches_the_engine(vllm_python: Path, tiny_folder: Path, tmp_path: Path) -> None:
    server = AgentEngine(vllm_python, tiny_folder, tmp_path, plugins=[vllm_saboteur], tick_seconds=None)
    for _ in serving(server):
        until(lambda: bool(server.files()), 10, "the scheduler's file")
        for seed in range(20):
            run(server, random_jobs(12, 200, 400, seed=seed + 100))
            log = server.log.read_text(errors="replace")
            if "agent is off" in log and "scheduler's part is off" in log:
                break
        run(server, random_jobs(3, 100, 100, seed=99))
        facts = server.scheduler_file()
        assert server.figures().preemptions_total > 0
        assert server.alive
        log = server.log.read_text(errors="replace")
    lines = [line for line in log.splitlines() if "kvgauge agent" in line]
    assert len(lines) == len(set(lines))
    ended = "|".join(
        ("hook on vllm", "preemptions", "allocators", "groups", "scheduler is off", "scheduler's part", "agent is off")
    )
    assert len({match for line in lines for match in re.findall(ended, line)}) == len(vllm_saboteur.PLACES)
    assert vllm_saboteur.SECRET not in log
    missing: dict[str, Any] = dict(facts["missing"])
    assert "SabotageError" in missing["scheduler"] + missing["allocators"]
    assert vllm_saboteur.SECRET not in str(facts)
