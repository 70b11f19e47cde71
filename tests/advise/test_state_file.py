import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvgauge.advise import History, StateFile
from kvgauge.advise.state_file import MOST_BYTES
from kvgauge.advise.stepping_records import StepRecord
from kvgauge.observe.records import Observation
from tests.support.facts import ENGINE, GPU, histogram, observation

STEPS = StepRecord((0.01, 1e-7, 1e-5, 0.0, 0.0), (1.0, 0.5, 1.0, 1.0, 1.0), 0.1, 5.0, 60.0)


def seen(number: int, at: float) -> Observation:
    return observation(at=at, prompt_lengths=histogram([500] * number), output_lengths=histogram([300] * number))


def lived(file: StateFile, seconds: int = 100) -> History:
    """A process that saw two requests finish each second."""
    history = History()
    for at in range(seconds):
        file.follow(seen(2 * at, at), history)
        history.remember(seen(2 * at, at))
    return history


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


@pytest.fixture
def written(path: Path) -> Path:
    file = StateFile(path)
    history = History()
    history.restore_steps(STEPS)
    for at in range(100):
        file.follow(seen(2 * at, at), history)
        history.remember(seen(2 * at, at))
    return path


def taken_up(path: Path, tick: Observation) -> History:
    history = History()
    StateFile(path).follow(tick, history)
    history.remember(tick)
    return history


def test_what_was_learned_outlives_the_process(written: Path) -> None:
    history = taken_up(written, seen(0, 105))
    learned = history.learned(8192)
    assert learned is not None
    assert learned.source == "memory"
    assert learned.prompts.mean == pytest.approx(500, rel=1e-4)
    assert learned.finished == 2 * 89
    assert history.steps.record() == STEPS


def test_it_is_written_twice_a_minute_and_nothing_is_left_beside_it(path: Path) -> None:
    file, history, times = StateFile(path), History(), []
    for at in range(100):
        file.follow(seen(at, at), history)
        history.remember(seen(at, at))
        if path.exists() and json.loads(path.read_text())["wall_seconds"] not in times:
            times.append(json.loads(path.read_text())["wall_seconds"])
    assert times == [1_700_000_000.0 + at for at in (30, 60, 90)]
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_read_before_it_is_known_what_is_served(written: Path) -> None:
    file, history = StateFile(written), History()
    file.follow(observation(at=104, engine=None), history)
    assert history.kept() is None
    file.follow(seen(0, 105), history)
    assert history.kept() is not None


@pytest.mark.parametrize(
    "tick",
    [
        observation(at=105, engine=replace(ENGINE, model="other")),
        observation(at=105, engine=replace(ENGINE, engine="sglang")),
        observation(at=105, engine=replace(ENGINE, max_model_len=4096)),
        observation(at=105, gpus=(replace(GPU, name="NVIDIA L4"),)),
        observation(at=90_000),
        observation(at=-1000),
    ],
)
def test_what_belongs_to_others_or_is_old_is_ignored(
    written: Path, tick: Observation, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="kvgauge"):
        assert taken_up(written, tick).kept() is None
    assert len(caplog.records) == 1
    assert "ignored" in caplog.text


def test_what_is_not_known_now_does_not_keep_it_out(written: Path) -> None:
    engine = replace(ENGINE, max_model_len=None)
    assert taken_up(written, observation(at=105, engine=engine, gpus=())).kept() is not None


def altered(path: Path, **change: object) -> bytes:
    return json.dumps({**json.loads(path.read_bytes()), **change}).encode()


HISTOGRAM = {"bounds": [10, 100], "cumulative": [1, 2, 3], "total": 50}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": 2}',
        b"{" + b" " * MOST_BYTES + b"}",
    ],
)
def test_a_torn_or_huge_file_is_one_line_in_the_log(
    written: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    written.write_bytes(body)
    with caplog.at_level("INFO", logger="kvgauge"):
        assert taken_up(written, seen(0, 105)).kept() is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"wall_seconds": "now"},
        {"wall_seconds": float("nan")},
        {"served": None},
        {"lengths": 5},
        {"lengths": {"prompts": HISTOGRAM}},
        {"lengths": {"prompts": {**HISTOGRAM, "cumulative": [3, 2, 1]}, "outputs": HISTOGRAM}},
        {"lengths": {"prompts": {**HISTOGRAM, "bounds": [100, 10]}, "outputs": HISTOGRAM}},
        {"lengths": {"prompts": {**HISTOGRAM, "bounds": [10]}, "outputs": HISTOGRAM}},
        {"lengths": {"prompts": {**HISTOGRAM, "total": -1}, "outputs": HISTOGRAM}},
        {"lengths": {"prompts": {**HISTOGRAM, "cumulative": "123"}, "outputs": HISTOGRAM}},
        {"lengths": {"prompts": {"bounds": [*range(500)], "cumulative": [0] * 501, "total": 1}, "outputs": HISTOGRAM}},
    ],
)
def test_what_is_no_state_is_ignored(written: Path, change: dict[str, object]) -> None:
    written.write_bytes(altered(written, **change))
    assert taken_up(written, seen(0, 105)).kept() is None


def test_steps_that_cannot_be_read_leave_the_lengths(written: Path) -> None:
    written.write_bytes(altered(written, steps={"prior": "x"}))
    history = taken_up(written, seen(0, 105))
    assert history.kept() is not None
    assert history.steps.record() == StepRecord()


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kvgauge"):
        history = lived(StateFile(tmp_path / "nowhere" / "state.json"))
    assert history.learned(8192) is not None
    assert [record.message.split(": ")[2] for record in caplog.records] == ["cannot be written"]


def test_a_folder_in_its_place_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kvgauge"):
        assert taken_up(tmp_path, seen(0, 105)).kept() is None
    assert "Is a directory" in caplog.text
