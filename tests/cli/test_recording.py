"""The record that `rollcast run` and `rollcast train` leave, as a user finds it."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import rollcast as rollcast_package
from growing_records import delete_while_written
from rollcast.archive import Archive, list_records
from rollcast.cli.recording import Recording
from rollcast.cli.train.folder import keep_settings
from rollcast.cli.train.settings import TrainSettings, merged
from rollcast.errors import ArchiveError, InputError

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = {name: value for name, value in os.environ.items() if name != "ROLLCAST_RECORDS"}
ENV |= {"PYTHONPATH": SRC, "PYTHONUNBUFFERED": "1"}
RUN = ("run", "--seed", "7", "--questions", "1", "--chains", "2")
TRAIN = ("train", "--questions", "1", "--group", "2", "--eval-every", "0", "--out", "out")
LINE = re.compile(
    r"recorded: (?:rollcast|\S+ -m rollcast) show (?P<path>\S+)(?P<more> \(not complete: .*\))?"
)


def command(*args):
    return [sys.executable, "-m", "rollcast", *map(str, args)]


def rollcast(*args, cwd, **env):
    return subprocess.run(
        command(*args), cwd=cwd, env=ENV | env, capture_output=True, text=True, timeout=500, check=False
    )


def the_record(folder):
    """The only record that was left in a folder."""
    (entry,) = list_records(folder / "rollcast-runs")
    return Archive.open(entry.path)


def named_last(done):
    """The path and the rest of the last line on the standard error."""
    found = LINE.fullmatch(done.stderr.splitlines()[-1])
    assert found, done.stderr
    return found["path"], found["more"]


def test_a_run_leaves_a_record_that_the_last_line_names(tmp_path):
    """What it is, how it went, and every event but tokens that nobody watched; the line can be typed."""
    done = rollcast(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    path, more = named_last(done)
    assert (path.startswith("rollcast-runs/"), more) == (True, None)
    archive = Archive.open(tmp_path / path)
    facts = archive.facts
    assert (archive.state, facts.status, facts.name, facts.seed, facts.level) == (
        "ended",
        "completed",
        "arithmetic",
        7,
        "auto",
    )
    assert facts.command == ["rollcast", *RUN]
    assert facts.settings == {"task": "arithmetic", "questions": 1, "chains": 2}
    assert facts.versions.keys() >= {"rollcast", "python", "numpy"}
    assert facts.totals.chains == 2
    assert (tmp_path / "rollcast-runs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "rollcast-runs/.gitignore").read_text() == "*\n"
    shown = subprocess.run(
        done.stderr.splitlines()[-1].removeprefix("recorded: "),
        shell=True,
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 chains in 1 group" in shown.stdout
    assert rollcast("show", "latest", cwd=tmp_path).stdout == shown.stdout


def test_no_record_leaves_nothing_and_loads_no_archive(tmp_path):
    """Nor the library that compresses."""
    code = (
        "import atexit, sys; "
        "atexit.register(lambda: print([m for m in sys.modules if 'zstandard' in m or 'rollcast.archive' in m])); "
        f"sys.argv[1:] = {[*RUN, '--no-record']!r}; from rollcast.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_options_say_what_is_kept_and_what_it_is_called(tmp_path):
    """Level, name, tags and folder; the secret of `--token` is not among what is kept of the command line."""
    options = [
        "--record",
        "tokens",
        "--name",
        "first try",
        "--tag",
        "lr=0.1",
        "--tag",
        "keep",
        "--record-lossless",
    ]
    secret = ["--serve", "0", "--token", "hunter2!"]
    done = rollcast(*RUN, *options, *secret, "--record-dir", "a b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = list_records(tmp_path / "a b")
    facts = entry.facts
    assert (facts.level, facts.name, facts.tags) == ("tokens", "first try", ["lr=0.1", "keep"])
    assert "-first-try-" in entry.name
    assert "hunter2" not in (entry.path / "run.json").read_text()
    assert facts.command[-4:] == ["--token", "[masked:argument]", "--record-dir", "a b"]
    kinds = [event.event_type for event in Archive.open(entry.path).events()]
    assert "llm_generation_chunk" in kinds
    assert f"show 'a b/{entry.name}'" in done.stderr


def test_what_an_alert_goes_to_is_not_in_the_record(tmp_path):
    """The path of a webhook's address is its key. A `~` that the shell left in the directory is the home folder."""
    options = ["--alert", "true /services/T0/hunter2", "--record-dir=~/records"]
    done = rollcast(*RUN, *options, cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (entry,) = list_records(tmp_path / "records")
    assert "hunter2" not in (entry.path / "run.json").read_text()
    shown = rollcast("show", "latest", "--record-dir=~/records", cwd=tmp_path, HOME=str(tmp_path))
    assert entry.name in shown.stdout


@pytest.mark.parametrize("options", [(), ("--record-dir", "records")])
def test_an_agent_that_goes_to_another_folder_takes_no_record_there(tmp_path, options):
    """The record is in the folder in which the command was typed, and the line can be typed there."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.py").write_text(
        "import os\nfrom rollcast import BaseAgent\nfrom rollcast.testing import ScriptedBackend\n"
        "os.chdir('elsewhere')\nagent = BaseAgent(backend=ScriptedBackend('Four.'))\n"
    )
    done = rollcast("run", "mine.py:agent", "--prompt", "2 + 2?", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path, _ = named_last(done)
    assert path.startswith(options[-1] if options else "rollcast-runs")
    assert Archive.open(tmp_path / path).state == "ended"
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["\udcff", "a\n\x1b[31mb", "日本", "latest", "x" * 300, '"', "../x"])
def test_any_name_will_do(tmp_path, name):
    """The folder has a plain one, and `run.json` has it as it is, as far as JSON can hold it."""
    done = rollcast(*RUN, "--name", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    archive = the_record(tmp_path)
    assert re.fullmatch(r"[0-9a-z-]+", archive.path.name)
    assert archive.facts.name == name.replace("\udcff", "\ufffd")
    assert "\x1b" not in rollcast("runs", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--record", "all"],
            "there is no level 'all' of recording; the levels are auto, turns, tokens, summary",
        ),
        (["--no-record", "--record", "turns"], "--no-record and --record are both given; give one of them"),
        (["--no-record", "--record-dir", "x"], "--no-record and --record-dir are both given"),
        (["--no-record", "--record-lossless"], "--no-record and --record-lossless are both given"),
        (
            ["--record-dir", "file"],
            "--record-dir file cannot be written to: Not a directory; name another folder",
        ),
        (["--record-dir", "file/x"], "--record-dir file/x cannot be written to: Not a directory"),
        (["--record-dir", "x" * 300], "cannot be written to: File name too long"),
        (["--record-dir", ""], "--record-dir is empty"),
        (["--no-record", "--record-budget", "1GB"], "--no-record and --record-budget are both given"),
        (["--record-budget", "20"], "--record-budget is '20', without a unit; give one: 20GB"),
        (["--record-budget", "much"], "--record-budget: 'much' is not a size; expected one such as 20GB"),
        (["--name", " "], "--name is empty"),
        (["--tag", ""], "--tag is empty"),
    ],
)
@pytest.mark.parametrize("base", [RUN, (*TRAIN, "--steps", "1")], ids=["run", "train"])
def test_what_cannot_be_recorded_as_asked_is_one_sentence(tmp_path, base, options, says):
    """Before anything runs; nothing is left."""
    (tmp_path / "file").touch()
    done = rollcast(*base, *options, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert says in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["file", "file/x", "x" * 300, "/proc/nowhere"])
def test_a_record_that_cannot_be_made_by_default_is_one_warning(tmp_path, place):
    """Nobody asked for one on the line: the run goes on as it would without it."""
    (tmp_path / "file").touch()
    done = rollcast(*RUN, cwd=tmp_path, ROLLCAST_RECORDS=place)
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert "cannot be written: " in warning
    assert "the run goes on without its record" in warning
    assert "completed: 2 chains" in done.stdout


def test_a_folder_that_was_deleted_under_the_command_is_one_warning(tmp_path):
    """The current one: a relative path leads nowhere."""
    script = f'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m rollcast {" ".join(RUN)}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "rollcast-runs" in line]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_a_disk_that_fills_up_is_one_warning_and_a_word_in_the_last_line(tmp_path):
    """Files may grow to some kilobytes here, which is as good as a full disk."""
    script = f'ulimit -f 16; exec "$0" -m rollcast {" ".join(RUN)} --questions 20 --chains 8'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    warning, last = done.stderr.splitlines()
    assert "cannot be written: File too large; the run goes on without its record" in warning
    assert re.search(r"\(not complete: [\d,]+ events.* could not be written: File too large\)", last)
    archive = the_record(tmp_path)
    assert (archive.state, archive.facts.status) == ("ended", "completed")
    assert archive.facts.totals.lost > 0
    assert "completed: 160 chains" in done.stdout


def test_without_a_library_for_zstd_segments_stay_plain(tmp_path):
    """Nobody is bothered with that."""
    code = (
        "import sys; sys.modules['zstandard'] = sys.modules['compression.zstd'] = sys.modules['backports.zstd'] = None; "
        f"sys.argv[1:] = {list(RUN)!r}; from rollcast.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=True
    )
    assert len(done.stderr.splitlines()) == 1
    archive = the_record(tmp_path)
    assert [path.suffix for path in sorted((archive.path / "events").iterdir())] == [".json", ".jsonl"]
    assert [event.event_type for event in archive.events()][-1] == "run_end"


def begun(process, tmp_path):
    """Wait until the record of a process is there, with chains in it; its path."""
    while process.poll() is None:
        for entry in list_records(tmp_path / "rollcast-runs"):
            if (entry.path / "chains.jsonl").exists():
                return entry.path
    raise AssertionError(process.communicate())


def started(tmp_path, *args):
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*args), cwd=tmp_path, env=ENV, **pipes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("base", [(*RUN, "--pace", "0.5"), (*TRAIN, "--minutes", "30")], ids=["run", "train"])
def test_a_signal_ends_the_record_as_cancelled(tmp_path, base, number):
    """It is whole, and the last line names it."""
    with started(tmp_path, *base) as process:
        path = begun(process, tmp_path)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    archive = Archive.open(path)
    assert (archive.state, archive.facts.status) == ("ended", "cancelled")
    assert LINE.fullmatch(errors.splitlines()[-1])
    assert "cancelled" in rollcast("runs", cwd=tmp_path).stdout


@contextlib.contextmanager
def drained(terminal):
    """Read what is printed on a terminal, so that nobody waits for it."""
    leaving = threading.Event()

    def read():
        while not leaving.is_set():
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 65536)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


ON_A_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize("base", [(*RUN, "--pace", "0.5"), (*TRAIN, "--minutes", "30")], ids=["run", "train"])
def test_a_closed_terminal_ends_the_record_as_cancelled(tmp_path, base):
    """Its output cannot be printed any more. A shell sends its own SIGHUP after the kernel's; it does not kill the run."""
    ours, its = os.openpty()
    on_terminal = [sys.executable, "-c", ON_A_TERMINAL, *command(*base)[1:]]
    streams = {"stdin": its, "stdout": its, "stderr": its}
    with subprocess.Popen(on_terminal, cwd=tmp_path, env=ENV, start_new_session=True, **streams) as process:
        os.close(its)
        with drained(ours):
            path = begun(process, tmp_path)
        os.close(ours)
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=300) == 128 + signal.SIGHUP
    archive = Archive.open(path)
    assert (archive.state, archive.facts.status) == ("ended", "cancelled")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_what_runs_under_nohup_goes_on_when_the_terminal_is_closed(tmp_path):
    """SIGHUP is ignored there, and stays so."""
    shell = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"', *command(*RUN, "--pace", "0.5")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(shell, cwd=tmp_path, env=ENV, **pipes) as process:
        path = begun(process, tmp_path)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 128 + signal.SIGTERM
    assert Archive.open(path).facts.status == "cancelled"


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


