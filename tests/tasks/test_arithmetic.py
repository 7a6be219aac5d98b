"""Facts about the tasks that ship."""

import re
import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from rollcast.errors import InputError
from rollcast.records import Trajectory, validated_messages
from rollcast.rollout.context import ChainContext
from rollcast.tasks import get_task, task_names
from rollcast.tools import tool_set

TEMPLATES = [
    re.compile(pattern)
    for pattern in (
        r"What is (?P<e>[\d +*-]+)\?",
        r"Compute (?P<e>[\d +*-]+)\.",
        r"Calculate (?P<e>[\d +*-]+)\.",
        r"(?P<e>[\d +*-]+) = \?",
        r"What is \d+ times \d+\?",
        r"Add \d+ and \d+\.",
        r"Subtract \d+ from \d+\.",
        r"Multiply \d+ by \d+, then add \d+\.",
        r"What is the sum of \d+, \d+ and \d+\?",
        r"I have \d+ boxes of \d+ pens and lose \d+\. How many pens are left\?",
    )
]


def test_an_unknown_task_names_those_that_exist():
    """Asking for a task that does not exist is an InputError that lists the names."""
    with pytest.raises(InputError, match="there is no task 'chess'; the tasks are: arithmetic"):
        get_task("chess")


def test_every_task_is_complete():
    """Each task has rows that its reward accepts, valid messages, and tools of different names."""
    for name in task_names():
        task = get_task(name)
        rows = task.rows(5, seed=1)
        for row in rows:
            validated_messages(row["messages"])
        fields = [{k: v for k, v in row.items() if k != "messages"} for row in rows]
        assert task.reward.check_fields(fields) is None
        assert tool_set(task.tools)
        assert (task.name, bool(task.summary and task.about)) == (name, True)


def test_the_same_seed_gives_the_same_rows():
    """Rows depend on the seed alone, and more of them begin with the same ones."""
    task = get_task("arithmetic")
    assert task.rows(20, seed=7)[:5] == task.rows(5, seed=7)
    assert task.rows(5, seed=7) != task.rows(5, seed=8)
    assert task.rows(0) == []


def test_a_negative_number_of_rows_is_refused():
    """Fewer than no rows is an InputError."""
    with pytest.raises(InputError, match="asked for -1 rows"):
        get_task("arithmetic").rows(-1)


def test_questions_are_the_templates_that_the_model_was_taught():
    """Every question is one of ten templates, about half of them symbols, with the right answer."""
    rows = get_task("arithmetic").rows(4000, seed=3)
    used = Counter()
    for row in rows:
        text = row["messages"][0]["content"]
        fits = [i for i, template in enumerate(TEMPLATES) if template.fullmatch(text)]
        assert len(fits) == 1
        used[fits[0]] += 1
        assert row["answer"] == eval(row["expression"])
        numbers = [int(n) for n in re.findall(r"\d+", text)]
        assert len(numbers) in {2, 3}
        assert all(2 <= n <= 999 for n in numbers)
        assert sum(n > 99 for n in numbers) <= 1
        symbols = TEMPLATES[fits[0]].fullmatch(text).groupdict().get("e")
        assert symbols is None or symbols == row["expression"]
    assert len(used) == len(TEMPLATES)
    assert 0.45 < sum(used[i] for i in range(4)) / len(rows) < 0.55
    triples = sum(len(re.findall(r"\d+", row["messages"][0]["content"])) == 3 for row in rows)
    assert 0.36 < triples / len(rows) < 0.47  # half of 1/3 in symbols, half of 3/6 in words


async def test_the_taught_answer_is_rewarded():
    """`The answer is N.` with the right N is worth 1, with a wrong one or none 0."""
    task = get_task("arithmetic")
    row = task.rows(1, seed=1)[0]
    for response, score in ((f"The answer is {row['answer']}.", 1.0), ("The answer is 1e9.", 0.0), ("", 0.0)):
        trajectory = Trajectory("run", "chain_0", "group_0", row=row, final_response=response)
        assert await task.reward.score(trajectory, ChainContext()) == (score, {})


def test_rows_can_be_encoded():
    """A row is JSON."""
    rows = get_task("arithmetic").rows(10)
    assert msgspec.json.decode(msgspec.json.encode(rows)) == rows


def test_the_registry_is_light():
    """Listing the tasks loads neither pydantic nor NumPy."""
    program = (
        "import sys; from rollcast.tasks import task_names; task_names();"
        "print([m for m in ('pydantic', 'numpy', 'griffe', 'tokenizers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "[]\n"
