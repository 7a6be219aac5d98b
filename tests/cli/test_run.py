"""`rollcast run`, as a user calls it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rollcast as rollcast_package
from rollcast.records import check_events, decode

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = os.environ | {"COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONPATH": SRC}


def rollcast(*args, cwd=None, env=ENV):
    return subprocess.run(
        [sys.executable, "-m", "rollcast", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        check=False,
    )


def events_in(path):
    return [decode(line) for line in path.read_bytes().splitlines()]


def test_it_runs_a_real_model_and_shows_every_chain(tmp_path):
    """Two questions, four chains each: the terminal names them all, the log has them all, the summary too."""
    log = tmp_path / "events.jsonl"
    done = rollcast("run", "--seed", 7, "--json", log)
    assert done.returncode == 0, done.stderr
    events = events_in(log)
    check_events(events)
    for i in range(8):
        assert f"chain_{i} " in done.stdout
        text = "".join(
            e.data["content"]
            for e in events
            if e.chain_id == f"chain_{i}" and e.event_type == "llm_generation_chunk" and e.step == 1
        )
        (end,) = [
            e
            for e in events
            if e.chain_id == f"chain_{i}" and e.event_type == "llm_generation_end" and e.step == 1
        ]
        assert end.data["content"] == text
    assert any(e.event_type == "tool_call_start" for e in events)
    assert "group_0" in done.stdout
    assert "mean reward" in done.stdout
    assert "0.46 million parameters" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout


def test_the_same_seed_gives_the_same_run():
    """Questions, tokens and rewards."""
    one, other = (rollcast("run", "--seed", 5, "--json", "-", "--chains", 2) for _ in range(2))

    def said(done):
        return sorted(
            (e["chain_id"], e["step"], e["data"]["content"])
            for e in map(json.loads, done.stdout.splitlines())
            if e["event_type"] == "llm_generation_end"
        )

    assert said(one) == said(other) != []


def test_a_dash_writes_lines_to_standard_output_and_nothing_else():
    """So that they can be piped on; the summary goes to standard error."""
    done = rollcast("run", "--seed", 1, "--json", "-")
    check_events([decode(line) for line in done.stdout.splitlines()])
    assert "mean reward" in done.stderr


def test_chains_and_types_can_be_chosen():
    """The console shows nothing of the others."""
    done = rollcast("run", "--seed", 7, "--chain", "chain_1", "--type", "chain_end", "--no-timestamps")
    lines = [line for line in done.stdout.splitlines() if "│" in line]
    assert len(lines) == 1
    assert lines[0].startswith("chain_1")


def test_own_prompts_have_no_reward():
    """There is no answer to compare with."""
    done = rollcast("run", "--prompt", "What is 2 + 2?", "--chains", 2)
    assert done.returncode == 0
    assert "2 answered" in done.stdout or "max_" in done.stdout
    assert "mean reward" not in done.stdout


AGENT = '''
from rollcast import BaseAgent, tool, reward
from rollcast.testing import ScriptedBackend

@tool
def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()

@reward
def loud(trajectory, answer):
    return float(trajectory.tool_calls[0].observation == answer)

def script(request):
    if any(m["role"] == "tool" for m in request.messages):
        return "Done."
    return '<tool_call>{"name": "shout", "arguments": {"text": "hi"}}</tool_call>'

agent = BaseAgent("scripted", tools=[shout], backend=ScriptedBackend(script), reward=loud)

def make():
    return agent

broken = 1 / 1
'''


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(AGENT)
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "hi", "answer": "HI"}\n\n{"prompt": "ho", "answer": "HO"}\n'
    )
    (tmp_path / "bad.jsonl").write_text('{"prompt": "hi"}\n{"question": "hi"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    return tmp_path


@pytest.mark.parametrize("target", ["mine:agent", "mine.py:agent", "mine:make"])
def test_an_agent_of_ones_own(project, target):
    """From a module, a file or a function, on rows from a file."""
    done = rollcast("run", target, "--rows", "rows.jsonl", "--chains", 2, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "shout" in done.stdout
    assert "mean reward 0.50" in done.stdout
    assert "0.46 million" not in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "names no agent; expected module:name"),
        (["nowhere:agent"], "No module named 'nowhere'"),
        (["nowhere.py:agent"], "there is no file 'nowhere.py'"),
        (["mine:other"], "has no 'other'; the agents in it: agent"),
        (["mine:broken"], "is float; expected a BaseAgent"),
        (["bad:agent"], "cannot be loaded: ModuleNotFoundError"),
        (["mine:agent", "--rows", "nowhere.jsonl"], "cannot be read"),
        (["mine:agent", "--rows", "bad.jsonl"], "bad.jsonl:2 is not a row"),
        (["mine:agent", "--rows", "empty.jsonl"], "has no rows"),
        (["mine:agent", "--rows", "mine.py"], "mine.py:2 is not JSON"),
        (["mine:agent", "--prompt", "hi"], "asks for"),
        (["--rows", "rows.jsonl", "--prompt", "x"], "give one of them"),
        (["--task", "nonsense"], "there is no task 'nonsense'; the tasks are: arithmetic"),
        (["--type", "nonsense"], "no event type 'nonsense'"),
        (["--max-steps", "0"], "max_steps is 0"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--pace", "0"], "--pace is 0"),
        (["--json", "."], "folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(project, args, says):
    """No traceback."""
    done = rollcast("run", *args, cwd=project)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_chain_and_prints_the_summary(tmp_path, number):
    """Ctrl-C, or a scheduler's SIGTERM: the log is whole, and the exit code is the shell's for the signal."""
    log = tmp_path / "events.jsonl"
    command = [sys.executable, "-m", "rollcast", "run", "--pace", "0.2", "--json", str(log)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "chain_7" in line:
                break
        process.send_signal(number)
        rest, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert "cancelled: 8 chains (8 cancelled)" in rest
    events = events_in(log)
    check_events(events)
    assert events[-1].data["status"] == "cancelled"


BLOCKS = """
import signal, time
from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend

