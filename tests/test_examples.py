"""Each example runs as a program of its own and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rollcast

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What must be found in each example's output. The embedded model's words are not pinned: training it anew changes them.
PRINTS = {
    "callback": [r"chain_0 turn 1 '.+'", r"chain_1 turn 1 '.+'"],
    "custom_observer": [r"calculator \(success\): \d+ calls, median \d+\.\d\d ms"],
    "custom_tool_and_reward": [
        r"group_0 Compute 449 \+ 89\.\n  chain_0: reward \d\.\d, ",
        r"-> 538\n",
        r"-> error: this calculator cannot multiply\n",
        r"mean reward 0\.\d+",
    ],
    "jsonl_log": [r"^\d+ events\n", r"chain_0 [01]\.0 '.+'", r"chain_2 [01]\.0 '.+'"],
    "own_backend": [r"user: What is 6 \* 7\?", r"tool: 42\nassistant: The answer is 42\.\nreward 1\.0\n$"],
    "own_loop": [
        r"chain_0 │ 17 \+ 25 makes 42\.\n",
        r"chain_1 │ ← correct",
        r"chain_0 answered 1\.0 4 tokens\nchain_1 answered 1\.0 4 tokens\n$",
    ],
    "ten_lines": [r"chain_3 │ ▸ What is 12 \* 34\?", r"★ reward [01]\.0", r"chain_3 answered [01]\.0 .+\n$"],
    "watch_one_chain": [
        r"^chain_5 │ ▸ Calculate 4 \* 521\.\n",
        r"chain_5 │ ■ ",
        r"8 chains ran, mean reward \d\.\d+\n$",
    ],
}


def test_every_example_is_run():
    """An example without an expectation here would not be."""
    assert {path.stem for path in EXAMPLES} == set(PRINTS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    """It ends well, warns of nothing and prints what it promises."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(rollcast.__file__).parents[1]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for pattern in PRINTS[path.stem]:
        assert re.search(pattern, done.stdout), f"{pattern!r} is not in:\n{done.stdout}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_on_a_screen(path):
    """At most sixty lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_nobody_else_is_watched():
    """`watch_one_chain` prints lines of one chain only."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples/watch_one_chain.py"],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    assert {line.split()[0] for line in done.stdout.splitlines() if "│" in line} == {"chain_5"}
