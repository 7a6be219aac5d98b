"""Facts about what the command line loads: agents, tasks and rows, and what is said of those that cannot be loaded."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rollcast as rollcast_package
from rollcast import BaseAgent, InputError
from rollcast.cli.load import load_agent, load_agent_or_task, load_rows
from rollcast.records import check_events, decode
from rollcast.rollout.rows import as_rows
from rollcast.tasks import Task

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = os.environ | {"COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONPATH": SRC}

MINE = """
from rollcast import BaseAgent, numeric_match, reward
from rollcast.models.backend import Sampling
from rollcast.tasks.base import Task
from rollcast.testing import ScriptedBackend
from rollcast.tools import calculator

@reward
def broken(final_response):
    return 1 / 0

def question(rng):
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": a + b}

sums_of_mine = Task("sums", "Sums.", "It adds.", (calculator,), numeric_match, question, 3, Sampling(max_tokens=60))
agent_of_mine = BaseAgent("scripted", backend=ScriptedBackend("done"), reward=broken)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine_here.py").write_text(MINE)
    yield tmp_path
    for name in [
        name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))
    ]:
        del sys.modules[name]


def test_a_file_without_a_name_offers_what_is_in_it(project):
    """The agents and the tasks, and the next command."""
    says = "'mine_here.py' names no agent; the agents in it: agent_of_mine; the tasks: sums_of_mine; run mine_here.py:agent_of_mine"
    with pytest.raises(InputError) as told:
        load_agent("mine_here.py")
    assert str(told.value) == says
    with pytest.raises(
        InputError, match="has no 'other'; the agents in it: agent_of_mine; the tasks: sums_of_mine"
    ):
        load_agent("mine_here:other")


def test_a_file_with_neither_says_what_to_write(project):
    """There is nothing to offer."""
    (project / "empty_here.py").write_text("x = 1\n")
    with pytest.raises(
        InputError, match=r"the agents in it: none; write agent = BaseAgent\(…\) there, and run"
    ):
        load_agent("empty_here.py")


def test_a_task_is_taken_where_a_task_will_do(project):
    """Where it will not, the sentence says what to do."""
    assert isinstance(load_agent_or_task("mine_here.py:sums_of_mine"), Task)
    assert isinstance(load_agent_or_task("mine_here.py:agent_of_mine"), BaseAgent)
    with pytest.raises(InputError, match=r"is a Task; expected a BaseAgent: .* BaseAgent\(tools=task.tools"):
        load_agent("mine_here.py:sums_of_mine")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import sys\nsys.exit(3)",
            r"it called sys.exit\(3\) \(wrong_here.py:2\); put the code that the file runs as a program",
        ),
        ("raise SystemExit", r"it called sys.exit\(None\) \(wrong_here.py:1\)"),
        ("x = 1\nraise RuntimeError('no\\nluck')", r"RuntimeError: no luck \(wrong_here.py:2\)"),
        ("class Panic(BaseException): pass\nraise Panic", r"Panic: Panic \(wrong_here.py:2\)"),
        ("x = = 1", r"SyntaxError: invalid syntax \(wrong_here.py:1\)"),
        ("def agent():\n    return 1 / 0", r"ZeroDivisionError: division by zero \(wrong_here.py:2\)"),
        ("def agent():\n    exit(4)", r"it called sys.exit\(4\) \(wrong_here.py:2\)"),
        ("def agent(x): pass", "TypeError: .*missing 1 required positional argument"),
    ],
)
def test_a_module_that_fails_is_one_sentence_with_its_line(project, source, says, caplog):
    """Whatever it raises when it is imported or called; the traceback is in the log for who asks for it."""
    (project / "wrong_here.py").write_text(source + "\n")
    with caplog.at_level(logging.DEBUG, "rollcast.cli"), pytest.raises(InputError, match=says) as told:
        load_agent("wrong_here.py:agent")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('{"prompt": "a", "n": 1}\n\n{"prompt": "b", "n": 2}\n', [1, 2]),
        ('[{"prompt": "a", "n": 1},\n {"prompt": "b", "n": 2}]', [1, 2]),
        ('{\n  "prompt": "a",\n  "n": 1\n}\n', [1]),
        ('{"prompt": "a", "n": 1}', [1]),
        ('{"prompt": [{"role": "user", "content": "a"}], "n": 1}', [1]),
        ('[{"messages": [{"role": "user", "content": "a"}], "prompt": null, "n": 1}]', [1]),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', [None]),
        ('\ufeff{"prompt": "a", "n": 1}\r\n{"prompt": "b", "n": 2}\r\n', [1, 2]),
    ],
)
def test_rows_files_as_people_have_them(project, text, fields):
    """JSON lines, an array, one object, one conversation."""
    (project / "rows.json").write_text(text, newline="")
    rows = load_rows("rows.json")
    assert [row.get("n") for row in rows] == fields
    assert all("prompt" not in row for row in rows)
    assert as_rows(rows)[0].messages[0]["content"] == "a"


