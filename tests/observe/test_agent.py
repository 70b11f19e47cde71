"""The spool as a source: good files, bad files, hostile files."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgauge.observe.agent import MAX_FILES, STALE_SECONDS, AgentSource, fresh
from kvgauge.observe.records import AgentReading, ProcessReading, SourceError
from kvgauge.observe.spool_file import read_file
from tests.support.process import eventually
from tests.support.spool import ALLOCATOR, BOOKS, process, record, scheduler, worker, write


class Clock:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def read(folder: Path) -> AgentReading:
    return AgentSource(str(folder)).read()


def failure(folder: Path) -> str:
    with pytest.raises(SourceError) as error:
        read(folder)
    assert "\n" not in error.value.message
    return error.value.reason


def test_a_scheduler_and_its_worker(tmp_path: Path) -> None:
    write(tmp_path, worker())
    write(tmp_path, scheduler())
    head, hand = read(tmp_path).processes
    assert (head.pid, head.instance, head.role, head.engine, head.engine_version) == (
        1, "pod-1", "scheduler", "vllm", "0.19.0",
    )  # fmt: skip
    assert (head.model, head.dp_rank, head.tp, head.pp) == ("/models/llama", 0, 1, 1)
    assert head.scheduler is not None
    assert (head.scheduler.used_blocks, head.scheduler.cached_blocks, head.scheduler.null_blocks) == (500, 200, 1)
    assert head.scheduler.groups[0].tail_tokens == 100
    assert head.scheduler.running_tokens == ((500, 790),) * 10
    assert hand.memory_bytes == {"weights": 16_000, "kv_pool": 50_000, "activations": 2_000, "non_torch": 500}
    assert (hand.allocators[0].uuid, hand.allocators[0].largest_free_bytes) == ("GPU-1", 240)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "torn"),
        (b'{"schema": 1, "pid"', "torn"),
        (b"[" * 60_000, "torn"),
        (b'{"a": ' * 9_000, "torn"),
        (b'{"schema": ' + b"9" * 50_000 + b"}", "torn"),
        (b"\xff\xfe\x00", "torn"),
        (b"[]", "foreign"),
        (b"null", "foreign"),
        (b'{"kind": "somebody else\'s"}', "foreign"),
        (json.dumps(process(schema=2)).encode(), "foreign"),
        (json.dumps({**process(), "pid": None}).encode(), "foreign"),
        (json.dumps(process(role="king")).encode(), "foreign"),
        (json.dumps(process(engine="sglang")).encode(), "foreign"),
        (json.dumps(process(instance=-1)).encode(), "foreign"),
        (json.dumps(process(monotonic_seconds="now")).encode(), "foreign"),
        (json.dumps(process()).encode() + b" " * 70_000, "too_large"),
    ],
)
def test_a_file_that_is_no_agents_costs_only_itself(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, content)
    assert failure(tmp_path) == reason
    write(tmp_path, scheduler())
    reading = read(tmp_path)
    assert [each.pid for each in reading.processes] == [1]
    assert reading.skipped == {reason: 1}


def test_links_folders_and_pipes_are_not_followed(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    secret = write(tmp_path, scheduler(), "elsewhere.json")
    (spool / "pod-1.json").symlink_to(secret)
    (spool / "pod-2.json").mkdir()
    os.mkfifo(spool / "pod-3.json")
    began = time.monotonic()
    assert failure(spool) == "not_regular"
    assert time.monotonic() - began < 1
    write(spool, scheduler(4))
    assert read(spool).skipped == {"not_regular": 3}


def test_only_the_agents_names_are_looked_at(tmp_path: Path) -> None:
    for name in (".pod-1.json.tmp", "pod.json", "pod-1.json.bak", "a b-1.json", "x" * 40 + "-1.json"):
        write(tmp_path, scheduler(), name)
    assert failure(tmp_path) == "no_files"


def test_no_more_than_a_bounded_number_of_files_is_read(tmp_path: Path) -> None:
    for pid in range(MAX_FILES + 5):
        write(tmp_path, process(pid))
    reading = read(tmp_path)
    assert (len(reading.processes), reading.skipped) == (MAX_FILES, {"too_many": 1})


def test_a_folder_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    assert failure(tmp_path / "nowhere") == "not_found"
    file = write(tmp_path, b"")
    assert failure(file) == "unreadable"
    assert AgentSource(str(tmp_path / "nowhere")).is_expected
    assert AgentSource().is_expected is Path("/run/kvgauge").is_dir()


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    spool.chmod(0)
    me = os.geteuid()
    if me == 0:
        # Root may read everything.
        os.seteuid(65534)
    try:
        assert failure(spool) == "not_permitted"
    finally:
        os.seteuid(me)


def test_a_file_grows_stale_by_its_own_clock_and_by_the_file_systems(tmp_path: Path) -> None:
    write(tmp_path, scheduler(1, now=time.monotonic() - STALE_SECONDS - 0.1))
    write(tmp_path, scheduler(2, now=time.monotonic() + STALE_SECONDS + 1))
    write(tmp_path, scheduler(3), age_seconds=STALE_SECONDS + 0.1)
    assert failure(tmp_path) == "stale"
    write(tmp_path, scheduler(4))
    reading = read(tmp_path)
    assert ([each.pid for each in reading.processes], reading.skipped) == ([4], {"stale": 3})


def test_what_was_read_grows_stale_as_well(tmp_path: Path) -> None:
    write(tmp_path, scheduler(1))
    write(tmp_path, worker(2, now=time.monotonic() - 3))
    reading = read(tmp_path)
    assert 3 <= reading.file_age_seconds < 4
    assert [each.pid for each in fresh(reading, time.monotonic() + 3).processes] == [1]
    assert fresh(reading, time.monotonic() + 6).processes == ()


def test_a_bad_file_is_counted_once_until_it_changes(tmp_path: Path) -> None:
    write(tmp_path, scheduler())
    write(tmp_path, b"{", age_seconds=1)
    source = AgentSource(str(tmp_path))
    assert source.read().newly_skipped == {"torn": 1}
    reading = source.read()
    assert (reading.skipped, reading.newly_skipped) == ({"torn": 1}, {})
    write(tmp_path, b"{")
    assert source.read().newly_skipped == {"torn": 1}


def test_a_scheduler_that_has_requests_and_does_not_step_stands(tmp_path: Path) -> None:
    clock = Clock()
    source = AgentSource(str(tmp_path), clock=clock)

    def standing(seconds: float, **books: object) -> float:
        clock.now += seconds
        write(tmp_path, scheduler(books=books, now=clock.now))
        return source.read().processes[0].standing_seconds

    assert standing(0, steps=5) == 0
    assert standing(20, steps=5) == 20
    assert standing(20, steps=5) == 40
    assert standing(1, steps=6) == 0
    assert standing(60, steps=6, running=0, waiting=0) == 0


def test_figures_out_of_bounds_are_not_believed() -> None:
    books: dict[str, object] = {
        "used_blocks": 1001,
        "num_blocks": 1000,
        "cached_blocks": -1,
        "live_tokens": 2**60,
        "steps": True,
    }
    books |= {"tail_tokens": 1e400, "running": 3.5, "waiting": "7", "max_num_seqs": 0, "kv_dtype": "fp8\n"}
    found = record(scheduler(books=books, model="x\x00y", engine_version="9" * 99, tp=0, tick_seconds=float("nan")))
    assert found.scheduler is not None
    names = ("used_blocks", "cached_blocks", "live_tokens", "steps", "tail_tokens", "running", "waiting")
    assert [getattr(found.scheduler, name) for name in names] == [None] * 7
    assert (found.scheduler.max_num_seqs, found.scheduler.kv_dtype) == (None, None)
    assert (found.model, found.engine_version, found.tp, found.tick_seconds) == (None, None, None, None)


def test_words_are_cut_and_must_be_fit_to_show() -> None:
    found = record(process(model="m" * 9999, missing={"a" * 999: "b" * 999, "c": 7, "d": "\ud800"}))
    assert found.model == "m" * 256
    assert found.missing == {"a" * 256: "b" * 256}


@pytest.mark.parametrize("groups", [[BOOKS["groups"][0]] * 65, [BOOKS["groups"][0], 7], [{"kind": "new"}], {"a": 1}])
def test_groups_are_believed_all_or_none(groups: object) -> None:
    found = record(scheduler(books={"groups": groups})).scheduler
    assert found is not None
    assert found.groups == ()


def test_what_a_real_agent_writes_is_read_and_gone_when_it_ends(tmp_path: Path) -> None:
    program = "import kvgauge_agent, sys; kvgauge_agent.start('program', 'torch', model='org/tiny'); sys.stdin.read()"
    environment = {**os.environ, "KVGAUGE_SPOOL": str(tmp_path)}
    source = AgentSource(str(tmp_path))

    def is_read() -> bool:
        with contextlib.suppress(SourceError):
            return bool(source.read().processes)
        return False

    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=environment) as agent:
        eventually(is_read, 10)
        (process,) = source.read().processes
        assert (process.pid, process.role, process.engine, process.model) == (agent.pid, "program", "torch", "org/tiny")
        assert process.instance.endswith(f"-{agent.pid}")
    assert agent.returncode == 0
    assert failure(tmp_path) == "no_files"


def test_twenty_files_take_well_under_five_milliseconds(tmp_path: Path) -> None:
    for pid in range(20):
        write(tmp_path, scheduler(pid, books={"running_tokens": [[1000, 2000]] * 64}, allocators=[ALLOCATOR] * 2))
    source = AgentSource(str(tmp_path))
    took = []
    for _ in range(20):
        # Of this thread, whatever else the machine does.
        began = time.thread_time()
        source.read()
        took.append(time.thread_time() - began)
    assert statistics.median(took) < 0.005


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = [*worker(), *scheduler()]
INNER = [*BOOKS, *BOOKS["groups"][0], *ALLOCATOR, "kind", "layers", "sequences", "weights_bytes"]
ODD = st.dictionaries(st.sampled_from(INNER), JSON | st.sampled_from(["full", "static", "paged"]), max_size=6)


def outcome(content: bytes) -> ProcessReading | str:
    try:
        return read_file(content, "pod")
    except SourceError as error:
        return error.reason


@given(st.binary(max_size=300))
def test_no_bytes_can_raise_anything_else(content: bytes) -> None:
    assert outcome(content) in {"torn", "foreign"}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*KEYS, "caches"]), JSON | ODD | st.lists(ODD, max_size=3), max_size=8))
def test_no_value_under_a_known_key_can_raise_anything_else(changes: dict[str, object]) -> None:
    found = outcome(json.dumps({**scheduler(), **changes}).encode())
    if isinstance(found, str):
        assert found == "foreign"
    else:
        books = found.scheduler
        assert all(size >= 0 for size in found.memory_bytes.values())
        assert books is None or books.used_blocks is None or books.used_blocks >= 0