def test_a_second_ctrl_c_leaves_a_record_too(tmp_path):
    """Although a tool blocks the event loop."""
    (tmp_path / "mine.py").write_text(BLOCKS)
    with subprocess.Popen(
        command("run", "mine.py:agent", "--prompt", "x", "--chains", "1"),
        cwd=tmp_path,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for said in ("it blocks", "it heard one"):
            assert any(said in line for line in process.stdout)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    archive = the_record(tmp_path)
    assert (archive.state, archive.facts.status, archive.facts.name) == ("ended", "cancelled", "mine")
    assert LINE.fullmatch(errors.splitlines()[-1])


def test_a_process_that_is_killed_leaves_what_it_had(tmp_path):
    """`latest` names it, and it can be shown."""
    with started(tmp_path, *RUN, "--pace", "0.5") as process:
        path = begun(process, tmp_path)
        process.kill()
    assert Archive.open(path).state == "crashed"
    shown = rollcast("show", "latest", cwd=tmp_path)
    assert shown.returncode == 0
    assert f"{path.name} · arithmetic · crashed" in shown.stdout


WAITS = """
import os, time
from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend

@tool(timeout=None)
def waits() -> str:
    "x"
    while not os.path.exists("go"):
        time.sleep(0.01)
    return "4"

CALL = '<tool_call>{"name": "waits", "arguments": {}}</tool_call>'
agent = BaseAgent(backend=ScriptedBackend([CALL, "done"]), tools=[waits])
"""


def test_a_folder_that_is_deleted_meanwhile_is_one_warning(tmp_path):
    """The record is begun anew, and says what it lacks."""
    (tmp_path / "mine.py").write_text(WAITS)
    with started(tmp_path, "run", "mine.py:agent", "--prompt", "x", "--chains", "2") as process:
        path = begun(process, tmp_path)
        delete_while_written(path)
        (tmp_path / "go").touch()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0
    warning, last = errors.splitlines()
    assert "was moved or deleted while it was written; it is begun anew" in warning
    assert LINE.fullmatch(last)
    assert "gap" in [event.event_type for event in Archive.open(path).events()]


def test_the_last_line_comes_after_all_that_goes_to_the_standard_error(tmp_path):
    """`--json -` sends the summary there. A reader who leaves ends the run, and the record says so."""
    done = rollcast(*RUN, "--json", "-", cwd=tmp_path)
    assert "mean reward" in done.stderr
    named_last(done)
    with subprocess.Popen(
        command(*RUN, "--pace", "2"),
        cwd=tmp_path,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    (last,) = errors.splitlines()
    assert Archive.open(tmp_path / LINE.fullmatch(last)["path"]).facts.status == "cancelled"


OWN = """
from rollcast import BaseAgent
from rollcast.archive import ArchiveObserver
from rollcast.testing import ScriptedBackend

agent = BaseAgent(backend=ScriptedBackend("Four."), name="my agent")
if {observed}:
    agent.streaming_manager.add_observer(ArchiveObserver("mine", name="own"))
"""


def test_an_agent_that_records_itself_is_recorded_once(tmp_path):
    """Unless an option asks for another record. One that does not is recorded under its name."""
    (tmp_path / "own.py").write_text(OWN.format(observed=True))
    done = rollcast("run", "own.py:agent", "--prompt", "x", cwd=tmp_path)
    assert named_last(done) == ("mine", None)
    assert not (tmp_path / "rollcast-runs").exists()
    (tmp_path / "plain.py").write_text(OWN.format(observed=False))
    rollcast("run", "plain.py:agent", "--prompt", "x", cwd=tmp_path)
    assert the_record(tmp_path).facts.name == "my agent"


def test_a_training_is_one_record_and_so_is_each_of_its_resumptions(tmp_path):
    """Its rollouts are runs in it; it names the training's folder, and one that goes on the record before it."""
    done = rollcast(*TRAIN, "--steps", 1, "--tag", "a", "--name", "sums", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = Archive.open(tmp_path / named_last(done)[0])
    assert (first.facts.status, first.facts.out, first.facts.parent, first.facts.seed) == (
        "completed",
        str(tmp_path / "out"),
        None,
        0,
    )
    assert first.facts.totals.runs == 6  # the training, two evaluations of two runs each, and a step
    assert first.facts.totals.train_steps == 1
    assert [row["row"] for row in first.train_rows()].count("train_step") == 1
    again = rollcast("train", "--resume", "--out", "out", "--steps", 2, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    second = Archive.open(tmp_path / named_last(again)[0])
    assert (second.facts.parent, second.facts.name, second.facts.tags) == (first.path.name, "sums", ["a"])
    assert second.facts.totals.train_steps == 2
    refused = rollcast("train", "--resume", "--out", "out", "--steps", 3, "--lr", "0.5", cwd=tmp_path)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert len(list_records(tmp_path / "rollcast-runs")) == 2  # what never began left none


@pytest.fixture
def killed(tmp_path):
    """The record of a training that was killed after its first checkpoint; the training is in `out`."""
    with started(tmp_path, *TRAIN, "--steps", 500) as process:
        while not list(tmp_path.glob("out/step-*/model.safetensors")) and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    record = the_record(tmp_path)
    assert (record.state, record.facts.status) == ("crashed", "running")
    return record.path


def resumed(folder):
    """Train one step more; what the command printed."""
    newest = max(int(path.name.removeprefix("step-")) for path in folder.glob("out/step-*"))
    done = rollcast("train", "--resume", "--out", "out", "--steps", newest + 1, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


def test_the_record_of_a_training_that_was_killed_is_made_whole_when_it_is_resumed(tmp_path, killed):
    """A sentence says so, once; `runs` and `show` name the record before and the one after."""
    first = resumed(tmp_path)
    said = f"rollcast: the training was cut off while it wrote its record {killed.name}; that record is whole again"
    assert said in first.stderr.splitlines()
    before = Archive.open(killed)
    assert (before.facts.status, before.facts.recovered_at is None) == ("crashed", False)
    after = Archive.open(tmp_path / named_last(first)[0])
    assert after.facts.parent == killed.name
    second = resumed(tmp_path)
    assert len(second.stderr.splitlines()) == 1
    listed = [json.loads(line) for line in rollcast("runs", "--json", cwd=tmp_path).stdout.splitlines()]
    newest = Path(named_last(second)[0]).name
    assert [entry["resumed_as"] for entry in listed] == [None, newest, after.path.name]
    header, *lines = rollcast("runs", cwd=tmp_path).stdout.splitlines()
    assert header.split()[-2:] == ["resumed", "as"]
    assert [line.split()[-1] for line in lines[1:]] == [newest, after.path.name]
    shown = rollcast("show", after.path.name, cwd=tmp_path).stdout.splitlines()
    assert shown[1] == f"resumed from {killed.name} · resumed as {newest}"
    assert rollcast("show", "latest", "--worst", cwd=tmp_path).stdout.splitlines()[1] == (
        f"resumed from {after.path.name}"
    )


def test_a_record_that_another_host_left_is_not_touched_when_its_training_is_resumed(tmp_path, killed):
    """Nobody can see whether its writer lives: the sentence has the command for one who knows."""
    facts = json.loads((killed / "run.json").read_bytes())
    facts["writer"] |= {"host": "gpu-7", "heartbeat": 1.0}
    (killed / "run.json").write_text(json.dumps(facts))
    (said,) = [line for line in resumed(tmp_path).stderr.splitlines() if "gpu-7" in line]
    assert f"recover --force rollcast-runs/{killed.name}` makes it whole" in said
    assert Archive.open(killed).state == "silent"


FAILS = """
from rollcast import BaseAgent, reward
asked = 0

@reward
def fails(trajectory):
    global asked
    asked += 1
    if asked > 2 * 128 + 2:  # two evaluations, and one step
        raise ValueError("no more")
    return float(asked % 2)

agent = BaseAgent(reward=fails)
"""


def test_a_training_that_fails_says_why_and_then_where_its_record_is(tmp_path):
    """The record says that it failed, and has what there was."""
    (tmp_path / "fails.py").write_text(FAILS)
    done = rollcast(*TRAIN, "--steps", 3, "--agent", "fails.py:agent", cwd=tmp_path)
    assert done.returncode == 2
    assert "rollcast: " in done.stderr.splitlines()[-2]
    archive = Archive.open(tmp_path / named_last(done)[0])
    assert (archive.state, archive.facts.status, archive.facts.name) == ("ended", "failed", "fails")
    assert archive.facts.totals.train_steps == 1
    assert "failed" in rollcast("runs", cwd=tmp_path).stdout


def test_how_a_training_is_recorded_is_kept_for_its_resumption(tmp_path, monkeypatch):
    """The line replaces what contradicts it."""
    monkeypatch.chdir(tmp_path)
    keep_settings(TrainSettings(no_record=True, name="n", tag=["a", "b"]), tmp_path)
    assert merged({}, "train.toml").recording == Recording(off=True, name="n", tags=("a", "b"))
    assert merged({"record": "turns"}, "train.toml").recording == Recording(
        "turns", name="n", tags=("a", "b")
    )
    keep_settings(TrainSettings(record="tokens", record_dir="r"), tmp_path)
    assert merged({}, "train.toml").recording == Recording("tokens", directory=str(tmp_path / "r"))
    assert merged({"no_record": True}, "train.toml").recording == Recording(off=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_settings(TrainSettings(record_dir="~/r"), tmp_path)
    assert merged({}, "train.toml").recording == Recording(directory=str(tmp_path / "r"))
    (tmp_path / "both.toml").write_text('no-record = true\nrecord = "turns"\n')
    with pytest.raises(InputError, match="--no-record and --record are both given"):
        _ = merged({}, "both.toml").recording


def test_a_budget_makes_room_in_the_oldest_records(tmp_path):
    """When the command ends; it says so before its last line, and the lists are as before."""
    first = rollcast(*RUN, "--record-budget", "1GB", cwd=tmp_path)
    assert len(first.stderr.splitlines()) == 1
    path = tmp_path / named_last(first)[0]
    shown = rollcast("show", path.name, cwd=tmp_path).stdout
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    second = rollcast(*RUN, "--record-budget", f"{2 * size - size // 10}B", cwd=tmp_path)
    assert second.returncode == 0
    said = second.stderr.splitlines()
    assert re.match(
        r"rollcast: .* were removed from 1 record, the oldest first: the records took \d.* and now take \d",
        said[0],
    )
    newest = Archive.open(tmp_path / named_last(second)[0])
    assert newest.trajectory("chain_0").token_ids
    with pytest.raises(ArchiveError, match="no trajectory of chain_0"):
        Archive.open(path).trajectory("chain_0")
    assert rollcast("show", path.name, cwd=tmp_path).stdout == shown
    third = rollcast(*RUN, "--record-budget", "1B", cwd=tmp_path)
    assert "which is more than --record-budget" in third.stderr.splitlines()[-2]
    named_last(third)


def test_the_help_has_groups():
    """The options of records stand together."""
    done = subprocess.run(command("run", "--help"), env=ENV, capture_output=True, text=True, check=True)
    titles = re.findall(r"^(\S.*):$", done.stdout, re.MULTILINE)
    assert titles == ["Arguments", "Options", "What is shown", "The record", "Watching over the network"]
    record = done.stdout.partition("The record:")[2].partition("Watching over")[0]
    assert re.findall(r"^  (--\S+)", record, re.MULTILINE) == [
        "--record", "--no-record", "--record-dir", "--record-lossless", "--record-budget", "--name", "--tag"
    ]  # fmt: skip
