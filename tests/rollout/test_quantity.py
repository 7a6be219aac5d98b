"""Facts about quantities: a reference is what was written, and a response's last one is not its last digits."""

import decimal
import fractions

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import BaseAgent
from rollcast.errors import RewardDefinitionError
from rollcast.rollout.quantity import last_quantity, reference_quantity
from rollcast.rollout.reward import exact_match, numeric_match, reward
from rollcast.testing import ScriptedBackend, capture_events


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("1/2", ["1/2", "0.5", "2/4", "50%", "The answer is 1/2.", "\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}"], ["2", "1", "1/3", "2/1"]),
        ("-3/4", ["-3/4", "-0.75", "-\\frac{3}{4}"], ["3/4", "4", "-4"]),
        ("1 1/2", ["1 1/2", "1.5", "3/2"], ["1/2", "2"]),
        ("\\frac{1}{2}", ["1/2", "$\\frac12$"], ["2"]),
        ("50%", ["50%", "50 %", "50\\%", "0.5", "It is 50 percent."], ["50", "5", "0.5%"]),
        (0.5, ["50%", "1/2", ".5"], ["50", "0.5%"]),
        (50, ["50", "50.0"], ["50%", "0.5"]),
        ("3:2", ["3:2", "The ratio is 3:2.", "3 : 2"], ["2", "3", "1.5", "3/2", "2:3", "6:4", "3:2:1"]),
        ("12:30", ["12:30", "at 12:30 pm"], ["30", "12", "12:31", "2:30"]),
        ("(1, 2)", ["(1, 2)", "(1,2)", "It is ( 1 , 2.0 )."], ["2", "1", "(2, 1)", "(1, 2, 3)", "1/2"]),
        ("[1, -2]", ["(1, -2)", "[1,-2]"], ["-2", "(1, 2)"]),
        (2, ["2", "4/2", "Step 1: 2", "f(2, 3) = 2"], ["1/2", "3:2", "(1, 2)", "12:2", "2024/01/02"]),
        ("1,000", ["1000", "1,000", "1e3"], ["0", "1"]),
        ("1e3", ["1000", "1,000.0"], ["3"]),
        ("$1,234.50", ["$1,234.50", "1234.5"], ["50"]),
        ("-$5", ["-5"], ["5"]),
        ("\\boxed{7}", ["7"], ["8"]),
        ("$7$", ["7"], ["8"]),
        (" 7. ", ["7"], ["8"]),
        ("1{,}000", ["1000", "1{,}000"], ["0"]),
        (np.float64(4), ["4"], ["5"]),
        (np.int8(4), ["4"], ["5"]),
        (np.str_("4"), ["4"], ["5"]),
        (decimal.Decimal("0.1"), ["0.1", "1/10"], ["1"]),
        (fractions.Fraction(1, 3), ["1/3", "0.33333333"], ["3"]),
        ("-$5", ["It is -$5.", "$-5", "-\\$5"], ["$5"]),
        ("-1/2", ["\\frac{-1}{2}", "-½", "1/-2", "−1/2", "–1/2"], ["1/2", "2"]),
        ("1½", ["1.5", "1 1/2", "1½"], ["1", "1/2"]),
        ("50％", ["50%", "50％", "１/２"], ["50"]),
        ("1/2%", ["0.5%", "0.005"], ["1/2", "2"]),
        ("\\frac{1.5}{2}", ["0.75"], ["2"]),
        ("\\left(1, 2\\right)", ["(1, 2)", "\\left[ 1, 2 \\right]"], ["2"]),
        ("(1/2, 50%)", ["(0.5, 0.5)", "(1/2,1/2)"], ["(1, 2)", "50%", "0.5"]),
        ("\\[7\\]", ["7"], ["8"]),
        ("6\\times10^{3}", ["6 × 10^3", "6000", "6*10**3", "6e3"], ["3", "10", "6"]),
        (2, ["x_2 = 2"], ["\\frac{\\sqrt{3}}{2}", "\\sqrt{2}", "x^2", "4x^{2}", "3**2", "{1, 2}", "\\{1, 2\\}", "(1, 1/2)", "1.1.2", "2024-05-02", "1/2%"]),
        (0, ["0"], ["1 000".replace(" ", "\u202f"), "1'000", "1_000"]),
        (1000, ["1'000", "1_000", "1\u00a0000"], ["1"]),
        (90, ["90^\\circ", "90^{\\circ}", "90°"], ["x^90"]),
        ("9" * 400 + ".5", ["9" * 400 + ".5"], ["8" * 400 + ".5"]),
    ],
    ids=repr,
)  # fmt: skip
def test_a_quantity_is_what_was_written(answer, right, wrong):
    """Numbers, fractions and percentages are on one scale; ratios, times and tuples equal their like alone."""
    assert [text for text in right if numeric_match(text, answer) != 1.0] == []
    assert [text for text in wrong if numeric_match(text, answer) != 0.0] == []


NOT_NUMBERS = [
    "x = 4",
    "4 apples",
    "1.000,5",
    "12,34",
    "1, 2",
    "(1)",
    "(1,234)",
    "1 000",
    "1_000",
    "10^3",
    "2024/05/06",
    "2024-05-06",
    "1.2.3",
    "1/0",
    "3-4",
    "3+4i",
    "#### 72",
    "12:30 pm",
    "four",
    "",
    "NaN",
    "1e99999999999999999999",
    None,
    True,
    np.bool_(False),
    float("nan"),
    float("inf"),
    [4],
    (1, 2),
    {"value": 4},
    b"4",
    np.zeros(2),
]


