"""`rollcast run --serve` and `rollcast watch`, as a user calls them."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import rollcast as rollcast_package

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = os.environ | {"COLUMNS": "100", "PYTHONUNBUFFERED": "1", "PYTHONPATH": SRC}


def command(*args):
    return [sys.executable, "-m", "rollcast", *map(str, args)]


def rollcast(*args, **env):
    return subprocess.run(command(*args), capture_output=True, text=True, env=ENV | env, check=False)


def test_one_program_runs_and_another_watches():
    """The same console; Ctrl-C ends the watcher, and the run goes on without it.

    At a token every 50 seconds the run cannot end before it is watched, however slow the machine is.
    """
    run = command("run", "--serve", "127.0.0.1:0", "--pace", "0.02", "--seed", "7", "--chains", "2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    secret = ENV | {"ROLLCAST_TOKEN": "secret"}
    with subprocess.Popen(run, **pipes, env=secret) as running:
        url = next(found[1] for line in running.stdout if (found := re.search(r"watch (ws://\S+)", line)))
        refused = rollcast("watch", url)
        assert refused.returncode == 2
        assert "the token is missing or wrong" in refused.stderr
        with subprocess.Popen(command("watch", url, "--since", "start"), **pipes, env=secret) as watching:
            assert any("chain_3 " in line for line in watching.stdout)
            watching.send_signal(signal.SIGINT)
            _, errors = watching.communicate()
        assert watching.returncode == 130
        assert "Traceback" not in errors
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate()
    assert running.returncode == 130
    assert "4 cancelled" in out
    assert "Traceback" not in errors


def test_host_and_port_are_enough_and_options_reach_the_server():
    """`rollcast watch HOST:PORT`; the names and the pages that were named may come."""
    run = command(
        *("run", "--serve", "127.0.0.1:0", "--pace", "0.02", "--seed", "7", "--chains", "2"),
        *("--origin", "https://lab.example", "--origin", "https://b.example", "--host-name", "lab.example"),
    )
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=ENV) as running:
        place = next(f[1] for line in running.stdout if (f := re.search(r"watch ws://(\S+)", line)))
        watch = command("watch", place, "--since", "start")
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=ENV) as watching:
            assert any("chain_3 " in line for line in watching.stdout)
            watching.send_signal(signal.SIGINT)
            watching.communicate()
        answers = [answer_to(place, *headers) for headers in (
            ("lab.example", "https://lab.example"),
            ("lab.example", "https://b.example"),
            ("evil.example", None),
            (place, "https://evil.example"),
        )]  # fmt: skip
        running.send_signal(signal.SIGINT)
        running.communicate()
    assert [status for status, _ in answers] == [101, 101, 403, 101]
    assert "--host-name" in answers[2][1]
    assert [b"\x11\x9b" in said.encode("latin-1") for _, said in answers] == [
        False,
        False,
        False,
        True,
    ]  # 4507


def answer_to(place, host, origin):
    """The status of a WebSocket request, and the first bytes that follow it."""
    address, _, port = place.rpartition(":")
    with socket.create_connection((address, int(port)), timeout=60) as talk:
        lines = [
            "GET / HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *([f"Origin: {origin}"] if origin else []), "", "",
        ]  # fmt: skip
        talk.sendall("\r\n".join(lines).encode())
        said = b""
        while b"\r\n\r\n" not in said:
            said += talk.recv(4096)
        head, _, rest = said.partition(b"\r\n\r\n")
        rest = rest or talk.recv(4096)
    return int(head.split()[1]), rest.decode("latin-1")


def test_a_watcher_that_nobody_reads_ends():
    """`rollcast watch … | head -1` does not stay behind."""
    run = command("run", "--serve", "127.0.0.1:0", "--pace", "0.5", "--seed", "7", "--chains", "2")
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=ENV) as running:
        url = next(found[1] for line in running.stdout if (found := re.search(r"watch (ws://\S+)", line)))
        watch = command("watch", url, "--since", "start")
        with subprocess.Popen(
            watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
        ) as watching:
            assert watching.stdout.readline()
            watching.stdout.close()
            assert watching.wait() == 141
            assert "Traceback" not in watching.stderr.read()
        running.send_signal(signal.SIGINT)
        running.communicate()


AGENT_THAT_FAILS = """
from rollcast import BaseAgent
from rollcast.testing import ScriptedBackend

def fails(trajectory):
    raise ValueError("no reward")

