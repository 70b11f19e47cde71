"""`kvgauge simulate` from its flags to what it prints. What a mode needs is loaded when it is asked for."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge.complaints import InputError, OneLineParser, fail
from kvmodel.errors import show

if TYPE_CHECKING:
    from kvgauge.simulate.running import Run
    from kvgauge.simulate.scenario import Scenario

_DEFAULT_SIGNAL = "kvgauge"
_DEFAULT_PORT = 8000

_DESCRIPTION = """\
Replays a load through a simulated fleet of engines behind a router and an autoscaler, and tells how one scaling signal
did, or several of them: requests served in time, GPU hours, preemptions, changes of mind. No GPU, no cluster. A flag
overrides what the scenario sets."""

_SCENARIO: Mapping[str, tuple[str, str]] = {
    "trace": (
        "FILE",
        "arrivals, prompt and output tokens as .csv or .jsonl, perhaps .gz, under any public trace's names",
    ),
    "scale": ("X", "so many times the arrivals (default 1)"),
    "duration": ("S", "cut the load here: seconds, or 90m, 4h (default: all of it)"),
    "slo_ttft": ("S", "longest time to the first token that counts as met (default 3)"),
    "slo_tpot": ("S", "longest mean time per output token after it (default 0.1)"),
    "start_up": ("S", "from a pod's creation until it serves (default 120)"),
    "min": ("N", "fewest replicas (default 1)"),
    "max": ("N", "most replicas (default 24)"),
    "initial": ("N", "replicas that are ready when the load begins (default 2)"),
    "warm_up": ("S", "time at the begin that results leave out (default 300)"),
    "seed": ("N", "of all chance: copies, synthetic loads, start-up times, faults (default 1)"),
}
"""Flags of a scenario: placeholder and help."""

_ENGINE: Mapping[str, tuple[str, str]] = {
    "model": ("PATH", "a config.json, a folder that holds one, or a .gguf file; with --gpu"),
    "gpu": ("CARD", "such as h100-80gb"),
    "tp": ("N", "GPUs of one replica (default 1)"),
    "engine_version": ("V", "vLLM's, for its rules of memory"),
    "max_model_len": ("N", "longest request in tokens; longer ones of the load are left out and counted"),
    "gpu_memory_utilization": ("X", "as vLLM's"),
    "kv_dtype": ("D", "as vLLM's --kv-cache-dtype"),
    "weights_dtype": ("D", "of the weights, where the checkpoint is not at hand"),
    "max_num_seqs": ("N", "as vLLM's"),
    "max_num_batched_tokens": ("N", "as vLLM's (default 8192)"),
    "block_size": ("N", "tokens of a block (default 16)"),
    "interconnect": ("LINK", "nvlink or pcie (default: by the card)"),
    "kv_tokens": ("N", "tokens that the pool holds, as the engine prints them at its start"),
    "kv_bytes_per_token": ("N", "on each GPU"),
    "weights_bytes": ("N", "on each GPU"),
    "parameters": ("N", "that one token passes through"),
    "bandwidth_bytes_per_second": ("N", "memory bandwidth that is reached, of one GPU"),
    "flops_per_second": ("N", "arithmetic rate that is reached, of all GPUs of a replica"),
    "step_overhead_seconds": ("S", "what a step takes beside reading and computing"),
    "attention_flop_per_pair": ("N", "operations for each pair of a prefilled token and one before it"),
}
"""Flags of one replica's engine: placeholder and help."""

_SERVE_ONLY = ("port", "host", "speed")
_RUN_ONLY = ("signal", "compare", "fault", "json", "html")


def main(arguments: Sequence[str]) -> None:
    """Simulates what the flags say. Bad input ends with exit code 2 and one line on stderr."""
    try:
        _dispatch(_parser().parse_args(arguments))
        sys.stdout.flush()
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader has left (`| head`): no more output, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


class _Parser(OneLineParser):
    def format_help(self) -> str:
        """The options, then signals and faults by name; these are only loaded for it."""
        from kvgauge.simulate.faults import NAMES as FAULTS
        from kvgauge.simulate.scenario import BUILT_IN
        from kvgauge.simulate.signals import NAMES as SIGNALS

        advised = {_DEFAULT_SIGNAL: "advice of the pods' sidecars, added up (the default)"}
        signals = advised | {name: about for name, about in SIGNALS.items() if name != _DEFAULT_SIGNAL}
        parts = [super().format_help().rstrip()]
        for title, listed in (
            ("signals (--signal, --compare), NAME or NAME:VALUE,...", signals),
            ("faults (--fault)", FAULTS),
        ):
            width = max(map(len, listed))
            parts.append(f"{title}:\n" + "\n".join(f"  {name:{width}}  {about}" for name, about in listed.items()))
        parts.append(f"scenarios (--scenario): {', '.join(BUILT_IN)}, or a .toml file")
        return "\n\n".join(parts) + "\n"


