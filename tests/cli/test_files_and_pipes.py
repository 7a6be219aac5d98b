"""What the commands do with files that cannot be written and pipes that nobody reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollcast.records import check_events, decode

ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path), "HOME": os.environ.get("HOME", "/")}
# What is said of records is tested in test_recording.py; here every line on the standard error is about something else.
RUN = ("run", "--seed", "7", "--no-record")
TRAIN = (
    "train", "--steps", "1", "--questions", "1", "--group", "2", "--eval-every", "0", "--out", "out", "--no-record"
)  # fmt: skip
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
proc = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc on this system")


def rollcast(*args, cwd, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, "-m", "rollcast", *map(str, args)]
    return subprocess.run(command, text=True, cwd=cwd, env=ENV, check=False, **options)


def first_line(*args, cwd):
    """As `rollcast … | head -1`: the line, what was said on standard error, and the exit code."""
    command = [sys.executable, "-m", "rollcast", *map(str, args)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=ENV
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        return line, errors, process.wait()


@pytest.mark.parametrize("command", [RUN, TRAIN], ids=["run", "train"])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        pytest.param("/proc/x", "cannot be opened to write to it: No such file", marks=proc),
        (".", "is a folder"),
        ("x" * 300, "File name too long"),
        ("x" * 300 + "/events.jsonl", "File name too long"),
        ("file/events.jsonl", "is not a folder"),
        ("loop", "cannot be opened"),
    ],
)
def test_a_log_that_cannot_be_opened_is_refused_before_anything_runs(tmp_path, command, place, says):
    """One sentence, exit code 2, and nothing was printed or made."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    done = rollcast(*command, "--json", place, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert says in sentence
    assert "give " in sentence
    assert len(sentence) < 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize(
    "args",
    [
        ("run", "x" * 300 + ".py:agent"),
        ("run", "--rows", "x" * 300),
        ("run", "--backend", "tiny", "--model", "x" * 300),
        ("train", "--steps", "1", "--agent", "x" * 300 + ".py:agent"),
        ("train", "--steps", "1", "--out", "x" * 300),
        ("train", "--resume", "--out", "x" * 300),
        ("train", "--steps", "1", "--config", "x" * 300),
        ("train", "--steps", "1", "--model", "x" * 300),
        ("show", "x" * 300),
        ("replay", "x" * 300),
        ("export", "x" * 300, "--to", "jsonl"),
    ],
)
def test_a_name_of_300_characters_is_one_sentence_wherever_a_name_is_asked_for(tmp_path, args):
    """Exit code 2, no traceback."""
    done = rollcast(*args, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


@full
@pytest.mark.parametrize("command", [RUN, TRAIN], ids=["run", "train"])
def test_a_log_that_fails_later_is_one_warning_and_a_word_in_the_summary(tmp_path, command):
    """The disk was full: the run goes on, and its exit code is its own."""
    done = rollcast(*command, "--json", "/dev/full", cwd=tmp_path)
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert "cannot write to /dev/full" in warning
    (summary,) = [line for line in done.stdout.splitlines() if line.startswith("events")]
    assert "/dev/full (not complete: " in summary
    assert summary.endswith("events could not be written: No space left on device)")


@full
@pytest.mark.parametrize("command", [RUN, TRAIN], ids=["run", "train"])
def test_a_standard_output_that_is_full_is_one_warning(tmp_path, command):
    """The run goes on to its end: its log is whole."""
    with Path("/dev/full").open("w") as out:
        done = rollcast(*command, "--json", "events.jsonl", cwd=tmp_path, stdout=out)
    assert done.returncode == 0
    assert done.stderr == (
        "rollcast: the output cannot be written: No space left on device; nothing more is shown\n"
    )
    check_events([decode(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()])


@full
def test_lines_on_a_standard_output_that_is_full_are_one_warning(tmp_path):
    """The summary is on standard error, and says that the lines are not complete."""
    with Path("/dev/full").open("w") as out:
        done = rollcast(*RUN, "--json", "-", cwd=tmp_path, stdout=out)
    assert done.returncode == 0
    assert done.stderr.count("cannot write to the standard output") == 1
    assert "events: the standard output (not complete: " in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        (*RUN, "--pace", "2"),
        (*RUN, "--pace", "2", "--json", "-"),
        ("train", "--minutes", "1", "--out", "out"),
        ("train", "--minutes", "1", "--out", "out", "--json", "-"),
    ],
    ids=["run", "run --json -", "train", "train --json -"],
)
def test_a_reader_who_leaves_ends_the_command_with_141(tmp_path, command):
    """`| head -1`: soon, and without a word."""
    line, errors, code = first_line(*command, cwd=tmp_path)
    assert line
    assert code == 141
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert "BrokenPipe" not in errors


