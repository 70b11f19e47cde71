"""docs/advice.md against the code: the marks that the bench fills, the constants it names, the pictures it shows."""

import importlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
from bench.advice.__main__ import DOCUMENT, SECTIONS, written
from bench.advice.loads import EVALUATION
from bench.advice.pictures import EXAMPLE_SECONDS, PICTURES

from kvgauge.advise import fleet, safety, working

TEXT = DOCUMENT.read_text()
MARKS = ("evaluation", "faults", "concurrency")
MOST_PICTURE_BYTES = 20_000
NAMED = re.findall(r"^\| `(\w+)\.(\w+)` \| ([\d.]+) \| .+ \|$", TEXT, re.MULTILINE)


def between(document: str, name: str) -> list[str]:
    """The lines between the marks of that name."""
    _, begin, rest = document.partition(f"<!-- {name} -->\n")
    body, end, _ = rest.partition(f"<!-- end of {name} -->")
    assert begin
    assert end
    return body.splitlines()


@pytest.mark.parametrize("name", MARKS)
def test_each_table_has_its_marks_once(name: str) -> None:
    assert TEXT.count(f"<!-- {name} -->\n") == 1
    assert TEXT.count(f"\n<!-- end of {name} -->\n") == 1
    assert between(TEXT, name)[1].startswith("|---")


def test_the_example_is_a_whole_block() -> None:
    block = between(TEXT, "example")
    assert (block[0], block[-1]) == ("```", "```")
    assert {"a pod:", "the fleet:"} <= set(block)
    assert f"--explain {EXAMPLE_SECONDS}`" in TEXT


def test_no_other_marks() -> None:
    assert set(re.findall(r"<!-- (?:end of )?(\S+) -->", TEXT)) == {*MARKS, "example"}


@pytest.mark.parametrize("name", MARKS)
def test_a_table_is_written_into_its_place_alone(name: str) -> None:
    filled = written(TEXT, name, ["| one |", "|---|", "| two |"])
    assert between(filled, name) == ["| one |", "|---|", "| two |"]
    assert written(filled, name, between(TEXT, name)) == TEXT


@pytest.mark.parametrize("name", ["evaluation", "faults"])
def test_tables_have_the_loads_of_the_bench(name: str) -> None:
    heads = [cell.strip() for cell in between(TEXT, name)[0].strip("| ").split("|")]
    assert heads[1 : 1 + len(EVALUATION)] == list(EVALUATION)


@pytest.mark.parametrize(("module", "constant", "value"), NAMED, ids=[f"{one[0]}.{one[1]}" for one in NAMED])
def test_constants_are_those_of_the_code(module: str, constant: str, value: str) -> None:
    found = getattr(importlib.import_module(f"kvgauge.advise.{module}"), constant)
    assert found == float(value)


@pytest.mark.parametrize("module", [fleet, safety, working])
def test_every_constant_of_the_rules_is_told(module: ModuleType) -> None:
    """Those that are plain numbers: what follows from others is not chosen."""
    numbers = re.compile(r"^([A-Z][A-Z_]*(?:, [A-Z][A-Z_]*)*) = [\d., ]+$", re.MULTILINE)
    own = {constant for line in numbers.findall(_source(module)) for constant in line.split(", ")}
    name = module.__name__.rpartition(".")[2]
    assert own
    assert own == {constant for of, constant, _ in NAMED if of == name}


def _source(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text()


def test_pictures_are_there_and_whole() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((\S+)\)", TEXT)
    assert sorted(shown) == sorted(f"advice-{name}.svg" for name in PICTURES)
    for name in shown:
        path = DOCUMENT.parent / name
        assert path.stat().st_size < MOST_PICTURE_BYTES
        root = ET.fromstring(path.read_text())  # noqa: S314 - our own file
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r"href|@import|url\((?!#)|<script|<image", path.read_text())


def test_commands_name_parts_of_the_bench() -> None:
    named = re.findall(r"--only ([a-z]+)", TEXT)
    assert named
    assert set(named) <= SECTIONS.keys()


def test_the_readme_leads_here() -> None:
    assert "(docs/advice.md)" in (DOCUMENT.parents[1] / "README.md").read_text()