def test_rows_may_hold_what_pythons_writer_gives_for_nan(project):
    """NaN is no JSON, and yet in many files."""
    (project / "rows.jsonl").write_text(json.dumps({"prompt": "a", "n": float("nan")}) + "\n")
    assert load_rows("rows.jsonl")[0]["n"] != load_rows("rows.jsonl")[0]["n"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 5}\n', r"a.jsonl:2\['prompt'\] is int; expected text"),
        ("a.jsonl", b'{"prompt": "x"}\n[1]\n', "a.jsonl:2 is not a row: .*found list"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "usr", "content": "x"}]}\n',
            r"a.jsonl:1\['messages'\]\[0\] has role 'usr'",
        ),
        ("a.jsonl", b'{"messages": [], "prompt": "x"}\n', "a.jsonl:1 is not a row: .*not both"),
        ("a.json", b'[{"prompt": "x"}, 5]', r"a.json:1\[1\] is not a row: .*found int"),
        ("a.json", b'[{"prompt": "x"},', "a.json is not JSON: "),
        ("a.json", b"[]", "a.json has no rows"),
        ("a.json", b'"text"', "a.json:1 is not a row: .*found str"),
        ("a.csv", b"prompt,answer\nx,1\n", r"a.csv is not JSON; .*datasets.load_dataset\(…\).to_json"),
        ("a", b"PAR1....", "a is not JSON; .*datasets"),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16"), "a.jsonl is not JSON; .*in UTF-8"),
        ("a.jsonl", b'{"prompt": "\xff"}', "a.jsonl:1 is not JSON"),
    ],
)
def test_what_is_no_row_is_named_with_its_place(project, name, data, says):
    """One sentence: which line or item, what was found, what was expected."""
    (project / name).write_bytes(data)
    with pytest.raises(InputError, match=says):
        load_rows(name)


def command(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "rollcast", "run", *map(str, args)],
        capture_output=True, text=True, cwd=cwd, env=ENV, check=False,
    )  # fmt: skip


def test_if_every_reward_failed_the_exit_code_is_1(project):
    """The table says so, the line stands on the console and in the log's events, and the traceback comes once."""
    done = command(
        "mine_here.py:agent_of_mine", "--prompt", "x", "--chains", 3, "--json", "log.jsonl", cwd=project
    )
    assert done.returncode == 1
    assert "reward failed" in done.stdout
    assert "3 of the rewards failed" in " ".join(done.stdout.split())
    assert "3 × reward 'broken' raised ZeroDivisionError: division by zero (mine_here.py:10)" in done.stdout
    events = [decode(line) for line in (project / "log.jsonl").read_bytes().splitlines()]
    check_events(events)
    errors = [event.data["error"] for event in events if event.event_type == "error"]
    assert len(errors) == 3
    assert all(error.endswith("(mine_here.py:10)") for error in errors)
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.count("return 1 / 0") == 1


def test_a_task_of_ones_own_runs(project):
    """`rollcast run my_task.py:sums` asks its questions, with its tools and its reward."""
    done = command("mine_here.py:sums_of_mine", "--questions", 1, "--chains", 1, "--seed", 3, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "It adds." in done.stdout
    assert "mean reward" in done.stdout