def test_a_run_with_a_log_goes_on_when_the_reader_leaves(tmp_path):
    """Somebody wants its events."""
    _, errors, code = first_line(*RUN, "--json", "events.jsonl", cwd=tmp_path)
    assert (code, errors) == (141, "")
    events = [decode(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    check_events(events)
    assert events[-1].data["status"] == "completed"


def test_every_line_that_a_chain_wrote_is_a_line_of_the_pipe(tmp_path):
    """However slowly it came: `rollcast run | grep answer` finds it."""
    done = rollcast(*RUN, "--pace", "40", "--json", "events.jsonl", cwd=tmp_path)
    printed = {line.partition("│ ")[2] for line in done.stdout.splitlines()}
    ends = [decode(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    texts = [e.data["content"] for e in ends if e.event_type == "llm_generation_end"]
    written = {line for text in texts for line in text.splitlines() if line.strip()}
    assert written
    assert written <= printed
    assert all(len(line) > 1 for line in done.stdout.splitlines() if line)


def redirected(*args, to, cwd, **options):
    """As a shell runs `rollcast … TO`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENV} | options
    command = ["sh", "-c", f'exec "$0" -m rollcast "$@" {to}', sys.executable, *map(str, args)]
    return subprocess.run(command, text=True, timeout=500, cwd=cwd, check=False, **options)


@pytest.mark.parametrize("command", [RUN, TRAIN], ids=["run", "train"])
def test_a_closed_standard_output_is_one_warning(tmp_path, command):
    """`>&-`: the run goes on, and its log takes nobody's place."""
    done = redirected(*command, "--json", "log.jsonl", to=">&-", cwd=tmp_path)
    (warning,) = done.stderr.splitlines()
    assert "the output cannot be written" in warning
    assert done.returncode == 0
    check_events([decode(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()])


def test_a_run_whose_outputs_are_both_closed_writes_its_log(tmp_path):
    """`>&- 2>&-`: nobody is told, and nothing but events stands in the log."""
    done = redirected(*RUN, "--json", "log.jsonl", to=">&- 2>&- <&-", cwd=tmp_path)
    assert done.returncode == 0
    check_events([decode(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()])


def test_lines_to_a_closed_standard_output_are_told_as_missing(tmp_path):
    """`--json - >&-` says how many events could not be written."""
    done = redirected(*RUN, "--json", "-", to=">&-", cwd=tmp_path)
    assert "events could not be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("to", [">&-", pytest.param("> /dev/full", marks=full)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", [("--help",), ("run", "--help"), ("--version",), ("watch", "localhost:1")]
)
def test_what_cannot_be_printed_is_one_sentence(tmp_path, command, to, unbuffered):
    """Help and version too, which the runs' output has no part in; however much of it the buffer takes."""
    done = redirected(*command, to=to, cwd=tmp_path, env=ENV | {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("place", ["out.jsonl", pytest.param("/dev/stdout", marks=proc)])
def test_a_log_that_is_the_standard_output_has_every_line(tmp_path, place):
    """Two writers in one file, each at a place of its own, would overwrite each other's lines."""
    done = redirected(*RUN, "--json", place, to="> out.jsonl", cwd=tmp_path)
    assert done.returncode == 0
    assert "completed: " in done.stderr
    check_events([decode(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_named_pipe_whose_reader_left_does_not_hold_the_program(tmp_path):
    """The first reader is waited for; that nobody comes after him is a failure like a full disk."""
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "rollcast", *RUN, "--json", "pipe", "--questions", "8", "--chains", "16"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, cwd=tmp_path, env=ENV) as process:
        with (tmp_path / "pipe").open() as reader:
            assert decode(reader.readline()).event_type == "run_start"
        out, errors = process.communicate(timeout=500)
    assert process.returncode == 0
    assert "events could not be written: Broken pipe" in out
    assert len(errors.splitlines()) == 1


def test_a_job_in_the_background_is_not_ended_by_the_ctrl_c_of_another(tmp_path):
    """A shell starts it with SIGINT ignored; SIGTERM still ends it properly."""
    command = [sys.executable, "-m", "rollcast", *RUN, "--pace", "0.02", "--json", "log.jsonl"]
    shell = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', *command]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=ENV) as process:
        assert any("chain_" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no pipes that return at once when they are full"
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_does_not_wait_gets_every_line(tmp_path, unbuffered):
    """Some parents leave their pipes so; one write here has more than such a pipe takes at once."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "rollcast", *RUN, "--json", "-", "--questions", "20", "--chains", "8"]
    env = ENV | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, env=env) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as reader:
            events = [decode(line) for line in reader]
        _, errors = process.communicate(timeout=500)
    assert process.returncode == 0
    assert b"not complete" not in errors
    check_events(events)
    assert events[-1].event_type == "run_end"
