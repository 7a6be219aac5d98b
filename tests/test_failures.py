"""Facts about where somebody's own code is said to have failed."""

import asyncio
import functools
import json
import re

import pytest

from rollcast.errors import RewardError
from rollcast.failures import place_of, text_and_place, text_of
from rollcast.records import Trajectory
from rollcast.rollout.context import ChainContext
from rollcast.rollout.reward import reward


def caught(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def line_of(function, offset=1):
    return f"test_failures.py:{function.__code__.co_firstlineno + offset}"


def boom():
    raise KeyError("x")


def reads_json():
    json.loads("{")


def in_a_callback():
    functools.reduce(lambda a, b: boom(), [1, 2])


def runs_code():
    exec("1 / 0")


def compiles_code():
    compile("def f(:", "<string>", "exec")


def in_a_task():
    async def failing():
        boom()

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(failing())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("function", "raises_in"),
    [
        (boom, boom),
        (reads_json, reads_json),
        (in_a_callback, boom),
        (runs_code, runs_code),
        (compiles_code, compiles_code),
        (in_a_task, boom),
    ],
)
def test_the_place_is_the_innermost_line_of_own_code(function, raises_in):
    """Frames of Python, of packages and of code without a file are passed over; groups are looked into."""
    assert place_of(caught(function)) == line_of(raises_in)


async def test_a_failure_that_rollcast_reports_has_the_place_of_its_cause():
    """A RewardError is at the line where the reward failed, not at the line that called Rollcast."""

    @reward(inline=True)
    def failing(final_response: str) -> float:
        return boom()

    with pytest.raises(RewardError) as told:
        await failing.score(Trajectory("run", "chain_0", "group_0", 0), ChainContext())
    assert place_of(told.value) == line_of(boom)


def test_own_code_that_raises_from_another_failure_has_its_own_place():
    """`raise … from error` in own code is the place; an exception without a traceback has its cause's."""

    def translated():
        error = RewardError("the reward failed")
        error.__cause__ = caught(boom)
        raise error

    assert place_of(caught(translated)) == line_of(translated, 3)
    bare = RewardError("the reward failed")
    bare.__cause__ = caught(boom)
    assert place_of(bare) == line_of(boom)


def test_a_module_that_cannot_be_compiled_has_the_line_that_is_wrong(tmp_path, monkeypatch):
    """A SyntaxError in a file is at its own line, not at the import."""
    (tmp_path / "broken_module_of_mine.py").write_text("a = 1\nb = = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert place_of(caught(__import__, "broken_module_of_mine")) == "broken_module_of_mine.py:2"


def test_a_package_is_named_with_its_folder(tmp_path, monkeypatch):
    """`__init__.py:1` alone would say nothing."""
    (tmp_path / "mine_that_exits").mkdir()
    (tmp_path / "mine_that_exits" / "__init__.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert place_of(caught(__import__, "mine_that_exits")) == "mine_that_exits/__init__.py:1"


def test_what_no_own_code_raised_has_no_place():
    """Exceptions without a traceback, and those that hold each other, have none."""
    one, other = ValueError("a"), ValueError("b")
    one.__context__, other.__context__ = other, one
    assert place_of(one) is None
    assert place_of(SyntaxError("x", ("<string>", 1, 1, "", 1, 1))) is None
    assert text_and_place(one) == "a"


class Nasty(Exception):
    def __str__(self):
        raise SystemExit


def test_any_exception_has_a_text():
    """A `__str__` that raises, no text at all and a very long text are told in a few words."""
    assert text_of(Nasty()) == "(its text cannot be shown)"
    assert text_and_place(ValueError()) == "ValueError"
    assert len(text_of(ValueError("x" * 10**6))) < 5000
    assert re.fullmatch(r"'x' \(test_failures.py:\d+\)", text_and_place(caught(boom)))
