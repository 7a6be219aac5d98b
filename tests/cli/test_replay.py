"""`rollcast replay`: a recorded run as it was seen live."""

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rollcast import ConsoleStreamObserver, EventFilter, StreamingManager
from rollcast.archive import Archive, ArchiveObserver
from rollcast.archive.pace import Pace
from rollcast.archive.writer import _merged
from rollcast.cli.app import app
from rollcast.cli.replay import _wait_until_due
from rollcast.errors import ArchiveError, FilterError, InputError
from rollcast.records import StreamEvent, StreamEventType, decode

TEXTS = (
    "<think>let me\nsee: 1, 2\n\nand 3</think>so it\nis 4",
    "no line ends here at all, only words and words and words",
    "a\n\nb\nc\n" * 8,
)


def called(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def talk(run, numbers, train_step=None):
    """Chains that speak at the same time, token by token, each with a tool call and a reward."""
    chains = [
        run.chain([{"role": "user", "content": f"q{n}"}], group_id=f"group_{n % 2}").start() for n in numbers
    ]
    generations = [chain.generation(prompt_ids=[1]).start() for chain in chains]
    words = [iter([text[i : i + 3] for i in range(0, len(text), 3)]) for text in TEXTS]
    for round_ in itertools.zip_longest(*words):
        for generation, word in zip(generations, round_, strict=False):
            if word is not None:
                generation.chunk(word, [7], [-0.5])
    time.sleep(0.003)  # more than the least difference that a line's time shows
    for generation in generations:
        generation.chunk("", [2], [-0.1])  # the token that ends a generation has no text
    for number, (chain, generation) in enumerate(zip(chains, generations, strict=True)):
        generation.end("stop")
        with chain.tool_call("look", {"at": number}) as call:
            call.observation(f"saw {number}")
        chain.reward(float(number), {"exact": 1.0})
        chain.end("answered")


def recorded(path, *, level="tokens", filter=None, runs=1):
    """What the console printed to a file while runs of three chains were recorded."""
    manager = StreamingManager()
    with path.with_suffix(".txt").open("w+") as out:
        manager.add_observer(ConsoleStreamObserver(file=out, chain_filter=filter))
        manager.add_observer(ArchiveObserver(path, name="talk", masker=False, level=level))
        for _ in range(runs):
            with manager.run(chains=3, groups=2) as run:
                talk(run, range(3))
        manager.close()
        out.seek(0)
        return out.read()


# The command, in which a result waits for the end of its call, however slow the machine is.
PATIENT = """
import rollcast.terminal.gathering
from rollcast.cli import main
rollcast.terminal.gathering._GATHER_S = 600
main()
"""


@pytest.mark.parametrize("level", ["tokens", "auto"])
@pytest.mark.parametrize(
    ("filter", "arguments"),
    [
        (None, []),
        (EventFilter(chains=["chain_0", "chain_2"]), ["--chain", "chain_0", "--chain", "chain_2"]),
        (EventFilter(groups="group_1"), ["--group", "group_1"]),
        (EventFilter(types=["chain_end", "reward"]), ["--type", "chain_end", "--type", "reward"]),
    ],
)
def test_a_replay_is_what_the_console_printed_live(tmp_path, level, filter, arguments, monkeypatch):
    """Byte for byte, for the same filter: lines of several chains stand in the same order, with the same times."""
    monkeypatch.setattr("rollcast.terminal.gathering._GATHER_S", 600)
    live = recorded(tmp_path / "r", level=level, filter=filter, runs=2)
    command = [sys.executable, "-c", PATIENT, "replay", "r", "--speed", "max", "--record-dir", tmp_path]
    out = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert len(live) > 100
    assert (out.stdout, out.stderr) == (live, "")


def failing(manager, numbers, stuck):
    """Chains that each call a tool for half a second of the events' own time, which fails at first; one call never ends."""
    at, run_id = 1_700_000_000.0, "run-by-hand"

    def emit(kind, chain_id="", **data):
        step = 1 if chain_id else None
        group_id = f"group_{ord(chain_id[-1]) % 2}" if chain_id else None
        manager.emit(
            StreamEvent(
                StreamEventType(kind), chain_id, at, data, step, step, run_id=run_id, group_id=group_id
            )
        )

    def start(name):
        emit("chain_start", name, messages=[], tools=[], index=0, policy_version=0)
        emit("tool_call_start", name, call_id="c", tool_name="look", arguments={})

    emit("run_start", chains=len(numbers) + 1, groups=2, agent="", model="m", backend="", policy_version=0)
    for number in numbers:
        if number == stuck:
            start("stuck")
        name, status = f"chain_{number}", "error" if number < 20 else "success"
        start(name)
        at += 0.5
        emit(
            "tool_observation",
            name,
            call_id="c",
            tool_name="look",
            observation="x",
            partial=False,
            status=status,
        )
        emit("tool_call_end", name, call_id="c", tool_name="look", status=status, duration_s=0.5)
        about = {"final_response": name, "steps": 1, "completion_tokens": 1, "duration_s": 0.5, "metrics": {}}
        emit("chain_end", name, finish_reason="answered", reward=float(number % 2), **about)
    emit("chain_end", "stuck", finish_reason="cancelled", reward=None, **about)
    emit(
        "run_end",
        status="completed",
        chains=1,
        failed=0,
        mean_reward=None,
        completion_tokens=1,
        duration_s=9.0,
    )


@pytest.mark.parametrize(
    ("filter", "arguments", "hints"),
    [
        (None, [], 4),
        (EventFilter(chains=[f"chain_{i}" for i in range(16)]), [f"--chain=chain_{i}" for i in range(16)], 1),
        (EventFilter(groups="group_1"), ["--group", "group_1"], 4),
        (EventFilter(types=["chain_end"]), ["--type", "chain_end"], 0),
    ],
)
def test_a_replay_has_the_hints_of_the_live_run(tmp_path, filter, arguments, hints):
    """At the same places: they appear and go by the times of the events."""
    manager = StreamingManager()
    with (tmp_path / "live").open("w+") as out:
        manager.add_observer(ConsoleStreamObserver(file=out, chain_filter=filter))
        manager.add_observer(ArchiveObserver(tmp_path / "r", name="talk", masker=False))
        failing(manager, range(100), stuck=30)
        manager.drain_sync()
        manager.close()
        out.seek(0)
        live = out.read()
    command = [sys.executable, "-m", "rollcast", "replay", "r", "--speed", "max", "--record-dir", tmp_path]
    out = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == (live, "")
    assert live.count("│ ! ") == hints


LONG = (
    "word " * 3000,
    "x" * 9001 + "\nshort\n" + "y" * 4000 + "\n" + "z" * 3999,
    " " * 4100
    + "after blanks "
    + "<think>"
    + "thought " * 1200
    + "</think>"
    + "b" * 7990
    + "<tool_call>"
    + "c" * 4100,
    "宽" * 5000 + " " + "字 " * 3000 + "\r\n" + "a\tb " * 1500,
)


@pytest.mark.parametrize("filter", [None, EventFilter(types=["llm_generation_chunk"])])
def test_a_replay_of_long_lines_is_what_the_console_printed_live(tmp_path, filter):
    """Lines beyond 4,000 characters are shown in pieces, and in the same ones: with blanks, tags, wide characters and no space."""
    manager = StreamingManager()
    with (tmp_path / "live.txt").open("w+") as out:
        manager.add_observer(ConsoleStreamObserver(file=out, chain_filter=filter))
        observer = ArchiveObserver(tmp_path / "r", masker=False, level="tokens")
        manager.add_observer(observer)
        with manager.run(chains=len(LONG)) as run:
            chains = [run.chain([{"role": "user", "content": "?"}]).start() for _ in LONG]
            for turn in range(2):
                generations = [chain.generation(prompt_ids=[1]).start() for chain in chains]
                words = [iter([text[i : i + 7] for i in range(0, len(text), 7)]) for text in LONG]
                for number, round_ in enumerate(itertools.zip_longest(*words)):
                    for generation, word in zip(generations, round_, strict=True):
                        if word is not None:
                            generation.chunk(word, [7], [-0.5])
                    if (
                        number % 200 == 199
                    ):  # in several blocks, and nothing falls behind, which would merge chunks
                        manager.drain_sync()
                        observer._worker.flush().result(60)
                for generation in generations:
                    generation.end("stop" if turn else "tool_call")
            for chain in chains:
                chain.end("answered")
        manager.close()
        out.seek(0)
        live = out.read()
    command = [sys.executable, "-m", "rollcast", "replay", "r", "--speed", "max", "--record-dir", tmp_path]
    if filter is not None:
        command += ["--type", "llm_generation_chunk"]
    replayed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        sum(1 for e in Archive.open(tmp_path / "r").events() if e.event_type == "llm_generation_chunk") < 1500
    )
    assert "not shown" not in live
    assert live.count("word") >= 6000
    assert live.count("b") >= 2 * 7990
    assert (replayed.stdout, replayed.stderr) == (live, "")


