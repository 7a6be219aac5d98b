"""Record the cases of views anew: `python tests/records/record_view_cases.py`, from the root of the repository.

Each case is a JSON file in `view_cases/`: `name`, `about`, `events` as one observer got them, and `expected`: what `RunViews` makes
of them, by run, and each chain by id. A twin in another language has to make the same of the same events. `offset` and all limits
count Unicode code points. Real runs are recorded from rollouts; the others are made by hand below. Look at the difference
before you keep it: what is expected is what the code says now.

`--expected` leaves the events as they are and writes only `expected` anew. `--trainings` records `healthy_trainings.json`: for each task
24 steps of the embedded model's training, as summaries of their rollouts (minutes of computing).
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import msgspec

from rollcast import (
    BaseAgent,
    CallbackStreamObserver,
    EventFilter,
    Sampling,
    StreamingManager,
    StreamObserver,
    ToolAgent,
    tool,
)
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.hints import summary
from rollcast.records.run_view import RunViews
from rollcast.rollout.reward import reward
from rollcast.tasks import get_task, task_names
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.testing.observers import EventCapture
from rollcast.train import GRPOConfig, train

FOLDER = Path(__file__).parent / "view_cases"


def expected(events):
    """What views make of the events."""
    views = RunViews()
    for event in events:
        views.apply(event)
    return {
        run_id: {**run.to_dict(), "chains": {name: view.to_dict() for name, view in run.chains.items()}}
        for run_id, run in views.runs.items()
    }


def event_of(value):
    """An event as JSON has it, whatever it holds: `StreamEvent.from_dict` would refuse hostile ones."""
    return StreamEvent(**value)


def write(name, about, events):
    """Write one case; an event a line."""
    lines = ",\n  ".join(json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in events)
    made = json.dumps(expected(map(event_of, events)), ensure_ascii=False, indent=1, sort_keys=True)
    text = f'{{"name": {json.dumps(name)},\n "about": {json.dumps(about)},\n "events": [\n  {lines}\n ],\n "expected": {made}}}\n'
    (FOLDER / f"{name}.json").write_text(text, "utf-8")


# -- real runs ---------------------------------------------------------------------------------------------------------------


def call(name, **arguments):
    """A call as the Hermes parser reads it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@tool
def fail(reason: str) -> str:
    """Always fails."""
    raise RuntimeError(reason)


@tool
async def slow(n: int) -> str:
    """Gives its output in pieces."""
    for i in range(n):
        await asyncio.sleep(0)
        yield f"piece {i}\n"


@reward
def four(final_response: str, answer: str) -> dict:
    """Whether the answer is in the response."""
    return {"reward": float(answer in final_response), "length": len(final_response)}


QUESTION = {"messages": [{"role": "user", "content": "What is 2 + 2? Überlege 🤔."}], "answer": "4"}
TURNS = [
    "I will add. "
    + call("add", a=2, b=2)
    + call("fail", reason="no luck")
    + call("slow", n=3)
    + call("none", x=1),
    "And again, badly. <tool_call>\n{not json\n</tool_call>",
    "The answer is 4. 🎉",
]


def scripted(script=TURNS, **options):
    """An agent that says what is written."""
    return ToolAgent(tools=[add, fail, slow], backend=ScriptedBackend(script, **options), reward=four)


async def tools_and_errors():
    """Parallel calls, output in pieces, a tool that fails, one that does not exist, a malformed call, a reward."""
    agent = scripted()
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(5, [QUESTION], num_chains=2, enable_streaming=True)
    return capture.events


async def cancelled():
    """A run that is cancelled while one chain writes and the others wait."""
    reached = asyncio.Event()

    async def gate(request, i):
        if i == 5:
            reached.set()
            await asyncio.Event().wait()

    agent = scripted(before_token=gate)
    with capture_events(agent.streaming_manager) as capture:
        running = asyncio.create_task(agent.run_async(5, [QUESTION], num_chains=2, enable_streaming=True))
        await reached.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await agent.streaming_manager.drain()
    return capture.events


async def backend_fails():
    """A backend that fails in the middle of a generation; and a reward that raises."""
    agent = scripted(fail_at=3)
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(5, [QUESTION], num_chains=2, enable_streaming=True)
        other = BaseAgent(
            backend=ScriptedBackend("Four."),
            reward=lambda final_response: 1 / 0,
            streaming_manager=agent.streaming_manager,
        )
        await other.run_async(5, [QUESTION], enable_streaming=True)
    return capture.events


async def truncated():
    """Every generation is cut off at 4 tokens."""
    agent = scripted()
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(
            5, [QUESTION], num_chains=2, enable_streaming=True, sampling=Sampling(max_tokens=4)
        )
    return capture.events


