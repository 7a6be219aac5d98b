"""`--alert URL|COMMAND`, and the hints of a training."""

import asyncio
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rollcast as rollcast_package
from rollcast import InputError, StreamingManager, WebSocketStreamingServer
from rollcast.cli.alert import alert_to
from rollcast.cli.train.folder import keep_settings
from rollcast.cli.train.record import Record
from rollcast.cli.train.settings import TrainSettings, merged
from rollcast.cli.train.view import TrainView
from rollcast.records.hint_watch import HintChange
from rollcast.records.hints import Hint

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = os.environ | {"COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONPATH": SRC}


def command(*args):
    return [sys.executable, "-m", "rollcast", *map(str, args)]


def rollcast(*args, cwd=None, env=ENV):
    return subprocess.run(command(*args), capture_output=True, text=True, cwd=cwd, env=env, check=False)


def keeping(path):
    """A command that appends each alert to a file, as a line."""
    code = f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read() + chr(10))"
    return shlex.join([sys.executable, "-c", code])


AGENT = """
from rollcast import BaseAgent
from rollcast.testing import ScriptedBackend

def fails(request, token):
    raise RuntimeError("the key is sk-ant-REDACTED")

agent = BaseAgent(backend=ScriptedBackend("a", before_token=fails))
"""


@pytest.fixture
def agent(tmp_path):
    (tmp_path / "my_agent.py").write_text(AGENT.replace("REDACTED", "api03-" + "a1B2" * 20))
    return tmp_path


EMPTY = "--alert is empty; expected an address such as https://example.com/hook, or a command such as"


@pytest.mark.parametrize(
    ("which", "value", "sentence"),
    [
        (["run"], "", EMPTY),
        (["run"], "no-such-program x", "there is no program 'no-such-program'"),
        (["train"], "gopher://x/secret", "--alert is an address that begins with gopher://"),
        (["watch", "localhost:1"], "", EMPTY),
    ],
)
def test_what_cannot_be_alerted_is_refused(tmp_path, which, value, sentence):
    """In one sentence, with the exit code 2, before anything begins."""
    done = rollcast(*which, "--alert", value, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rollcast: ")
    assert " ".join(done.stderr.split()).count(sentence) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_is_told_to_a_command(agent):
    """Before the program ends, and without the secret in the error."""
    out = agent / "alerts"
    done = rollcast("run", "my_agent.py:agent", "--prompt", "x", "--alert", keeping(out), cwd=agent)
    assert done.returncode == 1, done.stderr
    (alert,) = map(json.loads, out.read_text().splitlines())
    assert alert["what"] == "run_failed"
    assert alert["text"].startswith(
        "All 4 chains of the run failed; the latest error is RuntimeError: the key is [masked:"
    )
    assert "a1B2" not in out.read_text()


def test_a_command_that_fails_is_one_warning(agent):
    """The run is as it would have been without it."""
    failing = shlex.join([sys.executable, "-c", "raise SystemExit(7)", "secret"])
    done = rollcast("run", "my_agent.py:agent", "--prompt", "x", "--alert", failing, cwd=agent)
    assert done.returncode == 1
    assert done.stderr.count("an alert could not be sent to ") == 1
    assert "it ended with code 7. The run goes on, and this is said once" in done.stderr
    assert "secret" not in done.stderr


def test_a_target_from_the_command_line_is_not_shown():
    """Neither where settings are shown nor where they are kept with the weights."""
    settings = merged({"alert": "https://example.com/secret", "task": "guess"}, None)
    assert "secret" not in repr(settings)


def test_a_target_is_not_kept_with_the_weights(tmp_path):
    """It belongs to one session."""
    keep_settings(TrainSettings(alert="https://example.com/secret"), tmp_path)
    assert "secret" not in (tmp_path / "train.toml").read_text()
    (tmp_path / "own.toml").write_text("alert = 5\n")
    with pytest.raises(InputError, match="alert is wrong; expected text in quotes"):
        merged({}, str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text("alert = 'true'\n")
    assert merged({}, str(tmp_path / "own.toml")).alert == "true"


def test_nothing_asked_is_no_observer():
    """Without `--alert`."""
    assert alert_to(None) is None


@pytest.mark.parametrize("shown_type", [[], ["--type", "run_end"]])
async def test_who_watches_is_alerted_too(tmp_path, shown_type):
    """Whatever types of events are shown; hints come by the times of the events."""
    out = tmp_path / "alerts"
    manager = StreamingManager()
    async with WebSocketStreamingServer("127.0.0.1", 0) as server:
        manager.add_observer(server.get_observer())
        with manager.run(chains=9) as run:
            for n in range(9):
                with run.chain() as chain:
                    with chain.generation(prompt_ids=[1]) as generation:
                        generation.chunk("a", [1], [-1.0])
                    with chain.tool_call("look", {}) as call:
                        call.observation("no", status="error")
                    chain.reward(float(n % 2))
                    chain.end("answered")
        await manager.drain()
        watch = command("watch", server.url, "--since", "start", *shown_type, "--alert", keeping(out))
        watching = await asyncio.create_subprocess_exec(
            *watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
        )
        until = time.monotonic() + 300
        while not (out.exists() and out.read_text().endswith("\n")):
            assert time.monotonic() < until
            assert watching.returncode is None
            await asyncio.sleep(0.02)
        watching.send_signal(signal.SIGINT)
        shown, errors = await watching.communicate()
    await manager.aclose()
    (alert,) = map(json.loads, out.read_text().splitlines())
    assert (alert["what"], alert["kind"]) == ("hint_appeared", "tool_fails")
    assert (watching.returncode, errors) == (130, b"")
    assert b"completed" in shown
    assert (b"! The tool" in shown) is (shown_type == [])


def test_a_training_shows_hints_among_its_lines():
    """A line when one appears and when it goes."""
    out = io.StringIO()
    hint = Hint("tool_fails", "The tool “look” failed in 9 of 9 calls", "r", ["chain_0"], 1, None, "look")
    with TrainView(out, Record(None, 1.0, 0.0), "x") as view:
        view.hint(HintChange(hint, True, 1000.0, "i"))
        view.hint(HintChange(hint, False, 1010.0, "i"))
    assert out.getvalue().splitlines() == [
        "! The tool “look” failed in 9 of 9 calls (chain_0)",
        "! no longer: The tool “look” failed in 9 of 9 calls",
    ]


TRAINED = """
from rollcast import BaseAgent, tool
from rollcast.tools import calculator

@tool
def calculator(expression: str) -> str:
    \"\"\"Compute.\"\"\"
    raise ValueError("broken")

agent = BaseAgent(tools=[calculator], reward=lambda final_response: float(len(final_response) % 2))
"""


@pytest.mark.slow
def test_a_training_whose_tool_fails_says_so(tmp_path):
    """On the terminal after three rollouts, and to a command."""
    (tmp_path / "mine.py").write_text(TRAINED.replace("from rollcast.tools import calculator\n", ""))
    out = tmp_path / "alerts"
    done = rollcast(
        "train", "--agent", "mine.py:agent", "--steps", 4, "--questions", "2", "--group", "4", "--eval-every", "0",
        "--out", "o", "--alert", keeping(out), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "! The tool “calculator” failed in " in done.stdout
    assert "tool_fails" in [json.loads(line).get("kind") for line in out.read_text().splitlines()]
