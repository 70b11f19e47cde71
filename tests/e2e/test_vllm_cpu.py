"""The sidecar beside a real vLLM on the CPU, compared with what that engine itself says.

The two pages are read at different moments, so figures are compared while the engine's scheduler is stopped in the
middle of its work: then both pages describe the same moment, and have to agree exactly.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from .load import Job, Load, random_job, random_jobs
from .processes import until
from .sidecar import INTERVAL_SECONDS, Sidecar, SidecarPage
from .tiny_model import TinyShape
from .vllm_server import BLOCK_TOKENS, MAX_MODEL_LEN, MODEL_NAME, NUM_BLOCKS, EngineFigures, VllmServer

pytestmark = [pytest.mark.engines, pytest.mark.timeout(330)]

STALE_AFTER_SECONDS = 5.0
# Reading, publishing and fetching the page on a busy machine.
SLACK_SECONDS = 1.5
KV_SERIES = (
    "kvgauge_kv_tokens",
    "kvgauge_kv_usage_ratio",
    "kvgauge_kv_capacity_tokens",
    "kvgauge_kv_live_tokens",
    "kvgauge_requests",
    "kvgauge_load_ratio",
    "kvgauge_safe_concurrency",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """What both pages say while the engine stands still."""

    engine: EngineFigures
    page: SidecarPage

    @property
    def active_tokens(self) -> float:
        return self.page.number("kvgauge_kv_tokens", state="active")

    @property
    def used_blocks(self) -> float:
        """Recomputed from our series alone."""
        return self.active_tokens / self.page.number("kvgauge_kv_block_tokens")

    def check(self) -> None:
        """Every figure that both pages have is the same, and ours add up."""
        assert self.used_blocks == self.engine.used_blocks
        assert self.page.number("kvgauge_requests", state="running") == self.engine.running
        assert self.page.number("kvgauge_requests", state="waiting") == self.engine.waiting
        assert self.page.number("kvgauge_preemptions_total") == self.engine.preemptions_total
        check_sum(self.page)


def check_sum(page: SidecarPage) -> None:
    states = {row.labels["state"]: row.value for row in page.rows("kvgauge_kv_tokens")}
    assert {"active", "free"} <= states.keys() <= {"active", "free", "reclaimable"}
    assert sum(states.values()) == page.number("kvgauge_kv_capacity_tokens")


def moment(engine: VllmServer, sidecar: Sidecar) -> Moment:
    """Freezes the engine, waits until the sidecar has read it as it stands, and takes both pages."""
    with engine.frozen() as before:
        sidecar.await_read()
        page = sidecar.page()
        after = engine.figures()
    assert before == after, "the engine's page moved while its scheduler was stopped"
    return Moment(before, page)


def moments_of(
    engine: VllmServer, sidecar: Sidecar, load: Load, run_seconds: float
) -> Iterator[tuple[SidecarPage, Moment]]:
    """While the load runs: a page read in motion, then a moment, then `run_seconds` of work, over and over."""
    while load.running:
        yield sidecar.page(), moment(engine, sidecar)
        # Nothing is awaited here: how far the engine gets meanwhile only spaces the moments out.
        time.sleep(run_seconds)


def quiet(engine: VllmServer, sidecar: Sidecar) -> SidecarPage:
    """The page once the engine has nothing left to do and the sidecar has seen that."""
    until(lambda: engine.figures().running + engine.figures().waiting == 0, 30, "an idle engine")
    sidecar.await_read()
    return sidecar.page()


def test_the_idle_page_agrees_with_the_engines_log(engine: VllmServer, sidecar: Sidecar, tiny_shape: TinyShape) -> None:
    page = quiet(engine, sidecar)
    logged = engine.logged_capacity()
    assert logged.max_model_len == MAX_MODEL_LEN

    assert page.number("kvgauge_kv_capacity_tokens") == logged.capacity_tokens
    assert page.number("kvgauge_kv_block_tokens") == BLOCK_TOKENS
    assert page.number("kvgauge_kv_bytes_per_token") == tiny_shape.kv_bytes_per_token
    assert page.number("kvgauge_kv_tokens", state="active", model=MODEL_NAME, rank="0") == 0
    check_sum(page)

    (info,) = page.rows("kvgauge_engine_info")
    assert info.labels["engine"] == "vllm"
    assert info.labels["version"] == "0.32.0"
    assert info.labels["max_model_len"] == str(MAX_MODEL_LEN)

    gpu_here = Path("/dev/nvidiactl").exists()
    up = {row.labels["source"]: row.value for row in page.rows("kvgauge_source_up")}
    assert (up["engine"], up["model"], up["nvml"]) == (1, 1, float(gpu_here))


def seen_enough(busy: list[Moment]) -> bool:
    """Whether the moments cover what the load is for: many fill levels, a full pool, a queue."""
    return (
        len({still.used_blocks for still in busy}) >= 5
        and max(still.used_blocks for still in busy) > 0.9 * (NUM_BLOCKS - 1)
        and any(still.engine.waiting > 0 for still in busy)
    )


def test_every_figure_follows_the_engine_through_queueing_and_preemption(engine: VllmServer, sidecar: Sidecar) -> None:
    before = engine.figures()
    busy: list[Moment] = []
    for attempt in range(6):
        with Load(engine.url, MODEL_NAME, jobs := random_jobs(30, 200, 400, seed=attempt + 1)) as load:
            for page, still in moments_of(engine, sidecar, load, 0.3):
                check_sum(page)
                still.check()
                busy += [still] if still.used_blocks > 0 else []
        assert [outcome.error for outcome in load.outcomes()] == [None] * len(jobs)
        assert {outcome.output_tokens for outcome in load.outcomes()} == {400}
        # A busy machine leaves time for a look or two in the seconds that one load takes.
        if seen_enough(busy):
            break
    assert seen_enough(busy)

    page = quiet(engine, sidecar)
    assert engine.figures().preemptions_total > before.preemptions_total
    assert page.number("kvgauge_preemptions_total") == engine.figures().preemptions_total
    assert page.number("kvgauge_kv_tokens", state="active") == 0
    assert page.number("kvgauge_kv_usage_ratio") == 0
    assert page.number("kvgauge_requests", state="running") == 0
    assert page.number("kvgauge_requests", state="waiting") == 0
    check_sum(page)


def uneven_jobs(seed: int) -> list[Job]:
    """Four requests that fit together and run long, of lengths that share no remainder of the block size."""
    return [random_job(150 + 13 * index, 1300, seed=seed + index) for index in range(4)]


def test_the_tokens_held_are_estimated_between_what_they_can_be(engine: VllmServer, sidecar: Sidecar) -> None:
    errors: list[float] = []
    for attempt in range(8):
        errors += estimate_errors(engine, sidecar, uneven_jobs(1000 * (attempt + 1)))
        # A busy machine leaves time for a look or two in the seconds that one load takes.
        if len(errors) >= 3:
            break
    assert len(errors) >= 3
    assert sum(errors) / len(errors) < 0.05


def estimate_errors(engine: VllmServer, sidecar: Sidecar, jobs: list[Job]) -> list[float]:
    """Relative errors of the live-token estimate while `jobs` run, at moments where the truth is known exactly."""
    quiet(engine, sidecar)
    idle = engine.figures()
    errors: list[float] = []
    with Load(engine.url, MODEL_NAME, jobs) as load:
        for _, still in moments_of(engine, sidecar, load, 0.05):
            still.check()
            prefilled = still.engine.prompt_tokens_total - idle.prompt_tokens_total
            if still.engine.running != len(jobs) or prefilled != sum(len(job.prompt) for job in jobs):
                continue
            # All are past their prefill, none has ended, and the last sampled token of each is not stored yet.
            generated = still.engine.generation_tokens_total - idle.generation_tokens_total
            truth = prefilled + generated - len(jobs)
            most_tail = len(jobs) * (BLOCK_TOKENS - 1)
            assert still.active_tokens - most_tail <= truth <= still.active_tokens

            live = still.page.number("kvgauge_kv_live_tokens", method="estimated")
            waste = still.page.number("kvgauge_waste_bytes", kind="block_tail", method="estimated")
            assert still.active_tokens - most_tail <= live <= still.active_tokens
            assert 0 < waste <= most_tail * still.page.number("kvgauge_kv_bytes_per_token")
            errors.append(abs(live - truth) / truth)
    assert engine.figures().preemptions_total == idle.preemptions_total
    return errors


def test_a_killed_engine_becomes_missing_and_a_restarted_one_is_found_again(
    engine: VllmServer, sidecar: Sidecar
) -> None:
    process = sidecar.pid
    with Load(engine.url, MODEL_NAME, random_jobs(16, 100, 1500, seed=3)):
        until(lambda: (sidecar.page().value("kvgauge_kv_tokens", state="active") or 0) > 0, 30, "blocks in use")
        engine.kill()
        killed_at = time.monotonic()  # the kernel takes seconds over a large process on a busy machine
        until(lambda: sidecar.page().value("kvgauge_source_up", source="engine") == 0, 5, "the engine seen as down")
        assert time.monotonic() - killed_at <= 2.0

    def kv_series() -> list[str]:
        page = sidecar.page()
        return [name for name in KV_SERIES if page.rows(name)]

    until(lambda: not kv_series(), 2 * STALE_AFTER_SECONDS, "the engine's series gone")
    assert time.monotonic() - killed_at <= STALE_AFTER_SECONDS + INTERVAL_SECONDS + SLACK_SECONDS

    page = sidecar.page()
    assert page.number("kvgauge_advice_valid") == 0
    assert sidecar.advice()["valid"] is False
    assert {row.labels["source"] for row in page.rows("kvgauge_source_up")} >= {"engine", "nvml", "model"}
    assert page.number("kvgauge_source_up", source="model") == 1
    assert page.rows("kvgauge_build_info")
    assert sum(row.value for row in page.rows("kvgauge_source_errors_total", source="engine")) > 0

    engine.start()
    until(lambda: sidecar.page().value("kvgauge_source_up", source="engine") == 1, 15, "the new engine seen as up")
    page = quiet(engine, sidecar)
    assert page.number("kvgauge_kv_capacity_tokens") == engine.logged_capacity().capacity_tokens
    assert page.number("kvgauge_preemptions_total") == engine.figures().preemptions_total == 0
    with Load(engine.url, MODEL_NAME, random_jobs(4, 100, 800, seed=4)) as load:
        moments = [still for _, still in moments_of(engine, sidecar, load, 0.05)]
    for still in moments:
        still.check()
    assert max(still.engine.running for still in moments) == 4
    assert sidecar.alive
    assert sidecar.pid == process


def test_a_scheduler_that_stands_still_is_down_and_an_idle_one_is_not(
    engine: VllmServer, tiny_folder: Path, tmp_path: Path
) -> None:
    with closing(Sidecar(engine.url, tiny_folder, tmp_path / "sidecar.log", "--stalled-after", "2s")) as sidecar:

        def is_up() -> bool:
            return sidecar.page().value("kvgauge_source_up", source="engine") == 1

        def is_seen_to_stand() -> bool:
            counted = sidecar.page().value("kvgauge_source_errors_total", source="engine", reason="stalled")
            return counted is not None and counted > 0

        until(is_up, 15, "the engine seen as up")
        quiet(engine, sidecar)
        time.sleep(3)
        assert is_up()
        with Load(engine.url, MODEL_NAME, random_jobs(16, 100, 1500, seed=9)):
            until(lambda: (sidecar.page().value("kvgauge_requests", state="running") or 0) > 0, 30, "a running request")
            with engine.frozen():
                # On a busy machine its page may have come too late before.
                until(is_seen_to_stand, 15, "the scheduler seen as standing")
                assert not is_up()
            until(is_up, 15, "the scheduler seen at work again")
