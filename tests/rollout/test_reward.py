"""Facts about rewards."""

import asyncio
import functools
import sys
import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import BaseAgent
from rollcast.errors import RewardDefinitionError, RewardError
from rollcast.records import Trajectory
from rollcast.rollout.context import ChainContext
from rollcast.rollout.reward import Reward, as_reward, exact_match, numeric_match, reward
from rollcast.testing import ScriptedBackend


def _trajectory(response="", **row):
    return Trajectory("run", "chain_3", "group_0", row=row, final_response=response)


async def _score(function, response="", **row):
    return await as_reward(function).score(_trajectory(response, **row), ChainContext(row=row))


async def test_a_reward_gets_what_it_names():
    """final_response, trajectory, ctx and fields of the row are given by name, and defaults stand."""

    @reward
    def score(final_response, trajectory, ctx, *, answer, weight=2.0, missing="x"):
        assert trajectory.chain_id == "chain_3"
        assert ctx.row["answer"] == answer
        assert missing == "x"
        return weight * (final_response == answer)

    assert isinstance(score, Reward)
    assert await _score(score, "yes", answer="yes", weight=0.5) == (0.5, {})


async def test_stars_take_the_rest_of_the_row():
    """`**fields` gets every field of the row, and nothing of the rollout that is not named."""

    @reward
    def score(final_response, **fields):
        return {"reward": 1, "fields": len(fields), "sum": sum(fields.values())}

    assert await _score(score, "x", a=1, b=2) == (1.0, {"fields": 2, "sum": 3})


async def test_async_rewards_run_in_the_event_loop():
    """An async function, a partial of one and an object with an async `__call__` are awaited."""

    async def judge(final_response, bonus=0.0):
        await asyncio.sleep(0)
        return len(final_response) + bonus

    class Judge:
        async def __call__(self, final_response):
            return await judge(final_response)

    assert await _score(judge, "four") == (4.0, {})
    assert await _score(functools.partial(judge, bonus=1), "four") == (5.0, {})
    assert await _score(Judge(), "four") == (4.0, {})


async def test_sync_rewards_run_in_a_daemon_thread():
    """A sync function runs in a thread of its own name, an inline one in the event loop's."""

    def where():
        thread = threading.current_thread()
        return thread.name == "rollcast-reward-where" and thread.daemon

    def here():
        return threading.current_thread() is threading.main_thread()

    assert await _score(where) == (1.0, {})
    assert await _score(reward(here, inline=True)) == (1.0, {})


async def test_a_dict_has_metrics_beside_the_reward():
    """The other numbers of a dict are metrics, as plain numbers that can be encoded."""
    number, metrics = await _score(
        lambda: {
            "reward": np.float32(0.5),
            "right": True,
            "calls": 3,
            "mean": np.float64(0.25),
            "huge": 10**30,
            "whole": np.int64(4),
        }
    )
    assert number == 0.5
    assert metrics == {"right": True, "calls": 3, "mean": 0.25, "huge": 1e30, "whole": 4.0}
    assert metrics["right"] is True
    msgspec.json.encode(metrics)


def _raises():
    raise ValueError("no\nluck")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_raises, "raised ValueError: no luck"),
        (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda: float("nan"), "returned nan; expected a finite number"),
        (lambda: float("inf"), "returned inf; expected a finite number"),
        (lambda: None, "returned None; expected a finite number"),
        (lambda: "1.0", "returned str; expected a finite number"),
        (lambda: [1.0], "returned list; expected a finite number"),
        (lambda: 1j, "returned complex; expected a finite number"),
        (lambda: 10**400, "returned a number too large for a float"),
        (lambda: np.zeros(2), "returned ndarray; expected one finite number"),
        (lambda: {"": 1}, "returned a dict without 'reward' (its keys: '')"),
        (lambda: {"score": 1}, "returned a dict without 'reward' (its keys: 'score')"),
        (lambda: {"reward": "1"}, "returned as 'reward' str"),
        (lambda: {"reward": 1, "m": "x"}, "returned the metric 'm' as str"),
        (lambda: {"reward": 1, "m": float("nan")}, "returned the metric 'm' as nan"),
        (lambda answer: 1, "asks for 'answer', which its row lacks"),
        (lambda: sys.exit(1), "raised SystemExit: 1"),
    ],
)
async def test_a_reward_that_fails_is_a_sentence(function, words):
    """What raises or is no finite number is a RewardError that names the reward and the chain."""
    with pytest.raises(RewardError) as caught:
        await _score(reward(function, name="mine"))
    assert str(caught.value).startswith("reward 'mine' of chain_3 ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_reward_beyond_its_timeout_fails():
    """A reward that takes longer than its timeout is an error, sync or async."""
    gate = threading.Event()

    @reward(timeout=0.01)
    def stuck():
        gate.wait()

    @reward(timeout=0.01)
    async def slow():
        await asyncio.Event().wait()

    for each in (stuck, slow):
        with pytest.raises(RewardError, match=r"did not return within 0\.01 s"):
            await _score(each)
    gate.set()


async def test_a_reward_that_cancels_itself_fails_alone():
    """A reward that raises CancelledError is an error and does not look like cancellation."""

    async def odd():
        raise asyncio.CancelledError

    with pytest.raises(RewardError, match="was cancelled from within"):
        await _score(odd)


async def test_a_coroutine_from_a_plain_function_is_named():
    """A plain function that returns a coroutine is told to be async."""

    async def inner():
        return 1.0

    def outer():
        return inner()

    with pytest.raises(RewardError, match="a coroutine; define it with `async def`"):
        await _score(outer)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "asks for 'answer', which no row has (fields of the rows: none)"),
        ([{"question": 1}, {"id": 2}], "which no row has (fields of the rows: id, question)"),
        ([{"answer": 1}, {"answer": 1}, {}, {}], "which row 2 lacks (2 of 4 rows do)"),
        ([{"answer": 1}, {"answer": 1, "ctx": 3}], "row 1 has a field of that name; rename the field"),
    ],
)
def test_rows_that_lack_a_field_are_refused(rows, words):
    """A field that the reward needs and a row lacks is refused in one sentence before a run."""

    @reward
    def score(final_response, answer, ctx, hint=None):
        return 1.0

    with pytest.raises(RewardDefinitionError) as caught:
        score.check_fields(rows)
    assert words in str(caught.value)
    assert "'score'" in str(caught.value)