PIECES = st.lists(
    st.one_of(
        st.text("ab <>/\r\n宽\t", max_size=8),
        st.sampled_from(
            ["<think>", "</think>", "<tool_call>", "word " * 700, "x" * 3990, " " * 3998, "宽" * 2100, "\n"]
        ),
    ),
    max_size=24,
)


@pytest.fixture(scope="module")
def file():
    """It is printed to by lines, as a pipe is."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as out:
        yield out


def printed(out, events):
    out.seek(0)
    out.truncate()
    console = ConsoleStreamObserver(file=out)
    asyncio.run(console.on_batch(events))
    asyncio.run(console.aclose())
    out.seek(0)
    return out.read()


@given(st.lists(PIECES, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_however_chunks_were_merged_the_console_prints_the_same(file, texts, random):
    """Chunks of several chains, written in blocks of any size."""
    events, offsets, queues = [], {}, [list(pieces) for pieces in texts]
    while any(queues):
        number = random.choice([n for n, queue in enumerate(queues) if queue])
        content = queues[number].pop(0)
        data = {"content": content, "offset": offsets.get(number, 0), "token_ids": [1]}
        offsets[number] = data["offset"] + len(content)
        events.append(
            StreamEvent(
                "llm_generation_chunk", f"chain_{number}", float(len(events)), data, 1, 1, len(events), "r"
            )
        )
    merged, lines, rest = [], {}, events
    while rest:
        size = random.randint(1, 12)
        merged += _merged(rest[:size], lines)
        rest = rest[size:]
    assert printed(file, merged) == printed(file, events)


def test_a_replay_without_tokens_shows_whole_generations(tmp_path):
    """At the level `turns` the text comes when its generation ended."""
    recorded(tmp_path / "r", level="turns")
    out = called("replay", "latest", "--speed", "max", "--record-dir", tmp_path).stdout
    assert "no line ends here at all" in out
    assert "★ reward 2" in out


def test_a_replay_can_be_a_log(tmp_path):
    """The same events come out that were recorded, as JSON lines."""
    recorded(tmp_path / "r")
    out = called("replay", "r", "--speed", "max", "--json", "-", "--record-dir", tmp_path)
    assert [decode(line) for line in out.stdout.splitlines()] == list(Archive.open(tmp_path / "r").events())


def test_one_step_of_a_training_is_replayed(tmp_path):
    """Its rollout alone; a step that is not there is an error that names those that are."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    ids = []
    for step in (1, 2):
        with manager.run(parent_run_id="training") as run:
            ids.append(run.run_id)
            with run.chain() as chain:
                chain.reward(float(step))
        about = {"train_step": step, "policy_version": step, "metrics": {}}
        chains = {run.run_id: {"chain_0": {"advantage": 0.0, "staleness": 0}}}
        manager.emit(StreamEvent("train_step", "", None, about | {"chains": chains}, run_id="training"))
    manager.close()
    out = called("replay", "r", "--step", "2", "--speed", "max", "--json", "-", "--record-dir", tmp_path)
    assert {json.loads(line)["run_id"] for line in out.stdout.splitlines()} == {ids[1]}
    wrong = called("replay", "r", "--step", "7", "--record-dir", tmp_path)
    assert isinstance(wrong.exception, ArchiveError)
    assert "no chains of training step 7; it has the steps 1 to 2" in str(wrong.exception)