@tool(timeout=None)
async def blocks() -> str:
    "x"
    before = signal.getsignal(signal.SIGINT)
    print("it blocks", flush=True)
    while signal.getsignal(signal.SIGINT) is before:
        time.sleep(0.01)
    print("it heard one", flush=True)
    time.sleep(1e6)

agent = BaseAgent(backend=ScriptedBackend('<tool_call>{"name": "blocks", "arguments": {}}</tool_call>'), tools=[blocks])
"""


def test_a_second_ctrl_c_ends_a_run_whose_tool_blocks_the_event_loop(tmp_path):
    """As the warning of the watchdog says."""
    (tmp_path / "mine.py").write_text(BLOCKS)
    command = [sys.executable, "-m", "rollcast", "run", "mine:agent", "--prompt", "x", "--chains", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        try:
            for said in ("it blocks", "it heard one"):
                assert any(said in line for line in process.stdout)
                process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "cancelled" in rest


def test_a_closed_pipe_is_no_error():
    """`rollcast run | head -1`."""
    done = subprocess.run(
        f"{sys.executable} -m rollcast run | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=ENV,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_no_color_and_dumb_terminals_have_no_control_codes():
    """Not a TTY has none either."""
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {}):
        done = rollcast("run", "--seed", 1, env=ENV | env)
        assert "\x1b" not in done.stdout


def test_help_says_what_the_model_can_do():
    """And the version is told."""
    assert "knows only the questions" in " ".join(rollcast("run", "--help").stdout.split())
    assert rollcast("--version").stdout.startswith("rollcast 0.")


def test_rows_with_a_byte_order_mark_and_long_questions(tmp_path):
    """Rows as Windows' editors write them are read; the summary shows the beginning of a long question."""
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'\xef\xbb\xbf{"prompt": "1+1"}\r\n{"prompt": "' + b"x" * 3000 + b'"}\r\n')
    done = rollcast("run", "--rows", str(rows), "--chains", "1")
    assert "2 chains" in done.stdout
    summary = done.stdout[done.stdout.index("group_0") :]
    assert 400 < summary.count("x") < 600


@pytest.mark.torch
def test_a_model_of_ones_own(tmp_path):
    """`--model` with `--backend` and its options; the embedded checkpoint is a Hugging Face folder too."""
    folder = Path(rollcast_package.__file__).parent / "models/tiny/checkpoint"
    log = tmp_path / "events.jsonl"
    options = [
        "--backend-option",
        "device=cpu",
        "--backend-option",
        "cache_bytes=16777216",
        "--temperature",
        "0",
    ]
    chosen = ["--backend", "transformers", "--model", folder, *options]
    done = rollcast("run", *chosen, "--prompt", "What is 12 * 34?", "--chains", 2, "--json", log)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The answer is 408.") >= 2
    assert "0.46 million" not in done.stdout


