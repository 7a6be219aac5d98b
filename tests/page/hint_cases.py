"""Cases of hints, for the page's twin of the rules: `python tests/page/hint_cases.py`, from the root, writes `hint_cases.json` anew.

Each case is `name`, `now`, `rows`: of its chains, as a server gives them, and `hints`: what `records/hints.py` finds in their views. A case
of a training has `steps` instead: the summaries in the rows of its rollouts, as a server gives them. Look at the difference before you
keep it.
"""

import json
from pathlib import Path

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.run_rows import RunTally
from rollcast.archive.skeleton import Skeleton
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.hints import hints, summary, trend_hints
from rollcast.records.run_view import RunViews

PATH = Path(__file__).parent / "hint_cases.json"


class Run:
    """Builds the events of a run's chains."""

    def __init__(self, train_step=None):
        self.events = []
        self.id = "run" if train_step is None else f"run_{train_step}"
        if train_step is not None:
            about = {"parent_run_id": "training", "train_step": train_step, "split": "train"}
            self._of_run("run_start", 999.0 + train_step, about | {"num_chains": 1, "num_groups": 1})

    def end(self):
        """The run ends."""
        self._of_run("run_end", 2000.0, {"status": "completed"})

    def _of_run(self, kind, at, data):
        self.events.append(
            StreamEvent(StreamEventType(kind), "", at, data, None, None, len(self.events), self.id, None)
        )

    def chain(
        self,
        number,
        *,
        group=None,
        reward=None,
        answer=None,
        reference=None,
        calls=(),
        finish="answered",
        tokens=3,
        open_at=None,
        open_call=None,
    ):
        """A chain that ended, or, with `open_at`, one that was last heard of then, perhaps in a call."""
        name, at = f"chain_{number}", 1000.0
        start = {"messages": [{"role": "user", "content": "?"}], "index": 0}
        if reference is not None:
            start["reference"] = reference
        self._add("chain_start", name, group, at, start)
        for i, (tool, status, duration_s) in enumerate(calls):
            self._generate(name, group, at, i + 1)
            call = {"call_id": f"{i}", "tool_name": tool}
            self._add("tool_call_start", name, group, at + 1, call | {"arguments": {}}, i + 1)
            said = {"observation": "", "status": status, "partial": False}
            self._add("tool_observation", name, group, at + 1 + duration_s, call | said, i + 1)
            ended = {"status": status, "duration_s": duration_s}
            self._add("tool_call_end", name, group, at + 1 + duration_s, call | ended, i + 1)
            at += 1 + duration_s
        if open_at is not None:
            kind, data = "llm_generation_start", {"prompt_tokens": 1}
            if open_call is not None:
                self._generate(name, group, open_at - 1, len(calls) + 1)
                kind, data = "tool_call_start", {"call_id": "open", "tool_name": open_call, "arguments": {}}
            self._add(kind, name, group, open_at, data, len(calls) + 1)
            return
        self._generate(name, group, at, len(calls) + 1, "stop")
        if reward is not None:
            self._add("reward", name, group, at + 1, {"reward": reward, "metrics": {}, "final": True})
        end = {
            "finish_reason": finish,
            "final_response": answer or "",
            "steps": 1,
            "completion_tokens": tokens,
        }
        self._add(
            "chain_end", name, group, at + 1, end | {"reward": reward, "metrics": {}, "duration_s": 1.0}
        )

    def _generate(self, name, group, at, step, why="tool_call"):
        self._add("llm_generation_start", name, group, at, {"prompt_tokens": 1}, step)
        end = {"content": "", "finish_reason": why, "prompt_tokens": 1, "completion_tokens": 3}
        self._add("llm_generation_end", name, group, at + 0.75, end, step)

    def _add(self, kind, name, group, at, data, step=None):
        group_id = None if group is None else f"group_{group}"
        self.events.append(
            StreamEvent(
                StreamEventType(kind), name, at, data, step, step, len(self.events), self.id, group_id
            )
        )


def rows_of(events):
    """The rows of the chains, as a server gives them."""
    skeleton, rows = Skeleton(live=True), {}
    for event in events:
        skeleton.feed(event, -1)
        for row in map(msgspec.to_builtins, skeleton.take_rows()):
            merge_row(rows.setdefault(row["chain_id"], {}), row)
    for run_id, chain_id in skeleton.open_chains():
        rows[chain_id] |= skeleton.row_so_far(run_id, chain_id)
    return list(rows.values())


