"""`rollcast runs` and `rollcast recover`."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import msgspec
import pytest
from click.testing import CliRunner

from rollcast import StreamingManager
from rollcast.archive import Archive, ArchiveObserver
from rollcast.archive import format as fmt
from rollcast.archive.index import find_record, list_records, resumed_as
from rollcast.cli.app import app
from rollcast.errors import ArchiveError
from rollcast.terminal.layout import row_cells


def called(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def recorded(path, **options):
    """A record of one run of two chains, one of which has a reward."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(path, masker=False, **options))
    with manager.run(chains=2) as run:
        with run.chain() as chain:
            chain.reward(0.5)
        run.chain().start().end("error")
    manager.close()


@pytest.fixture
def directory(tmp_path):
    recorded(tmp_path / "20261127-0900-guess-aaaa", name="guess")
    recorded(tmp_path / "20261128-0900-grid-bbbb", name="grid")
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        change(path, started_at=1000.0 + number, ended_at=1090.0)
    return tmp_path


def change(path, **facts):
    found = json.loads((path / "run.json").read_bytes()) | facts
    (path / "run.json").write_text(json.dumps(found))


def test_records_are_listed_the_newest_first(directory):
    """With their task, how they stand, and what came of them."""
    out = called("runs", "--record-dir", directory)
    assert out.exit_code == 0
    assert [line.split() for line in out.stdout.splitlines()] == [
        ["record", "task", "state", "chains", "failed", "reward", "step", "took"],
        ["20261128-0900-grid-bbbb", "grid", "ended", "2", "1", "0.500", "1", "min", "29", "s"],
        ["20261127-0900-guess-aaaa", "guess", "ended", "2", "1", "0.500", "1", "min", "30", "s"],
    ]


@pytest.mark.parametrize("word", ["x" * 300, "x" * 100_000, "a\0b", "a\nb/c"])
def test_a_word_that_can_be_no_record_is_one_short_sentence(directory, word):
    """However long it is, and whatever is in it."""
    with pytest.raises(ArchiveError) as caught:
        find_record(directory, word)
    assert "holds no record 'x" in str(caught.value) or "holds no record 'a" in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(directory))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_records_of_others_do_not_hide_ones_own(directory):
    """A record is for its owner alone; in a directory that several share, each sees their own."""
    theirs = directory / "20261128-0900-grid-bbbb"
    theirs.chmod(0)
    try:
        out = called("runs", "--record-dir", directory)
    finally:
        theirs.chmod(0o700)
    assert [line.split()[0] for line in out.stdout.splitlines()] == ["record", "20261127-0900-guess-aaaa"]


def test_wide_letters_keep_the_columns(directory):
    """They take two columns each."""
    change(directory / "20261128-0900-grid-bbbb", name="日本語")
    lines = called("runs", "--record-dir", directory).stdout.splitlines()
    assert {row_cells([(line[: line.index("ended")], "")]) for line in lines[1:]} == {lines[0].index("state")}