def test_rows_that_suffice_pass():
    """Fields with defaults may be absent, and names that the reward does not use clash with nothing."""

    @reward
    def score(final_response, answer, hint=None):
        return 1.0

    assert score.check_fields([{"answer": 1}, {"answer": 2, "hint": 3, "trajectory": 4}]) is None
    assert reward(lambda: 1.0).check_fields([]) is None


def _stars(*args):
    return 1.0


def _positional(a, /):
    return a


@pytest.mark.parametrize("function", [_stars, _positional, int, 3, min])
def test_what_cannot_be_called_by_name_is_refused(function):
    """A reward whose parameters cannot be given by name is refused."""
    with pytest.raises(RewardDefinitionError):
        as_reward(function)


def test_a_timeout_is_above_zero():
    """A timeout of 0 is refused."""
    with pytest.raises(RewardDefinitionError, match="timeout=0"):
        reward(lambda: 1, timeout=0)


def test_a_reward_is_still_the_function():
    """A reward can be called as the plain function, and stays itself."""
    assert exact_match(final_response="a", answer="a") == 1.0
    assert as_reward(exact_match) is exact_match


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("Paris", "Paris", 1.0),
        (" Paris\n", "Paris", 1.0),
        ("paris", "Paris", 0.0),
        ("7", 7, 1.0),
        ("", "x", 0.0),
    ],
)
async def test_exact_match(response, answer, score):
    """The response is the answer, spaces around it aside."""
    assert await _score(exact_match, response, answer=answer) == (score, {})


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("The answer is -7.", -7, 1.0),
        ("The answer is 7.", -7, 0.0),
        ("12 * 4 = 48", 48, 1.0),
        ("48, not 47", 48, 0.0),
        ("It costs $1,234,567.50.", 1234567.5, 1.0),
        ("1,234", "1234", 1.0),
        ("10-3", 3, 1.0),
        ("10 - 3 is 7", 7, 1.0),
        ("x = -4", -4, 1.0),
        ("\u22123", -3, 1.0),
        ("6e3", 6000, 1.0),
        (".5", 0.5, 1.0),
        ("7.0", 7, 1.0),
        ("0.3333333333", 1 / 3, 1.0),
        ("0.33", 1 / 3, 0.0),
        ("1234568", 1234567, 0.0),
        ("9" * 5000, "9" * 5000, 1.0),
        ("9" * 5000, "9" * 4999 + "8", 0.0),
        ("1e999999999", 1.5, 0.0),
        ("1e99999999999999999999999", 1.5, 0.0),
        ("", 3, 0.0),
        ("no number", 3, 0.0),
        ("\ud800 3", 3, 1.0),
    ],
)
async def test_numeric_match(response, answer, score):
    """The last number counts: whole numbers exactly, others within the tolerance."""
    assert await _score(numeric_match, response, answer=answer) == (score, {})


async def test_a_row_may_set_the_tolerance():
    """A field `tolerance` of the row widens what is taken as right."""
    assert await _score(numeric_match, "3.1", answer=3.14, tolerance=0.05) == (1.0, {})


async def test_an_answer_without_a_number_is_an_error():
    """A row whose answer is no quantity is a mistake of the data, not of the model."""
    with pytest.raises(RewardError, match="is 'Paris'; expected one quantity"):
        await _score(numeric_match, "3", answer="Paris")


@given(st.text())
def test_any_response_can_be_scored(text):
    """Whatever the model wrote, the score is 0 or 1."""
    assert numeric_match(text, 3) in {0.0, 1.0}


@given(st.integers())
def test_the_taught_form_is_right(number):
    """`The answer is N.` is right for every whole N."""
    assert numeric_match(f"The answer is {number}.", number) == 1.0
    assert numeric_match(f"The answer is {number:,}.", number) == 1.0
    assert numeric_match(f"The answer is {number + 1}.", number) == 0.0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_reward_that_raises_what_stops_a_program_fails_alone(error, kind):
    """KeyboardInterrupt of the reward's own is a RewardError, not the end of the run."""

    def sync(final_response):
        raise error

    async def asynchronous(final_response):
        raise error

    made = reward(sync if kind == "sync" else asynchronous)
    with pytest.raises(RewardError, match=f"raised {type(error).__name__}"):
        await made.score(Trajectory("run", "chain_0", "group_0", 0), ChainContext())


async def test_fields_that_are_no_names_are_left_out():
    """`**fields` takes what can be given by name, and a row may have other keys."""
    agent = BaseAgent(backend=ScriptedBackend("Done."), reward=lambda **fields: len(fields))
    result = await agent.run_async(1, [{"prompt": "one", 5: 1, "a": 2, None: 3}])
    assert result["chain_0"].reward == 1.0


def test_the_fields_of_a_row_are_told_whatever_they_are():
    """Names that are no text, too."""
    agent = BaseAgent(backend=ScriptedBackend("Done."), reward=lambda answer: answer)
    with pytest.raises(RewardDefinitionError, match=r"which no row has \(fields of the rows: 5, None, a\)"):
        agent.run(1, [{"prompt": "one", 5: 1, "a": 2, None: 3}])
