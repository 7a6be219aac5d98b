"""`rollcast show`: one screen of a recorded run, a training step, a group or a chain."""

import json
import time

import pytest
from click.testing import CliRunner

from doubles import part_of_run
from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver
from rollcast.archive.budget import trim_records
from rollcast.cli.app import app
from rollcast.errors import ArchiveError, InputError
from rollcast.records import StreamEvent, prompt_hash


def shown(directory, *arguments):
    out = CliRunner().invoke(app, ["show", *map(str, arguments), "--record-dir", str(directory)])
    if out.exception is not None and not isinstance(out.exception, SystemExit):
        raise out.exception
    return out.stdout


def rollout(manager, step, rewards, **about):
    """One run of groups of two chains: each looks something up and answers."""
    with manager.run(chains=len(rewards), **about) as run:
        for n, reward in enumerate(rewards):
            question = [{"role": "user", "content": f"question {n // 2} of step {step}"}]
            with run.chain(question, group_id=f"group_{n // 2}", reference=n // 2) as chain:
                with chain.generation(prompt_ids=[1]) as generation:
                    generation.chunk(f"I look {n} up.", [40 + n, 50], [-0.25, -1.5])
                with chain.tool_call("look", {"at": n}) as call:
                    call.observation("" if reward is None else f"saw {n}")
                if reward is None:
                    raise_in(chain)
                    continue
                with chain.generation(prompt_ids=[1]) as generation:
                    generation.chunk(f"It is {n}.", [60 + n], [-0.5])
                chain.reward(reward, {"exact": reward})
                chain.end("answered", f"It is {n}.")
    return run.run_id


def raise_in(chain):
    chain.error(RuntimeError("the tool broke"), "agent")
    chain.end("error")


def recorded(path, **options):
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(path, name="sums", masker=False, **options))
    return manager


@pytest.fixture
def run(tmp_path):
    manager = recorded(tmp_path / "r")
    rollout(manager, 1, [1.0, 0.25, 0.5, None])
    manager.close()
    return tmp_path


@pytest.fixture
def training(tmp_path):
    manager = recorded(tmp_path / "t")
    for step in (1, 2):
        run_id = rollout(manager, step, [0.0, step / 2], parent_run_id="training", policy_version=step - 1)
        about = {"train_step": step, "policy_version": step, "metrics": {"loss": 0.125 * step}}
        learned = {run_id: {"chain_1": {"advantage": 0.5, "staleness": 0}, "chain_0": {"advantage": -0.5}}}
        manager.emit(StreamEvent("train_step", "", None, about | {"chains": learned}, run_id="training"))
    manager.close()
    return tmp_path


def test_a_run_is_its_groups(run):
    """With totals, rewards, questions and references."""
    out = shown(run, "r")
    assert "r · sums · ended" in out
    assert "4 chains in 2 groups · mean reward 0.583 (0.25 to 1) · 3 answered, 1 error" in out
    assert "group_0  0.62  1 0.25\n  ▸ question 0 of step 1\n    reference 0\n" in out
    assert "group_1  0.50  0.5 error\n" in out


def conversation(run, group_id, *texts):
    """A chain as an attached client makes it: nobody says how it ended."""
    with run.chain([{"role": "user", "content": "why?"}], group_id=group_id) as chain:
        for text in texts:
            with chain.generation() as generation:
                generation.chunk(text)
            if text != texts[-1]:
                chain.message({"role": "user", "content": "and?"}, from_outside=True)
        chain.end("unknown")


def test_the_last_answer_of_chains_that_nobody_ended(tmp_path):
    """As those of an attached client: of a group without rewards, and of each chain. One run ends before its chain does."""
    manager = recorded(tmp_path / "r")
    with manager.run() as run:
        conversation(run, "group_0", "Because.", "So there.")
        conversation(run, "group_1", "Never mind.")
        conversation(run, "group_2")
    *first, _reward, _chain_end, run_end = part_of_run("lost", "w", ["chain_7"], words=("It ", "was."))
    for event in (*first, run_end):
        manager.relay(event)
    manager.close()
    screen = shown(tmp_path, "r")
    said = [line.split(maxsplit=1)[1] for line in screen.splitlines() if line.endswith((".", "why?"))]
    assert said == ["why?", "So there.", "why?", "Never mind.", "why?", "It was."]
    (line,) = [line for line in shown(tmp_path, "r", "--group", "group_0").splitlines() if "chain_0" in line]
    assert line.endswith("unknown  2 steps, 2 tokens  So there.")


