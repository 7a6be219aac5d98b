"""Sums, differences and products of small numbers, as symbols and in words.

The embedded model was taught exactly these templates, in this distribution: changing either means training it anew.
"""

from __future__ import annotations

import random
from typing import Any

from rollcast.models.backend import Sampling
from rollcast.rollout.reward import numeric_match
from rollcast.tasks.base import Task
from rollcast.tools.calc import calculator, evaluate

__all__ = ["TASK", "question"]

SYMBOLS = ("What is {e}?", "Compute {e}.", "Calculate {e}.", "{e} = ?")
WORDS = (
    ("What is {a} times {b}?", "{a} * {b}"),
    ("Add {a} and {b}.", "{a} + {b}"),
    ("Subtract {b} from {a}.", "{a} - {b}"),
    ("Multiply {a} by {b}, then add {c}.", "{a} * {b} + {c}"),
    ("What is the sum of {a}, {b} and {c}?", "{a} + {b} + {c}"),
    ("I have {b} boxes of {a} pens and lose {c}. How many pens are left?", "{b} * {a} - {c}"),
)

ABOUT = """\
The embedded model has 0.46 million parameters and knows only the questions of this task: two or three whole numbers up \
to 999 with + - and *, as symbols ("What is 12 * 34?") or in one of six sentences ("Multiply 12 by 34, then add 5."). It \
starts at about half right, since it often guesses instead of calling the calculator, and training mends that. Any other \
question gets nonsense: it is a real language model to watch and to train, not one to talk to."""


def question(rng: random.Random) -> dict[str, Any]:
    """One row: a question, its `answer` (int) and the `expression` that gives it."""
    a, b, c = rng.randint(12, 999), rng.randint(2, 99), rng.randint(2, 99)
    if rng.random() < 0.5:
        numbers = [a, b, c][: rng.choice((2, 2, 3))]
        rng.shuffle(numbers)
        first, *rest = numbers
        expression = str(first) + "".join(f" {rng.choice('+-*')} {number}" for number in rest)
        text = rng.choice(SYMBOLS).format(e=expression)
    else:
        template, form = rng.choice(WORDS)
        text, expression = template.format(a=a, b=b, c=c), form.format(a=a, b=b, c=c)
    return {
        "messages": [{"role": "user", "content": text}],
        "answer": evaluate(expression),
        "expression": expression,
    }


TASK = Task(
    name="arithmetic",
    summary="Work out sums, differences and products with a calculator.",
    about=ABOUT,
    tools=(calculator,),
    reward=numeric_match,
    question=question,
    max_steps=3,
    sampling=Sampling(temperature=1.0, max_tokens=64),
)
