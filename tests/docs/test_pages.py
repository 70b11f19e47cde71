"""What pages point at is there: links, anchors, commands with their flags, names of metrics and alerts."""

import functools
import importlib.util
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from kvgauge.cli import ROLES
from tests.docs.pages import PAGES, ROOT, anchors, commands, links, name_of, text_of
from tests.support.process import KVGAUGE

_SOURCES = [*(ROOT / "exporter").rglob("*.py"), *(ROOT / "agent").rglob("*.py"), *(ROOT / "dashboards").rglob("*.yaml")]
MISSPELT = "kvgauge_laod_ratio"
"""On purpose: what the doctor finds."""

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@functools.cache
def help_of(role: str) -> frozenset[str]:
    """The flags that a role takes, by its own help."""
    said = subprocess.run([*KVGAUGE, role, "--help"], capture_output=True, text=True, check=True, timeout=60)
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", said.stdout))


@functools.cache
def known_names() -> frozenset[str]:
    text = "".join(path.read_text(encoding="utf-8") for path in _SOURCES)
    return frozenset(re.findall(r"\bkvgauge_[a-z_]+[a-z]\b|\bKvgauge[A-Z]\w+", text))


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or ROOT not in target.parents:
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(text_of(target)))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = [
        link for link in links(text_of(page)) if not re.match(r"[a-z]+:", link) and not leads_somewhere(page, link)
    ]
    assert broken == []


@every_page
def test_commands_have_roles_and_flags_that_there_are(page: Path) -> None:
    wrong = []
    for role, *words in commands(text_of(page)):
        if role not in ROLES:
            wrong.append(role)
        else:
            flags = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            wrong += [f"{role} {flag}" for flag in sorted(flags - help_of(role))]
    assert wrong == []


@every_page
def test_scripts_and_modules_that_are_named_are_there(page: Path) -> None:
    text = text_of(page)
    scripts = set(re.findall(r"(?<![\w/])(scripts/[a-z-]+)\b", text))
    modules = set(re.findall(r"python -m ((?:bench|dashboards|kvgauge|kvgauge_agent|tests)[\w.]*\w)", text))
    assert {name for name in scripts if not (ROOT / name).is_file()} == set()
    assert {name for name in modules if importlib.util.find_spec(name) is None} == set()


@every_page
def test_metrics_and_alerts_are_called_as_the_program_calls_them(page: Path) -> None:
    named = re.findall(r"\bkvgauge_[a-z_]+[a-z]\b(?![.*_\w])|\bKvgauge[A-Z]\w+", text_of(page))
    assert sorted(set(named) - known_names() - {MISSPELT}) == []


def test_each_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    led_to = {(index.parent / link).resolve() for link in links(text_of(index))}
    pages = {page for page in PAGES if page.parent == ROOT / "docs"} - {index}
    assert pages <= led_to


def test_the_readers_of_pages_find_what_they_look_for() -> None:
    page = "# A `b`: c!\n## Two words\n[one](x.md#y) ![two](z.svg)\n"
    page += "```\n[no](code)\nkvgauge plan --tp 1 \\\n  --json # ok\n```\n"
    assert links(page) == ["x.md#y", "z.svg"]
    assert anchors(page) == {"a-b-c", "two-words"}
    assert list(commands(page)) == [["plan", "--tp", "1", "--json"]]
    assert list(commands("`/opt/kvgauge/bin/kvgauge top` and `kvgauge sidecar --x`")) == [["top"], ["sidecar", "--x"]]


def test_commands_are_found_at_all() -> None:
    assert sum(1 for page in PAGES for _ in commands(text_of(page))) > 40