def test_a_run_that_goes_on_is_replayed(tmp_path):
    """What is there is shown, and the standard error says how to wait for the rest."""
    manager = StreamingManager()
    observer = ArchiveObserver(tmp_path / "r", masker=False)
    manager.add_observer(observer)
    with manager.run(chains=2) as run:
        with run.chain() as chain:
            chain.reward(0.5)
        manager.drain_sync()
        observer._worker.flush().result()
        out = called("replay", "r", "--speed", "max", "--record-dir", tmp_path)
    manager.close()
    assert (out.exit_code, "★ reward 0.5" in out.stdout) == (0, True)
    assert "--follow waits for what comes" in out.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_lines_that_cannot_be_written_are_an_error(tmp_path):
    """Unlike a run, a replay is for nothing else."""
    recorded(tmp_path / "r")
    out = called("replay", "r", "--speed", "max", "--json", "/dev/full", "--record-dir", tmp_path)
    assert isinstance(out.exception, InputError)
    assert str(out.exception).startswith("/dev/full lacks events: ")


def test_damage_is_told_after_what_could_be_read(tmp_path):
    """The rest is shown, and the standard error names the place and, if its writer died, the command that recovers it."""
    recorded(tmp_path / "r")
    (live,) = (tmp_path / "r" / "events").glob("0*.jsonl*")
    if live.suffix == ".jsonl":
        lines = live.read_bytes().splitlines(keepends=True)
        lines[3] = b"{broken\n"
        live.write_bytes(b"".join(lines))
    else:
        data = bytearray(live.read_bytes())
        data[len(data) // 2] ^= 0xFF
        live.write_bytes(data)
    out = called("replay", "r", "--speed", "max", "--record-dir", tmp_path)
    assert out.exit_code == 0
    assert "r is damaged: " in out.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (["--speed", "0"], InputError, "--speed is '0'; expected a number above 0, such as 4, or max"),
        (["--speed", "nan"], InputError, "expected a number above 0"),
        (["--speed", "fast"], InputError, "expected a number above 0"),
        (["--chain", "chain_9"], ArchiveError, "has no chain 'chain_9'; the nearest: chain_"),
        (["--group", "x"], ArchiveError, "has no group 'x'; the nearest: group_0"),
        (["--step", "1"], ArchiveError, "it has no training steps"),
        (["--type", "chunk"], FilterError, "chunk"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path, arguments, error, sentence):
    """In one sentence, before anything is shown."""
    recorded(tmp_path / "r")
    out = called("replay", "r", "--record-dir", tmp_path, *arguments)
    assert isinstance(out.exception, error)
    assert sentence in str(out.exception)
    assert out.stdout == ""


def test_the_pace_is_that_of_the_run(monkeypatch):
    """Divided by the speed; clocks that jump back cost nothing, and a long pause is shortened."""
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr("rollcast.cli.replay.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rollcast.cli.replay.time.sleep", sleep)
    pace = Pace(2.0)
    for timestamp in (1000.0, 1001.0, 900.0, 1001.0, 1002.0, 90_000.0):
        _wait_until_due(StreamEvent("reward", "chain_0", timestamp, {}), pace)
    assert slept == [0.5, 0.5, 10.0]


def test_a_replay_waits_for_its_readers_without_a_word(tmp_path, monkeypatch, caplog):
    """However small their queues are, everything is shown, and nobody is told that a rollout waits."""
    recorded(tmp_path / "r")
    whole = called("replay", "r", "--speed", "max", "--record-dir", tmp_path).stdout
    monkeypatch.setattr("rollcast.cli.replay.StreamingManager", partial(StreamingManager, queue_limit=1000))
    assert called("replay", "r", "--speed", "max", "--record-dir", tmp_path).stdout == whole
    assert not [record for record in caplog.records if "waits for" in record.message]
