r"""Quantities as people write them: what a reference says, strictly; and what a response says last.

    4  -7  1,234  1e3  $5      a number
    1/2  -3/4  1 1/2  \frac{1}{2}   a fraction: the number that it is
    50%  50 percent            a percentage: a hundredth of the number, so 50% is 0.5 and not 50
    3:2  12:30                 a ratio or a time: its parts, in order
    (1, 2)  [1, 2]             a tuple: its parts, in order

Numbers, fractions and percentages stand on one scale. A ratio, a time or a tuple equals nothing but its like.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rollcast.records.jsonable import plain_scalar

__all__ = ["Quantity", "last_quantity", "reference_quantity"]

_NUMBER = (
    r"(?:(?<![\w.)])[-+\u2212])?"  # a sign, unless it stands after an operand: in 3-4 the last number is 4
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?"
_QUANTITY = re.compile(
    rf"(?P<tuple>[(\[]\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+\s*[)\]])"
    rf"|(?P<fraction>(?:{_NUMBER}[ ]\d+|{_NUMBER})(?:/|[ ]/[ ]){_UNSIGNED}(?:/{_UNSIGNED})*)"
    rf"|(?P<ratio>{_NUMBER}(?:(?::|[ ]:[ ]){_UNSIGNED})+)"
    rf"|(?P<percent>{_NUMBER}[ ]?(?:%|percent\b|per[ ]cent\b))"
    rf"|(?P<number>{_NUMBER})"
)
_ONE = re.compile(_NUMBER)
_LATEX = (
    (
        re.compile(r"([-+\u2212]?)\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))"),
        r"\1\2\4/\3\5",
    ),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\{,\}|(?<=\d)\\[,!](?=\d{3})"), ","),
)
_AROUND = re.compile(
    r"\s*(?:\\boxed\{(?P<boxed>.*)\}|\\\((?P<round>.*)\\\)|\$(?P<dollars>.*[^\\])\$)\s*", re.DOTALL
)
_CURRENCY = re.compile(r"^(?P<before>[-+\u2212]?)[$\u20ac\u00a3\u00a5]\s?(?=[-+\u2212.\d])")


@dataclass(frozen=True)
class Quantity:
    """What was written, as numbers.

    Attributes:
        kind: `number` (of fractions and percentages too), `ratio` or `tuple`.
        parts: one number, or those of the ratio or tuple.
    """

    kind: str
    parts: tuple[Decimal, ...]

    def equals(self, other: Quantity, tolerance: float) -> bool:
        """Whether it is of one kind with the other and each part is equal.

        Whole numbers have to be equal; if either is not whole, `tolerance` is allowed, relative or absolute.
        """
        return (
            self.kind == other.kind
            and len(self.parts) == len(other.parts)
            and all(_equal(a, b, tolerance) for a, b in zip(self.parts, other.parts, strict=True))
        )


def _equal(said: Decimal, want: Decimal, tolerance: float) -> bool:
    if said == want:
        return True
    if said == said.to_integral_value() and want == want.to_integral_value():
        return False
    return math.isclose(said, want, rel_tol=tolerance, abs_tol=tolerance)


def last_quantity(text: str) -> Quantity | None:
    """The quantity that stands last in the text; None if there is none that can be read."""
    last = deque(_QUANTITY.finditer(_without_latex(text)), maxlen=1)
    return _read(last[0]) if last else None


def reference_quantity(value: Any) -> Quantity:
    """The quantity that a reference is, and nothing but that.

    Raises:
        ValueError: it is something else, or more than one quantity; the text tells what was expected.
    """
    value = plain_scalar(value)
    if isinstance(value, Fraction):
        return Quantity("number", (Decimal(value.numerator) / Decimal(value.denominator),))
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        found = (
            "None"
            if value is None
            else "a bool"
            if isinstance(value, bool)
            else f"of type {type(value).__name__}"
        )
        raise ValueError(f"is {found}; expected a number, or text that is one quantity")  # noqa: TRY004  (the row is wrong, not the call)
    if isinstance(value, int | float | Decimal):
        if not math.isfinite(value):
            raise ValueError(f"is {value}; expected a finite number")
        return Quantity("number", (Decimal(value if isinstance(value, Decimal) else str(value)),))
    text = value.strip()
    while (around := _AROUND.fullmatch(text)) is not None:
        text = next(inner for inner in around.groups() if inner is not None).strip()
    text = _CURRENCY.sub(r"\g<before>", _without_latex(text), count=1).removesuffix(".")
    found_whole = _QUANTITY.fullmatch(text)
    quantity = _read(found_whole) if found_whole is not None else None
    if quantity is None or (quantity.kind == "tuple" and len(_ONE.findall(text)) == 1):
        raise ValueError(
            f"is {value[:60]!r}; expected one quantity and nothing beside it, such as 4, -7, 1,234, 1/2, 50%, 3:2, 12:30 "
            "or (1, 2)"
        )
    return quantity


def _without_latex(text: str) -> str:
    if "\\" in text or "{" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    return text


def _read(found: re.Match[str]) -> Quantity | None:
    kind, text = found.lastgroup, found[0]
    try:
        match kind:
            case "tuple":
                parts = _ONE.findall(text)  # of (1,234) one, though it was written as two
                return Quantity(
                    "tuple", tuple(map(_decimal, parts if len(parts) > 1 else text[1:-1].split(",")))
                )
            case "fraction":
                return _fraction(text)
            case "ratio":
                return Quantity("ratio", tuple(_decimal(part) for part in text.split(":")))
            case "percent":
                one = _ONE.match(text)
                assert one is not None
                return Quantity("number", (_decimal(one[0]).scaleb(-2),))
            case _:
                return Quantity("number", (_decimal(text),))
    except (ArithmeticError, ValueError):  # an exponent of twenty digits; a fraction of nothing
        return None


def _fraction(text: str) -> Quantity | None:
    whole, _, below = text.rpartition("/")
    if "/" in whole:  # a date: 2024/05/06
        return None
    mixed = whole.split()
    above = _decimal(mixed[-1])
    value = above / _decimal(below)
    if len(mixed) == 2:
        before = _decimal(mixed[0])
        value = before - value if mixed[0][0] in "-\u2212" else before + value
    return Quantity("number", (value,))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text.strip().replace(",", "").replace("\u2212", "-"))
    except InvalidOperation:
        raise ValueError(text) from None
