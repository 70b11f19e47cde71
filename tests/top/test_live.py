"""`kvgauge top` as it is met: the real sidecar on the embedded engine, and a terminal of several sizes."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kvgauge.simulate.serving import EmbeddedEngine
from tests.support.process import KVGAUGE, sidecar
from tests.support.process import demo as running_demo
from tests.support.web import Behaviour, page, serving, status

from .pages import ADVICE, pages
from .terminal import Terminal, terminal

TOP = (*KVGAUGE, "top", "--interval", "0.2")


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of a sidecar that sees an engine with a load."""
    with running_demo() as running:
        yield running.url


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def fits(shown: Terminal, lines: list[str], rows: int) -> bool:
    return len(lines) == rows and all(len(line) <= shown.columns for line in lines)


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 20), (200, 50)])
def test_one_screen_of_a_running_engine(demo: str, columns: int, rows: int) -> None:
    with terminal([*TOP, "--url", demo], columns, rows) as shown:
        lines = shown.until(lambda lines: any("running" in line for line in lines), "the requests")
        assert fits(shown, lines, rows), lines
        text = "\n".join(lines)
        assert lines[0].startswith(demo.removeprefix("http://"))
        assert re.search(r"\d s old", lines[0])
        for word in ("vllm 0.19.0", "load", "kv binds", "limits", "tokens", "sources", "engine", "predicted", "actual"):
            assert word in " ".join(text.split()), word
        # A bar is drawn where there is room for one.
        assert ("█" in text) is (columns >= 60)
        assert lines[-1].startswith("q ends")
        quiet = shown.echoes
        shown.type(b"q")
        assert shown.end() == 0
        assert (quiet, shown.echoes) == (False, True)
        # The screen as it was before comes back.
        assert "\x1b[?1049l" in shown.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_too(demo: str, number: signal.Signals, code: int) -> None:
    """SIGINT is what a shell's terminal makes of Ctrl-C."""
    with terminal([*TOP, "--url", demo], 80, 24) as shown:
        shown.until(lambda lines: any("running" in line for line in lines), "the requests")
        shown.process.send_signal(number)
        assert shown.end() == code
        assert shown.echoes
        assert "Traceback" not in shown.output


def test_it_follows_the_window(demo: str) -> None:
    with terminal([*TOP, "--url", demo], 80, 24) as shown:
        shown.until(lambda lines: any("running" in line for line in lines), "the requests")
        shown.resize(44, 16)
        lines = shown.until(lambda lines: len(lines) == 16, "the smaller screen")
        assert fits(shown, lines, 16)
        assert "more lines" in lines[-1]


def test_the_smallest_window_still_says_how_fresh_it_is(demo: str) -> None:
    with terminal([*TOP, "--url", demo], 20, 5) as shown:
        lines = shown.until(lambda lines: "load" in "".join(lines), "the load")
        assert fits(shown, lines, 5), lines
        assert re.match(r"\d\.\d s old", lines[0]), lines
        for columns, rows in ((10, 2), (1, 1), (20, 5)):
            shown.resize(columns, rows)
            lines = shown.until(lambda lines, rows=rows: len(lines) == rows, f"{columns} by {rows}")  # type: ignore[misc]
            assert fits(shown, lines, rows), lines
        shown.type(b"q")
        assert shown.end() == 0


def test_no_colours_where_none_are_wanted(demo: str) -> None:
    with terminal([*TOP, "--url", demo], 80, 24, {"NO_COLOR": "1"}) as shown:
        lines = shown.until(lambda lines: any("running" in line for line in lines), "the requests")
        assert "█" in "\n".join(lines)
        assert not re.search(r"\x1b\[3\d|\x1b\[[\d;]*;3\d", shown.output)
        shown.type(b"q")
        assert shown.end() == 0


def test_a_dumb_terminal_gets_one_frame(demo: str) -> None:
    with terminal([*TOP, "--url", demo], 80, 24, {"TERM": "dumb"}) as shown:
        assert shown.end() == 0
        assert "\x1b" not in shown.output
        assert "requests" in shown.output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_marks_that_the_terminal_lacks(demo: str, encoding: str) -> None:
    environ = {"PYTHONIOENCODING": encoding}
    with terminal([*TOP, "--url", demo], 80, 24, environ) as shown:
        lines = shown.until(lambda lines: any("running" in line for line in lines), "the requests")
        assert fits(shown, lines, 24), lines
        assert re.search(r"^load +\S+ +[#.]+$", "\n".join(lines), re.MULTILINE)
        shown.type(b"q")
        assert shown.end() == 0
    answer = once("--once", "--url", demo, environ=environ)
    assert (answer.returncode, answer.stderr) == (0, "")


