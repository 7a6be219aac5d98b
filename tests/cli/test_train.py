"""`rollcast train`, as a user calls it."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyte
import pytest

import rollcast as rollcast_package
from rollcast.records import check_events, decode

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": SRC}
SMALL = ["--questions", "2", "--group", "4", "--eval-every", "0"]


def rollcast(*args, cwd, without=()):
    """The command, in a process of its own; `without`: packages that shall be missing."""
    hide = "".join(f"sys.modules[{name!r}] = None; " for name in without)
    code = f"import sys; {hide}from rollcast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENV,
        check=False,
    )


def test_a_training_is_watched_kept_resumed_and_run(tmp_path):
    """Through a pipe: a line a step, one an evaluation, the curves; then three steps more, and the weights play."""
    done = rollcast(
        "train", "--steps", 2, *SMALL, "--out", "o", "--json", "log.jsonl", "--show", 1, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Training: rollcast/tiny on arithmetic, 2 steps. It goes to o.")
    assert [line[:11] for line in lines if line.startswith("step ")] == ["step 1 of 2", "step 2 of 2"]
    assert sum("128 held-out questions" in line for line in lines) == 2
    assert any(line.startswith("chain_0 ") for line in lines)
    assert not any(line.startswith("chain_1 ") for line in lines)
    assert "done: 2 steps" in done.stdout
    events = [decode(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    runs = {e.run_id for e in events if e.event_type == "run_start"}
    for run in runs:
        check_events([e for e in events if e.run_id == run])
    assert sum(e.event_type == "train_step" for e in events) == 2
    assert (tmp_path / "o/step-000002/model.safetensors").is_file()

    more = rollcast("train", "--resume", "--out", "o", "--steps", 5, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert [line[:11] for line in more.stdout.splitlines() if line.startswith("step ")] == [
        "step 3 of 5",
        "step 4 of 5",
        "step 5 of 5",
    ]
    (way,) = [line for line in more.stdout.splitlines() if line.startswith("watch it")]
    played = rollcast(*way.split()[3:], "--chains", 1, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "mean reward" in played.stdout


def test_without_matplotlib_training_goes_on_and_says_what_is_missing(tmp_path):
    """At the beginning and at the end. The events alone are on standard output, where they were sent there."""
    done = rollcast("train", "--steps", 1, *SMALL, "--json", "-", cwd=tmp_path, without=["matplotlib"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pip install 'rollcast[plot]'") == 2
    assert "It goes to rollcast-train-arithmetic." in done.stderr
    assert {decode(line).event_type for line in done.stdout.splitlines()} >= {"run_start", "train_step"}
    assert not (tmp_path / "rollcast-train-arithmetic/curves.png").exists()


def test_scalars_for_tensorboard(tmp_path):
    """Every metric of a step, and the evaluations; the settings come from a file."""
    pytest.importorskip("tensorboard")
    (tmp_path / "train.toml").write_text(
        'steps = 1\nquestions = 2\ngroup = 4\neval-every = 0\ntensorboard = "tb"\nout = "o"\n'
    )
    done = rollcast("train", "--config", "train.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (tmp_path / "tb").iterdir()
    tags = {value.tag for event in EventFileLoader(str(file)).Load() for value in event.summary.value}
    assert {"train/mean_reward", "eval/sampled", "eval/greedy"} <= tags
    assert {"train/finish/answered", "train/length/tokens_max", "train/tool/calculator/failed"} <= tags


@pytest.mark.torch
def test_trl_trains_on_the_same_questions(tmp_path):
    """With the same lines; its checkpoint plays and is gone on from. Without TRL there is a sentence."""
    pytest.importorskip("trl", reason="needs the extra")
    small = ["--trainer", "trl", *SMALL, "--lr", "0.0004", "--out", "o"]
    done = rollcast("train", "--steps", 1, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Training: rollcast/tiny on arithmetic, 1 step.")
    assert sum(line.startswith("step 1 of 1 · mean reward ") for line in lines) == 1
    assert sum("128 held-out questions" in line for line in lines) == 2
    assert "{" not in done.stdout
    assert "--backend transformers --model o/checkpoint-1" in done.stdout
    more = rollcast("train", "--resume", "--out", "o", "--steps", 2, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "step 2 of 2 · mean reward " in more.stdout
    refused = rollcast("train", "--trainer", "trl", "--seed", 2**32, "--out", "p", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "rollcast: seed is 4294967296; TRL takes a whole number from 0 to 4294967295\n"
    assert not (tmp_path / "p").exists()
    missing = rollcast("train", "--steps", 1, "--trainer", "trl", cwd=tmp_path, without=["trl"])
    assert missing.returncode == 2
    assert "pip install 'rollcast[train]'" in missing.stderr


def training(tmp_path, *args):
    command = [sys.executable, "-m", "rollcast", "train", "--out", "o", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, cwd=tmp_path
    )


def until(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"no line begins with {beginning!r}: {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_step_and_keeps_what_was_learned(tmp_path, number):
    """With a checkpoint, the sum, and how to go on; the exit code is the shell's for the signal."""
    with training(tmp_path, "--minutes", "30", *SMALL) as process:
        until(process, "step 2 ")
        process.send_signal(number)
        rest, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert "interrupted: " in rest
    assert "rollcast train --resume --out o\n" in rest
    assert list((tmp_path / "o").glob("step-*/model.safetensors"))


