"""When a hint appears and when it goes."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast.records import StreamEvent, StreamEventType, hint_watch
from rollcast.records.hint_index import HintIndex
from rollcast.records.hint_watch import CHAINS_PER_LOOK_S, HintWatch
from rollcast.records.hints import hints


class Run:
    """Makes the events of one run, with times of its own, and gives them to a watch."""

    def __init__(self, watch, run_id="r", at=1000.0, parent=None, split=None):
        self.watch, self.run_id, self.at = watch, run_id, at
        self.events, self._seq = [], itertools.count()
        about = {} if parent is None else {"parent_run_id": parent, "split": split}
        self.said = self(
            "run_start", chains=0, groups=0, agent="", model="", backend="", policy_version=0, **about
        )

    def __call__(self, kind, chain_id="", *, group=None, **data):
        event = StreamEvent(
            StreamEventType(kind), chain_id, self.at, data, 1 if chain_id else None, None, next(self._seq), self.run_id,
            group,
        )  # fmt: skip
        self.events.append(event)
        return self.watch.take(event)

    def start(self, name, **data):
        return self("chain_start", name, messages=[], tools=[], index=0, policy_version=0, **data)

    def call(self, name, tool="search", status="success", seconds=0.5, *, ends=True):
        """A tool call of a chain, which lasts so long on the clock of the events."""
        changes = self("tool_call_start", name, call_id=f"c{self.at}", tool_name=tool, arguments={})
        if ends:
            call_id, self.at = f"c{self.at}", self.at + seconds
            changes += self(
                "tool_call_end", name, call_id=call_id, tool_name=tool, status=status, duration_s=seconds
            )
        return changes

    def end(self, name, reward=1.0, group=None, reason="answered", answer=""):
        data = {
            "finish_reason": reason,
            "final_response": answer,
            "steps": 1,
            "completion_tokens": 5,
            "duration_s": 1.0,
        }
        return self("chain_end", name, group=group, reward=reward, metrics={}, **data)

    def passes(self, seconds):
        """Time passes, in which another chain begins and ends each second."""
        changes = []
        for _ in range(seconds):
            self.at += 1.0
            changes += [*self.start(f"other{self.at}"), *self.end(f"other{self.at}", self.at % 2)]
        return changes

    def over(self):
        return self(
            "run_end",
            status="completed",
            chains=0,
            failed=0,
            mean_reward=None,
            completion_tokens=0,
            duration_s=1.0,
        )

    def failing(self, n, status="error", tool="search", seconds=0.5):
        """A tool is called n times, each for half a second."""
        changes = []
        for i in range(n):
            changes += [
                *self.start(f"f{i}"),
                *self.call(f"f{i}", tool, status, seconds),
                *self.end(f"f{i}", float(i % 2)),
            ]
        return changes


def told(changes):
    """Which hints appeared (+) and went (-)."""
    return [("+" if change.appeared else "-") + change.hint.kind for change in changes]


@pytest.fixture
def watch():
    return HintWatch()


# -- one run -------------------------------------------------------------------------------------------------------------


def test_a_hint_appears_once_it_has_held_for_two_seconds(watch):
    """And not again while it goes on."""
    run = Run(watch)
    assert told(run.failing(10)) == []
    (change,) = run.failing(8)
    assert (change.appeared, change.hint.subject) == (True, "search")
    assert told(run.failing(20)) == []
    assert [hint.kind for hint in watch.showing()] == ["tool_fails"]


def test_a_hint_goes_once_it_was_untrue_for_ten_seconds(watch):
    """A moment in which it does not hold changes nothing."""
    run = Run(watch)
    (appeared,) = run.failing(24)
    assert told(run.failing(60, "success")) == ["-tool_fails"]
    assert watch.showing() == []
    changes = run.failing(200)
    assert told(changes) == ["+tool_fails"]
    assert changes[0].id == appeared.id


def test_a_moment_is_not_enough(watch):
    """What holds for less than two seconds never appears."""
    run = Run(watch)
    assert told(run.failing(8)) == []
    assert told(run.failing(100, "success", seconds=0.1)) == []


def test_at_the_end_of_a_run_what_holds_appears_at_once(watch):
    """However short the run was; afterwards nothing of it shows, and its late events change nothing."""
    run = Run(watch)
    assert told(run.failing(8)) == []
    assert told(run.over()) == ["+tool_fails"]
    assert (watch.showing(), watch.chains) == ([], 0)
    assert told(run.failing(30)) == []


def test_the_end_of_a_run_may_be_said_without_an_event(watch):
    """For a watcher whose filter leaves `run_end` out; twice is once."""
    run = Run(watch)
    run.failing(8)
    assert told(watch.end_run("r")) == ["+tool_fails"]
    assert watch.end_run("r") == watch.end_run("unknown") == []


# -- quiet chains ----------------------------------------------------------------------------------------------------------


def hung(watch):
    """A run in which one chain waits for a tool that others were quick with."""
    run = Run(watch)
    for i in range(12):
        run.start(f"chain_{i}")
        run.call(f"chain_{i}")
        run.end(f"chain_{i}", float(i % 2))
    run.start("stuck")
    run.call("stuck", ends=False)
    return run


def test_a_chain_that_is_quiet_is_found_from_the_events_of_others(watch):
    """Without a clock: the times of their events tell. It goes ten seconds after the chain speaks again."""
    run = hung(watch)
    (change,) = run.passes(40)
    assert (change.hint.kind, change.hint.chains) == ("quiet", ["stuck"])
    run(
        "tool_observation",
        "stuck",
        call_id="x",
        tool_name="search",
        observation="",
        partial=True,
        status="success",
    )
    changes = []
    for _ in range(12):
        run.at += 1.0
        changes += run(
            "tool_observation", "stuck", call_id="x", tool_name="search", observation="", partial=True
        )
    assert told(changes) == ["-quiet"]


def test_if_no_event_comes_the_clock_tells(watch):
    """A caller may say how late it is; an event at the same time changes nothing more."""
    run = hung(watch)
    assert watch.look(run.at + 5) == []
    changes = [*watch.look(run.at + 30), *watch.look(run.at + 33), *watch.look(run.at + 34)]
    assert told(changes) == ["+quiet"]


def test_a_generation_whose_chunks_come_is_not_quiet(watch):
    """The time of its latest chunk counts, although its text is not kept."""
    run = hung(watch)
    run.end("stuck")
    for i in range(12):
        run.start(f"g{i}")
        run("llm_generation_start", f"g{i}", prompt_tokens=1, model="", policy_version=0, sampling={})
        run.at += 0.1
        run(
            "llm_generation_end",
            f"g{i}",
            content="a",
            finish_reason="stop",
            completion_tokens=1,
            duration_s=0.1,
        )
        run.end(f"g{i}", float(i % 2))
    run.start("long")
    run("llm_generation_start", "long", prompt_tokens=1, model="", policy_version=0, sampling={})
    changes = []
    for offset in range(60):
        run.at += 1.0
        run("llm_generation_chunk", "long", content="x", token_ids=[1], offset=offset)
        changes += run.passes(1)
    assert told(changes) == []
    assert told(run.passes(20)) == ["+quiet"]


# -- trainings -------------------------------------------------------------------------------------------------------------


def rollout(watch, step, status="error", at=None, split="train"):
    """One rollout of a training, in a second."""
    run = Run(watch, f"run{step}{split}", 1000.0 + 2 * step if at is None else at, "training", split)
    changes = []
    for i in range(8):
        run.start(f"chain_{i}")
        changes += run.call(f"chain_{i}", status=status, seconds=0.1)
        changes += run.end(f"chain_{i}", float(i % 2), f"group_{i // 4}", answer="same")
    return changes + run.over()


def test_in_a_training_a_hint_appears_after_three_rollouts(watch):
    """And goes after three without it; single ones are chance."""
    changes = [told(rollout(watch, step)) for step in range(5)]
    assert changes == [[], [], ["+tool_fails"], [], []]
    changes = [
        told(rollout(watch, 5 + step, status))
        for step, status in enumerate(["success", "error"] + ["success"] * 4)
    ]
    assert changes == [[], [], [], [], ["-tool_fails"], []]


def test_an_evaluation_is_not_compared_with_training(watch):
    """Their rollouts alternate, and each has hints of its own."""
    changes = []
    for step in range(4):
        changes += rollout(watch, step, "error")
        changes += rollout(watch, step, "success", split="eval")
    assert told(changes) == ["+tool_fails"]


def test_a_long_rollout_need_not_end(watch):
    """What it shows for 30 seconds appears."""
    run = Run(watch, "run0", parent="training")
    assert told(run.failing(20)) == []
    assert told(run.failing(60)) == ["+tool_fails"]


def test_a_training_has_no_hints_about_single_groups(watch):
    """Its groups are new in every rollout."""
    changes = []
    for step in range(6):
        run = Run(watch, f"run{step}", 1000.0 + step, "training")
        for i in range(8):
            run.start(f"chain_{i}", group=f"group_{i // 4}")
            run.end(
                f"chain_{i}",
                0.0 if i < 4 else float(i % 2),
                f"group_{i // 4}",
                answer="same" if i < 4 else f"{i}",
            )
        changes += run.over()
    assert told(changes) == []
    alone = Run(watch, "alone")
    for i in range(8):
        alone.start(f"chain_{i}", group=f"group_{i // 4}")
        alone.end(
            f"chain_{i}",
            0.0 if i < 4 else float(i % 2),
            f"group_{i // 4}",
            answer="same" if i < 4 else f"{i}",
        )
    assert told(alone.over()) == ["+alike_and_wrong"]


def test_a_trend_of_a_training_appears(watch):
    """Chains that become longer while the reward rises, after twelve steps and three more."""
    changes = []
    for step in range(20):
        run = Run(watch, f"run{step}", 1000.0 + step, "training")
        for i in range(64):
            run.start(f"chain_{i}")
            run(
                "llm_generation_end", f"chain_{i}", content=f"{i}", finish_reason="stop",
                completion_tokens=50 + 20 * step, duration_s=0.1,
            )  # fmt: skip
            data = {"finish_reason": "answered", "final_response": f"{i}", "steps": 1, "duration_s": 1.0}
            reward = float(i % 20 < step)
            run(
                "chain_end", f"chain_{i}", reward=reward, metrics={}, completion_tokens=50 + 20 * step, **data
            )
        changes += run.over()
    assert told(changes) == ["+length_drift"]
    end = StreamEvent(StreamEventType.RUN_END, "", 2000.0, {"status": "completed"}, run_id="training")
    start = StreamEvent(StreamEventType.RUN_START, "", 1.0, {}, run_id="training")
    for event in (start, end):
        watch.take(event)
    assert watch.showing() == []


# -- limits ------------------------------------------------------------------------------------------------------------------


def test_looks_become_rarer_with_more_chains(watch, monkeypatch):
    """At 3,000 chains there is one in three seconds; and never more than one a second, however many events come."""
    looks = []
    monkeypatch.setattr(HintIndex, "hints", lambda self, now: looks.append(now) or [])
    run = Run(watch)
    for i in range(3 * CHAINS_PER_LOOK_S):
        run.start(f"chain_{i}")
    for _ in range(300):
        run.at += 0.1
        run.start("chain_0")
    assert len(looks) in (9, 10)


def test_a_run_is_followed_within_bounds(watch, monkeypatch):
    """Of 3,000 chains, the latest 1,000 if no more are to be followed, and none of their text."""
    monkeypatch.setattr("rollcast.records.hint_watch.MAX_CHAINS", 1_000)
    run = Run(watch)
    for i in range(3_000):
        run.start(f"chain_{i}")
        run.end(f"chain_{i}", answer="x" * 10_000)
    assert watch.chains == 1_000
    assert next(iter(watch._runs.runs["r"].chains)) == "chain_2000"
    views = watch._runs.runs["r"].chains.values()
    assert max(len(view.final_response) for view in views) == 4096
    assert all(view.messages == [] for view in views)


def test_while_too_many_chains_are_open_no_others_are_followed(watch, monkeypatch):
    """None of those that are followed is dropped for another, until one ends."""
    monkeypatch.setattr("rollcast.records.hint_watch.MAX_CHAINS", 100)
    run = Run(watch)
    for i in range(200):
        run.start(f"chain_{i}")
    assert list(watch._runs.runs["r"].chains) == [f"chain_{i}" for i in range(100)]
    run.end("chain_7")
    run.start("chain_150")
    assert list(watch._runs.runs["r"].chains)[-1] == "chain_150"
    assert (watch.chains, "chain_7" in watch._runs.runs["r"].chains) == (100, False)
    run.over()
    assert (watch.chains, watch._closed) == (0, {})


def test_a_clock_that_was_set_back_is_followed(watch):
    """A time far ahead hides the hints that follow it only until some more events have come."""
    run = Run(watch)
    run.at = 1e10
    run.start("ahead")
    run.at = 1000.0
    assert "+tool_fails" in told(run.failing(200))


def test_clocks_that_disagree_do_not_ask_for_a_look_each_time(watch, monkeypatch):
    """Two sources, of which one is hours ahead, and whose events alternate."""
    looks = []
    monkeypatch.setattr(HintIndex, "hints", lambda self, now: looks.append(now) or [])
    run = Run(watch)
    for i in range(1000):
        run.at = 1000.0 + 10_000.0 * (i % 2)
        run.start("chain_0")
    assert len(looks) < 40


EVENTS = st.builds(
    StreamEvent,
    st.sampled_from([kind.value for kind in StreamEventType]).map(StreamEventType),
    st.sampled_from(["", "chain_0", "chain_1"]),
    st.floats(allow_nan=True) | st.integers(0, 100).map(float),
    st.dictionaries(
        st.sampled_from(["call_id", "tool_name", "status", "content", "offset", "reward", "chains", "parent_run_id", "run_status"]),
        st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    ),
    st.none() | st.integers(0, 3),
    st.none(),
    st.integers(-1, 50),
    st.sampled_from(["", "r", "s"]),
    st.none() | st.just("group_0"),
)  # fmt: skip


@settings(max_examples=100)
@given(st.lists(EVENTS, max_size=40), st.floats())
def test_nothing_is_raised_whatever_comes(events, now):
    """Events of any shape in any order, and any time."""
    watch = HintWatch()
    for event in events:
        watch.take(event)
    watch.look(now)
    watch.end_run("r")
    assert all(hint.sentence.isprintable() for hint in watch.showing())


@pytest.mark.parametrize("merged", [2, 7, 30])
def test_it_makes_no_difference_how_chunks_are_merged(merged):
    """An observer that falls behind gets several as one, with the time of the last; changes come at the same events."""
    found = []
    for length in (1, merged):
        run = hung(HintWatch())
        run.start("long")
        run("llm_generation_start", "long", prompt_tokens=1, model="", policy_version=0, sampling={})
        changes = []
        for i in range(30):
            run.at += 0.5
            if i % length == length - 1:
                text = "x" * length
                run(
                    "llm_generation_chunk",
                    "long",
                    content=text,
                    token_ids=[1] * length,
                    offset=i + 1 - length,
                )
        changes += run.passes(30)
        changes += run.failing(30) + run.over()
        found.append([(change.hint.kind, change.appeared, change.at, change.id) for change in changes])
    assert found[0] == found[1]
    assert len(found[0]) > 2


# -- what a look costs ----------------------------------------------------------------------------------------------------


def any_events(rng, n):
    """Events of runs, some of them rollouts, in which chains work, hang, fail, begin again and are lost, by clocks that jump."""
    at, seqs, runs, training = 1000.0, {}, {}, rng.random() < 0.3
    ending = rng.choice([0.2, 0.8])
    answer = rng.choice([lambda chain: chain["group"] or "", lambda _: rng.choice(["42", "7", "Same.", ""])])
    reward = rng.choice(
        [lambda _: 1.0, lambda _: rng.choice([0.0, 1.0, 2.0]), lambda chain: len(chain["group"] or "") % 2]
    )

    def event(kind, run_id, name="", group=None, **data):
        seqs[run_id, name] = seq = seqs.get((run_id, name), -1) + 1
        return StreamEvent(
            StreamEventType(kind), name, at, data, 1 if name else None, None, seq, run_id, group
        )

    def work(run_id, name, chain):
        """What a chain does next: a generation, a call, or its end; each begins and ends at its own time."""
        doing, group = chain["doing"], chain["group"]
        if doing == "generating":
            if rng.random() < 0.6:
                return event("llm_generation_chunk", run_id, name, group, content="x", token_ids=[1])
            chain["doing"] = None
            return event(
                "llm_generation_end",
                run_id,
                name,
                group,
                content="x",
                finish_reason=rng.choice(["stop", "tool_call"]),
            )
        if doing is not None:
            chain["doing"] = None
            status = rng.choice(["success", "error", "timeout"])
            return event("tool_call_end", run_id, name, group, call_id="c", tool_name=doing, status=status)
        if rng.random() < ending:
            chain["doing"] = "ended"
            why = rng.choice(["answered", "answered", "max_tokens", "error"])
            return event(
                "chain_end",
                run_id,
                name,
                group,
                finish_reason=why,
                final_response=answer(chain),
                reward=reward(chain),
            )
        chain["doing"] = rng.choice(["generating", "search", ""])
        if chain["doing"] == "generating":
            return event("llm_generation_start", run_id, name, group)
        return event(
            "tool_call_start", run_id, name, group, call_id="c", tool_name=chain["doing"], arguments={}
        )

    for _ in range(n):
        at += rng.choice([0.0, 0.01, 0.3, rng.expovariate(0.5)])
        if rng.random() < 0.004:
            at += rng.choice([-200.0, -5.0, 40.0])
        if not runs or (len(runs) < 3 and rng.random() < 0.01):
            run_id = f"r{len(seqs)}"
            runs[run_id] = {}
            about = {"parent_run_id": "training", "split": rng.choice(["train", "eval"])} if training else {}
            yield event("run_start", run_id, **about)
            continue
        run_id = rng.choice(list(runs))
        chains = runs[run_id]
        if rng.random() < 0.003:
            yield event("gap", run_id, rng.choice(["", *chains]), reason="slow", dropped=1)
        elif len(chains) > 80:
            del runs[run_id]
            yield event("run_end", run_id, status="completed")
        elif not chains or rng.random() < ending / 2:
            name = f"chain_{len(chains) if rng.random() < 0.97 or not chains else 0}"
            group = None if rng.random() < 0.05 else f"group_{'x' * (len(chains) // 5 % 3)}{len(chains) // 5}"
            chains[name] = {"doing": None, "group": group}
            reference = rng.choice([None, "42", 7])
            yield event("chain_start", run_id, name, group, messages=[], reference=reference)
        else:
            open_ones = [name for name, chain in chains.items() if chain["doing"] != "ended"]
            if open_ones:
                name = rng.choice(open_ones)
                yield work(run_id, name, chains[name])
            else:
                name = rng.choice(list(chains))
                yield event(
                    "reward", run_id, name, chains[name]["group"], reward=rng.choice([0.0, 1.0]), final=True
                )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([16_000, 40]))
def test_a_look_finds_what_a_look_at_everything_finds(seed, most):
    """The rules follow what has changed, and find the same hints in the same order as rules that begin anew."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollcast.records.hint_watch.MAX_CHAINS", most)
        kept = hint_watch._Followed.hints
        looks = []

        def checked(followed, now):
            found = kept(followed, now)
            assert found == hints(followed.run.chains.values(), now)
            looks.append(now)
            return found

        patch.setattr(hint_watch._Followed, "hints", checked)
        watch = HintWatch()
        for event in any_events(rng, 600):
            watch.take(event)
            if rng.random() < 0.02:
                watch.look(event.timestamp + rng.choice([0.0, 5.0, 30.0, 300.0]))
    assert looks


def test_a_look_costs_what_has_changed(watch, monkeypatch):
    """In a run of 3,000 chains, of which one changes between two looks, each look is at that one."""
    put = []
    kept = HintIndex.put
    monkeypatch.setattr(
        HintIndex, "put", lambda index, number, view: put.append(number) or kept(index, number, view)
    )
    run = Run(watch)
    for i in range(3_000):
        run.start(f"chain_{i}")
        run.end(f"chain_{i}")
    run.passes(4)
    put.clear()
    run.passes(200)
    assert 200 <= len(put) <= 400  # each of the 200 changes twice
