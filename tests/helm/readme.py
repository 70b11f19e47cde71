"""The chart's README: what stands before `## Values` is written by hand, the rest comes from values.yaml.

A key's comment stands directly above it. A map whose keys have none is shown as one value.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).parents[2] / "helm/kvgauge"
README = CHART / "README.md"
_HEADING = "## Values"
_KEY = re.compile(r"( *)([A-Za-z][\w-]*):(?: |$)")
_COMMENT = re.compile(r" *# ?(.*)")
_LONGEST_DEFAULT = 60


@dataclass(frozen=True, slots=True)
class Value:
    """One key of values.yaml. `default` is None for a map whose keys are told themselves."""

    path: tuple[str, ...]
    default: str | None
    meaning: str


def comments(text: str) -> dict[tuple[str, ...], str]:
    """What stands above each key of a YAML text, by the key's path; "" where nothing does."""
    found: dict[tuple[str, ...], str] = {}
    above: list[str] = []
    path: list[tuple[int, str]] = []
    block_indent: int | None = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if block_indent is not None and (not line.strip() or indent > block_indent):
            continue
        block_indent = None
        if comment := _COMMENT.fullmatch(line):
            above.append(comment[1].strip())
        elif key := _KEY.match(line):
            path = [(at, name) for at, name in path if at < indent] + [(indent, key[2])]
            found[tuple(name for _, name in path)] = " ".join(above)
            above = []
            if line.rstrip().endswith("|"):
                block_indent = indent
        else:
            above = []
    return found


def values(text: str) -> Iterator[Value]:
    """Every value with its comment, in the file's order."""
    told = comments(text)
    yield from _walk((), yaml.safe_load(text), told)


def _walk(path: tuple[str, ...], node: Mapping[str, object], told: Mapping[tuple[str, ...], str]) -> Iterator[Value]:
    for name, value in node.items():
        here = (*path, name)
        if isinstance(value, dict) and any(told.get((*here, child)) for child in value):
            yield Value(here, None, told[here])
            yield from _walk(here, value, told)
        else:
            yield Value(here, _shown(value), told[here])


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "see values.yaml"


def table(text: str) -> str:
    """The values as Markdown: those without a map first, then a table for each map."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    alone, sections = list(rows), list[str]()
    for value in values(text):
        if len(value.path) == 1 and value.default is None:
            sections += ["", f"### {value.path[0]}", "", value.meaning, "", *rows]
            continue
        meaning = value.meaning.replace("|", "\\|")
        row = f"| `{'.'.join(value.path)}` | {value.default or ''} | {meaning} |"
        (alone if len(value.path) == 1 else sections).append(row)
    return "\n".join([_HEADING, "", *alone, *sections]) + "\n"


def readme() -> str:
    """The README as it should be."""
    intro = README.read_text(encoding="utf-8").partition(_HEADING)[0]
    return intro + table((CHART / "values.yaml").read_text(encoding="utf-8"))


def main() -> None:
    """Writes it; with --check says whether it is as it should be."""
    wanted = readme()
    if sys.argv[1:] == ["--check"]:
        raise SystemExit(README.read_text(encoding="utf-8") != wanted)
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