def test_a_training_goes_on_where_its_model_is_gone_and_its_folder_was_moved(tmp_path):
    """A checkpoint is whole: it needs nothing of what the training began with."""
    for args in (["--out", "first"], ["--model", "first/step-000001", "--out", "second"]):
        done = rollcast("train", "--steps", 1, *SMALL, *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    (tmp_path / "second").rename(tmp_path / "größer 大")
    more = rollcast("train", "--resume", "--out", "größer 大", "--steps", 2, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert (tmp_path / "größer 大/step-000002/tokenizer.json").is_file()


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    """In the middle of a step that would take long; without a traceback."""
    with training(tmp_path, "--steps", "9", "--questions", "999", "--eval-every", "0") as process:
        until(process, "◆ before training")
        process.send_signal(signal.SIGINT)
        until(process, "finishing this step")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "step 1" not in rest


def test_where_nobody_reads_any_more_it_ends_and_keeps_what_was_learned(tmp_path):
    """`rollcast train | head`."""
    with training(tmp_path, "--minutes", "30", *SMALL) as process:
        until(process, "step 1 ")
        process.stdout.close()
        assert process.wait(300) == 141
        (line,) = process.stderr.read().splitlines()
        assert line.startswith("recorded: ")
    assert list((tmp_path / "o").glob("step-*/model.safetensors"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--steps", "1", "--minutes", "1"], "--steps and --minutes are both given"),
        (["--steps", "0"], "steps is 0"),
        (["--group", "1"], "group is 1"),
        (["--lr", "0"], "learning_rate is 0"),
        (["--task", "nonsense"], "there is no task 'nonsense'"),
        (["--trainer", "nonsense"], "trainer is 'nonsense'; expected embedded or trl"),
        (["--agent", "nowhere:agent"], "No module named 'nowhere'"),
        (["--agent", "mine:agent", "--model", "x"], "--agent and --model were both given"),
        (["--agent", "mine:agent"], "this agent's backend is scripted"),
        (["--model", "nowhere"], "nowhere"),
        (["--out", "full"], "--out full is not empty"),
        (["--resume"], "--resume was given without --out"),
        (["--resume", "--out", "full"], "there is no training in full"),
        (["--config", "bad.toml"], "did you mean 'questions'?"),
        (["--serve", "0.0.0.0:0"], "there is no token"),
        (["--json", "."], "folder"),
        (["--resume", "--model", "x", "--out", "full"], "--resume and --model were both given"),
        (["--out", "full/x"], "--out full/x is a file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, args, says):
    """No traceback, and nothing is left behind."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "bad.toml").write_text("question = 3\n")
    (tmp_path / "mine.py").write_text(
        "from rollcast import BaseAgent\nfrom rollcast.testing import ScriptedBackend\n"
        "agent = BaseAgent(backend=ScriptedBackend('x'))\n"
    )
    done = rollcast("train", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "rollcast-train-arithmetic").exists()


def test_a_missing_extra_is_told_before_anything_is_trained(tmp_path):
    """With the command that installs it."""
    done = rollcast("train", "--tensorboard", "tb", cwd=tmp_path, without=["tensorboard"])
    assert done.returncode == 2
    assert "pip install 'rollcast[tensorboard]'" in done.stderr


def test_a_terminal_has_a_panel_and_the_sum_stays(tmp_path):
    """While it trains: chains in rows of their own, the panel below. At the end, of these nothing but lines is left."""
    screen = pyte.HistoryScreen(80, 24, history=2000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    args = [sys.executable, "-m", "rollcast", "train", "--steps", "3", *SMALL, "--out", "o"]
    process = subprocess.Popen(
        args, stdout=slave, stderr=slave, cwd=tmp_path, env=ENV | {"TERM": "xterm-256color"}
    )
    os.close(slave)
    panels = set()
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # Linux tells of the other side's end so
            break
        if not data:
            break
        for start in range(0, len(data), 128):  # if much has come at once, a panel may be drawn over in it
            stream.feed(data[start : start + 128])
            rows = [row.rstrip() for row in screen.display]
            for i, row in enumerate(rows):
                if row.startswith("── train rollcast/tiny on arithmetic"):
                    assert [r[:7] for r in rows[i - 3 : i]] == ["chain_0", "chain_1", "chain_2"]
                    panels.add(rows[i + 1][2:13])
    os.close(master)
    assert process.wait(300) == 0
    assert panels >= {"step 0 of 3", "step 1 of 3", "step 2 of 3"}
    rows = [row.rstrip() for row in screen.display]
    assert not any(row.startswith("── train") for row in rows)
    assert any(row.startswith("done: 3 steps") for row in rows)
    assert any("mean reward" in row for row in rows)
