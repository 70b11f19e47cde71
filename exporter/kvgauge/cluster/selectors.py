"""Label selectors, by the grammar of Kubernetes: ``a=b, c!=d, e in (f, g), h notin (i), j, !k``."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

MOST_CHARACTERS = 8192
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_KEY = re.compile(rf"(?:{_DOMAIN}/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_TOKEN = re.compile(r"\s*(==|!=|=|!|,|\(|\)|[^\s=!,()]+)")


class SelectorError(ValueError):
    """A selector that cannot be read. The message names the part, cut to a bounded length."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition. `values` is None where only the key counts; `wanted` False turns it round."""

    key: str
    values: frozenset[str] | None
    wanted: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.values is None:
            return (value is not None) is self.wanted
        return (value in self.values if value is not None else False) is self.wanted


@dataclass(frozen=True, slots=True)
class Selector:
    """All of its conditions must hold; none selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.holds(labels) for requirement in self.requirements)


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Selector:
    """The selector. Raises SelectorError."""
    if len(text) > MOST_CHARACTERS:
        raise SelectorError(f"longer than {MOST_CHARACTERS} characters")
    tokens = _Tokens(text)
    if tokens.peek() is None:
        return Selector()
    requirements = [_requirement(tokens)]
    while (token := tokens.take()) is not None:
        if token != ",":
            raise SelectorError(f"expected a comma, found {_cut(token)}")
        requirements.append(_requirement(tokens))
    return Selector(tuple(requirements))


class _Tokens:
    def __init__(self, text: str) -> None:
        self._left = _TOKEN.findall(text)
        self._left.reverse()

    def peek(self) -> str | None:
        return self._left[-1] if self._left else None

    def take(self) -> str | None:
        return self._left.pop() if self._left else None


def _requirement(tokens: _Tokens) -> Requirement:
    token = tokens.take()
    if token == "!":
        return Requirement(_key(tokens.take()), None, wanted=False)
    key = _key(token)
    operator = tokens.peek()
    if operator in {None, ","}:
        return Requirement(key, None, wanted=True)
    tokens.take()
    if operator in {"=", "==", "!="}:
        value = tokens.take() if tokens.peek() not in {None, ","} else ""
        return Requirement(key, frozenset({_value(value)}), wanted=operator != "!=")
    if operator in {"in", "notin"}:
        return Requirement(key, _values(tokens), wanted=operator == "in")
    raise SelectorError(f"unknown operator {_cut(operator)}")


def _values(tokens: _Tokens) -> frozenset[str]:
    if tokens.take() != "(":
        raise SelectorError("expected ( after in or notin")
    found = set()
    while True:
        token = tokens.peek()
        if token in {",", ")"}:
            found.add("")
        else:
            found.add(_value(tokens.take()))
        closing = tokens.take()
        if closing == ")":
            return frozenset(found)
        if closing != ",":
            raise SelectorError(f"expected , or ) in a list of values, found {_cut(closing)}")


def _key(token: str | None) -> str:
    if token is None or not _KEY.fullmatch(token):
        raise SelectorError(f"no label key: {_cut(token)}")
    return token


def _value(token: str | None) -> str:
    if token is None or not _VALUE.fullmatch(token):
        raise SelectorError(f"no label value: {_cut(token)}")
    return token


def _cut(token: str | None) -> str:
    return "the end" if token is None else repr(token[:40])
