"""`rollcast open`, as a user finds it, and the links of `rollcast run --serve`."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

import rollcast as rollcast_package
from ports import kept_port
from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver
from rollcast.cli import main

SRC = str(Path(rollcast_package.__file__).parents[1])
LEFT_OUT = ("ROLLCAST_RECORDS", "ROLLCAST_TOKEN", "SSH_CONNECTION", "WAYLAND_DISPLAY", "COLUMNS")
ENV = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
ENV |= {"PYTHONPATH": SRC, "PYTHONUNBUFFERED": "1", "DISPLAY": ":0"}
FORWARD = re.compile(r"from your machine: ssh -L (\d+):localhost:\1 \S+\n")


def command(*args):
    return [sys.executable, "-m", "rollcast", *map(str, args)]


@pytest.fixture
def refused(monkeypatch, capsys):
    """Calls the command in a folder, in this process; gives its exit code and what it said."""

    def call(*args, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["rollcast", *map(str, args)])
        for name in LEFT_OUT:
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return call


@contextlib.contextmanager
def running(*args, cwd, **env):
    """A command that goes on, killed at the end if it still runs."""
    with subprocess.Popen(
        command(*args), cwd=cwd, env=ENV | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def lines_until(process, end):
    """The lines of its output up to one with these words."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if end in line:
            return lines
    raise AssertionError("".join(lines) + process.stderr.read())


def link_in(lines, label="in a browser: "):
    return next(line for line in lines if line.startswith(label)).removeprefix(label).strip()


def hello(link, token=None):
    """The first frame that a server answers with."""
    parts = urlsplit(link)
    with connect(f"ws://{parts.netloc}/", subprotocols=["rollcast.v1"], proxy=None) as socket:
        socket.send(json.dumps({"type": "hello"} | ({"token": token} if token else {})))
        return json.loads(socket.recv(timeout=60))


def token_of(link):
    return urlsplit(link).fragment.removeprefix("token=")


@pytest.fixture
def place(tmp_path):
    """A folder with a record directory, in which there are two records."""
    for name in ("20261127-0900-guess-aaaa", "20261128-0900-grid-bbbb"):
        manager = StreamingManager()
        manager.add_observer(
            ArchiveObserver(tmp_path / "rollcast-runs" / name, name=name.split("-")[2], masker=False)
        )
        with manager.run(chains=1, run_id=name[-4:]) as run, run.chain() as chain:
            chain.reward(0.5)
        manager.close()
    return tmp_path


def test_a_record_is_opened_and_ctrl_c_ends_it_with_0(place):
    """The link leads to the page, and its token to the record; without it nothing is told."""
    with running("open", "guess", "--no-browser", cwd=place, DISPLAY="") as process:
        lines = lines_until(process, "Ctrl-C ends it")
        assert lines[0] == "20261127-0900-guess-aaaa: ended\n"
        assert FORWARD.fullmatch(lines[2])
        link = link_in(lines)
        with urllib.request.urlopen(link.partition("#")[0], timeout=60) as answer:
            assert b"<title>Rollcast</title>" in answer.read()
        assert hello(link)["code"] == 4500
        welcome = hello(link, token_of(link))
        assert (welcome["type"], welcome["scopes"]) == ("welcome", ["read"])
        with connect(f"ws://{urlsplit(link).netloc}/", subprotocols=["rollcast.v1"], proxy=None) as socket:
            socket.send(json.dumps({"type": "hello", "token": token_of(link)}))
            socket.recv(timeout=60)
            socket.send(json.dumps({"type": "query", "id": "q", "what": "runs"}))
            assert [row["run_id"] for row in json.loads(socket.recv(timeout=60))["rows"]] == ["aaaa"]
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=300)
    assert (process.returncode, out, errors) == (0, "", "")


def test_its_token_is_kept_and_the_link_is_the_same_after_a_restart(place):
    """On the same port; the file is readable for its owner alone. SIGTERM ends it with 0 too."""
    links = []
    with kept_port() as port:
        for _ in range(2):
            with running("open", "--no-browser", "--port", port, cwd=place) as process:
                links.append(link_in(lines_until(process, "Ctrl-C ends it")))
                process.terminate()
                assert process.wait(300) == 0
    assert links[0] == links[1]
    file = place / "rollcast-runs" / "token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert links[0] == f"http://localhost:{port}/#token={file.read_text().strip()}"


def test_a_token_of_ones_own_is_asked_for_and_not_printed(place):
    """From the environment; nothing is kept."""
    with running("open", "--no-browser", cwd=place, ROLLCAST_TOKEN="of-my-own") as process:
        lines = lines_until(process, "Ctrl-C ends it")
        assert "of-my-own" not in "".join(lines)
        assert hello(link_in(lines), "of-my-own")["type"] == "welcome"
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    assert not (place / "rollcast-runs" / "token").exists()


@pytest.mark.parametrize("args", [[], ["rollcast-runs"], ["--record-dir", "rollcast-runs"]])
def test_a_folder_of_records_is_opened(place, args):
    """All of them are listed and can be read: without an argument those of the record directory."""
    with running("open", *args, "--no-browser", cwd=place) as process:
        lines = lines_until(process, "Ctrl-C ends it")
        assert lines[0] == "rollcast-runs: 2 records; the latest, 20261128-0900-grid-bbbb: ended\n"
        link = link_in(lines)
        with connect(f"ws://{urlsplit(link).netloc}/", subprotocols=["rollcast.v1"], proxy=None) as socket:
            socket.send(json.dumps({"type": "hello", "token": token_of(link)}))
            assert "records" in json.loads(socket.recv(timeout=60))["features"]
            socket.send(json.dumps({"type": "query", "id": "q", "what": "runs"}))
            rows = json.loads(socket.recv(timeout=60))["rows"]
            assert [(row["run_id"], row["name"]) for row in rows] == [("bbbb", "grid"), ("aaaa", "guess")]
            socket.recv(timeout=60)
            socket.send(json.dumps({"type": "query", "id": "q", "what": "chains", "run": "aaaa"}))
            assert [row["reward"] for row in json.loads(socket.recv(timeout=60))["rows"]] == [0.5]
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0