def test_the_worst_and_the_best_chain(run):
    """Each from its question to its reward, with its reference."""
    worst, best = shown(run, "sums", "--worst"), shown(run, "latest", "--best")
    story = worst[worst.index("chain_1 of group_0") :]
    assert "reward 0.25 · exact 0.25 · answered · 2 steps · 3 tokens" in story
    assert "reference  0\n" in story
    order = ["▸ question 0", "  I look 1 up.", '→ look({"at": 1})', "← look: saw 1", "  It is 1."]
    assert [story.index(text) for text in order] == sorted(story.index(text) for text in order)
    assert "chain_0 of group_0" in best


def test_the_chain_that_failed(run):
    """With its error; if none failed, that is said."""
    out = shown(run, "r", "--failed")
    assert "chain_3 of group_1" in out
    assert "the tool broke" in out
    assert "no chain failed" in shown(run, "r", "--failed", "--group", "group_0")


def test_one_group(run):
    """Its question, its reference, and a line for each of its chains."""
    out = shown(run, "r", "--group", "group_0")
    assert "  ▸ question 0 of step 1\n    reference 0\n" in out
    asked = prompt_hash([{"role": "user", "content": "question 0 of step 1"}])
    assert f"    reference 0\n    prompt {asked}\n" in out
    assert "chain_0  1  answered  2 steps, 3 tokens  It is 0.\n" in out
    assert "chain_2" not in out


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0, "  3 tokens; log-probability -0.500 on average, -0.500 at the lowest\n  1.2 s from the first to the last; the longest pause was 1.0 s, before token 3\n"),
        (2, "  1 of 3 tokens; log-probability -0.500 on average, -0.500 at the lowest\n"),
    ],
)  # fmt: skip
def test_tokens_that_came_in_chunks_alone_have_their_times(tmp_path, first, said):
    """As a hub records them; if it had not been asked for all of them, it is said how many there were."""
    manager = recorded(tmp_path / "r", level="tokens")
    for event in part_of_run("r", "w", ["chain_0"], words=("Hello", "!")):
        together = event.data.get("content") == "Hello"
        if event.event_type == "llm_generation_chunk":
            merged = {"dt_ms": [250.0], "lengths": [2, 3], "from_seq": event.seq} if together else {}
            tokens = [1, 2] if together else [3]
            event.data.update(token_ids=tokens, logprobs=[-0.5] * len(tokens), **merged)
            if event.data["offset"] < first:
                continue
        if event.event_type == "llm_generation_end":
            event.data["completion_tokens"] = 3
        manager.relay(event)
    manager.close()
    assert said in shown(tmp_path, "r", "--chain", "chain_0", "--tokens")


def test_tokens_are_listed(run):
    """Ids with their log-probabilities, generation by generation, whether chunks were recorded or not."""
    out = shown(run, "r", "--chain", "chain_2", "--tokens")
    assert "2 tokens; log-probability -0.875 on average, -1.500 at the lowest\n" in out
    assert "42(-0.25) 50(-1.5)\n" in out
    assert "62(-0.5)\n" in out


def test_of_a_training_the_last_step_is_shown(training):
    """Unless another is named; what was learned stands there, and each chain's advantage."""
    last, first = shown(training, "t"), shown(training, "t", "--step", "1", "--best")
    assert "training step 2 · 2 chains in 1 group" in last
    assert "learned: loss 0.25" in last
    assert "question 0 of step 2" in last
    assert "training step 1 · policy 0" in first
    assert "reward 0.5 · exact 0.5 · advantage +0.5" in first


def test_a_chain_of_a_training_is_that_of_the_last_run(training):
    """And that is said."""
    out = shown(training, "t", "--chain", "chain_1")
    assert "this is the last one with a chain_1" in out
    assert "question 0 of step 2" in out
    assert "question 0 of step 1" in shown(training, "t", "--chain", "chain_1", "--step", "1")


