"""Arithmetic that a page shows, worked out again.

A sum on a page reads `expression = number`, or in a block of its own `name = expression = number`. `x` is times;
`floor`, `ceil`, `min`, `max`, `sqrt` and `round` are functions; thousands have a comma, arguments a comma and a space.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "round": round,
}
_OPERATORS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_NAMED = re.compile(
    rf'^(?P<name>[a-z_]+(?:\{{[a-z_]+="[\w, ="]+"\}})?) = (?P<sum>.+) = (?P<result>{_NUMBER})$', re.MULTILINE
)
_FIGURES = r"[\d(),.x+*/ -]*"
_BARE = re.compile(
    rf"(?<![\w.}}=])(?P<sum>(?:(?:ceil|floor|round)(?=\())?[\d(]{_FIGURES}[ +*/x-]+{_FIGURES}?[\d)])"
    rf" = (?P<result>{_NUMBER})"
)


@dataclass(frozen=True, slots=True)
class Sum:
    """One of them. `name` is empty where nothing but arithmetic is claimed."""

    name: str
    expression: str
    result: str

    @property
    def value(self) -> float:
        return plain(self.result)

    def holds(self, number: float) -> bool:
        """Whether the number is the result as far as its digits tell."""
        return abs(number - self.value) <= 0.500001 * _last_place(self.result)

    def worked_out(self) -> float:
        """ValueError for what is no arithmetic."""
        text = re.sub(r"(?<=\d),(?=\d{3})", "", self.expression)
        text = re.sub(r"\bx\b", "*", text)
        return _value(ast.parse(text, mode="eval").body)


def plain(number: str) -> float:
    return float(number.replace(",", ""))


def named_sums(page: str) -> Iterator[Sum]:
    """Those in blocks of the page."""
    for block in re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for found in _NAMED.finditer(block):
            yield Sum(found["name"], found["sum"], found["result"])


def bare_sums(page: str) -> Iterator[Sum]:
    """Those in its sentences."""
    for found in _BARE.finditer(re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)):
        yield Sum("", found["sum"], found["result"].rstrip(","))


def _last_place(number: str) -> float:
    mantissa, _, exponent = number.replace(",", "").partition("e")
    digits = len(mantissa.partition(".")[2])
    return float(10.0 ** (int(exponent or 0) - digits))


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_value, arguments))
    raise ValueError(f"no arithmetic: {ast.unparse(node)}")
