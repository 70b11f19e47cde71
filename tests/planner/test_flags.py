"""The command line: comma lists, types, and complaints that name the flag."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.planner import flags
from kvmodel.cases import FIELDS, read_case

WHOLES = st.lists(st.integers(1, 10**9), min_size=1, max_size=4)
WORDS = st.lists(st.sampled_from(["auto", "fp8", "bfloat16"]), min_size=1, max_size=3)
SWITCHES = st.lists(st.booleans(), min_size=1, max_size=2)


def cases(*arguments: str) -> list[flags.Case]:
    return flags.cases(FIELDS, vars(flags.parser(FIELDS).parse_args(arguments)))


@given(WHOLES, WORDS, SWITCHES, st.sampled_from([",", ", ", " ,"]))
def test_lists_make_the_product_in_order(tps: list[int], dtypes: list[str], eager: list[bool], comma: str) -> None:
    on = ["on" if value else "off" for value in eager]
    found = cases("--tp", comma.join(map(str, tps)), "--kv-dtype", comma.join(dtypes), "--enforce-eager", ",".join(on))
    assert found == [
        {"tp": tp, "kv_dtype": dtype, "enforce_eager": value} for tp in tps for dtype in dtypes for value in eager
    ]


@given(st.text(max_size=30))
def test_any_text_is_a_case_or_one_line_that_names_the_flag(text: str) -> None:
    for flag, name in (("--tp", "tp"), ("--gpu-memory-gib", "gpu_memory_gib"), ("--config", "config")):
        found, complaint = _tried(f"{flag}={text}")
        assert all(name in case for case in found)
        assert bool(found) != complaint.startswith(f"{name}: ")
        assert len(complaint.splitlines()) == (not found)


def _tried(argument: str) -> tuple[list[flags.Case], str]:
    try:
        return cases(argument), ""
    except InputError as error:
        return [], str(error)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**20), 10**20))
def test_numbers_come_back_as_typed(number: float, whole: int) -> None:
    assert cases(f"--gpu-memory-gib={number!r}", f"--tp={whole}") == [{"gpu_memory_gib": number, "tp": whole}]


def test_every_field_of_a_case_has_its_flag_and_its_type() -> None:
    typed = {"text": "x", "int": "3", "number": "0.5", "flag": "on", "object": '{"a": 1}', "ints": "1,2"}
    typed |= {"texts": "0,sliding_window", "lengths": "512:3,4096"}
    arguments = [f"--{name.replace('_', '-')}={typed[field.kind]}" for name, field in FIELDS.items()]
    (case,) = cases(*arguments)
    assert list(case) == list(FIELDS)
    for absent in ("available_kv_gib", "available_kv_bytes"):
        read_case({name: value for name, value in case.items() if name != absent})


def test_what_was_not_typed_is_absent() -> None:
    assert cases() == [{}]
    assert flags.varied(cases()) == []


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--enforce-eager"], True),
        (["--no-enforce-eager"], False),
        (["--enforce-eager", "--no-enforce-eager"], False),
        (["--enforce-eager=OFF"], False),
    ],
)
def test_switches(arguments: list[str], value: bool) -> None:
    assert cases(*arguments) == [{"enforce_eager": value}]


def test_lengths_are_one_value_not_a_list_of_cases() -> None:
    assert cases("--at-tokens", "1,2048") == [{"at_tokens": [1, 2048]}]


@pytest.mark.parametrize(
    ("typed", "entries"),
    [
        ("512:3,4096:1", [{"tokens": 512, "weight": 3.0}, {"tokens": 4096, "weight": 1.0}]),
        ("700", [{"tokens": 700, "weight": 1}]),
        (
            "100+50:0.5, 7 + 300",
            [{"prompt": 100, "output": 50, "weight": 0.5}, {"prompt": 7, "output": 300, "weight": 1}],
        ),
    ],
)
def test_a_distribution_of_lengths(typed: str, entries: list[object]) -> None:
    assert cases("--lengths", typed) == [{"lengths": entries}]
    read_case({"config": {}, "lengths": entries})


def test_a_path_that_exists_keeps_its_comma(tmp_path: Path) -> None:
    path = tmp_path / "llama,8b"
    path.mkdir()
    assert cases("--model", str(path)) == [{"model": str(path)}]
    assert cases("--model", "a,b") == [{"model": "a"}, {"model": "b"}]


def test_only_what_differs_counts_as_varied() -> None:
    found = cases("--gpu", "a", "--tp", "1,2", "--kv-dtype", "auto,auto")
    assert flags.varied(found) == ["tp"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--tp", "two"], ["tp", "'two'", "whole number"]),
        (["--tp", "1,,2"], ["tp", "empty"]),
        (["--tp", "1.5"], ["tp", "1.5"]),
        (["--tp", ""], ["tp", "empty"]),
        (["--gpu-memory-gib", "nan"], ["gpu_memory_gib", "nan"]),
        (["--gpu-memory-gib", "1e999"], ["gpu_memory_gib"]),
        (["--lengths", "512:3,"], ["lengths", "empty"]),
        (["--lengths", "512:often"], ["lengths", "'often'"]),
        (["--lengths", "x:1"], ["lengths", "'x'"]),
        (["--lengths", "5+:1"], ["lengths", "''"]),
        (["--enforce-eager", "maybe"], ["enforce_eager", "maybe"]),
        (["--config", "[1]"], ["config", "JSON object"]),
        (["--config", "[" * 100_000], ["config", "JSON object"]),
        (["--tp"], ["--tp"]),
        (["--tpp", "2"], ["--tpp"]),
        (["--tp", ",".join(["1"] * 101), "--pp", ",".join(["1"] * 100)], ["10100", "--batch"]),
    ],
)
def test_bad_flags_are_named(arguments: list[str], names: list[str]) -> None:
    with pytest.raises(InputError) as error:
        cases(*arguments)
    assert all(name in str(error.value) for name in names), str(error.value)
    assert len(str(error.value)) < 400


@given(st.integers(-10, 10))
def test_counts_of_modes_have_a_least_value(value: int) -> None:
    if value >= 2:
        assert flags.whole("new_tokens", str(value), least=2) == value
    else:
        with pytest.raises(InputError, match="new_tokens"):
            flags.whole("new_tokens", str(value), least=2)
    assert flags.whole("new_tokens", None) is None


def test_the_limit_on_combinations_is_the_product() -> None:
    sizes = (10, 10, 10, 10)
    lists = [",".join(["1"] * size) for size in sizes]
    found = cases("--tp", lists[0], "--pp", lists[1], "--dp", lists[2], "--dcp", lists[3])
    assert len(found) == math.prod(sizes) == flags.MOST_CASES