def cases():
    """(name, events, now) of each case."""
    answers = [
        "12",
        "The answer is 12.",
        "1,200",
        "-3.50",
        "Berlin",
        "yes",
        "",
        "1e3",
        "x^2",
        "\u2212 4",
        "Straße",
        "3/4",
    ]
    references = [12, "12", 1200, -3.5, "berlin", ["no", "yes"], "b", 1000, "x^2", -4, "STRASSE", 0.75]
    run = Run()
    for i in range(12):
        run.chain(i, group=i // 4, reward=1, answer=answers[i], reference=references[i])
    yield "answers and references", run.events, None
    run = Run()
    for i in range(12):
        run.chain(i, group=i // 4, reward=1.0, answer="41" if i == 7 else "42", reference=42)
    yield "one full reward without the reference", run.events, None
    run = Run()
    for i in range(48):
        run.chain(i, group=i // 4, reward=[0, 1, 0.25, 1e-5][i // 4 % 4] if i < 40 else i % 2, answer=f"{i}")
    yield "flat groups", run.events, None
    run = Run()
    for i in range(24):
        group = i // 4
        run.chain(
            i,
            group=group,
            reward=0 if group == 2 else i % 2,
            answer=" 606. " if group == 2 else f"{i}",
            reference="6\u202e13",
        )
    yield "alike and wrong", run.events, None
    run = Run()
    for i in range(24):
        run.chain(i, group=i // 4, reward=0 if i < 16 else 1, answer="I give up." if i < 16 else f"{i}")
    yield "failing chains that all give up", run.events, None
    run = Run()
    for i in range(20):
        run.chain(
            i,
            finish="max_tokens" if i % 4 == 0 else "answered",
            calls=[("search", "error" if i % 2 else "timeout", 0.5)] * 4,
        )
    yield "a tool that fails, and truncation", run.events, None
    run = Run()
    for i in range(10):
        run.chain(i, calls=[("search", "success", 0.5 + i / 100), ("add", "success", 0.01)])
    run.chain(10, open_at=1010.0, open_call="search")
    run.chain(11, open_at=1012.0)
    yield "a tool that hangs", run.events, 1100.0
    yield "a tool that may still answer", run.events, 1021.0
    run = Run()
    for i in range(3):
        run.chain(i, calls=[("slow", "success", 5.0)] * 3)
    run.chain(3, open_at=1010.0, open_call="slow")
    run.chain(4, open_at=1010.0, open_call="never")
    run.chain(5, open_at=1015.0, open_call="never")
    yield "two tools, one of which never answered before", run.events, 1500.0
    run = Run()
    run.chain(0, reward=1, answer="1")
    run.chain(1, open_at=1001.0)
    yield "too little to say anything", run.events, 9000.0


def trainings():
    """(name, rollouts) of each case about several steps; a rollout is its events."""
    for name, answer, tokens, reward in (
        (
            "a reward that rises with one answer",
            lambda step, i: "Yes." if step > 4 or i == 0 else f"{i}",
            lambda step: 8,
            None,
        ),
        ("a reward that rises with the length", lambda step, i: f"{i}", lambda step: 10 + 2.5 * step, None),
        (
            "a reward that rises with one answer and shorter chains",
            lambda step, i: "" if step < 5 else "42",
            lambda step: 60 - 4 * step,
            None,
        ),
        ("a reward that does not rise", lambda step, i: "Yes.", lambda step: 4 * step, lambda step, i: i % 2),
        (
            "a reward that rises less than chance may explain",
            lambda step, i: "Yes.",
            lambda step: 4 * step,
            lambda step, i: (i + step // 9) % 2,
        ),
    ):
        rollouts = []
        for step in range(1, 14):
            run = Run(step)
            for i in range(12):
                given = float(step > 2 + i / 2) if reward is None else reward(step, i)
                run.chain(
                    i,
                    group=i // 2,
                    reward=given,
                    answer=answer(step, i // 2),
                    tokens=round(tokens(step)) + i % 2,
                )
            run.end()
            rollouts.append(run.events)
        yield name, rollouts
        if reward is None:
            yield f"{name}, too few steps", rollouts[:11]


def summaries_of(rollouts):
    """What the rows of the runs tell of the steps, as a server gives them."""
    tally = RunTally()
    for events in rollouts:
        for event in events:
            tally.event(event)
        for row in rows_of(events):
            tally.chain(row)
    return [row["summary"] for row in sorted(tally.rows(over=False), key=lambda row: row["train_step"])]


def trends_of(rollouts):
    """What `records/hints.py` finds in the views of the rollouts; of the chains, as many as a server names."""
    views = RunViews()
    for events in rollouts:
        for event in events:
            views.apply(event)
    steps = [summary(run.chains.values()) for run in views.runs.values() if run.chains]
    found = trend_hints([step for step in steps if step is not None])
    return [msgspec.to_builtins(hint) | {"chains": hint.chains[:4]} for hint in found]


def made():
    """Every case, as JSON."""
    found = [
        {"name": name, "steps": summaries_of(rollouts), "hints": trends_of(rollouts)}
        for name, rollouts in trainings()
    ]
    for name, events, now in cases():
        views = RunViews()
        for event in events:
            views.apply(event)
        expected = hints((view for run in views.runs.values() for view in run.chains.values()), now)
        found.append(
            {"name": name, "now": now, "rows": rows_of(events), "hints": msgspec.to_builtins(expected)}
        )
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, sort_keys=True) for case in made())
    PATH.write_text(f"[{lines}]\n", "utf-8")
