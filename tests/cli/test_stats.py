"""`rollcast stats`: the figures of a recorded run."""

import json

import pytest
from click.testing import CliRunner

from growing_records import copy_while_written
from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver
from rollcast.cli.app import app
from rollcast.records import StreamEvent


def stats(directory, *arguments):
    out = CliRunner().invoke(app, ["stats", *arguments, "--record-dir", str(directory)])
    assert out.exit_code == 0, out.output
    return out.stdout


def figures(directory, word="latest"):
    return json.loads(stats(directory, word, "--json"))


def chain_of(run, n, *, status="success", error=None, group="group_0"):
    with run.chain([{"role": "user", "content": "q"}], group_id=group) as chain:
        with chain.generation(prompt_ids=[1]) as generation:
            generation.chunk("word " * (n + 1), list(range(n + 1)), [-0.5] * (n + 1))
        with chain.tool_call("look", {"at": n}) as call:
            call.observation(f"saw {n}", status=status)
        if error is not None:
            chain.error(error, "tool:look")
            chain.end("error")
            return
        chain.reward(float(n))
        chain.end("answered", "x")


@pytest.fixture
def run(tmp_path):
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", name="sums", masker=False))
    with manager.run(chains=4) as run:
        for n in range(3):
            chain_of(run, n, status="error" if n == 2 else "success")
        chain_of(run, 3, error=ValueError("no such place"), group="group_1")
    manager.close()
    return tmp_path


def test_the_figures_of_a_run(run):
    """How the chains ended, what the tools did, what failed and of which kind, tokens and slow chains."""
    found = figures(run)
    assert (found["record"], found["state"], found["chains"], found["groups"]) == ("r", "ended", 4, 2)
    assert found["ends"] == {"answered": 3, "error": 1}
    assert (found["tools"]["look"]["calls"], found["tools"]["look"]["failed"]) == (4, 1)
    assert found["failures"] == {"tool:look ValueError": 1}
    assert (found["completion_tokens"], found["mean_tokens"], found["mean_reward"]) == (10, 2.5, 1.0)
    slowest = [chain["duration_s"] for chain in found["slowest"]]
    assert slowest == sorted(slowest, reverse=True)
    assert len(slowest) == 4


def test_the_figures_as_tables(run):
    """The same, for people."""
    out = stats(run, "sums")
    assert "chains  4 in 2 groups: 3 answered, 1 error" in out
    assert "tokens  10 sampled, 2.5 a chain on average" in out
    assert "  tool:look ValueError  1\n" in out
    tools = out[out.index("tools") :].splitlines()[2].split()
    assert tools[:3] == ["look", "4", "1"]


def test_lengths_by_training_step(tmp_path):
    """A line for each step, with all chains of its rollout, also those that nothing was learned from."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "t", masker=False))
    for step in (1, 2):
        with manager.run(chains=2, parent_run_id="training") as run:
            chain_of(run, step)
            chain_of(run, step + 4)
        about = {"train_step": step, "policy_version": step, "metrics": {}}
        learned = {run.run_id: {"chain_0": {"advantage": 1.0}}}
        manager.emit(StreamEvent("train_step", "", None, about | {"chains": learned}, run_id="training"))
    manager.close()
    found = figures(tmp_path)["steps"]
    for step in found:
        assert (step.pop("ends"), step.pop("metrics")) == ({"answered": 2}, {})
        assert step.pop("tools")["look"].items() >= {"calls": 2, "failed": 0}.items()
    assert found == [
        {
            "train_step": s,
            "chains": 2,
            "mean_tokens": s + 3.0,
            "longest_tokens": s + 5,
            "mean_steps": 1.0,
            "mean_reward": s + 2.0,
        }
        for s in (1, 2)
    ]
    assert "  2          2       4       5        7      1\n" in stats(tmp_path, "t")


def test_a_run_that_goes_on_has_figures(tmp_path):
    """Chains that have not ended are counted as running."""
    manager = StreamingManager()
    observer = ArchiveObserver(tmp_path / "r", masker=False)
    manager.add_observer(observer)
    with manager.run(chains=2) as run:
        chain_of(run, 1)
        with run.chain():
            manager.drain_sync()
            observer._worker.flush().result()
            found = figures(tmp_path)
    manager.close()
    assert (found["state"], found["ends"]) == ("running", {"answered": 1, "running": 1})


def test_an_empty_record_has_figures(tmp_path):
    """Zeros, and no tables."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    with manager.run(chains=0):
        pass
    manager.close()
    assert figures(tmp_path)["chains"] == 0
    assert stats(tmp_path, "r").startswith("r  ended\nchains  0 in 0 groups")