def test_numbers_of_any_length_are_compared():
    """More digits than Python itself writes, in either."""
    assert numeric_match("1" + "0" * 5000, 10**5000) == 1.0
    assert numeric_match("1" + "0" * 4999 + "1", 10**5000) == 0.0


def test_a_check_that_fails_is_told_with_its_row_and_place():
    """An exception other than a ValueError is a failure of the user's code, not of the row."""

    def check(row):
        return row["colour"]

    agent = BaseAgent(
        "m", backend=ScriptedBackend("4"), reward=reward(lambda answer: 1.0, name="mine", check=check)
    )
    with pytest.raises(
        RewardDefinitionError,
        match=r"^the check of reward 'mine' failed for row 0: KeyError: 'colour' \(test_quantity.py:\d+\); expected",
    ):
        agent.run(1, [{"prompt": "one", "answer": 4}])


@pytest.mark.parametrize(
    "answer", [10**5000, decimal.Decimal("sNaN"), -(10**5000)], ids=["huge", "sNaN", "-huge"]
)
def test_exact_match_refuses_a_number_that_cannot_be_written(answer):
    """In a sentence, whatever Python says of it."""
    agent = BaseAgent("m", backend=ScriptedBackend("4"), reward=exact_match)
    with pytest.raises(
        RewardDefinitionError,
        match=r"reward 'exact_match' cannot use row 0: the answer (has|is) .*; expected",
    ):
        agent.run(1, [{"prompt": "one", "answer": answer}])


@pytest.mark.parametrize("answer", NOT_NUMBERS, ids=repr)
def test_a_reference_that_is_no_quantity_is_refused_before_the_run(answer):
    """In one sentence that names the row; no chain starts."""
    agent = BaseAgent("m", backend=ScriptedBackend("4"), reward=numeric_match)
    rows = [{"prompt": "one", "answer": 4}, {"prompt": "two", "answer": answer}]
    with capture_events(agent.streaming_manager) as capture, pytest.raises(RewardDefinitionError) as told:
        agent.run(1, rows, enable_streaming=True)
    assert str(told.value).startswith("reward 'numeric_match' cannot use row 1: the answer is ")
    assert "expected" in str(told.value)
    assert capture.events == []


@pytest.mark.parametrize("answer", [None, True, ["a"], {"a": 1}, b"a", float("nan"), np.zeros(2)], ids=repr)
def test_exact_match_refuses_what_is_no_text(answer):
    """`None` is not the word None, and a list is not its brackets."""
    agent = BaseAgent("m", backend=ScriptedBackend("None"), reward=exact_match)
    with pytest.raises(RewardDefinitionError, match="reward 'exact_match' cannot use row 0: the answer is "):
        agent.run(1, [{"prompt": "one", "answer": answer}])


@pytest.mark.parametrize(
    ("response", "answer"),
    [("4", np.int64(4)), ("4.0", 4.0), ("a", np.str_(" a")), ("1.50", decimal.Decimal("1.50"))],
)
def test_exact_match_takes_text_and_numbers(response, answer):
    """As they are written."""
    assert exact_match(response, answer) == 1.0


def test_a_reward_of_ones_own_may_check_rows():
    """Its `check` sees the fields of each row before any chain starts."""

    def known(row):
        if row["color"] not in ("red", "blue"):
            raise ValueError(f"the color is {row['color']!r}; expected red or blue")

    @reward(check=known)
    def right_color(final_response, color):
        return float(final_response == color)

    agent = BaseAgent("m", backend=ScriptedBackend("red"), reward=right_color)
    assert agent.run(1, [{"prompt": "x", "color": "red"}]).rewards == [1.0]
    with pytest.raises(
        RewardDefinitionError, match="cannot use row 0: the color is 'pink'; expected red or blue"
    ):
        agent.run(1, [{"prompt": "x", "color": "pink"}])


def test_a_tolerance_that_is_none_is_the_usual_one():
    """As `datasets` fills a field that only some rows have."""
    assert numeric_match("0.3333333333", 1 / 3, tolerance=None) == 1.0


@given(st.text(alphabet="0123456789.,:/%()[]+-eE \\{}$frac\u2212"))
def test_any_text_can_be_read(text):
    """A response has a quantity or none; a reference is one or is refused with a ValueError."""
    last_quantity(text)
    try:
        quantity = reference_quantity(text)
    except ValueError:
        return
    assert numeric_match(text, text) == 1.0, quantity


@pytest.mark.parametrize(
    "piece",
    [
        "1 ",
        "1,",
        "(",
        "1/",
        "(1, ",
        "\\frac{1",
        "1:",
        "9",
        "-",
        " ",
        "1 1/",
        "\\sqrt{",
        "\\frac{{",
        "2^",
        "2^{",
        "{1, ",
        "1.000",
        "3 x 10^",
        "½",
    ],
)
def test_a_long_response_is_read_in_linear_time(piece):
    """Whatever a model repeats: twice the text is not four times the work."""
    found = last_quantity(piece * 50_000)  # quadratic work would take longer than a test may
    assert found is None or found == last_quantity(piece * 50_000)
