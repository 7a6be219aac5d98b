"""Facts about the calculator."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linear import processor_time
from rollcast.errors import ToolError
from rollcast.tools import calculator
from rollcast.tools.calc import LENGTH_LIMIT, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("6 / 3", 2),
        ("7 / 2", 3.5),
        ("10**30 / 10**10", 10**20),
        ("1.5e3 + .5", 1500.5),
        ("2 ** -1", 0.5),
        ("  1\n+\t1  ", 2),
        ("+ - + 1", -1),
        ("99999999999999999999 * 99999999999999999999", 99999999999999999999**2),
    ],
)
def test_values(expression, value):
    """Values and types are Python's, and integers stay exact."""
    result = evaluate(expression)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("", "bad expression"),
        ("2 +", "bad expression"),
        ("__import__('os')", "bad expression"),
        ("1 if 1 else 2", "bad expression"),
        ("1,000", "bad expression"),
        ("e", "bad expression"),
        ("(1)(2)", "bad expression"),
        ("True", "bad expression"),
        ("1_000", "bad expression"),
        ("\ud800", "bad expression"),
        ("1\x00", "bad expression"),
        ("(" * 400 + "1" + ")" * 400, "bad expression"),
        ("2 ^ 3", "use ** for powers"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9", "result too large"),
        ("10 ** 1000", "result too large"),
        ("1e308 * 10", "result too large"),
        ("1e999", "result too large"),
        ("2.0 ** 10000", "result too large"),
        ("(10**400) / 3", "result too large"),
        ("(-8) ** 0.5", "no real result"),
        ("1 + " * 300 + "1", "expression too long"),
    ],
)
def test_errors_are_a_few_words(expression, error):
    """What cannot be worked out is a ToolError of a few words."""
    with pytest.raises(ToolError) as caught:
        evaluate(expression)
    assert str(caught.value) == error


async def test_the_tool_answers_as_the_embedded_model_was_taught():
    """A bad expression is observed as `error: bad expression`, a value as its digits."""
    assert (await calculator.invoke({"expression": "2 +"})).observation == "error: bad expression"
    result = await calculator.invoke({"expression": "12 * 34"})
    assert (result.observation, result.status) == ("408", "success")
    assert list(calculator.parameters["properties"]) == ["expression"]


def _expressions():
    numbers = st.one_of(
        st.integers(0, 10**6).map(str), st.floats(0, 1e6, allow_nan=False, width=32).map(repr)
    )
    return st.recursive(
        numbers,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(" ".join),
            inner.map("({})".format),
            inner.map("-{}".format),
        ),
        max_leaves=20,
    )


@given(_expressions())
def test_it_agrees_with_python(expression):
    """On random valid expressions the value is the one that Python gives."""
    try:
        expected = eval(expression)
    except (ZeroDivisionError, OverflowError) as error:
        expected = error
    try:
        value = evaluate(expression)
    except ToolError as error:
        value = error
    if isinstance(expected, Exception) or (isinstance(expected, float) and not math.isfinite(expected)):
        assert isinstance(value, ToolError)
    elif isinstance(value, ToolError):
        assert str(value) == "expression too long"
        assert len(expression) > LENGTH_LIMIT
    else:
        assert value == expected
        assert type(value) is type(expected)


@given(
    st.one_of(
        st.text(max_size=1200),
        st.text(alphabet="0123456789.eE+-*/%() ", max_size=1200),
        st.lists(
            st.sampled_from(["9**9", "**9", "*9999999", "(", ")", "-", "1", "/3", "%7", "//"]), max_size=150
        ).map("".join),
    )
)
@settings(deadline=None)
def test_any_text_is_a_value_or_a_tool_error(text):
    """Whatever the text, the result is a bounded number or a ToolError."""
    try:
        value = evaluate(text)
    except ToolError as error:
        value = error
    assert len(str(value)) <= (40 if isinstance(value, ToolError) else 1001)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "2**-" + "9" * 900,
        "1**" + "9" * 900,
        "-" * 999 + "1",
        "1+" * 499 + "1",
        "0*9**2099+" * 90 + "1",
        "9**999%7**999*0+" * 60 + "1",
    ],
)
def test_the_worst_expressions_are_quick(expression):
    """The costliest expressions that fit take about as much processor time as a plain sum of that length."""

    def work(text):
        with contextlib.suppress(ToolError):
            evaluate(text)

    assert processor_time(work, expression) < 20 * processor_time(work, "1+" * (LENGTH_LIMIT // 2 - 1) + "1")