def test_hostile_rows_are_no_trouble(run):
    """Rows that somebody made by hand are counted as far as they make sense."""
    with (run / "r" / "chains.jsonl").open("a") as file:
        for row in (
            {"row": "end", "chain_id": "x"},
            {"run_id": [], "chain_id": {}},
            {"run_id": "r", "chain_id": "y", "group_id": []},
            {
                "run_id": "r",
                "chain_id": "x",
                "times": {"waiting": "long", "\x1b[2J": 1},
                "tool_use": {"\x1b[2J": []},
                "duration_s": "1",
            },
        ):
            file.write(json.dumps(row) + "\n")
    found = figures(run)
    assert found["chains"] == 5
    assert "\x1b" not in stats(run, "r")
    assert CliRunner().invoke(app, ["show", "r", "--record-dir", str(run)]).exit_code == 0


def test_a_training_step_tells_ends_tools_and_metrics(tmp_path):
    """Of its own chains, without those of evaluations, which name the step too."""
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", name="sums", masker=False))
    for split in ("train", "eval"):
        with manager.run(chains=2, train_step=1, split=split) as run:
            chain_of(run, 0, status="timeout")
            with run.chain([{"role": "user", "content": "q"}], group_id="group_0") as chain:
                chain.reward(1.0, {"exact": 1, "note": "x"})
    manager.close()
    (step,) = figures(tmp_path)["steps"]
    assert (step["train_step"], step["chains"], step["ends"]) == (1, 2, {"answered": 2})
    assert (step["tools"]["look"]["calls"], step["tools"]["look"]["failed"]) == (1, 1)
    assert step["metrics"] == {"exact": 1.0}
    table = stats(tmp_path, "latest").split("failed calls by training step\n")[1].splitlines()
    assert [line.split() for line in table] == [["step", "look"], ["1", "1", "of", "1"]]


def test_what_chains_without_an_end_did_is_counted(tmp_path):
    """Their rows have no calls and no tokens; their events do. One that is killed in the midst leaves the same."""
    manager = StreamingManager()
    observer = ArchiveObserver(tmp_path / "r", name="sums", masker=False)
    manager.add_observer(observer)
    copy = tmp_path / "killed"
    with manager.run(chains=2) as run:
        chain_of(run, 0)
        unended = run.chain([{"role": "user", "content": "q"}], group_id="group_0").start()
        with unended.generation(prompt_ids=[1]) as generation:
            generation.chunk("word " * 7, list(range(7)), [-0.5] * 7)
        with unended.tool_call("look", {"at": 1}) as call:
            call.observation("nothing", status="error")
        manager.drain_sync()
        observer._worker.flush().result(60)  # all that was emitted until now is written
        copy_while_written(tmp_path / "r", copy / "r")
    manager.close()
    facts = json.loads((copy / "r" / "run.json").read_text())
    (copy / "r" / "run.json").write_text(json.dumps(facts | {"status": "crashed"}))
    found = figures(copy)
    assert found["ends"] == {"answered": 1, "lost": 1}
    assert (found["completion_tokens"], found["open_tokens"]) == (1, 7)
    assert (found["tools"]["look"]["calls"], found["tools"]["look"]["failed"]) == (2, 1)
    said = stats(copy, "latest")
    assert "1 sampled, 1 a chain on average, in chains that ended; 7 in those that have no end" in said
