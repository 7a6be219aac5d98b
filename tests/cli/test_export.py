"""`rollcast export`: a record in formats that others read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rollcast import StreamingManager
from rollcast.archive import Archive, ArchiveObserver
from rollcast.archive.budget import trim_records
from rollcast.cli.app import app
from rollcast.errors import ArchiveError, InputError
from rollcast.records import decode


def exported(directory, to, *arguments):
    out = CliRunner().invoke(
        app, ["export", "latest", "--to", to, *arguments, "--record-dir", str(directory)]
    )
    if out.exception is not None and not isinstance(out.exception, SystemExit):
        raise out.exception
    assert out.exit_code == 0
    return out.stdout


def talk(run, n, *, text="I look.", seen="saw"):
    with run.chain(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"q{n}"}],
        group_id=f"group_{n}",
        reference=n,
    ) as chain:
        with chain.generation(prompt_ids=[1]) as generation:
            generation.chunk(text, [7, 8], [-0.5, -0.25])
        with chain.tool_call("look", {"at": n}) as call:
            call.observation(seen)
        with chain.generation(prompt_ids=[1]) as generation:
            generation.chunk(f"It is {n}.", [9], [-1.0])
        chain.reward(float(n), {"exact": 1.0})
        chain.end("answered", f"It is {n}.")


@pytest.fixture(params=["turns", "tokens"])
def run(tmp_path, request):
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", name="sums", masker=False, level=request.param))
    with manager.run(chains=3, model="tiny") as run:
        for n in range(3):
            talk(run, n)
    manager.close()
    return tmp_path


def test_events_as_json_lines(run):
    """The events of the record, or those of some chains."""
    events = list(Archive.open(run / "r").events())
    assert [decode(line) for line in exported(run, "jsonl").splitlines()] == events
    of_one = [decode(line) for line in exported(run, "jsonl", "--chain", "chain_1").splitlines()]
    assert of_one == [event for event in events if event.chain_id == "chain_1"]


def test_chains_as_atif(run):
    """One document a chain: steps from 1, observations beside the calls that they answer, ids, log-probabilities, the reward."""
    documents = [json.loads(line) for line in exported(run, "atif").splitlines()]
    assert [d["final_metrics"]["extra"]["chain_id"] for d in documents] == ["chain_0", "chain_1", "chain_2"]
    document = documents[1]
    assert document["schema_version"] == "ATIF-v1.7"
    assert document["agent"]["name"] == "sums"
    assert [step["step_id"] for step in document["steps"]] == [1, 2, 3, 4]
    assert [step["source"] for step in document["steps"]] == ["system", "user", "agent", "agent"]
    first, last = document["steps"][2:]
    call_id = first["tool_calls"][0]["tool_call_id"]
    assert (first["message"], first["tool_calls"][0]["arguments"]) == ("I look.", {"at": 1})
    assert [(r["source_call_id"], r["content"]) for r in first["observation"]["results"]] == [
        (call_id, "saw")
    ]
    assert first["metrics"] == {
        "completion_tokens": 2,
        "completion_token_ids": [7, 8],
        "logprobs": [-0.5, -0.25],
    }
    assert last["message"] == "It is 1."
    assert document["final_metrics"]["total_steps"] == 4
    assert document["final_metrics"]["total_completion_tokens"] == 3
    assert document["final_metrics"]["extra"]["reward"] == 1.0
    assert document["extra"]["reference"] == 1


def test_chains_as_markdown(run):
    """A heading a chain, its figures, and what was said, in order."""
    out = exported(run, "markdown", "--group", "group_2")
    assert out.startswith("# r\n\n## chain_2 of group_2\n")
    wanted = [
        "- reward: 2.0",
        "- reference: 2",
        "### system",
        "q2",
        "I look.",
        "Calls look:",
        '{"at": 2}',
        "saw",
        "It is 2.",
    ]
    places = [out.index(text) for text in wanted]
    assert places == sorted(places)
    assert "chain_1" not in out


def test_what_was_said_cannot_change_the_page(tmp_path):
    """A fence is longer than those in the text, and no control character comes through."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    with manager.run(chains=1) as run:
        talk(run, 0, text="````\n# title\n\x1b[2J```` </details>", seen="\x9b2J")
    manager.close()
    out = exported(tmp_path, "markdown")
    assert "`````text\n````\n# title\n" in out
    assert not set(out + exported(tmp_path, "atif")) & {"\x1b", "\x9b"}
    (document,) = map(json.loads, exported(tmp_path, "atif").splitlines())
    assert "\x1b[2J" in document["steps"][2]["message"]


