"""`kvgauge plan` from its flags to what it prints. Everything but the plan itself is loaded when it is asked for."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kvgauge.complaints import InputError, fail
from kvgauge.planner import flags
from kvgauge.planner.figures import Plan, figures
from kvgauge.planner.flags import Case, Fields

_MODES = ("batch", "fit", "train", "measure_cache")


def main(arguments: Sequence[str]) -> None:
    """Plans what the flags say. Bad input ends with exit code 2 and one line on stderr."""
    from kvmodel.plan import FIELDS, plan

    run(arguments, plan, FIELDS)


def run(arguments: Sequence[str], plan: Plan, fields: Fields) -> None:
    """`main` over any planner: `plan` is a pure function of a case that has `fields`."""
    try:
        _dispatch(flags.parser(fields).parse_args(arguments), plan, fields)
        sys.stdout.flush()
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader has left (`| head`): no more output, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _dispatch(typed: argparse.Namespace, plan: Plan, fields: Fields) -> None:
    _check_modes(typed)
    if typed.train:
        from kvgauge.planner import training

        found = flags.cases({**fields, **flags.TRAINING}, vars(typed))
        if typed.hub:
            from kvgauge.planner import hub

            found = hub.training_cases(found)
        training.run(found, as_json=typed.json)
        return
    found = flags.cases(fields, vars(typed))
    if typed.hub:
        from kvgauge.planner import hub

        plan = hub.planner(plan)
        if typed.batch is None:
            found = hub.with_configs(found)
    if typed.batch is not None:
        from kvgauge.planner import batch

        batch.run(typed.batch, plan, _only(found, "--batch"))
    elif typed.measure_cache:
        _measure(typed, _only(found, "--measure-cache"))
    elif typed.fit:
        _fit(typed, plan, found)
    elif len(found) > 1:
        _compare(typed, plan, found)
    else:
        _single(typed, plan, found[0])


def _check_modes(typed: argparse.Namespace) -> None:
    chosen = [mode for mode in _MODES if getattr(typed, mode) not in (None, False)]
    if len(chosen) > 1:
        raise InputError(f"{_flag(chosen[0])} and {_flag(chosen[1])} exclude each other")
    if typed.hub and typed.measure_cache:
        raise InputError("--hub fetches no weights, which --measure-cache needs")
    if typed.plot is not None and chosen:
        raise InputError(f"--plot draws one plan: it does not go with {_flag(chosen[0])}")
    needs = dict.fromkeys(flags.FITTING, "fit")
    needs |= dict.fromkeys(flags.TRAINING, "train") | dict.fromkeys(flags.MEASURING, "measure_cache")
    for name, mode in needs.items():
        if getattr(typed, name) is not None and mode not in chosen:
            raise InputError(f"{_flag(name)} belongs to {_flag(mode)}")


def _single(typed: argparse.Namespace, plan: Plan, case: Case) -> None:
    result = plan(case)
    error = figures(result).error
    if error is not None:
        raise InputError(": ".join(error))
    if typed.plot is not None:
        _plot(typed.plot, plan, case, result)
    if typed.json:
        _print_json(result)
        return
    from kvgauge.planner import report

    report.show(plan, case, result)


def _compare(typed: argparse.Namespace, plan: Plan, found: list[Case]) -> None:
    if typed.plot is not None:
        raise InputError("--plot draws one plan: no flag may hold a list")
    results = [plan(case) for case in found]
    errors = [figures(result).error for result in results]
    if errors[0] is not None and all(errors):
        raise InputError(": ".join(errors[0]))
    if typed.json:
        names = flags.varied(found)
        _print_json([{"case": _chosen(case, names), **result} for case, result in zip(found, results, strict=True)])
        return
    from kvgauge.planner import comparison

    comparison.show(plan, list(zip(found, results, strict=True)), flags.varied(found))


def _fit(typed: argparse.Namespace, plan: Plan, found: list[Case]) -> None:
    from kvgauge.planner import fitting

    concurrency = flags.whole("concurrency", typed.concurrency)
    gpus_max = flags.whole("gpus_max", typed.gpus_max)
    if gpus_max is not None and concurrency is None:
        raise InputError("--gpus-max needs the load: --concurrency N")
    answers = []
    for case in found:
        if gpus_max is not None and concurrency is not None:
            answers.append(fitting.fit_cards(plan, case, concurrency, gpus_max))
        elif concurrency is not None:
            answers.append(fitting.fit_context(plan, case, concurrency))
        else:
            answers.append(fitting.fit_concurrency(plan, case))
    names = flags.varied(found)
    if typed.json:
        listed = [{"case": _chosen(case, names), **fit.to_json()} for case, fit in zip(found, answers, strict=True)]
        _print_json(listed if len(listed) > 1 else answers[0].to_json())
        return
    from kvgauge.planner import answers as answering

    answering.show(list(zip(found, answers, strict=True)), names)


def _measure(typed: argparse.Namespace, case: Case) -> None:
    from kvgauge.planner import measuring

    model = case.get("model")
    prompt = flags.whole("prompt_tokens", typed.prompt_tokens)
    new = flags.whole("new_tokens", typed.new_tokens, least=2)
    measured = measuring.measure(
        None if model is None else str(model), prompt or 128, new or 128, typed.device or "auto"
    )
    if typed.json:
        _print_json(measured.to_json())
    else:
        measuring.show(measured)


def _plot(path: str, plan: Plan, case: Case, result: dict[str, object]) -> None:
    from kvgauge.planner import plot

    text = plot.svg(plot.curve(plan, case, result))
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"plot: {path[:200]!r}: {reason}") from None


def _only(found: list[Case], mode: str) -> Case:
    if len(found) > 1:
        raise InputError(f"{flags.varied(found)[0]}: {mode} takes no list of values")
    return found[0]


def _chosen(case: Case, names: list[str]) -> Case:
    return {name: case[name] for name in names}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