def test_hints_stand_above(tmp_path):
    """Those that the chains' rows give: here a tool that always fails."""
    manager = recorded(tmp_path / "r")
    with manager.run(chains=8) as run:
        for _ in range(8):
            with run.chain() as chain:
                with chain.generation(prompt_ids=[1]) as generation:
                    generation.chunk("a", [1], [-1.0])
                with chain.tool_call("look", {}) as call:
                    call.observation("no", status="error")
                chain.reward(0.5)
    manager.close()
    out = shown(tmp_path, "r")
    assert "! The tool “look” failed in 8 of 8 calls (chain_0, chain_1, chain_2, chain_3 and 4 more)" in out
    assert "! The tool “look”" in shown(tmp_path, "r", "--failed")


def test_a_chain_has_the_hints_that_it_shows(tmp_path):
    """However many chains show them too; one that does not show them has none."""
    manager = recorded(tmp_path / "r")
    with manager.run(chains=100) as run:
        for n in range(100):
            with run.chain() as chain:
                with chain.generation(prompt_ids=[1]) as generation:
                    generation.chunk("a", [1], [-1.0])
                with chain.tool_call("look", {}) as call:
                    call.observation("no", status="success" if n == 50 else "error")
    manager.close()
    assert "! The tool “look” failed in 99 of 100 calls (chain_99, chain_0, " in shown(
        tmp_path, "r", "--chain", "chain_99"
    )
    assert "!" not in shown(tmp_path, "r", "--chain", "chain_50")


def test_a_step_has_the_trends_of_its_training(tmp_path):
    """Those that the steps up to this one show: chains that become longer while the reward rises."""
    manager = recorded(tmp_path / "t")
    for step in range(1, 17):
        with manager.run(parent_run_id="training", chains=16) as run:
            for n in range(16):
                with run.chain(group_id=f"group_{n // 2}") as chain:
                    with chain.generation(prompt_ids=[1]) as generation:
                        generation.chunk(f"{n}", [1] * 4 * step, [-1.0] * 4 * step)
                    chain.reward(float(n < step))
                    chain.end("answered", f"{n}")
        learned = {run.run_id: {f"chain_{n}": {"advantage": 0.0} for n in range(16)}}
        about = {"train_step": step, "policy_version": step, "metrics": {}, "chains": learned}
        manager.emit(StreamEvent("train_step", "", None, about, run_id="training"))
    manager.close()
    assert "while the chains became longer: from 12 to 56 tokens on average" in shown(tmp_path, "t")
    assert "became longer" not in shown(tmp_path, "t", "--step", "11")


def test_a_run_that_goes_on_is_shown(tmp_path):
    """An open chain with what it says so far and the call that has not ended."""
    manager = StreamingManager()
    observer = ArchiveObserver(tmp_path / "r", masker=False, level="tokens")
    manager.add_observer(observer)
    with manager.run(chains=2) as run, run.chain([{"role": "user", "content": "q"}]) as chain:
        with chain.generation(prompt_ids=[1]) as generation:
            generation.chunk("I am spea", [1], [-0.5])
            manager.drain_sync()
            observer._worker.flush().result()
            speaking = shown(tmp_path, "r", "--chain", "chain_0")
        with chain.tool_call("look", {}):
            manager.drain_sync()
            observer._worker.flush().result()
            waiting = shown(tmp_path, "r", "--chain", "chain_0")
    manager.close()
    assert "  I am spea\n… this generation is open\n" in speaking
    assert " · running · " in speaking
    assert "look has not ended" in waiting


def test_without_texts_the_screen_says_so(tmp_path):
    """At the level `summary` a chain has its figures alone."""
    manager = recorded(tmp_path / "r", level="summary")
    rollout(manager, 1, [1.0, 0.5])
    manager.close()
    out = shown(tmp_path, "r", "--best", "--tokens")
    assert "reward 1 · exact 1.0 · answered · 2 steps" in out
    assert "the turns of this chain are not in the record (level summary)" in out
    assert "I look" not in out