def state_of(shown: Terminal) -> str:
    return Path(f"/proc/{shown.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_stopped_and_in_the_foreground_again(demo: str) -> None:
    """SIGTSTP is what a terminal makes of Ctrl-Z, SIGCONT what a shell's fg sends."""
    with terminal([*TOP, "--url", demo], 80, 24) as shown:
        for _ in range(2):
            shown.until(lambda lines: any("running" in line for line in lines), "the requests")
            shown.process.send_signal(signal.SIGTSTP)
            shown.drawn_until(lambda: state_of(shown) == "T", "a stopped program")
            # The shell has its terminal back.
            assert shown.echoes
            assert shown.output.rpartition("\x1b[?1049")[2].startswith("l")
            assert shown.output.rpartition("\x1b[?25")[2].startswith("h")
            shown.process.send_signal(signal.SIGCONT)
        shown.until(lambda lines: any("running" in line for line in lines), "the requests again")
        assert not shown.echoes
        shown.type(b"q")
        assert shown.end() == 0
        assert shown.echoes


def test_a_sidecar_that_stops_is_stale_with_its_age() -> None:
    with (
        EmbeddedEngine(seed=1) as engine,
        sidecar("--engine-url", engine.base_url) as running,
        terminal([*TOP, "--url", running.url], 80, 24) as shown,
    ):
        shown.until(lambda lines: any(line.startswith("vllm") for line in lines), "the engine")
        running.process.send_signal(signal.SIGSTOP)
        try:
            lines = shown.until(lambda lines: "STALE" in lines[0], "staleness")
        finally:
            running.process.send_signal(signal.SIGCONT)
        assert re.search(r"STALE, [5-9]\.\d s old: GET /v1/\w+: no answer in time \(timeout\)", lines[0]), lines
        assert lines[1].startswith("vllm")
        shown.until(lambda lines: lines[0].endswith(" s old"), "fresh figures again")


def test_several_sidecars_and_the_choice_among_them(demo: str) -> None:
    away = free_address()
    with terminal([*TOP, "--url", demo, "--url", away], 80, 24) as shown:
        lines = shown.until(lambda lines: "running," in "".join(lines) and "unreachable" in lines[2], "both")
        assert lines[1].startswith("> " + demo.removeprefix("http://")[:22])
        assert lines[2].strip().startswith(away.removeprefix("http://"))
        shown.type(b"j")
        lines = shown.until(lambda lines: lines[2].startswith("> "), "the second one chosen")
        assert "unreachable: GET /v1/advice: no connection (refused)" in "\n".join(lines)
        shown.type(b"\x1b[A")
        shown.until(lambda lines: lines[1].startswith("> "), "the first one again")


def test_a_sidecar_that_goes_away_and_comes_back() -> None:
    routes: dict[str, Behaviour] = pages()

    def advises(**changes: object) -> None:
        routes["/v1/advice"] = page(json.dumps({**ADVICE, **changes}).encode())

    with serving(routes) as url, terminal([*TOP, "--url", url], 80, 24) as shown:
        shown.until(lambda lines: lines[0].endswith("s old"), "a fresh page")
        routes["/v1/advice"] = status(503)
        lines = shown.until(lambda lines: "503" in lines[0], "trouble")
        # The last figures stay, their age beside them.
        assert any("21 running" in line for line in lines)
        advises(age_seconds=60)
        shown.until(lambda lines: "STALE, 6" in lines[0], "staleness")
        advises(valid=False, explanation=["Nothing told."])
        lines = shown.until(lambda lines: "not valid" in lines[0], "invalid advice")
        assert "Nothing told." in lines


def once(*arguments: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    surroundings = {**os.environ, **(environ or {})}
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, check=False, timeout=30, env=surroundings)


def test_one_frame_for_a_pipe(demo: str) -> None:
    answer = once("--once", "--url", demo)
    assert answer.returncode == 0, answer.stderr
    assert "\x1b" not in answer.stdout
    assert "requests" in answer.stdout
    assert "q ends" not in answer.stdout
    # Without a terminal nothing else makes sense.
    assert "requests" in once("--url", demo).stdout


def test_nobody_there_is_told_and_is_code_1() -> None:
    answer = once("--once", "--url", free_address())
    assert answer.returncode == 1
    assert "unreachable" in answer.stdout
    with serving({"/v1/advice": page(b'{"hello": 1}')}) as url:
        answer = once("--once", "--url", url)
    assert answer.returncode == 1
    assert "not_a_sidecar" in answer.stdout or "404" in answer.stdout


@pytest.mark.parametrize(
    ("flag", "value"), [("--url", "ftp://x"), ("--url", "http://user:pw@x"), ("--url", "a:9838"), ("--interval", "0")]
)
def test_bad_input_is_one_line_and_code_2(flag: str, value: str) -> None:
    answer = once(flag, value)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert flag in answer.stderr