async def late_join():
    """An observer that is added in the middle of the first generation, and so begins with snapshots."""
    capture = EventCapture()
    agent = None

    async def gate(request, i):
        if i == 6 and capture.manager is None:
            agent.streaming_manager.add_observer(capture)

    agent = scripted(before_token=gate)
    await agent.run_async(5, [QUESTION], num_chains=2, enable_streaming=True)
    agent.streaming_manager.remove_observer(capture)
    await agent.streaming_manager.drain()
    return capture.events


async def known_before_a_snapshot():
    """A hub's view of a chain that somebody opens in its second turn: a snapshot comes between events that tell more of the turn before."""
    whole, late = EventCapture(), EventCapture()
    agent = None

    async def gate(request, i):
        turn = sum(message["role"] == "assistant" for message in request.messages)
        if turn == 1 and i == 2 and late.manager is None:
            agent.streaming_manager.add_observer(late)

    agent = scripted(before_token=gate)
    agent.streaming_manager.add_observer(whole)
    await agent.run_async(5, [QUESTION], enable_streaming=True)
    agent.streaming_manager.remove_observer(late)
    agent.streaming_manager.remove_observer(whole)
    await agent.streaming_manager.drain()
    (snapshot,) = (event for event in late.events if event.event_type == "chain_snapshot")
    i = next(i for i, event in enumerate(whole.events) if event.seq > snapshot.data["as_of"])
    return [without_seed(event) for event in (*whole.events[:i], snapshot, *whole.events[i:])]


def without_seed(event):
    """The event without its chain's seed, which JavaScript rounds."""
    data = {
        name: value for name, value in event.data.items() if name != "seed" or event.event_type == "run_start"
    }
    return msgspec.structs.replace(event, data=data)


class Slow(StreamObserver):
    """Takes one event and then waits until it is let go."""

    def __init__(self):
        self.events, self.go = [], asyncio.Event()

    async def on_event(self, event):
        self.events.append(event)
        if len(self.events) == 4:
            await self.go.wait()


async def fell_behind():
    """An observer that falls behind so far that it gets a gap, then snapshots, then the rest."""
    manager, observer = StreamingManager(queue_limit=6_000, drain_timeout=60), Slow()
    manager.add_observer(observer)

    async def gate(request, i):
        turn = sum(message["role"] == "assistant" for message in request.messages)
        if turn == 2 and i == 2:
            observer.go.set()
            await asyncio.sleep(0.05)

    agent = ToolAgent(
        tools=[add, fail, slow],
        backend=ScriptedBackend(TURNS, before_token=gate),
        reward=four,
        streaming_manager=manager,
    )
    await agent.run_async(5, [QUESTION], num_chains=2, enable_streaming=True)
    assert any(event.event_type == "gap" for event in observer.events)
    return observer.events


async def without_chunks():
    """A filter that leaves out the chunks: text comes with each generation's end."""
    agent = scripted()
    types = set(StreamEventType) - {StreamEventType.LLM_GENERATION_CHUNK}
    with capture_events(agent.streaming_manager, EventFilter(types=types)) as capture:
        await agent.run_async(5, [QUESTION], enable_streaming=True)
    return capture.events


async def only_chunks():
    """A filter that lets chunks alone through: nothing tells when a turn begins but its step."""
    agent = scripted()
    with capture_events(agent.streaming_manager, EventFilter(types="llm_generation_chunk")) as capture:
        await agent.run_async(5, [QUESTION], enable_streaming=True)
    return capture.events


def tiny(name):
    """The embedded model at one of its tasks: 2 questions, 2 chains each."""

    async def play():
        task = get_task(name)
        agent = ToolAgent("rollcast/tiny", task.tools, reward=task.reward)
        with capture_events(agent.streaming_manager) as capture:
            await agent.run_async(
                task.max_steps, task.rows(2, seed=3), 2, enable_streaming=True, sampling=task.sampling, seed=5
            )
        return capture.events

    play.__doc__ = tiny.__doc__
    return play


async def training():
    """Two steps of training: rollouts of their own, and what the trainer says of each chain."""
    task = get_task("lookup")
    agent = ToolAgent("rollcast/tiny", task.tools, reward=task.reward)
    types = {"run_start", "chain_start", "llm_generation_end", "reward", "chain_end", "run_end", "train_step"}
    with (
        tempfile.TemporaryDirectory(),
        capture_events(agent.streaming_manager, EventFilter(types=types)) as capture,
    ):
        await train(agent, task, GRPOConfig(steps=2, group=2, questions=3, eval_questions=2, seed=1))
    return capture.events