CHECKPOINT = Path(rollcast_package.__file__).parent / "models/tiny/checkpoint"


def test_an_agent_of_ones_own_with_another_model(project):
    """Its tools and reward stay; the model and what runs it are those of the line."""
    chosen = [
        "--model",
        CHECKPOINT,
        "--backend",
        "tiny",
        "--rows",
        "rows.jsonl",
        "--json",
        "log.jsonl",
        "--record-dir",
        "kept",
    ]
    done = rollcast("run", "mine:agent", *chosen, "--chains", 2, "--seed", 1, cwd=project)
    assert done.returncode == 0, done.stderr
    (start,) = [e for e in events_in(project / "log.jsonl") if e.event_type == "run_start"]
    assert (start.data["model"], start.data["backend"]) == (str(CHECKPOINT), "tiny")


@pytest.mark.parametrize("backend", [[], ["--backend", "tiny"]])
def test_what_runs_the_agents_model_runs_the_other(tmp_path, backend):
    """If the line names no backend. The agent's own is closed, if it made it."""
    (tmp_path / "mine.py").write_text(
        "import atexit\nfrom rollcast import BaseAgent, numeric_match\nfrom rollcast.tools import calculator\n"
        "agent = BaseAgent(tools=[calculator], reward=numeric_match)\nold = agent.backend\n"
        "atexit.register(lambda: print('closed:', old._engine._failure is not None))\n"
    )
    done = rollcast("run", "mine.py:agent", "--model", CHECKPOINT, *backend, "--chains", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mean reward" in done.stdout
    assert "closed: True" in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["mine:agent", "--model", "x"], "no backend was named for model 'x'"),
        (["mine:agent", "--model", "nowhere", "--backend", "tiny"], "nowhere/config.json cannot be read"),
        (["mine:agent", "--model", "x", "--backend", "other"], "there is no backend 'other'"),
        (["mine:agent", "--backend-option", "a=1"], "give the model that is to run instead"),
    ],
)
def test_a_model_that_an_agent_cannot_have_is_one_sentence(project, options, sentence):
    """On standard error, and the exit code is 2."""
    done = rollcast("run", *options, cwd=project)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "some/model"], "no backend was named for model 'some/model'"),
        (["--backend", "tiny", "--backend-option", "device"], "expected NAME=VALUE, such as device=cuda"),
        (["--backend", "tiny", "--backend-option", "a=1"], "the backend 'tiny' has no option 'a'"),
        (["mine:agent", "--backend", "tiny"], "your agent has a backend already"),
    ],
)
def test_a_wrong_backend_is_one_sentence(project, options, sentence):
    """On standard error, and the exit code is 2."""
    done = rollcast("run", *options, cwd=project)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())


def test_a_run_tells_its_name_tags_and_seed(tmp_path):
    """In its first event, so that a live watcher and a log know them too, recorded or not."""
    log = tmp_path / "events.jsonl"
    named = ["--name", "night", "--tag", "a", "--tag", "k=v"]
    done = rollcast("run", "--seed", 7, "--chains", 1, "--no-record", "--json", log, *named)
    assert done.returncode == 0, done.stderr
    start = events_in(log)[0].data
    assert (start["name"], start["tags"], start["seed"]) == ("night", ["a", "k=v"], 7)
    assert start["tools"][0]["function"]["name"] == "calculator"


def test_a_run_and_its_record_have_the_same_name(project):
    """Also if nobody gave one; the terminal shows it beside the model."""
    done = rollcast(
        "run",
        "mine.py:agent",
        "--rows",
        "rows.jsonl",
        "--json",
        "log.jsonl",
        "--record-dir",
        "kept",
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(next(project.glob("kept/*/run.json")).read_bytes())
    assert (facts["name"], events_in(project / "log.jsonl")[0].data["name"]) == ("mine", "mine")
    assert " · mine · " in done.stdout.splitlines()[0]


def test_a_training_tells_its_name_and_tags(tmp_path):
    """In the first event of the training, which its rollouts name as their parent."""
    small = ["--steps", 1, "--questions", 1, "--group", 2, "--eval-every", 0, "--out", tmp_path / "out"]
    log = tmp_path / "events.jsonl"
    done = rollcast("train", *small, "--no-record", "--json", log, "--name", "night", "--tag", "a")
    assert done.returncode == 0, done.stderr
    start = events_in(log)[0].data
    assert (start["chains"], start["name"], start["tags"]) == (0, "night", ["a"])