agent = BaseAgent(backend=ScriptedBackend("Four."), reward=fails)
"""


@pytest.mark.parametrize(
    ("args", "end", "code"),
    [
        (["run", "--seed", "7", "--chains", "2"], signal.SIGINT, 0),
        (["run", "fails.py:agent", "--prompt", "2 + 2", "--chains", "2"], signal.SIGTERM, 1),
        pytest.param(
            ["train", "--steps", "1", "--questions", "1", "--group", "2", "--eval-every", "0"],
            signal.SIGINT,
            0,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["run", "run that fails", "train"],
)
def test_a_command_keeps_serving_and_who_comes_late_sees_everything(tmp_path, args, end, code):
    """The summary is printed when the run is over; a signal ends the command with the exit code of the run."""
    (tmp_path / "fails.py").write_text(AGENT_THAT_FAILS)
    run = command(*args, "--serve", "127.0.0.1:0", "--keep-serving")
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, cwd=tmp_path
    ) as running:
        said = []
        for line in running.stdout:
            said.append(line)
            if "still serving at ws://" in line:
                break
        url = re.search(r"still serving at (ws://\S+),", said[-1])[1]
        assert any(("completed: " in line) or ("done: " in line) for line in said)
        watch = command("watch", url, "--since", "start")
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=ENV) as watching:
            assert any(line.startswith("── completed") for line in watching.stdout)
            watching.send_signal(signal.SIGINT)
            watching.communicate()
        assert running.poll() is None
        running.send_signal(end)
        rest, errors = running.communicate()
    assert (running.returncode, rest) == (code, "")
    assert ("Traceback" in errors) is bool(code)  # that of the reward, which is logged


def test_a_run_that_ctrl_c_ended_is_not_served_on():
    """Whoever presses Ctrl-C wants the command to end."""
    run = command("run", "--serve", "127.0.0.1:0", "--keep-serving", "--pace", "0.02", "--seed", "7")
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=ENV) as running:
        assert any("watch it with" in line for line in running.stdout)
        assert any("chain_0" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate()
    assert running.returncode == 130
    assert "still serving" not in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "--serve", "nonsense"], "--serve is 'nonsense'; expected PORT or HOST:PORT"),
        (
            ["run", "--serve", "0.0.0.0:0"],
            "there is no token; set ROLLCAST_TOKEN, give --token, or listen on localhost",
        ),
        (["run", "--serve", "99999"], "port is 99999"),
        (["run", "--origin", "https://lab.example"], "--origin is given without --serve"),
        (["run", "--host-name", "lab.example"], "--host-name is given without --serve"),
        (["run", "--tls-cert", "cert.pem"], "--tls-cert is given without --serve"),
        (["run", "--keep-serving"], "--keep-serving is given without --serve"),
        (["train", "--keep-serving"], "--keep-serving is given without --serve"),
        (["train", "--serve", "0", "--origin", "lab"], "is 'lab'; expected that of one page"),
        (["train", "--serve", "0", "--host-name", "a b"], "is 'a b'; expected a name alone"),
        (["watch", "ftp://localhost"], "is not a WebSocket address"),
        (["watch", "all.jsonl"], "'all.jsonl' is the name of a file, and watch follows a server"),
        (["watch", "localhost:99999"], "has the port '99999'; expected a number from 1 to 65535"),
        (["watch", "127.0.0.1:1"], "ws://127.0.0.1:1 cannot be reached"),
        (["watch", "http://127.0.0.1:1"], "ws://127.0.0.1:1 cannot be reached"),
        (["watch", "ws://user:sekrit@127.0.0.1:1"], "ws://127.0.0.1:1 cannot be reached"),
        (["watch", "http://127.0.0.1:1/#token=sekrit"], "'http://127.0.0.1:1/#…' has a token in it"),
        (["watch", "ws://127.0.0.1:1", "--since", "ever"], "--since is 'ever'; expected live or start"),
        (["watch", "ws://127.0.0.1:1", "--type", "shout"], "no event type 'shout'"),
        (["watch", "ws://127.0.0.1:1"], "ws://127.0.0.1:1 cannot be reached"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(args, says):
    """No traceback."""
    done = rollcast(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "sekrit" not in done.stdout + done.stderr


def test_a_port_in_use_is_one_sentence_and_exit_code_2():
    """Before any chain starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = rollcast("run", "--serve", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 2
    assert "is in use; stop what listens there, or choose another port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