def test_on_a_narrow_terminal_each_record_is_a_paragraph(directory):
    """No line is wider than the terminal."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    command = [sys.executable, "-m", "rollcast", "runs", "--record-dir", str(directory)]
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        subprocess.run(command, stdout=end, check=True, env=os.environ | {"TERM": "xterm", "COLUMNS": ""})
        os.close(end)
        text = b""
        with suppress(OSError):  # the end of a terminal
            while more := shown.read(4096):
                text += more
    lines = text.decode().splitlines()
    assert lines[0] == "20261128-0900-grid-bbbb"
    assert " ".join(line.strip() for line in lines[1:3]) == (
        "grid, ended, 2 chains, 1 failed, reward 0.500, 1 min 29 s"
    )
    assert max(map(len, lines)) < 40


def test_the_list_is_for_programs_too(directory):
    """A line of JSON for each record."""
    out = called("runs", "--json", "--record-dir", directory)
    first, second = map(json.loads, out.stdout.splitlines())
    assert (first["name"], first["state"], first["task"]) == ("20261128-0900-grid-bbbb", "ended", "grid")
    assert second["totals"]["mean_reward"] == 0.5


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_record_that_another_goes_on_from_says_which(directory, by):
    """The newest one, if there are several. A parent that is not there is passed over, and so is a damaged record."""
    grid, guess = sorted(directory.iterdir())[::-1]
    parent = guess.name if by == "name" else json.loads((guess / "run.json").read_bytes())["id"]
    recorded(directory / "later", about={"parent": parent})
    change(grid, parent=parent)
    (directory / "damaged").mkdir()
    (directory / "damaged/run.json").write_text("{")
    assert resumed_as(list_records(directory)) == {guess.name: "later"}
    change(directory / "later", parent="gone")
    assert resumed_as(list_records(directory)) == {guess.name: grid.name}
    lines = called("runs", "--record-dir", directory).stdout.splitlines()
    assert {line.split()[0]: line.split()[-1] for line in lines if line.startswith("2026")} == {
        grid.name: "s",
        guess.name: grid.name,
    }


def test_a_directory_without_records(tmp_path):
    """Says so, also one that is not there; the environment names it as well."""
    out = CliRunner().invoke(app, ["runs"], env={"ROLLCAST_RECORDS": str(tmp_path / "none")})
    assert (out.exit_code, out.stdout) == (0, f"{tmp_path / 'none'} holds no records.\n")


def test_how_a_record_stands_is_told(directory):
    """Crashed if its process is gone, silent with how long if that is on another host, damaged if it cannot be read."""
    newest, oldest = sorted(directory.iterdir(), reverse=True)
    facts = msgspec.json.decode((newest / "run.json").read_bytes(), type=fmt.RunFile)
    writer = msgspec.to_builtins(facts.writer)
    change(newest, status="running", writer=writer | {"pid": 2**22 + 9})
    change(oldest, status="running", writer=writer | {"host": "elsewhere", "heartbeat": 2000.0})
    out = called("runs", "--record-dir", directory).stdout
    assert "crashed" in out
    assert "silent for" in out
    (newest / "run.json").write_text("{")
    assert "damaged" in called("runs", "--record-dir", directory).stdout


def test_hostile_names_cannot_speak_to_the_terminal(directory):
    """A name is shown with what a terminal would obey escaped."""
    newest, _ = sorted(directory.iterdir(), reverse=True)
    change(newest, name="\x1b[31mred\x07")
    out = called("runs", "--record-dir", directory).stdout
    assert "\x1b" not in out
    assert "\\x1b[31mred\\x07" in out


def test_a_crashed_record_is_recovered(directory):
    """What was done is said; a second time there is nothing to do."""
    newest, _ = sorted(directory.iterdir(), reverse=True)
    writer = json.loads((newest / "run.json").read_bytes())["writer"]
    change(newest, status="running", writer=writer | {"pid": 2**22 + 9})
    with (newest / "chains.jsonl").open("ab") as file:
        file.write(b'{"row":"en')
    out = called("recover", "latest", "--record-dir", directory)
    assert out.exit_code == 0
    assert "is recovered: 7 events; 0 runs and 0 chains have no end" in out.stdout
    assert "lost: chains.jsonl ended in a torn line" in out.stdout
    assert Archive.open(newest).state == "crashed"
    assert "needs no recovery" in called("recover", "grid", "--record-dir", directory).stdout


def test_a_record_that_is_not_there_is_an_error(directory):
    """With the nearest names; `rollcast` prints the sentence and exits with 2."""
    out = called("recover", "gues", "--record-dir", directory)
    assert isinstance(out.exception, ArchiveError)
    assert "the nearest: 20261127-0900-guess-aaaa" in str(out.exception)


def test_a_record_of_a_later_version_is_named_as_such(directory):
    """It is not damaged: the list says which format it has, and what reads it."""
    change(directory / "20261128-0900-grid-bbbb", format=7)
    out = called("runs", "--record-dir", directory)
    assert [line.split()[:4] for line in out.stdout.splitlines() if "bbbb" in line] == [
        ["20261128-0900-grid-bbbb", "format", "7"]
    ]
    assert (
        "a later version of Rollcast wrote 1 record (format 7); this one reads formats up to 1: pip install"
        in out.stderr
    )
    described = [
        json.loads(line) for line in called("runs", "--json", "--record-dir", directory).stdout.splitlines()
    ]
    assert {each["name"]: each.get("newer_format") for each in described} == {
        "20261128-0900-grid-bbbb": 7,
        "20261127-0900-guess-aaaa": None,
    }


def test_the_reward_of_a_training_is_without_its_evaluations(tmp_path):
    """They are on other questions, and stand beside it; so they do after a recovery."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "training", masker=False))
    for split, reward in (("eval", 0.0), ("train", 1.0), ("eval", 0.5)):
        with manager.run(chains=1, train_step=1, split=split, parent_run_id="t") as run, run.chain() as chain:
            chain.reward(reward)
    manager.close()
    for _ in range(2):
        (line,) = called("runs", "--record-dir", tmp_path).stdout.splitlines()[1:]
        assert "1.000" in line
        totals = json.loads(called("runs", "--json", "--record-dir", tmp_path).stdout)["totals"]
        assert (totals["mean_reward"], totals["mean_eval_reward"]) == (1.0, 0.25)
        change(tmp_path / "training", status="crashed", recovered_at=None)
        assert called("recover", "training", "--record-dir", tmp_path).exit_code == 0
    stats = json.loads(called("stats", "training", "--json", "--record-dir", tmp_path).stdout)
    assert (stats["mean_reward"], stats["mean_eval_reward"]) == (1.0, 0.25)
    assert "1 on average, 0.25 in evaluations" in called("stats", "training", "--record-dir", tmp_path).stdout


def test_a_record_without_evaluations_has_the_mean_of_all(directory):
    """Also one of a version that did not count them apart."""
    totals = json.loads(called("runs", "--json", "--record-dir", directory).stdout.splitlines()[0])["totals"]
    assert (totals["mean_reward"], totals["mean_eval_reward"]) == (0.5, None)