REAL = {
    "tools_and_errors": tools_and_errors, "cancelled": cancelled, "backend_fails": backend_fails, "truncated": truncated,
    "late_join": late_join, "known_before_a_snapshot": known_before_a_snapshot, "fell_behind": fell_behind, "without_chunks": without_chunks, "only_chunks": only_chunks,
    "tiny_arithmetic": tiny("arithmetic"), "tiny_guess": tiny("guess"), "tiny_grid": tiny("grid"), "training": training,
}  # fmt: skip


# -- made by hand --------------------------------------------------------------------------------------------------------------


def by_hand(*events, chain="chain_0"):
    """Events from (type, data, step) triples; `seq` and time rise by one."""
    made = []
    for seq, (kind, data, *step) in enumerate(events):
        where = "" if kind in ("run_start", "run_end", "gap", "train_step") else chain
        made.append(
            {
                "event_type": kind, "chain_id": where, "timestamp": 1000.0 + seq, "data": data,
                "step": step[0] if step else None, "seq": seq, "run_id": "r", "group_id": "group_0" if where else None,
            }
        )  # fmt: skip
    return made


START = (
    "chain_start",
    {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "index": 0, "policy_version": 3},
)
BEGIN = ("llm_generation_start", {"prompt_tokens": 2, "model": "m", "policy_version": 3, "sampling": {}}, 1)


def chunk(content, offset, step=1, **more):
    """One chunk."""
    return ("llm_generation_chunk", {"content": content, "offset": offset, **more}, step)


def end(content, reason="stop", step=1, tokens=3):
    """The end of a generation."""
    data = {
        "content": content,
        "finish_reason": reason,
        "completion_tokens": tokens,
        "prompt_tokens": 2,
        "ttft_s": 0.5,
    }
    return ("llm_generation_end", data, step)


def overlap_after_a_snapshot():
    """A merged chunk that begins before the snapshot: only what is new is added."""
    events = by_hand(START, BEGIN, chunk("Hel", 0, token_ids=[1]))
    snapshot = {
        "messages": [{"role": "user", "content": "Hi"}],
        "content": "Hello",
        "tool_calls": [],
        "as_of": 4,
    }
    late = by_hand(
        ("chain_snapshot", snapshot, 1), chunk("lo wor", 3, token_ids=[2, 3], from_seq=3), chunk("ld", 9)
    )
    for seq, event in zip((4, 6, 7), late, strict=True):
        event["seq"], event["timestamp"] = seq, 1000.0 + seq
    return [*events, *late, *late[1:]]


def without_offsets():
    """The specification's own example: chunks have content alone, and nobody stamped them."""
    events = by_hand(
        START,
        BEGIN,
        *(("llm_generation_chunk", {"content": text}, 1) for text in ("The", " answer", " is 4")),
    )
    for event in events:
        event["seq"] = -1
        event["run_id"] = ""
    return events


def rewards_of_steps():
    """Rewards between turns, a final one, another after the end; a message from outside."""
    return by_hand(
        START, BEGIN, end("one"), ("reward", {"reward": 0.25, "metrics": {}, "final": False}, 1),
        ("message", {"role": "user", "content": "Go on"}), (*BEGIN[:2], 2), end("two", step=2),
        ("reward", {"reward": 1, "metrics": {"exact": 1, "nan": None}, "final": True}, 2),
        ("chain_end", {"finish_reason": "answered", "final_response": "two", "steps": 2, "completion_tokens": 6, "reward": 1.0,
                       "metrics": {}, "duration_s": 7.5}, 2),
        ("reward", {"reward": 0.5, "metrics": {}}, 2), chunk("too late", 0, 3),
        ("train_step", {"train_step": 7, "policy_version": 4, "metrics": {"loss": 0.5},
                        "chains": {"r": {"chain_0": {"advantage": -0.5, "staleness": 1}, "chain_9": {"advantage": 1}}}}),
    )  # fmt: skip


def reasoning_apart():
    """A server sends reasoning apart; of the second turn its chunks are left out, and its end has all of it; the third is open."""

    def thought(text, step=1):
        return ("llm_generation_chunk", {"content": "", "offset": 0, "reasoning": text}, step)

    first, second = end("It is 4."), end("It is 5.", step=2)
    first[1]["reasoning"], second[1]["reasoning"] = "Two and two.", "Now one more."
    return by_hand(
        START, BEGIN, thought("Two and"), thought(" two."), chunk("It is 4.", 0), first, (*BEGIN[:2], 2), second,
        (*BEGIN[:2], 3), thought("Hm", 3),
    )  # fmt: skip


