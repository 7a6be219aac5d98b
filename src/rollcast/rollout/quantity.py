r"""Reads quantities as people write them: strictly in a reference, and the last one in a response.

    4  -7  1,234  1e3  $5      a number
    1/2  -3/4  1 1/2  \frac{1}{2}   a fraction: the number that it is
    50%  50 percent  1/2%      a percentage: a hundredth of the number, so 50% is 0.5 and not 50
    2 x 10^3  6\times10^{3}    the number that it is
    3:2  12:30                 a ratio or a time: its parts, in order
    (1, 2)  [1, 2]             a tuple: its parts, in order

Numbers, fractions and percentages are compared with each other. A ratio, a time or a tuple only equals its own kind. Anything
else (a power, a root, a set, a date, a version) is not read, and is never taken for the last number in it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import deque
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rollcast.records.jsonable import plain_scalar

__all__ = ["LARGEST", "Quantity", "is_finite", "kind_of", "last_quantity", "reference_quantity"]

LARGEST = 1 << 13_000
"""Whole numbers below this can be written: Python writes at most 4,300 digits."""

_SIGN = r"[-+\u2212\u2013]"
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?"
_NUMBER = (
    rf"(?:(?<![\w.)]){_SIGN})?"  # a sign, unless it follows an operand: in 3-4 the last number is 4
    rf"(?:[$\u20ac\u00a3\u00a5]\s?{_SIGN}?)?"
    rf"{_UNSIGNED}(?:[eE][-+]?\d+)?"
)
_PERCENT = r"[ ]?(?:%|percent\b|per[ ]cent\b)"
_BELOW = rf"{_SIGN}?{_UNSIGNED}"
_ITEM = rf"{_NUMBER}(?:/{_BELOW})?(?:[ ]?%)?"
_POWER = r"[ ]?(?:\^|\*\*)[ ]?"
_UNREADABLE = (
    r"\\(?:[dt]?frac|sqrt|binom)\b(?:[ ]?(?:\[[^][{}]{0,80}\]|\{(?:[^{}]|\{[^{}]{0,80}\}){0,80}\}|\d))*"
    rf"|{_NUMBER}{_POWER}(?!\{{?[ ]?\\circ)(?:\{{[^{{}}]{{0,80}}\}}|\([^()]{{0,80}}\)|[-\u2212]?\w+)"  # 2^3
    r"|\^[ ]?\{?[ ]?[-\u2212]?\d+(?:\.\d+)?"  # the exponent of x^2
    rf"|{_NUMBER}[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+"
    r"|(?<!\d)\d{4}-\d{1,2}-\d{1,2}(?!\d)"  # a date
    r"|\d+(?:\.\d+){2,}|\d{1,3}(?:\.\d{3})+,\d+"  # a version; 1.000,5
    rf"|\\?\{{\s*{_ITEM}(?:\s*,\s*{_ITEM})+\s*\\?\}}"  # a set has no order
)
_QUANTITY = re.compile(
    rf"(?P<scientific>{_NUMBER}[ ]?(?:\\times|\\cdot|[\u00d7\u00b7*x])[ ]?10{_POWER}\{{?[ ]?{_SIGN}?\d{{1,9}}(?!\d)[ ]?\}}?)"
    rf"|(?P<unreadable>{_UNREADABLE})"
    rf"|(?P<tuple>[(\[]\s*{_ITEM}(?:\s*,\s*{_ITEM})+\s*[)\]])"
    rf"|(?P<fraction>(?:{_NUMBER}[ ]\d+|{_NUMBER})(?:/|[ ]/[ ]){_BELOW}(?:/{_UNSIGNED})*(?:{_PERCENT})?)"
    rf"|(?P<ratio>{_NUMBER}(?:(?::|[ ]:[ ]){_UNSIGNED})+)"
    rf"|(?P<percent>{_NUMBER}{_PERCENT})"
    rf"|(?P<number>{_NUMBER})"
)
_ONE = re.compile(_ITEM)
_LATEX = (
    (re.compile(r"\\(?:left|right)(?=[(\[)\]])"), ""),
    (
        re.compile(
            rf"({_SIGN}?)\\[dt]?frac\s*(?:\{{\s*({_BELOW})\s*\}}\s*\{{\s*({_BELOW})\s*\}}|(\d)\s*(\d))",
        ),
        r"\1\2\4/\3\5",
    ),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\{,\}|(?<=\d)\\[,!](?=\d{3})"), ","),
)
_ALIKE = str.maketrans(
    {"\uff05": "%", "\uff0f": "/", "\u2044": "/", "\u2215": "/", "\uff1a": ":", "\u2236": ":", "\uff08": "(", "\uff09": ")", "\uff0c": ", "}
)  # fmt: skip
_BETWEEN_GROUPS = re.compile(r"(?<=\d)[_'\u2019\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # 1_000, 1'000
_VULGAR = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e])")  # 1½
_AROUND = re.compile(
    r"\s*(?:\\boxed\{(?P<boxed>.*)\}|\\\((?P<round>.*)\\\)|\\\[(?P<square>.*)\\\]|\$(?P<dollars>.*[^\\])\$)\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Quantity:
    """A quantity as numbers.

    Attributes:
        kind: `number` (also for fractions and percentages), `ratio` or `tuple`.
        parts: one number, or the parts of the ratio or tuple.
    """

    kind: str
    parts: tuple[Decimal, ...]

    def equals(self, other: Quantity, tolerance: float) -> bool:
        """Whether both have the same kind, and each part is equal.

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
    if math.isinf(said) or math.isinf(want):  # as floats; the check above found that they are not equal
        return False
    return math.isclose(said, want, rel_tol=tolerance, abs_tol=tolerance)