@pytest.mark.parametrize("word", ["rollcast-runs/20261128-0900-grid-bbbb", "2026112809", "latest"])
def test_a_record_may_be_named_in_every_way(place, word):
    """By its folder, and as elsewhere."""
    if word.isdecimal():
        word = "20261128"
    with running("open", word, "--no-browser", cwd=place) as process:
        assert lines_until(process, "Ctrl-C ends it")[0] == "20261128-0900-grid-bbbb: ended\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0


def test_nothing_is_written_beside_a_record_that_lies_elsewhere(place, tmp_path_factory):
    """It may be somebody else's folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "theirs"
    (place / "rollcast-runs" / "20261128-0900-grid-bbbb").rename(elsewhere)
    with running("open", elsewhere, "--no-browser", cwd=place) as process:
        link = link_in(lines_until(process, "Ctrl-C ends it"))
        assert hello(link, token_of(link))["type"] == "welcome"
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    assert [path.name for path in elsewhere.parent.iterdir()] == ["theirs"]
    assert not (place / "rollcast-runs" / "token").exists()


def test_a_browser_is_opened_at_the_link_if_there_is_a_display(place):
    """The one that $BROWSER names; `--no-browser` opens none."""
    told = place / "told"
    browser = place / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {told}\n')
    browser.chmod(0o755)
    with running("open", cwd=place, BROWSER=f"{browser} %s") as process:
        link = link_in(lines_until(process, "Ctrl-C ends it"))
        give_up = time.monotonic() + 120
        while not (told.exists() and told.read_text()):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    assert told.read_text() == link + "\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["gess"], "rollcast-runs holds no record 'gess'; the nearest: 20261127-0900-guess-aaaa"),
        (["2026"], "'2026' begins the names of 2 records"),
        (["--record-dir", "empty"], "empty holds no records; rollcast run and rollcast train leave one each"),
        (["empty"], "empty holds no records"),
        (["damaged"], "damaged/run.json is damaged"),
        (["newer"], "has format 99, and this version of Rollcast reads formats up to"),
        (["--token", "a b"], "a token of the server is empty or has spaces"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(place, refused, args, says):
    """No traceback, and nothing is served."""
    (place / "empty").mkdir()
    for name, content in (("damaged", "{"), ("newer", '{"format":99}')):
        (place / name).mkdir()
        (place / name / "run.json").write_text(content)
    code, errors = refused("open", "--no-browser", *args, cwd=place)
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert says in errors


def test_a_port_that_is_taken_or_none_is_exit_code_2(place, refused):
    """No traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, errors = refused("open", "--no-browser", "--port", taken.getsockname()[1], cwd=place)
    assert code == 2
    assert "is in use; stop what listens there, or choose another port" in errors
    for port in ("99999", "-1", "x"):
        code, errors = refused("open", "--port", port, cwd=place)
        assert code == 2
        assert "--port" in errors
        assert "Traceback" not in errors


def test_a_run_that_serves_prints_two_links_and_can_be_opened_while_it_goes_on(tmp_path):
    """One to watch, which needs no token, and one that may cancel; its token is beside the records, where `open` finds it."""
    run = (
        "run",
        "--serve",
        "127.0.0.1:0",
        "--pace",
        "0.05",
        "--questions",
        "1",
        "--chains",
        "2",
        "--seed",
        "7",
    )
    with running(*run, cwd=tmp_path) as process:
        lines = lines_until(process, "with cancel: ")
        watch, control = link_in(lines), link_in(lines, "  with cancel: ")
        assert control == f"{watch}#token={(tmp_path / 'rollcast-runs' / 'token').read_text().strip()}"
        assert hello(watch)["scopes"] == ["read"]
        assert hello(watch, "another")["scopes"] == ["read"]
        assert hello(watch, token_of(control))["scopes"] == ["read", "control"]
        lines_until(process, "chain_0")
        with running("open", "--no-browser", cwd=tmp_path) as opened:
            said = lines_until(opened, "Ctrl-C ends it")
            assert said[0].endswith(": running, and what comes is shown\n")
            assert token_of(link_in(said)) == token_of(control)
            opened.send_signal(signal.SIGINT)
            assert opened.wait(300) == 0
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    assert process.returncode == 130


def test_another_program_replays_what_is_opened(place):
    """`rollcast watch --speed`, on its own terminal."""
    secret = {"ROLLCAST_TOKEN": "secret"}
    with running("open", "grid", "--no-browser", cwd=place, **secret) as process:
        address = urlsplit(link_in(lines_until(process, "Ctrl-C"))).netloc
        watch = [sys.executable, "-m", "rollcast", "watch", address, "--speed", "max"]
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=ENV | secret) as watching:
            shown = lines_until(watching, "completed")
            watching.send_signal(signal.SIGINT)
            watching.communicate()
        assert any("chain_0" in line for line in shown)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--speed", "0"], "--speed is '0'; expected a number above 0"),
        (["--speed", "2", "--since", "live"], "--speed and --since live are both given"),
        (["--since", "noon"], "--since is 'noon'; expected live or start"),
    ],
)
def test_a_replay_that_cannot_be_is_one_sentence(options, says):
    """Before anything is connected."""
    watch = [sys.executable, "-m", "rollcast", "watch", "localhost:1", *options]
    done = subprocess.run(watch, capture_output=True, text=True, env=ENV, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