def begun_again():
    """A second attempt under the same id: what was known of the first goes."""
    return by_hand(
        START, BEGIN, chunk("Hel", 0), (START[0], {**START[1], "attempt": 2}), BEGIN, chunk("Again", 0)
    )


def gap_and_no_snapshot():
    """Events are lost in the middle of a tool call; later ones tell what is open; at last the run ends without the chain's end."""
    return by_hand(
        START, BEGIN, end("I call", "tool_call"), ("tool_call_start", {"call_id": "a", "tool_name": "add", "arguments": {"a": 1}}, 1),
        ("gap", {"from_seq": 4, "to_seq": 4, "dropped": {"tool_call_end": 1}, "reason": "slow"}),
        ("gap", {"from_seq": 4, "to_seq": 4, "dropped": {}, "reason": "the same again"}),
        chunk("here", 40, 2), ("run_end", {"status": "failed", "chains": 1}),
    )  # fmt: skip


def clock_goes_back():
    """Timestamps that jump back and forth, and some that are no time."""
    events = by_hand(START, BEGIN, chunk("a", 0), end("a"), (*BEGIN[:2], 2), end("b", step=2))
    for event, at in zip(events, (1000, 900.5, 1e300, 950, -5, None), strict=True):
        event["timestamp"] = at
    return events


def hostile():
    """Fields of other shapes, types that nobody knows, calls that never began, text of half an emoji."""
    odd = [None, True, -1, 1e308, "x", [], {}, [[["deep"]]], {"a": {"b": None}}]
    kinds = ["chain_snapshot", "chain_start", "llm_generation_start", "llm_generation_chunk", "llm_generation_end", "tool_call_start", "tool_observation", "tool_call_end", "message", "reward", "error", "from_the_future"]  # fmt: skip
    names = ["messages", "content", "offset", "token_ids", "tool_calls", "as_of", "reward", "final", "metrics", "call_id", "tool_name", "arguments", "observation", "status", "partial", "duration_s", "reasoning", "state", "times", "error", "role", "completion_tokens"]  # fmt: skip
    events = by_hand(
        *((kind, dict.fromkeys(names, value), i) for i, kind in enumerate(kinds) for value in odd)
    )
    return [
        *events,
        *by_hand(("chain_end", None), ("gap", []), ("train_step", {"chains": [1]}), ("run_end", 3)),
    ]


HAND = {
    f.__name__: f
    for f in (
        overlap_after_a_snapshot, without_offsets, rewards_of_steps, reasoning_apart, begun_again, gap_and_no_snapshot, clock_goes_back, hostile,
    )
}  # fmt: skip


async def summaries(name):
    """Summaries of a training's rollouts, step by step."""
    task, views = get_task(name), RunViews()
    agent = ToolAgent("rollcast/tiny", task.tools, reward=task.reward)

    def take(text, event):
        views.apply(event)

    types = {
        "run_start",
        "chain_start",
        "llm_generation_end",
        "tool_call_end",
        "reward",
        "chain_end",
        "run_end",
    }
    agent.streaming_manager.add_observer(CallbackStreamObserver(take, types=types))
    await train(agent, task, GRPOConfig(steps=24, eval_questions=4, eval_every=0, seed=0))
    steps = [summary(run.chains.values()) for run in views.runs.values() if run.split == "train"]
    return [msgspec.structs.replace(step, ids=step.ids[:1]) for step in steps]


def main():
    """Write all, or with names those alone."""
    FOLDER.mkdir(exist_ok=True)
    names = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if "--trainings" in sys.argv:
        trained = {name: asyncio.run(summaries(name)) for name in task_names()}
        lines = [
            f'"{name}": [\n' + ",\n".join(json.dumps(msgspec.to_builtins(s)) for s in steps) + "\n]"
            for name, steps in trained.items()
        ]
        (FOLDER.parent / "healthy_trainings.json").write_text("{" + ",\n".join(lines) + "}\n", "utf-8")
        return
    if "--expected" in sys.argv:
        for path in sorted(FOLDER.glob("*.json")):
            case = json.loads(path.read_text("utf-8"))
            write(case["name"], case["about"], case["events"])
        return
    for name, record in {**REAL, **HAND}.items():
        if names and name not in names:
            continue
        events = asyncio.run(record()) if name in REAL else record()
        events = [event.to_dict() if isinstance(event, StreamEvent) else event for event in events]
        write(name, record.__doc__, json.loads(json.dumps(events)))
        print(f"{name}: {len(events)} events")


if __name__ == "__main__":
    main()
