"""What was typed as a path means what it meant then, wherever the agent's own code goes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import rollcast as rollcast_package
from rollcast.archive import list_records
from rollcast.records import decode

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = {
    name: value for name, value in os.environ.items() if name not in ("ROLLCAST_RECORDS", "ROLLCAST_TOKEN")
}
ENV |= {"PYTHONPATH": SRC}

AGENT = """
import os
from rollcast import BaseAgent, numeric_match
from rollcast.tools import calculator

if {at_once}:
    os.chdir("elsewhere")

def scored(trajectory, answer, final_response):
    if os.path.isdir("elsewhere"):
        os.chdir("elsewhere")
    return numeric_match(final_response, answer)

agent = BaseAgent(tools=[calculator], reward=scored)
"""


@pytest.fixture(params=[True, False], ids=["when it is loaded", "while it runs"])
def place(request, tmp_path):
    """A folder with an agent that goes into another folder in it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.py").write_text(AGENT.format(at_once=request.param))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is 12 * 34?", "answer": 408}\n')
    return tmp_path


def rollcast(*args, cwd, **env):
    command = [sys.executable, "-m", "rollcast", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=ENV | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("named", [True, False], ids=["by option", "by environment"])
def test_a_run_writes_where_it_was_typed(place, named):
    """Its log and its record, and the token of its page; nothing is left in the other folder."""
    options, env = (["--record-dir", "kept"], {}) if named else ([], {"ROLLCAST_RECORDS": "kept"})
    options += [
        "--rows",
        "rows.jsonl",
        "--json",
        "events/log.jsonl",
        "--serve",
        "127.0.0.1:0",
        "--chains",
        "2",
    ]
    done = rollcast("run", "mine.py:agent", *options, cwd=place, **env)
    lines = (place / "events/log.jsonl").read_bytes().splitlines()
    assert decode(lines[-1]).event_type == "run_end"
    (entry,) = list_records(place / "kept")
    assert entry.state == "ended"
    assert f"show kept/{entry.name}" in done.stderr.splitlines()[-1]
    assert "events/log.jsonl" in done.stdout
    assert (place / "kept/token").is_file()
    assert list((place / "elsewhere").iterdir()) == []


@pytest.mark.slow
def test_a_training_writes_where_it_was_typed_and_goes_on_there(place):
    """Its checkpoints, curves, settings, log, scalars and record; the commands that it prints can be typed there."""
    options = ["--questions", 1, "--group", 2, "--eval-every", 0, "--out", "out", "--record-dir", "kept"]
    options += ["--json", "log.jsonl"]
    options += ["--tensorboard", "scalars"] if find_spec("tensorboard") else []
    done = rollcast("train", "--agent", "mine.py:agent", "--steps", 1, *options, cwd=place)
    assert "--resume --out out " in done.stdout
    assert "--model out/step-000001" in done.stdout
    rollcast("train", "--resume", "--out", "out", "--steps", 2, cwd=place)
    assert (place / "out/step-000002/model.safetensors").is_file()
    assert f'record-dir = "{place / "kept"}"' in (place / "out/train.toml").read_text()
    assert decode((place / "log.jsonl").read_bytes().splitlines()[-1]).event_type == "run_end"
    newest, oldest = list_records(place / "kept")
    assert newest.facts.parent == oldest.name
    assert newest.facts.out == str(place / "out")
    assert list((place / "elsewhere").iterdir()) == []
    model = rollcast("run", "mine.py:agent", "--model", "out/step-000002", "--rows", "rows.jsonl", "--no-record", "--json", "-", cwd=place)  # fmt: skip
    assert json.loads(model.stdout.splitlines()[0])["data"]["model"].endswith("out/step-000002")
