"""A calculator for models: exact, bounded, and never `eval`."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from rollcast.errors import ToolError
from rollcast.tools.definition import tool

__all__ = ["calculator", "evaluate"]

Number = int | float

LENGTH_LIMIT = 1_000
"""The most characters in an expression."""
DIGITS_LIMIT = 1_000
"""Decimal digits of a result."""
BITS_LIMIT = 6_644
"""Bits of an integer on the way to it, about 2,000 digits: the worst expression then takes a few milliseconds."""

_ALLOWED = re.compile(r"[0-9.eE+\-*/%()\s]*")  # nothing else ever reaches the parser


def evaluate(expression: str) -> Number:
    """Evaluate an expression of numbers, + - * / // % ** and parentheses, with Python's precedence.

    Integers stay exact; `/` gives an integer if it divides evenly.

    Raises:
        ToolError: in a few words: `bad expression`, `division by zero`, `result too large` …
    """
    if len(expression) > LENGTH_LIMIT:
        raise ToolError("expression too long")
    if "^" in expression:
        raise ToolError("use ** for powers")
    if not _ALLOWED.fullmatch(expression):
        raise ToolError("bad expression")
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval")
    except (SyntaxError, RecursionError, MemoryError):  # the last two mean deep nesting
        raise ToolError("bad expression") from None
    value = _value(tree.body)
    too_long = isinstance(value, int) and abs(value) >= 10**DIGITS_LIMIT
    if too_long or (isinstance(value, float) and not math.isfinite(value)):
        raise ToolError("result too large")
    return value


def _value(root: ast.expr) -> Number:
    """Evaluate without recursion, since a long sum is a deep tree."""
    order: list[ast.expr] = [root]
    for node in order:  # it grows while it is read: each node comes before its operands
        if isinstance(node, ast.BinOp):
            order += (node.left, node.right)
        elif isinstance(node, ast.UnaryOp):
            order.append(node.operand)
    values: dict[ast.expr, Number] = {}
    for node in reversed(order):
        try:
            values[node] = _apply(node, values)
        except ZeroDivisionError:
            raise ToolError("division by zero") from None
        except OverflowError:
            raise ToolError("result too large") from None
    return values[root]


def _apply(node: ast.expr, values: dict[ast.expr, Number]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -values[operand]
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return values[operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](values[left], values[right])
    raise ToolError("bad expression")


def _multiply(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and a.bit_length() + b.bit_length() > BITS_LIMIT:
        raise OverflowError
    return a * b


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b
    return a / b


def _power(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b > 0 and (abs(a).bit_length() - 1) * b > BITS_LIMIT:
        raise OverflowError  # the result would have at least that many bits
    result: Number | complex = a**b
    if isinstance(result, complex):
        raise ToolError("no real result")
    return result


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


@tool(inline=True)
def calculator(expression: str) -> Number:
    """Evaluate an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, such as "12 * (3 + 4)".
    """
    return evaluate(expression)
