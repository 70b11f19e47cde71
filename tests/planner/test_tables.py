"""What a person reads: the right things in the right order, on a terminal and on a pipe."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.planner import bars, plot
from kvgauge.planner.figures import GIB, figures, gib
from kvgauge.planner.report import verdict
from tests.planner.running import on_terminal, piped, without
from tests.planner.standin import plan

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SIZES = st.dictionaries(st.sampled_from(sorted(bars.LETTERS)), st.floats(0, 1e12), max_size=7)


def text(*arguments: str) -> str:
    made = piped(*arguments)
    assert (made.returncode, made.stderr) == (0, b""), made.stderr
    return made.stdout.decode()


def test_a_plan_on_a_pipe_is_plain_and_narrow_and_starts_with_the_verdict() -> None:
    written = text("--model", "llama", "--gpu-memory-gib", "80", "--tokens-per-request", "2048")
    assert "\x1b" not in written
    assert max(map(len, written.splitlines())) <= 80
    lines = written.splitlines()
    assert lines[0].startswith("llama on vllm 0.32.0")
    expected = figures(plan({"model": "llama", "gpu_memory_gib": 80, "tokens_per_request": 2048}))
    assert f"{expected.capacity_tokens:,.0f} tokens" in " ".join(lines[:6])
    assert gib(expected.pool_bytes) in " ".join(lines[:6])
    order = ["Fits", "of the longest length", "of 2,048 tokens", "Memory of each GPU", "KV cache", "Layer groups"]
    order += ["Latency", "free memory"]
    places = [written.index(word) for word in order]
    assert places == sorted(places)


def test_a_plan_on_a_terminal_says_the_same_in_colour() -> None:
    arguments = ("--model", "llama", "--gpu-memory-gib", "80", "--tp", "2")
    code, written = on_terminal(*arguments)
    assert code == 0
    assert "\x1b[" in written
    plain = ESCAPE.sub("", written).replace("\r\n", "\n")
    assert max(map(len, plain.splitlines())) <= 80
    assert plain.split() == text(*arguments).split()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    code, written = on_terminal("--model", "llama", "--tp", "1,2,3", "--tokens-per-request", "512", columns=columns)
    assert code == 0
    assert max(len(line) for line in ESCAPE.sub("", written).splitlines()) <= columns


def test_an_ascii_terminal_gets_what_it_can_show() -> None:
    made = piped("--model", "llama-é[bold]", environ={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert made.returncode == 0
    assert made.stdout.isascii()
    assert b"llama-?[bold]" in made.stdout


def test_advice_is_ranked_by_the_bytes_it_frees() -> None:
    written = text("--model", "llama")
    assert written.index("kv_dtype fp8") < written.index("enforce_eager")


def test_warnings_are_shown() -> None:
    found = figures({"warnings": ["first", "a\nb\x1b[31m"]})
    assert found.warnings == ("first", "a b [31m")


def test_a_card_too_small_says_so_first() -> None:
    written = text("--model", "llama", "--gpu-memory-gib", "16")
    assert written.splitlines()[1].startswith("Does not fit")
    assert "exceeded by" in written


def test_a_pool_smaller_than_one_request_is_no_fit() -> None:
    small = figures(plan({"model": "llama", "available_kv_gib": 1}))
    assert next(verdict(small)).startswith("Does not fit")


def test_a_result_with_nothing_in_it_can_be_read() -> None:
    empty = figures({})
    assert not empty.fits
    assert "not sized" in next(verdict(empty))


def test_a_pool_without_a_card_is_read_from_the_engines_plan() -> None:
    found = figures({"engine_plan": {"pool_bytes": 5 * GIB, "capacity_tokens": 100, "max_requests": 3}})
    assert (found.fits, found.pool_bytes, found.max_requests) == (True, 5 * GIB, 3)


@given(st.dictionaries(st.sampled_from(["ideal", "engine_plan", "memory", "latency", "advice", "warnings", "error"]),
                       st.none() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
                       | st.dictionaries(st.text(max_size=3), st.floats(), max_size=2)))  # fmt: skip
def test_any_result_can_be_read(result: dict[str, object]) -> None:
    found = figures(result)
    assert found.pool_bytes is None
    assert list(verdict(found))


@given(SIZES, st.none() | st.floats(1, 1e12), st.integers(10, 120))
def test_the_bar_is_to_scale(memory: dict[str, float], card: float | None, width: int) -> None:
    parts = bars.segments(list(memory.items()), card, width)
    if not parts:
        return
    assert sum(part.cells for part in parts) == width
    assert all(part.cells >= 1 for part in parts)
    whole = sum(part.size_bytes for part in parts)
    assert whole == pytest.approx(max(sum(memory.values()), card or 0))
    for part in parts:
        # Cells of small parts are taken from the large ones.
        assert abs(part.cells - part.size_bytes / whole * width) <= len(parts)


def test_the_comparison_has_a_row_for_each_combination() -> None:
    written = text("--model", "llama", "--tp", "1,2", "--kv-dtype", "auto,fp8")
    rows = [line.split() for line in written.splitlines() if line.split()[:1] in (["1"], ["2"])][:4]
    assert [row[:2] for row in rows] == [["1", "auto"], ["1", "fp8"], ["2", "auto"], ["2", "fp8"]]


def test_the_comparison_keeps_what_cannot_be_planned() -> None:
    written = text("--model", "llama", "--tp", "1,3")
    assert "does not divide" in " ".join(written.split())
    listed = json.loads(text("--model", "llama", "--tp", "1,3", "--json"))
    assert [result["case"] for result in listed] == [{"tp": 1}, {"tp": 3}]
    assert [result["error"] is None for result in listed] == [True, False]


def test_json_is_the_plan_itself() -> None:
    written = text("--model", "llama", "--tp", "2", "--json")
    assert json.loads(written) == json.loads(json.dumps(plan({"model": "llama", "tp": 2})))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fit", "--concurrency", "4"], "the largest context of which 4 fit at once"),
        (["--fit", "--max-model-len", "4096"], "requests of 4,096 tokens fit at once"),
        (
            ["--fit", "--concurrency", "64", "--gpus-max", "8", "--tokens-per-request", "4096"],
            "1 GPU carries 64 requests",
        ),
        (["--fit", "--concurrency", "4", "--gpu-memory-gib", "8"], "Nothing fits"),
    ],
)
def test_fits_are_sentences_and_json(arguments: list[str], sentence: str) -> None:
    assert sentence in " ".join(text("--model", "llama", *arguments).split())
    answer = json.loads(text("--model", "llama", *arguments, "--json"))
    assert answer["fit"] in {"context", "concurrency", "cards"}
    assert answer["plan"]["model"] == "llama"


def test_fits_of_a_list_are_a_list() -> None:
    answers = json.loads(text("--model", "llama", "--tp", "1,2", "--fit", "--max-model-len", "4096", "--json"))
    assert [answer["case"] for answer in answers] == [{"tp": 1}, {"tp": 2}]
    assert answers[1]["concurrency"] > answers[0]["concurrency"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--model", "a", "--tp", "3"], ["tp: 3", "32"]),
        (["--model", "a", "--tp", "3", "--json"], ["tp: 3"]),
        (["--model", "a", "--tp", "3,5"], ["tp: 3"]),
        (["--json"], ["model"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["--fit", "--batch", "-"], ["--fit", "--batch"]),
        (["--concurrency", "3"], ["--concurrency", "--fit"]),
        (["--model", "a", "--fit", "--gpus-max", "3"], ["--gpus-max", "--concurrency"]),
        (["--model", "a", "--fit", "--concurrency", "0"], ["concurrency", "0"]),
        (["--model", "a", "--lora-rank", "3"], ["--lora-rank", "--train"]),
        (["--model", "a", "--tp", "1,2", "--plot", "x.svg"], ["--plot"]),
        (["--model", "a", "--plot", "/nowhere/x.svg"], ["plot", "/nowhere/x.svg"]),
        (["--tp", "1,2", "--batch", "-"], ["tp", "--batch"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], names: list[str]) -> None:
    made = piped(*arguments)
    assert (made.returncode, made.stdout) == (2, b"")
    (line,) = made.stderr.decode().splitlines()
    assert line.startswith("kvgauge: ")
    assert all(name in line for name in names), line


def test_help_names_every_flag() -> None:
    written = text("--help")
    for flag in ("--model", "--kv-dtype", "--fit", "--batch", "--plot", "--train", "--measure-cache", "--json"):
        assert flag in written


def test_json_needs_no_rich() -> None:
    plain = without("rich", "--model", "a", "--json")
    assert (plain.returncode, plain.stderr) == (0, b"")
    tables = without("rich", "--model", "a")
    assert tables.returncode == 2
    assert b"rich" in tables.stderr
    assert len(tables.stderr.splitlines()) == 1


def test_the_plot_is_an_accessible_svg_with_units(tmp_path: Path) -> None:
    file = tmp_path / "out.svg"
    case = {"model": "<a & b>", "gpu_memory_gib": 80, "tokens_per_request": 2048}
    text("--model", "<a & b>", "--gpu-memory-gib", "80", "--tokens-per-request", "2048", "--plot", str(file))
    root = ElementTree.fromstring(file.read_text())  # noqa: S314 - our own file
    space = "{http://www.w3.org/2000/svg}"
    labelled = (root.get("aria-labelledby") or "").split()
    assert [root.find(f"{space}{tag}").get("id") for tag in ("title", "desc")] == labelled  # type: ignore[union-attr]
    words = [element.text or "" for element in root.iter(f"{space}text")]
    assert any("GiB" in word and "memory" in word for word in words)
    assert "concurrent requests of 2,048 tokens" in words
    drawn = plot.curve(plan, case, plan(case))
    assert drawn.kv_bytes_per_request * drawn.most_requests == pytest.approx(drawn.pool_bytes)
    assert drawn.kv_bytes_per_request == pytest.approx(2048 * 131072, rel=0.01)
    assert drawn.card_bytes == 80 * GIB
    assert any("80.00 GiB" in word for word in words)


def test_nothing_to_plot_is_said() -> None:
    case = {"model": "a", "gpu_memory_gib": 8}
    with pytest.raises(InputError, match="plot: "):
        plot.curve(plan, case, plan(case))


@given(st.floats(0.01, 1e6))
def test_ticks_are_few_and_reach_the_end(most: float) -> None:
    ticks = plot._ticks(most)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] == 0
    assert most - ticks[-1] <= (ticks[1] - ticks[0]) * 1.0001