def test_open_chains_are_exported(tmp_path):
    """What they said so far, and that they run."""
    manager = StreamingManager()
    observer = ArchiveObserver(tmp_path / "r", masker=False, level="tokens")
    manager.add_observer(observer)
    with manager.run(chains=2) as run:
        talk(run, 0)
        with (
            run.chain([{"role": "user", "content": "q"}]) as chain,
            chain.generation(prompt_ids=[1]) as generation,
        ):
            generation.chunk("I am spea", [1], [-0.5])
            manager.drain_sync()
            observer._worker.flush().result()
            atif, markdown = exported(tmp_path, "atif"), exported(tmp_path, "markdown")
    manager.close()
    first, second = map(json.loads, atif.splitlines())
    assert (first["extra"]["state"], second["extra"]["state"]) == ("ended", "running")
    assert second["steps"][-1]["message"] == "I am spea"
    assert re.search(r"### assistant, step 1, not ended\n\n```text\nI am spea\n", markdown)


def test_chains_without_messages_are_counted(tmp_path):
    """The format cannot tell of them; the standard error does."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    with manager.run(chains=1) as run, run.chain():
        pass
    manager.close()
    out = CliRunner().invoke(app, ["export", "r", "--to", "atif", "--record-dir", str(tmp_path)])
    assert (out.exit_code, out.stdout) == (0, "")
    assert "chains without messages are left out: 1" in out.stderr


@pytest.mark.parametrize(
    ("to", "arguments", "error", "sentence"),
    [
        ("csv", [], InputError, "--to is 'csv'; expected jsonl, markdown or atif"),
        ("atif", ["--chain", "chain_9"], ArchiveError, "has no chain 'chain_9'"),
        ("jsonl", ["--step", "3"], ArchiveError, "it has no training steps"),
    ],
)
def test_what_cannot_be_exported_is_refused(run, to, arguments, error, sentence):
    """In one sentence."""
    with pytest.raises(error) as caught:
        exported(run, to, *arguments)
    assert sentence in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize(
    "command",
    [
        ["export", "--to", "jsonl"],
        ["export", "--to", "markdown"],
        ["show"],
        ["stats"],
        ["replay", "--speed", "max"],
    ],
)
def test_an_output_that_cannot_be_written_is_an_error(run, command):
    """One sentence, and exit code 2, for every command that reads a record."""
    name, *options = command
    line = [sys.executable, "-m", "rollcast", name, "r", *options, "--record-dir", run]
    with Path("/dev/full").open("w") as full:
        out = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert out.returncode == 2
    assert out.stderr.startswith("rollcast: the output cannot be written: No space left on device")
    assert len(out.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "count"), [([], 3), (["--chain", "chain_1"], 1), (["--group", "group_2"], 1)]
)
@pytest.mark.parametrize("to", ["markdown", "atif"])
def test_chains_whose_events_were_taken_out_are_counted(run, to, arguments, count):
    """They are left out, which the standard error says."""
    trim_records(run, 0)
    out = CliRunner().invoke(app, ["export", "r", "--to", to, *arguments, "--record-dir", str(run)])
    assert out.exit_code == 0
    assert f"chains whose events are not in the record are left out: {count}\n" in out.stderr
