"""`kvgauge simulate` as its users meet it: flags, results, one line for whatever cannot be."""

import json
import os
import pty
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.process import KVGAUGE

from kvgauge.complaints import InputError
from kvgauge.simulate import command, write_model_folder
from kvgauge.simulate.faults import Faults
from kvgauge.simulate.fleet import Fleet, FleetResult
from kvgauge.simulate.results import duration, percent
from kvgauge.simulate.running import fleet_plan, run_signals, served_load, signal_under
from kvgauge.simulate.scenario import load_scenario

ENGINE = (
    "--kv-tokens=40000",
    "--kv-bytes-per-token=131072",
    "--weights-bytes=16000000000",
    "--parameters=8000000000",
    "--gpu=h100-80gb",
)
CONTRACT = {
    "attainment_ratio",
    "ttft_attainment_ratio",
    "tpot_attainment_ratio",
    "mean_replicas",
    "gpu_hours",
    "preempted_per_1000",
    "changes_per_hour",
    "flips_per_hour",
    "ttft_p99_seconds",
    "requests",
    "signal",
    "seed",
}
Answers = Callable[..., Any]


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Answers:
    """Runs the command with --json and gives what it answers."""

    def run(*arguments: str) -> Any:
        command.main([*arguments, "--json"])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Ten minutes at two requests a second, that become heavy in the middle."""
    rows = [f"{second / 2},{3000 if 400 < second < 800 else 500},200" for second in range(1200)]
    path = tmp_path / "ten.csv"
    path.write_text("\n".join(["t_s,prompt_tokens,output_tokens", *rows]))
    return str(path)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    written = capsys.readouterr()
    assert ended.value.code == 2
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith("kvgauge: ")
    return line.removeprefix("kvgauge: ")


def test_a_trace_on_numbers_gives_the_contract(answers: Answers, trace: str) -> None:
    result = answers("--trace", trace, *ENGINE, "--signal", "static:3", "--warm-up", "60", "--tp", "2")
    assert result.keys() >= CONTRACT
    assert (result["signal"], result["seed"], result["scenario"]) == ("static:3", 1, "ten.csv")
    assert result["requests"] == 1200 - 120
    assert 0 < result["attainment_ratio"] <= min(result["ttft_attainment_ratio"], result["tpot_attainment_ratio"])
    # Two at the start, and the third from the first sync on, before the warm-up ends.
    assert result["mean_replicas"] == pytest.approx(3)
    assert result["gpu_hours"] == pytest.approx(2 * 3 * (599.5 - 60) / 3600)
    assert (result["skipped_requests"], result["fault"], result["warnings"]) == (0, None, [])


def test_the_default_signal_is_kvgauge(answers: Answers, trace: str) -> None:
    assert answers("--trace", trace, *ENGINE, "--duration", "60", "--warm-up", "0")["signal"] == "kvgauge"


def test_flags_override_the_scenario(answers: Answers) -> None:
    flags = ("--duration=2m", "--slo-ttft=500ms", "--warm-up=30s", "--seed=5", "--signal=static", "--scale=0.5")
    result = answers("--scenario", "llm-d", *flags)
    assert (result["duration_seconds"], result["slo_ttft_seconds"], result["warm_up_seconds"]) == (120, 0.5, 30)
    assert (result["seed"], result["requests"]) == (5, 90)
    assert result["mean_replicas"] == pytest.approx(3)


def test_a_scenario_file_and_the_trace_beside_it(answers: Answers, trace: str, tmp_path: Path) -> None:
    engine = "\n".join(flag.removeprefix("--") for flag in ENGINE[:-1])
    (tmp_path / "mine.toml").write_text(f'trace = "ten.csv"\nwarm_up = 0\ninitial = 4\ngpu = "h100-80gb"\n{engine}')
    result = answers("--scenario", str(tmp_path / "mine.toml"), "--signal", "static")
    assert (result["scenario"], result["requests"]) == ("mine", 1200)
    assert result["mean_replicas"] == pytest.approx(4)


def test_a_trace_in_place_of_a_scenarios_load_is_named(answers: Answers, trace: str) -> None:
    result = answers("--scenario", "llm-d", "--trace", trace, "--signal", "static")
    assert (result["scenario"], result["requests"]) == ("llm-d with ten.csv", 1200)


def test_a_model_and_its_card(answers: Answers, trace: str, tmp_path: Path) -> None:
    model = str(write_model_folder(tmp_path / "llama"))
    result = answers("--trace", trace, "--model", model, "--gpu", "h100-80gb", "--tp", "2", "--signal", "static")
    assert (result["gpus_per_replica"], result["attainment_ratio"]) == (2, 1.0)


def test_compare_runs_each_signal_over_the_same_requests(answers: Answers) -> None:
    flags = ("--scenario", "llm-d", "--duration", "300")
    listed = answers(*flags, "--compare", "static:8,queue-or-running:1,16,kv")
    assert [one["signal"] for one in listed] == ["static:8", "queue-or-running:1,16", "kv"]
    assert len({one["requests"] for one in listed}) == 1
    assert listed[0] == answers(*flags, "--signal", "static:8")
    assert listed[1] == answers(*flags, "--signal", "queue-or-running:1,16")
    assert [one["signal"] for one in answers(*flags, "--compare", "static")] == ["static"]


def test_the_same_seed_gives_the_same_result(answers: Answers, trace: str) -> None:
    def result(signal: str, seed: int) -> Any:
        flags = ("--trace", trace, *ENGINE, "--scale=1.5", "--warm-up=0", "--fault=missing-scrapes")
        return answers(*flags, "--signal", signal, "--seed", str(seed))

    for signal in ("kvgauge", "queue:1"):
        assert result(signal, 3) == result(signal, 3)
        assert result(signal, 3) | {"seed": 4} != result(signal, 4)


def test_long_requests_are_counted_and_left_out(answers: Answers, trace: str) -> None:
    flags = ("--trace", trace, *ENGINE, "--max-model-len=2048", "--warm-up=0", "--signal=static")
    result = answers(*flags)
    assert result["skipped_requests"] == 399
    assert result["requests"] == 1200 - 399
    (warning,) = result["warnings"]
    assert warning.startswith("399 requests have more than the engine's max_model_len of 2048 tokens")


def test_a_load_shorter_than_the_warm_up_is_judged_whole(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("t_s,prompt_tokens,output_tokens\n0,100,10\n4,100,10\n")
    result = answers("--trace", str(path), *ENGINE, "--signal", "static")
    assert (result["requests"], result["attainment_ratio"]) == (2, 1.0)
    assert result["warnings"] == ["the load ends before the warm-up of 300 seconds; nothing is left out"]


def test_a_trace_of_one_request(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("t_s,prompt_tokens,output_tokens\n17,100,10\n")
    assert answers("--trace", str(path), *ENGINE, "--signal", "static")["requests"] == 1


@pytest.mark.parametrize(("limits", "replicas"), [(("--min=3",), 3), (("--max=1",), 1), (("--min=1", "--max=9"), 2)])
def test_limits_move_the_start_that_was_not_given(
    answers: Answers, trace: str, limits: tuple[str, ...], replicas: int
) -> None:
    result = answers("--trace", trace, *ENGINE, *limits, "--duration=60", "--warm-up=0", "--signal=static")
    assert result["mean_replicas"] == pytest.approx(replicas)


@pytest.mark.parametrize("fault", ["missing-scrapes", "silent-pod", "restarted-sidecar", "wrong-roofline"])
def test_kvgauge_outlives_each_fault(answers: Answers, trace: str, fault: str) -> None:
    result = answers("--trace", trace, *ENGINE, "--warm-up=0", "--scale=2", "--fault", fault)
    assert result["fault"] == fault
    assert result["requests"] == 2400
    # Worse than this would be a fleet that stopped growing.
    assert result["attainment_ratio"] > 0.5


def test_faults_of_reads_reach_the_fleet(answers: Answers, trace: str) -> None:
    flags = ("--trace", trace, *ENGINE, "--warm-up=0", "--scale=4", "--start-up=30", "--signal=kv:0.5")
    sound = answers(*flags)
    for fault in ("silent-pod", "missing-scrapes"):
        assert answers(*flags, "--fault", fault) != sound | {"fault": fault}


def test_faults_of_advice_reach_kvgauge_and_no_other() -> None:
    scenario = replace(load_scenario("llm-d"), duration_seconds=1200.0)
    plan = fleet_plan(scenario)
    served = served_load(scenario, plan.spec)

    def result(signal: str, faults: Faults) -> FleetResult:
        fleet = Fleet(plan, signal_under(signal, scenario, plan, served, faults))
        return fleet.run(served.requests, served.duration_seconds)

    # Advice that believes in an engine three times as fast lets requests wait.
    assert result("kvgauge", Faults(roofline_ratio=0.3)) != result("kvgauge", Faults())
    assert result("kv", Faults(roofline_ratio=0.3)) == result("kv", Faults())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "trace: missing: give --trace FILE or --scenario NAME"),
        (("--scenario", "nowhere"), "scenario: 'nowhere' is not built in (llm-d) and no .toml file"),
        (("--scenario", "llm-d", "--signal", "moon"), "signal: should be one of"),
        (("--scenario", "llm-d", "--signal", "kv:7"), "signal kv: ratio should be a number"),
        (("--scenario", "llm-d", "--compare", "kv,,queue"), "compare: 'kv,,queue' has an empty name"),
        (("--scenario", "llm-d", "--compare", "kv,queue,kv"), "compare: 'kv' is named twice"),
        (("--scenario", "llm-d", "--compare", "kv", "--signal", "kv"), "--signal and --compare exclude each other"),
        (("--scenario", "llm-d", "--fault", "fire"), "fault: should be one of missing-scrapes"),
        (("--scenario", "llm-d", "--slo-ttft", "soon"), "slo_ttft: should be a time"),
        (("--scenario", "llm-d", "--scale", "x"), "scale: should be a number, not 'x'"),
        (("--scenario", "llm-d", "--min", "9"), "max: should be from 9 to 10000 replicas, not 8"),
        (("--scenario", "llm-d", "--initial", "1"), "initial: should be from min to max (3 to 8), not 1"),
        (("--scenario", "llm-d", "--max-model-len", "100"), "max_model_len: 100 tokens are less than each of"),
        (("--scenario", "llm-d", "--trace", "/nowhere.csv"), "trace: /nowhere.csv: "),
        (("--scenario", "llm-d", "--model", "/nowhere", "--gpu", "h100-80gb"), "model: "),
        (("--scenario", "llm-d", "--gpu", "abacus"), "gpu: "),
        (("--scenario", "llm-d", "--port", "1"), "--port belongs to --serve"),
        (("--scenario", "llm-d", "--serve", "--json"), "--serve does not go with --json"),
        (("--scenario", "llm-d", "--serve", "--fault", "silent-pod"), "--serve does not go with --fault"),
        (("--scenario", "llm-d", "--serve", "--port", "99999"), "port: should be from 0 to 65535, not 99999"),
        (("--scenario", "llm-d", "--serve", "--speed", "0"), "speed: should be above 0"),
        (("--scenario", "llm-d", "--serve", "--host", "not an address", "--port", "0"), "port: cannot serve on not an"),
        (("--scenario", "llm-d", "--serve", "--host", "a..b", "--port", "0"), "port: cannot serve on a..b:0: "),
        (("--scenario", "llm-d", "--tp", "0"), "tp: "),
        (("--scenario", "llm-d", "--trace", ""), "trace: should be a text"),
        (("--frobnicate",), "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert complaint(capsys, *arguments).startswith(expected)


def test_a_page_that_cannot_be_written_is_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--scenario", "llm-d", "--duration", "30", "--signal", "static", "--html", str(tmp_path))
    assert complaint(capsys, *arguments).startswith("html: ")


def test_a_fleet_that_never_serves_is_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("t_s,prompt_tokens,output_tokens\n0,100,10\n")
    arguments = ("--trace", str(path), *ENGINE, "--min=0", "--initial=0", "--signal=static")
    assert complaint(capsys, *arguments).startswith("signal static: 1 requests are left unserved")


def test_the_table_fits_a_pipe_and_says_what_was_simulated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    compare = "static:8,queue-or-running:1,16"
    command.main(["--scenario", "llm-d", "--duration", "300", "--compare", compare, "--html", str(page)])
    written = capsys.readouterr().out
    lines = written.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("llm-d: 600 requests in 5 min")
    assert "\x1b" not in written
    row = next(line for line in lines if line.startswith("static:8"))
    assert row.split()[1:4] == ["100.00", "100.00", "100.00"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a, b:1 ,c", ["a", "b:1", "c"]),
        ("queue-or-running:1,16,kv:0.8,token-aware:1.5,.8", ["queue-or-running:1,16", "kv:0.8", "token-aware:1.5,.8"]),
    ],
)
def test_a_list_of_signals_keeps_their_values_together(text: str, names: list[str]) -> None:
    assert command.compared(text) == names


def test_progress_goes_from_begin_to_end() -> None:
    seen: list[float] = []
    scenario = replace(load_scenario("llm-d"), duration_seconds=600.0)
    run_signals(scenario, ["static", "static:8"], on_progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.02
    assert seen[-1] == pytest.approx(1.0)


def test_a_wrong_signal_is_known_before_the_others_run() -> None:
    seen: list[float] = []
    with pytest.raises(InputError, match="moon"):
        run_signals(load_scenario("llm-d"), ["static", "moon"], on_progress=seen.append)
    assert seen == []


def test_a_terminal_shows_a_bar_beside_the_answer() -> None:
    master, slave = pty.openpty()
    arguments = [*KVGAUGE, "simulate", "--scenario", "llm-d", "--signal", "static", "--json"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        written = b""
        try:
            while chunk := os.read(master, 65536):
                written += chunk
        except OSError:
            # Linux ends a pseudo-terminal whose last writer has left with EIO.
            pass
        finally:
            os.close(master)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["signal"] == "static"
        assert process.wait(30) == 0
    assert b"%" in written


def test_help_is_there_at_once_and_names_what_can_be_asked_for() -> None:
    code = (
        "import sys; from kvgauge.cli import main\n"
        "try: main(['simulate', '--help'])\n"
        "finally: print(sorted(sys.modules), file=sys.stderr)"
    )
    begin = time.monotonic()
    made = subprocess.run([KVGAUGE[0], "-c", code], capture_output=True, text=True, timeout=30)
    assert time.monotonic() - begin < 5
    assert made.returncode == 0
    for word in ("--trace", "--html", "kvgauge", "queue-or-running", "silent-pod", "llm-d"):
        assert word in made.stdout
    for heavy in ("rich", "kvgauge.advise", "pydantic", "fastapi", "numpy", "kvgauge.simulate.html"):
        assert f"'{heavy}'" not in made.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (90, "90 s"), (390, "6.5 min"), (7200, "2 h"), (86400, "24 h"), (10 * 86400, "10 d")],
)
def test_times_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.0, "100.00"), (0.99999, "99.99"), (0.29, "29.00"), (0.0, "0.00")])
def test_a_ratio_is_never_rounded_up_to_all(ratio: float, text: str) -> None:
    assert percent(ratio) == text
