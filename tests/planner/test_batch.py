"""Batches: a result for each line, in order, whatever the lines hold."""

import io
import json
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.planner import batch
from tests.planner.running import COMMAND, on_terminal, piped
from tests.planner.standin import plan

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["model", "tp", "kv_dtype", "max_model_len", "nonsense"])


def planned(source: bytes, **defaults: object) -> list[dict[str, Any]]:
    target = io.BytesIO()
    batch.plan_lines(io.BytesIO(source), target, plan, defaults)
    return [json.loads(line, parse_constant=_refuse) for line in target.getvalue().splitlines()]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@given(st.lists(st.dictionaries(KEYS, JSON, max_size=4) | JSON, max_size=6))
def test_each_line_has_its_result_in_order(values: list[object]) -> None:
    results = planned(b"".join(json.dumps(value).encode() + b"\n" for value in values))
    assert len(results) == len(values)
    for number, (value, result) in enumerate(zip(values, results, strict=True), 1):
        if isinstance(value, dict):
            assert result == json.loads(json.dumps(plan(value)))
        else:
            assert result["error"] == {"field": f"line {number}", "message": "is not a JSON object"}


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line and line.strip()), max_size=6))
def test_any_bytes_are_results(lines: list[bytes]) -> None:
    results = planned(b"\n".join(lines))
    assert len(results) == len(lines)
    assert all(set(result) >= {"model", "ideal", "engine_plan", "memory", "warnings", "error"} for result in results)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b'{"model": "a"} {}', "not JSON"),
        (b"\xff\xfe\xff", "UTF-8"),
        (b"[" * 200_000, "nested"),
        (b"1" * 10_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"", "empty"),
    ],
)
def test_a_malformed_line_is_named_and_the_batch_goes_on(line: bytes, why: str) -> None:
    results = planned(b'{"model": "a"}\n' + line + b'\n{"model": "b"}\n')
    assert [result["model"] for result in results] == ["a", None, "b"]
    assert results[1]["error"]["field"] == "line 2"
    assert why in results[1]["error"]["message"]
    assert [result["error"] for result in (results[0], results[2])] == [None, None]


def test_blank_lines_at_the_end_are_no_cases() -> None:
    assert len(planned(b'{"model": "a"}\n\n  \n')) == 1
    assert planned(b"") == []
    assert len(planned(b'{"model": "a"}')) == 1


def test_flags_fill_what_a_line_leaves_out() -> None:
    first, second = planned(b'{"model": "a"}\n{"model": "b", "tp": 1}\n', tp=2)
    assert first["memory"]["communication_bytes"] > 0
    assert second["memory"]["communication_bytes"] == 0


class _Lines(io.RawIOBase):
    """A stream of far more bytes than it holds."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._chunks, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _long(line_bytes: int) -> Iterator[bytes]:
    yield b'{"model": "first"}\n{"model": "'
    for _ in range(line_bytes // 65536):
        yield b"x" * 65536
    yield b'"}\n{"model": "last"}\n'


def test_a_line_without_end_costs_no_memory_and_no_other_line() -> None:
    source = cast("BinaryIO", io.BufferedReader(_Lines(_long(200 * 2**20))))
    target = io.BytesIO()
    tracemalloc.start()
    batch.plan_lines(source, target, plan)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    results = [json.loads(line) for line in target.getvalue().splitlines()]
    assert [result["model"] for result in results] == ["first", None, "last"]
    assert "longer than" in results[1]["error"]["message"]
    assert peak_bytes < 4 * batch.LONGEST_LINE_BYTES


def test_the_longest_line_allowed_is_planned() -> None:
    frame = b'{"model": "a", "note": ""}'
    line = frame[:-2] + b"x" * (batch.LONGEST_LINE_BYTES - len(frame)) + frame[-2:]
    assert len(line) == batch.LONGEST_LINE_BYTES
    assert [result["error"] for result in planned(line + b"\n" + line)] == [None, None]
    assert planned(line + b" \r\n")[0]["error"] is not None


def test_a_result_that_is_no_json_is_an_error_of_its_line() -> None:
    # A result repeats the model as it was given, and Python reads this number as infinite.
    first, second = planned(b'{"model": 1e999}\n{"model": "b"}\n')
    assert first["error"]["field"] == "line 1"
    assert second["error"] is None


def test_as_a_process_on_a_pipe() -> None:
    made = piped("--batch", "-", given=b'{"model": "a"}\nnonsense\n')
    assert (made.returncode, made.stderr) == (0, b"")
    assert [json.loads(line)["error"] is None for line in made.stdout.splitlines()] == [True, False]


def test_a_file_on_a_terminal_shows_progress_and_results(tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text('{"model": "a"}\n' * 200)
    code, written = on_terminal("--batch", str(file))
    assert code == 0
    assert written.count('"engine_plan"') == 200
    assert "200 cases" in written


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*COMMAND, "--batch", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b'{"model": "a"}\n')
        process.stdin.flush()
        # A result comes before the input ends: whoever feeds the pipe may wait for it.
        assert json.loads(process.stdout.readline())["model"] == "a"
        process.stdout.close()
        process.stdin.write(b'{"model": "a"}\n' * 10)
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


@pytest.mark.parametrize("path", ["/nowhere/cases.jsonl", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(InputError, match="batch: "):
        batch.run(path, plan, {})


def test_infinity_in_a_config_is_taken_as_python_writes_it() -> None:
    (result,) = planned(b'{"config": {"time_step_limit": [0.0, Infinity]}}')
    assert result["error"] is None