def last_quantity(text: str) -> Quantity | None:
    """The last quantity in the text; None if none can be read."""
    last = deque(_QUANTITY.finditer(_BETWEEN_GROUPS.sub("", _plain(text))), maxlen=1)
    return _read(last[0]) if last else None


def reference_quantity(value: Any) -> Quantity:
    """Read a reference, which must be one quantity and nothing else.

    Raises:
        ValueError: it is not exactly one quantity; the message tells what was expected.
    """
    value = plain_scalar(value)
    if isinstance(value, Fraction):
        return Quantity("number", (Decimal(value.numerator) / Decimal(value.denominator),))
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"is {kind_of(value)}; expected a number, or text that is one quantity")  # noqa: TRY004  (the row is wrong, not the call)
    if isinstance(value, int | float | Decimal):
        if not is_finite(value):
            raise ValueError(f"is {value}; expected a finite number")
        return Quantity("number", (Decimal(str(value) if isinstance(value, float) else value),))
    text = value.strip()
    while (around := _AROUND.fullmatch(text)) is not None:
        text = next(inner for inner in around.groups() if inner is not None).strip()
    text = _plain(text).strip().removesuffix(".")
    found_whole = _QUANTITY.fullmatch(text)
    quantity = _read(found_whole) if found_whole is not None else None
    if quantity is None or (quantity.kind == "tuple" and len(_ONE.findall(text)) == 1):
        raise ValueError(
            f"is {value[:60]!r}; expected one quantity and nothing beside it, such as 4, -7, 1,234, 1/2, 50%, 3:2, 12:30 "
            "or (1, 2)"
        )
    return quantity


def kind_of(value: Any) -> str:
    """Name the type of a value that is not a quantity, for a message."""
    if value is None:
        return "None"
    return "a bool" if isinstance(value, bool) else f"of type {type(value).__name__}"


def is_finite(value: float | Decimal) -> bool:
    """Whether it is a finite number, however large."""
    return isinstance(value, int) or (
        value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
    )


def _plain(text: str) -> str:
    """The text with LaTeX, full-width signs and signs such as ½ written in one way."""
    if "\\" in text or "{" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    if not text.isascii():
        text = _VULGAR.sub(_spelt_out, text.translate(_ALIKE))
    return text


def _spelt_out(vulgar: re.Match[str]) -> str:
    """`1½` as `1 1/2`."""
    fraction = Fraction(unicodedata.numeric(vulgar[2])).limit_denominator(10)
    return f"{vulgar[1]} {fraction}".strip()


def _read(found: re.Match[str]) -> Quantity | None:
    kind, text = found.lastgroup, found[0]
    try:
        match kind:
            case "unreadable":
                return None
            case "tuple":
                parts = _ONE.findall(text)  # (1,234) gives one, though it was written as two
                return Quantity(
                    "tuple", tuple(map(_scalar, parts if len(parts) > 1 else text[1:-1].split(",")))
                )
            case "ratio":
                return Quantity("ratio", tuple(_decimal(part) for part in text.split(":")))
            case "scientific":
                number = _ONE.match(text)
                assert number is not None
                exponent = re.split(r"\^|\*\*", text)[1].strip("{} ")
                return Quantity("number", (_decimal(number[0]).scaleb(int(_decimal(exponent))),))
            case _:
                return Quantity("number", (_scalar(text),))
    except (
        ArithmeticError,
        ValueError,
    ):  # an exponent of twenty digits; a fraction of nothing; a date, 2024/05/06
        return None


def _scalar(text: str) -> Decimal:
    """The value of a number, a fraction or a percentage.

    Raises:
        ArithmeticError, ValueError: it is not one of these.
    """
    plain = _OF_A_HUNDRED.sub("", text)
    whole, slash, below = plain.rpartition("/")
    if not slash:
        value = _decimal(plain)
    else:
        mixed = whole.split()
        value = _decimal(mixed[-1]) / _decimal(below)
        if len(mixed) == 2:
            before = _decimal(mixed[0])
            value = before - value if before.is_signed() else before + value
    return value if plain == text else value.scaleb(-2)


_OF_A_HUNDRED = re.compile(rf"{_PERCENT}\s*$")


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text.translate(_NO_PART_OF_IT))
    except InvalidOperation:
        raise ValueError(text) from None


_NO_PART_OF_IT = str.maketrans({"\u2212": "-", "\u2013": "-"} | dict.fromkeys(", $\u20ac\u00a3\u00a5\n\t"))
