"""Cases of hints, for the page's twin of the rules: `python tests/page/hint_cases.py`, from the root, writes `hint_cases.json` anew.

Each case is `name`, `now`, `rows`: of its chains, as a server gives them, and `hints`: what `records/hints.py` finds in their views. Look at the
difference before you keep it.
"""

import json
from pathlib import Path

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.skeleton import Skeleton
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.hints import hints
from rollcast.records.run_view import RunViews

PATH = Path(__file__).parent / "hint_cases.json"


class Run:
    """Builds the events of a run's chains."""

    def __init__(self):
        self.events = []

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
        end = {"finish_reason": finish, "final_response": answer or "", "steps": 1, "completion_tokens": 3}
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
            StreamEvent(StreamEventType(kind), name, at, data, step, step, len(self.events), "run", group_id)
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


def made():
    """Every case, as JSON."""
    found = []
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
