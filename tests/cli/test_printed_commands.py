"""What the command prints for the user to type next works as it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rollcast
from rollcast.cli.itself import quoted, this_command
from rollcast.cli.train.record import Record
from rollcast.cli.train.settings import TrainSettings
from rollcast.cli.train.summary import say_end
from rollcast.cli.train.view import TrainView
from rollcast.train import Evaluation, Progress, TrainResult

SRC = str(Path(rollcast.__file__).parents[1])
SMALL = ["--steps", "1", "--questions", "2", "--group", "4", "--eval-every", "0", "--lr", "1e-5"]
AGENT = """
from rollcast import BaseAgent, tool, reward

@tool
def feel_lucky(number: int) -> str:
    "Say whether it is."
    return "lucky"

@reward
def one(trajectory):
    return float(len(trajectory.token_ids) % 2)

agent = BaseAgent(tools=[feel_lucky], reward=one, name="lucky")
"""


@pytest.fixture
def place(tmp_path):
    """An environment whose commands are not on PATH, with an agent; its folder has a name that shells stumble over."""
    place = tmp_path / "it's $HOME"
    (place / "bin").mkdir(parents=True)
    script = place / "bin" / "rollcast"
    script.write_text(f"#!{sys.executable}\nfrom rollcast.cli import main\nmain()\n")
    script.chmod(0o755)
    (place / "mine.py").write_text(AGENT)
    return place


def environment(path=os.defpath):
    return {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONPATH": SRC, "PATH": path}


def call(place, *args, env=None):
    return subprocess.run(
        args, cwd=place, env=env or environment(), capture_output=True, text=True, check=False
    )


def printed(done):
    """The commands, by what stands before them."""
    assert done.returncode == 0, done.stderr
    names = ("watch it", "go on", "the last")
    return {name: line[12:] for line in done.stdout.splitlines() for name in names if line.startswith(name)}


def typed(place, command, env=None):
    """In a shell, as a user does; what it wrote."""
    done = call(place, "/bin/sh", "-c", command, env=env)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_a_command_that_is_not_on_the_path_is_printed_as_it_was_started(place):
    """Out of an environment that is not activated, with folders that need quotes: watched, and gone on with."""
    ways = printed(call(place, "bin/rollcast", "train", *SMALL, "--out", "-my weights"))
    assert ways["watch it"].startswith("bin/rollcast run --backend tiny --model ")
    assert "mean reward" in typed(place, f"{ways['watch it']} --chains 1 --questions 1")
    assert "Training goes on" in typed(place, ways["go on"])
    absolute = printed(call(place, place / "bin/rollcast", "train", *SMALL, "--out", "o"))
    assert absolute["watch it"].startswith(f"{quoted(place / 'bin/rollcast')} run --backend tiny ")
    assert "mean reward" in typed(place, f"{absolute['watch it']} --chains 1 --questions 1")


def test_an_agent_is_watched_with_what_it_learned(place):
    """The agent with its tools and reward, the weights, and the task on which it was trained."""
    ways = printed(
        call(
            place,
            "bin/rollcast",
            "train",
            "--agent",
            "mine.py:agent",
            "--task",
            "guess",
            *SMALL,
            "--out",
            "o",
        )
    )
    assert ways["watch it"] == "bin/rollcast run mine.py:agent --task guess --model o/step-000001"
    shown = typed(place, f"{ways['watch it']} --chains 1 --questions 1 --json log.jsonl")
    assert "mean reward" in shown
    start = (place / "log.jsonl").read_text().splitlines()[0]
    assert '"agent":"lucky"' in start
    assert '"model":"o/step-000001"' in start
    assert "Training goes on" in typed(place, ways["go on"])


def test_on_the_path_it_is_called_by_its_name(place):
    """Also if it was started by its whole path."""
    env = environment(f"{place / 'bin'}:{os.defpath}")
    for started in ("rollcast", str(place / "bin/rollcast")):
        ways = printed(call(place, "/bin/sh", "-c", f"{quoted(started)} train {' '.join(SMALL)}", env=env))
        assert ways["watch it"].startswith("rollcast run --backend tiny --model ")
        assert "mean reward" in typed(place, f"{ways['watch it']} --chains 1", env=env)


def test_a_module_is_called_as_a_module(place):
    """`python -m rollcast`, with the Python that runs it."""
    ways = printed(call(place, sys.executable, "-m", "rollcast", "train", *SMALL))
    assert ways["watch it"].startswith(f"{quoted(sys.executable)} -m rollcast run ")
    assert "mean reward" in typed(place, f"{ways['watch it']} --chains 1")


def test_another_program_that_calls_the_command_says_rollcast(monkeypatch):
    """What that program is called does not start anything."""
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert this_command() == "rollcast"


@pytest.mark.parametrize(
    ("value", "shell"), [("a b", "'a b'"), ("-x", "./-x"), ("~/x", "'~/x'"), ("o/step-1", "o/step-1")]
)
def test_arguments_are_quoted_for_a_shell(value, shell):
    """One that begins with a dash is not an option."""
    assert quoted(value) == shell


def ended(terminal, tmp_path, sampled, kept):
    """The end of a training with these evaluations, of which these steps' checkpoints are there."""
    history = [Progress(i, i, 1.0, {"mean_reward": s}, Evaluation(s, s, 128)) for i, s in enumerate(sampled)]
    for step in kept:
        (tmp_path / f"step-{step:06d}").mkdir()
    result = TrainResult("r", history, history[0].evaluation, history[-1].evaluation, tmp_path, "steps")
    view = TrainView(terminal, Record(3, None, 0.0), "a title")
    say_end(view, "a title", TrainSettings(steps=3), result, tmp_path, picture=False)
    return re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_after_a_collapse_the_best_checkpoint_is_watched(make_terminal, tmp_path):
    """Both are named, with what they had."""
    said = ended(make_terminal(200, 40), tmp_path, [0.5, 0.75, 0.0], [1, 2])
    assert "step-000001: sampled 0.75; at the end it was 0.00" in said
    lines = {line[:8]: line for line in said.splitlines()}
    assert "step-000001" in lines["watch it"]
    assert "step-000002" in lines["the last"]


@pytest.mark.parametrize(
    ("sampled", "kept"),
    [([0.5, 0.6, 0.75], [0, 2]), ([0.5, 0.5], [0, 1]), ([0.99, 0.98], [0, 1]), ([0.9, 0.5], [1])],
)
def test_otherwise_the_last_one_is_watched(make_terminal, tmp_path, sampled, kept):
    """If it is as good as any but for chance, or the better one is not there."""
    said = ended(make_terminal(200, 40), tmp_path, sampled, kept)
    assert "the best" not in said
    assert "the last" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("watch it")]
    assert f"step-{len(sampled) - 1:06d}" in line


def test_a_command_is_one_line_on_a_narrow_terminal(make_terminal, tmp_path):
    """The terminal wraps it, so that it can be copied as one."""
    said = ended(make_terminal(40, 20), tmp_path, [0.5, 0.75], [1])
    (line,) = [line for line in said.splitlines() if line.startswith("watch it")]
    assert line.endswith("step-000001")