def test_hostile_texts_cannot_speak_to_the_terminal(tmp_path):
    """Escapes are shown, and huge texts are cut."""
    manager = recorded(tmp_path / "r")
    question = [{"role": "user", "content": "\x1b[31mred"}]
    with manager.run(chains=1) as run, run.chain(question, reference="\x07") as chain:
        with chain.generation(prompt_ids=[1]) as generation:
            generation.chunk("\x1b]0;title\x07" + "x\n" * 10_000 + "y" * 100_000, [1], [-1.0])
        chain.end("answered", "\x9b2J")
    manager.close()
    for arguments in ((), ("--chain", "chain_0")):
        out = shown(tmp_path, "r", *arguments)
        assert not set(out) & {"\x1b", "\x07", "\x9b"}
        assert len(out) < 5_000


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (["--worst", "--best"], InputError, "--worst and --best mean different chains; give one of them"),
        (["--tokens"], InputError, "--tokens shows one chain"),
        (["--chain", "chain_9"], ArchiveError, "has no chain 'chain_9'"),
        (["--group", "group_9"], ArchiveError, "has no group 'group_9'; the nearest: group_"),
        (["--step", "4"], ArchiveError, "it has no training steps"),
    ],
)
def test_what_cannot_be_shown_is_refused(run, arguments, error, sentence):
    """In one sentence."""
    with pytest.raises(error, match=None) as caught:
        shown(run, "r", *arguments)
    assert sentence in str(caught.value)


def test_a_chain_tells_how_it_came_about(tmp_path):
    """Its question's hash, seed, sampling and row; rewards of steps and messages in their places; when tokens came."""
    manager = recorded(tmp_path / "r")
    question = [{"role": "user", "content": "question"}]
    with (
        manager.run(seed=7, sampling={"temperature": 0.5}, settings={"max_steps": 3}) as run,
        run.chain(
            question, row={"level": "hard"}, seed=2**62 + 1, attempt=2, parent_chain_id="chain_9"
        ) as chain,
    ):
        with chain.generation(sampling={"temperature": 0.5, "stop": []}) as generation:
            generation.chunk("I ", [1], [-0.5])
            generation.chunk("look.", [2], [-0.5])
        chain.step_reward(0.25)
        chain.message({"role": "user", "content": "Hurry!"}, from_outside=True)
        with chain.generation() as generation:
            generation.chunk("It is 1.", [3], [-0.5])
        chain.step_reward(0.125)
        chain.reward(1.0)
    manager.close()
    assert "seed 7 · temperature 0.5 · max_steps 3" in shown(tmp_path, "r").splitlines()[1]
    lines = shown(tmp_path, "r", "--chain", "chain_0", "--tokens").splitlines()
    told = f"prompt {prompt_hash(question)} · seed {2**62 + 1} · attempt 2 · begun by chain_9"
    assert told in lines
    assert 'row  {"level": "hard"}' in lines
    order = ["I look.", "step reward 0.25", "Hurry!", "It is 1.", "step reward 0.125"]
    places = [next(i for i, line in enumerate(lines) if text in line) for text in order]
    assert places == sorted(places)
    assert any("from the first to the last" in line for line in lines)


def test_the_sampling_of_the_latest_generation_is_shown(tmp_path):
    """What is empty is left out."""
    manager = recorded(tmp_path / "r")
    with (
        manager.run() as run,
        run.chain() as chain,
        chain.generation(sampling={"temperature": 0.5, "stop": []}) as generation,
    ):
        generation.chunk("x", [1])
    manager.close()
    assert "temperature 0.5" in shown(tmp_path, "r", "--chain", "chain_0").splitlines()


def test_an_evaluation_is_not_a_training_step(tmp_path):
    """It names the step that it came after, and `show` goes on showing that step's own chains."""
    manager = recorded(tmp_path / "r")
    rollout(manager, 1, [1.0, 0.0], train_step=1, split="train")
    rollout(manager, 9, [0.5, 0.5], train_step=1, split="eval")
    manager.close()
    text = shown(tmp_path, "r")
    assert "training step 1 · 2 chains in 1 group" in text
    assert "question 0 of step 9" not in text


def test_why_chains_failed_stands_above(run):
    """Each cause once, and how often; and each chain of a group has its reward or how it ended."""
    out = shown(run, "r")
    assert "1 × the tool broke\n" in out
    assert "the tool broke" not in shown(run, "r", "--group", "group_0")


