"""`rollcast hub`, as a user finds it."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request

import pytest

from hub_standin import said_beside_waiting
from rollcast.cli import main

LEFT_OUT = ("ROLLCAST_RECORDS", "ROLLCAST_TOKEN", "ROLLCAST_HUB", "ROLLCAST_HUB_TOKEN", "SSH_CONNECTION")
ENV = {name: value for name, value in os.environ.items() if name not in LEFT_OUT} | {"PYTHONUNBUFFERED": "1"}
WORKER = """
import asyncio
from rollcast import BaseAgent
from rollcast.testing import ScriptedBackend

question = [{"role": "user", "content": "Say it."}]
agent = BaseAgent(backend=ScriptedBackend(["Here it is."]))
asyncio.run(agent.run_async(1, question, num_chains=2))
"""


def started(*args, cwd, **env):
    """A hub that serves, and what it printed until then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rollcast", "hub", "--port", "0", *args],
        cwd=cwd, env=ENV | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "Ctrl-C ends it\n":
            return process, "".join(lines)
    raise AssertionError("".join(lines) + process.stderr.read())


@pytest.fixture
def hub(tmp_path):
    """Starts hubs, which are ended by SIGTERM or killed at the end."""
    running = []

    def start(*args, **env):
        process, said = started(*args, cwd=tmp_path, **env)
        running.append(process)
        return process, said

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Calls the command in this process; gives its exit code and what it said."""

    def call(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["rollcast", "hub", *map(str, args)])
        for name in LEFT_OUT:
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return call


def test_two_lines_of_environment_make_a_process_visible(hub, tmp_path):
    """Its run is in the hub's record, and nothing else was said or done in the process."""
    process, said = hub()
    lines = dict(re.findall(r"^  (ROLLCAST_HUB\w*)=(\S+)$", said, re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env=ENV | lines,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, said_beside_waiting(done.stderr)) == (0, "")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0
    (name,) = re.findall(r"rollcast show rollcast-runs/(\S+)", told)
    shown = subprocess.run(
        [sys.executable, "-m", "rollcast", "show", name],
        env=ENV,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 chains in 1 group · 2 answered" in shown.stdout


def test_a_token_that_was_made_is_kept_for_its_owner_alone(hub, tmp_path):
    """And used again by the next hub of the folder."""
    process, said = hub()
    (token,) = re.findall(r"ROLLCAST_HUB_TOKEN=(\S+)", said)
    assert f"#token={token}" in said
    kept = tmp_path / "rollcast-runs" / "token"
    assert kept.read_text().strip() == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert f"ROLLCAST_HUB_TOKEN={token}" in hub()[1]


def test_a_token_that_is_given_is_not_repeated(hub):
    """Terminals are kept and shown around."""
    _, said = hub("--publish-token", "sekrit-2", ROLLCAST_TOKEN="sekrit-1")
    assert "sekrit" not in said
    assert "ROLLCAST_HUB_TOKEN=…" in said


def test_one_secret_is_not_both_tokens(refused):
    """What is to publish only could watch and cancel, too."""
    code, said = refused("--no-record", "--token", "sekrit-1", "--publish-token", "sekrit-1")
    assert code == 2
    assert said.startswith("rollcast: --publish-token is the same as --token")
    assert "sekrit" not in said
    assert said.count("\n") == 1


def test_a_hub_starts_again_where_its_own_lines_are_in_the_environment(hub):
    """There its token is the one to publish with, too."""
    _, said = hub(ROLLCAST_TOKEN="sekrit-1", ROLLCAST_HUB_TOKEN="sekrit-1")
    assert "Ctrl-C ends it" in said
    assert "sekrit" not in said


def test_metrics_count_producers(hub):
    """Beside those of runs."""
    _, said = hub()
    page, token = re.search(r"in a browser: (\S+)#token=(\S+)", said).groups()
    request = urllib.request.Request(f"{page}metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "rollcast_hub_connected 0.0" in answer.read().decode()


def test_two_hubs_in_one_folder(hub, refused):
    """The second is refused, and told what to do."""
    hub()
    code, said = refused("--port", "0")
    assert code == 2
    assert re.fullmatch(
        r"rollcast: another hub records in \S+; give this one a folder of its own with --record-dir\n", said
    )


def test_a_port_that_is_in_use(refused):
    """One sentence; and the folder is free for another hub afterwards."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for _ in range(2):
            code, said = refused("--port", taken.getsockname()[1])
            assert code == 2
            assert "in use" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--no-record", "--record-dir", "x"], "--no-record and --record-dir are both given"),
        (["--tls-cert", "nosuch.pem"], "nosuch.pem"),
        (["--token", "a b"], "a token of the server is empty or has spaces"),
        (["--record-dir", "/proc/nosuch"], "--record-dir"),
    ],
)
def test_bad_input_is_one_sentence(refused, args, says):
    """With exit code 2."""
    code, said = refused("--port", "0", *args)
    assert code == 2
    assert said.startswith("rollcast: ")
    assert says in said
    assert said.count("\n") == 1