def _parser() -> OneLineParser:
    made = _Parser(
        prog="kvgauge simulate",
        description=textwrap.fill(" ".join(_DESCRIPTION.split()), 100),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    load = made.add_argument_group("the scenario")
    load.add_argument(
        "--scenario", metavar="NAME|FILE", help="all that follows at once: a built-in one, or a .toml file"
    )
    _add(load, _SCENARIO)
    engine = made.add_argument_group("one replica's engine: a model and its card, or numbers")
    _add(engine, _ENGINE)
    engine.add_argument(
        "--prefix-caching", dest="prefix_caching", action="store_const", const="true", help="keep prompts' blocks"
    )
    engine.add_argument("--no-prefix-caching", dest="prefix_caching", action="store_const", const="false")
    what = made.add_argument_group("what to do with it")
    what.add_argument("--signal", metavar="NAME", help=f"the scaling signal (default {_DEFAULT_SIGNAL})")
    what.add_argument("--compare", metavar="A,B,C", help="several signals over the same requests")
    what.add_argument("--fault", metavar="NAME", help="let something go wrong")
    what.add_argument("--json", action="store_true", help="results as JSON; a list with --compare")
    what.add_argument("--html", metavar="FILE", help="also write a page with curves, without any other file")
    serve = made.add_argument_group("an engine to try dashboards and autoscalers on (--serve)")
    serve.add_argument(
        "--serve",
        action="store_true",
        help="run one engine in real time behind a vLLM-shaped endpoint; the load begins anew when it ends",
    )
    serve.add_argument("--port", metavar="N", help=f"0 takes a free one (default {_DEFAULT_PORT})")
    serve.add_argument("--host", metavar="ADDRESS", help="address to serve on (default 127.0.0.1)")
    serve.add_argument("--speed", metavar="X", help="so many times as fast as the clock (default 1)")
    return made


def _add(group: "argparse._ArgumentGroup", flags: Mapping[str, tuple[str, str]]) -> None:
    for name, (placeholder, text) in flags.items():
        group.add_argument(_flag(name), dest=name, metavar=placeholder, help=text.replace("%", "%%"))


def _dispatch(typed: argparse.Namespace) -> None:
    _check_modes(typed)
    scenario = _scenario(typed)
    if typed.serve:
        _serve(typed, scenario)
        return
    from kvgauge.simulate import results
    from kvgauge.simulate.running import run_signals

    signals = [typed.signal or _DEFAULT_SIGNAL] if typed.compare is None else compared(typed.compare)
    with _progress() as on_progress:
        runs = run_signals(
            scenario, signals, fault=typed.fault, keep_samples=typed.html is not None, on_progress=on_progress
        )
    if typed.html is not None:
        _write_page(typed.html, runs)
    if typed.json:
        results.print_json(runs, as_list=typed.compare is not None)
    else:
        results.show(runs)


def _check_modes(typed: argparse.Namespace) -> None:
    given = {name for name, value in vars(typed).items() if value not in (None, False)}
    for name in _RUN_ONLY if typed.serve else _SERVE_ONLY:
        if name in given:
            raise InputError(
                f"--serve does not go with {_flag(name)}" if typed.serve else f"{_flag(name)} belongs to --serve"
            )
    if {"signal", "compare"} <= given:
        raise InputError("--signal and --compare exclude each other")


def _scenario(typed: argparse.Namespace) -> "Scenario":
    from kvgauge.simulate.scenario import load_scenario, scenario_from

    values = {
        name: value
        for name, value in vars(typed).items()
        if value is not None and (name in _SCENARIO or name in _ENGINE or name == "prefix_caching")
    }
    if typed.scenario is None and "trace" not in values:
        raise InputError("trace: missing: give --trace FILE or --scenario NAME")
    base = None if typed.scenario is None else load_scenario(typed.scenario)
    if "trace" in values:
        file = Path(values["trace"]).name or "trace"
        values["name"] = file if base is None else f"{base.name} with {file}"
    return scenario_from(_with_initial(values, base), base)


def _with_initial(values: dict[str, object], base: "Scenario | None") -> dict[str, object]:
    """Limits that are given move the replicas at the start, unless these are given too."""
    from kvgauge.simulate.scenario import Scenario
    from kvgauge.simulate.scenario_values import whole

    if "initial" in values or not values.keys() & {"min", "max"}:
        return values
    if base is None:
        defaults = {field.name: field.default for field in fields(Scenario) if field.name.endswith("_replicas")}
    else:
        defaults = {f"{name}_replicas": getattr(base, f"{name}_replicas") for name in ("min", "max", "initial")}
    least, most, initial = (
        whole(name, values.get(name, defaults[f"{name}_replicas"])) for name in ("min", "max", "initial")
    )
    return values | {"initial": max(least, min(initial, most))}


def compared(text: str) -> list[str]:
    """The signals of `A,B:1,16,C`: a number goes on with the values of the signal before it.

    Raises InputError for an empty name and for one that comes twice.
    """
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise InputError(f"compare: {show(text)} has an empty name")
        if found and ":" in found[-1] and not part[0].isalpha():
            found[-1] += f",{part}"
        else:
            found.append(part)
    for name in found:
        if found.count(name) > 1:
            raise InputError(f"compare: {show(name)} is named twice")
    return found


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A bar on stderr where that is a terminal, and rich is there; else nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _: None
        return
    columns = BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done: progress.update(task, completed=done)


def _write_page(path: str, runs: "Sequence[Run]") -> None:
    from kvgauge.simulate import html

    try:
        Path(path).write_text(html.page(runs), encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"html: {show(path)}: {reason}") from None


def _serve(typed: argparse.Namespace, scenario: "Scenario") -> None:
    from kvgauge.simulate import live
    from kvgauge.simulate.scenario_values import number, whole

    port = _DEFAULT_PORT if typed.port is None else whole("port", typed.port)
    speed = 1.0 if typed.speed is None else number("speed", typed.speed)
    live.serve(scenario, host=typed.host or "127.0.0.1", port=port, speed=speed)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