def failing_reward(path, count):
    """A record of a run whose reward failed in all chains but the first."""
    manager = recorded(path)
    with manager.run(chains=count) as run:
        for n in range(count):
            with run.chain([{"role": "user", "content": "q"}], group_id="group_0") as chain:
                with chain.generation(prompt_ids=[1]) as generation:
                    generation.chunk("x", [1], [-0.5])
                if n == 0:
                    chain.reward(1.0)
                else:
                    chain.error(ZeroDivisionError(f"reward 'f' of chain_{n} raised"), "reward")
                chain.end("answered", "x")
    manager.close()


def test_a_reward_that_failed_is_told(tmp_path):
    """In the totals, in its group, with its cause, and as what failed: the chain itself did answer."""
    failing_reward(tmp_path / "r", 3)
    out = shown(tmp_path, "r")
    assert "3 answered; 2 of the rewards failed · 3 tokens" in out
    assert "2 × reward 'f' raised\n" in out
    assert "group_0  1.00  1 reward failed reward failed\n" in out
    assert "chain_1 of group_0" in shown(tmp_path, "r", "--failed")
    lines = shown(tmp_path, "r", "--group", "group_0").splitlines()
    assert "chain_1  -  answered, reward failed  1 step, 1 token  reward 'f' raised" in lines


def test_an_error_of_a_tool_is_no_failed_reward(tmp_path):
    """The chain went on after it."""
    manager = recorded(tmp_path / "r")
    with manager.run(chains=1) as run, run.chain([{"role": "user", "content": "q"}]) as chain:
        chain.error(ValueError("no such place"), "tool:look")
        chain.end("answered", "x")
    manager.close()
    out = shown(tmp_path, "r")
    assert ("failed" in out.replace("--failed", ""), "no such place" in out) == (False, False)
    assert "no chain failed" in shown(tmp_path, "r", "--failed")


def test_what_the_record_lacks_is_told(run):
    """Also by `stats`. Of a record without any chain that is all there is to show."""
    path = run / "r" / "run.json"
    facts = json.loads(path.read_text())
    facts["totals"] |= {"lost": 775, "trajectories_lost": 1}
    path.write_text(json.dumps(facts))
    sentence = "≋ not complete: 775 events and 1 trajectory could not be recorded\n"
    assert sentence in shown(run, "r")
    assert sentence in CliRunner().invoke(app, ["stats", "r", "--record-dir", str(run)]).stdout
    for file in (run / "r" / "chains.jsonl", *(run / "r" / "events").iterdir()):
        file.unlink()
    lines = shown(run, "r").splitlines()
    assert lines[1:3] == ["0 chains · 0 tokens", sentence.strip()]


def test_a_chain_whose_events_are_missing_has_its_figures(run):
    """From its row, which stays when the events are taken out to keep a budget, or are damaged."""
    whole = shown(run, "r", "--best").splitlines()
    trim_records(run, 0)
    lines = shown(run, "r", "--best").splitlines()
    outcome = next(line for line in whole if line.startswith("reward "))
    assert outcome in lines
    assert "≋ events of this chain are missing" in lines
    assert not any("None" in line for line in lines)


def test_a_run_that_goes_on_has_taken_until_now(run):
    """One that crashed took until its writer was last heard, and the command that recovers it can be typed."""
    path = run / "r" / "run.json"
    facts = json.loads(path.read_text())
    facts |= {"status": "running", "ended_at": None, "started_at": time.time() - 3600.0}
    path.write_text(json.dumps(facts))
    assert " · running · 1 h 00 min" in shown(run, "r").splitlines()[0]
    facts["writer"] |= {"started": facts["writer"]["started"] + 1, "heartbeat": facts["started_at"] + 90.0}
    path.write_text(json.dumps(facts))
    out = CliRunner().invoke(app, ["show", str(run / "r"), "--failed"])
    assert " · crashed · 1 min 30 s" in out.stdout.splitlines()[0]
    assert out.stderr.count("its writer died; `") == 1
    assert f"recover {run / 'r'}` makes the record whole" in out.stderr
