"""The pages that people read, and what stands in them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "helm/kvgauge/README.md", *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(text: str) -> list[str]:
    """Where the links and pictures of a page lead, code left out."""
    prose = re.sub(r"`[^`\n]*`", lambda code: "_" * len(code[0]), _FENCE.sub("", text))
    return [found[1] for found in _LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """Of the headings, as forges make them: a second one of the same words ends in -1."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `kvgauge ROLE ...` of a page, in blocks and in sentences, without what follows a # or a |."""
    blocks = "\n".join(_FENCE.findall(text)).replace("\\\n", " ")
    inline = "\n".join(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)))
    for line in f"{blocks}\n{inline}".splitlines():
        for found in re.finditer(r"(?:^|(?<!-n)\s|/bin/)kvgauge( +(?:-|[a-z])[^|#&;>]*)", line):
            words = found[1].split()
            if re.fullmatch(r"[a-z]+", words[0]) and "helm" not in line and "image" not in line:
                yield words
