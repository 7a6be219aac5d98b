"""A snapshot of a chain tells as much as all of its events, at any moment."""

from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast import ToolAgent, tool
from rollcast.records import StreamEvent
from rollcast.records.event import checked_event
from rollcast.records.view import ChainView
from rollcast.records.view_parts import MAX_CALLS, MAX_MESSAGES
from rollcast.stream import StreamingManager
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.testing.observers import EventCapture

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2? 🤔"}]


class Clock:
    """The time of day, which goes on when it is told to."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


def over_the_wire(event):
    """The event as another process gets it."""
    return checked_event(msgspec.json.decode(msgspec.json.encode(event), type=StreamEvent))


def viewed(events, view=None):
    """The view that these events make."""
    view = ChainView() if view is None else view
    for event in events:
        view.apply(event)
    return view


def known(view):
    """What a view knows, but for `as_of`, which in a snapshot is that of the whole run."""
    return {name: value for name, value in view.to_dict().items() if name != "as_of"}


# -- any chain -------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.sampled_from(
        ["generate", "chunk", "chunk", "chunk", "end", "length", "call", "call", "part", "observe", "call_end", "error", "user", "outside", "reward"]
    ),
    max_size=40,
)  # fmt: skip


class Producer:
    """Drives one chain as the word says, if it may stand there; the snapshot after each is kept."""

    def __init__(self, chain, clock, listing):
        self.chain, self.clock, self.listing = chain, clock, listing
        self.generation, self.calls, self.answers, self.made = None, [], [], 0
        self.snapshots = []

    def do(self, word, i):
        self.clock.now += 0.25
        chain = self.chain
        if word == "generate" and self.generation is None and not self.calls:
            self._list_answers()
            self.generation = chain.generation(prompt_tokens=i, policy_version=i, fresh=i % 3 == 0).start()
        elif word == "chunk" and self.generation is not None:
            self.generation.chunk(f"wörd{i} ", [i] * (i % 3) if i % 4 else None)
        elif word in ("end", "length") and self.generation is not None:
            generation, self.generation = self.generation, None
            generation.end({"end": "tool_call" if i % 2 else "stop"}.get(word, word))
            self.snap()
            if self.listing != "nothing":
                chain.message({"role": "assistant", "content": generation.turn.text})
        elif word == "call" and self.generation is None and chain.trajectory.turns and not chain.spoken_to:
            self.made += 1
            name = f"tool{self.made % 2}"
            self.calls.append(chain.tool_call(name, {"n": self.made}, f"c{self.made}").start())
        elif word in ("part", "observe") and self.calls:
            self.calls[i % len(self.calls)].observation(
                f"ö{i}", "error" if i % 5 == 0 else "success", partial=word == "part"
            )
        elif word == "call_end" and self.calls:
            call = self.calls.pop(i % len(self.calls))
            call.end()
            self.answers.append(call.record)
        elif word == "error":
            chain.error(f"odd {i}", "agent")
        elif word == "user" and self.generation is None and not self.calls and self.listing == "all":
            self._list_answers()
        elif word == "outside" and self.generation is None and not self.calls:
            self._list_answers()
            chain.message({"role": "user", "content": f"Und dänn? {i}"}, from_outside=True)
        elif word == "reward" and self.generation is None and not self.calls:
            chain.step_reward(i / 4, {"part": i})
        self.snap()

    def _list_answers(self):
        for record in self.answers if self.listing == "all" else ():
            chain_message = {
                "role": "tool", "content": record.observation, "tool_call_id": record.call.call_id, "name": record.call.tool_name,
            }  # fmt: skip
            self.chain.message(chain_message)
            self.snap()
        self.answers = []

    def snap(self):
        self.snapshots.append(over_the_wire(self.chain.snapshot()))


def played(words, listing):
    """Events of a chain, and its snapshots after each."""
    clock, manager, capture = Clock(), StreamingManager(), EventCapture()
    with patch("time.time", clock):
        manager.add_observer(capture)
        run = manager.run(model="m", policy_version=3).open()
        chain = run.chain(
            HELLO, group_id="group_0", tools=["tool0"], reference=4, row={"answer": 4, "level": "hard"}, seed=2**62 + 1, attempt=2,
            parent_chain_id="chain_7",
        ).start()  # fmt: skip
        producer = Producer(chain, clock, listing)
        producer.snap()
        for i, word in enumerate(words):
            producer.do(word, i)
        for call in list(producer.calls):
            call.end()
        if producer.generation is not None:
            producer.generation.end()
        producer.snap()
        chain.reward(0.5, {"exact": 1, "long": ["x"] * 3})
        producer.snap()
        chain.end("answered", "4")
        run.close()
        manager.close()
    events = [event for event in capture.events if event.chain_id]
    return events, producer.snapshots


@settings(max_examples=150)
@given(steps)
def test_a_snapshot_equals_the_view_of_all_events(words):
    """At every moment of a chain whose code lists no messages, a late watcher knows all that an early one does."""
    events, snapshots = played(words, "nothing")
    for snapshot in snapshots:
        early = known(viewed(event for event in events if event.seq <= snapshot.seq))
        late = known(ChainView.from_snapshot(snapshot))
        if late["content"]:  # nobody notes when each token came: a snapshot counts as the latest word
            assert late.pop("last_event_at") >= early.pop("last_event_at")
        assert late == early


@settings(max_examples=150)
@given(steps, st.sampled_from(["nothing", "answers later", "all"]))
def test_who_begins_with_a_snapshot_goes_on_alike(words, listing):
    """From every snapshot, the events that follow lead to what all of them lead to; messages but for how they are written."""
    events, snapshots = played(words, listing)
    whole = viewed(events)
    for snapshot in snapshots:
        late = viewed(
            (event for event in events if event.seq > snapshot.seq), ChainView.from_snapshot(snapshot)
        )
        assert _but_messages(late) == _but_messages(whole)
        assert sorted(map(_essence, late.messages)) == sorted(map(_essence, whole.messages))


def _but_messages(view):
    return {name: value for name, value in known(view).items() if name != "messages"}


def _essence(message):
    return (message["role"], message["content"], message.get("tool_call_id") or "")


# -- single facts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chain():
    """An open chain of a manager."""
    manager = StreamingManager()
    run = manager.run(model="m").open()
    with run.chain(HELLO, tools=["search"]) as chain:
        yield chain
    run.close()
    manager.close()


def generate(chain, text="Let me see", reason="tool_call"):
    """One generation."""
    with chain.generation() as generation:
        generation.chunk(text, [1])
        generation.end(reason)


def test_the_short_form_is_what_0_1_wrote(chain):
    """Each of its fields has what it had, whatever the long form adds beside it."""
    generate(chain)
    chain.message({"role": "assistant", "content": "Let me see"})
    chain.tool_call("search", {"q": 1}, "c1").start().observation("half", partial=True)
    data = chain.snapshot().data
    assert {name: data[name] for name in list(data)[:4]} == {
        "messages": [*HELLO, {"role": "assistant", "content": "Let me see"}],
        "content": None,
        "tool_calls": [
            {"call_id": "c1", "tool_name": "search", "arguments": {"q": 1}, "observation": "half"}
        ],
        "as_of": chain.run.seq,
    }


def test_a_call_that_ended_while_its_sibling_runs_is_told(chain):
    """Its answer comes into the conversation when all of the turn have ended; a late watcher has it before."""
    generate(chain)
    chain.message({"role": "assistant", "content": "Let me see"})
    first, second = (chain.tool_call("search", {"q": i}, f"c{i}").start() for i in (1, 2))
    second.observation("found").end()
    view = ChainView.from_snapshot(over_the_wire(chain.snapshot()))
    assert list(view.tool_calls) == ["c1"]
    assert (view.messages[-1]["role"], view.messages[-1]["content"]) == ("tool", "found")
    assert view.tool_use["search"].calls == 1
    first.end()


def test_what_was_generated_is_told_before_it_is_in_the_conversation(chain):
    """Between the end of a generation and the message that its code makes of it, nothing is missing."""
    generate(chain, "Four.", "stop")
    assert chain.trajectory.messages == HELLO
    view = ChainView.from_snapshot(over_the_wire(chain.snapshot()))
    assert (view.state, view.messages[-1]["content"]) == ("scoring", "Four.")


def test_answers_in_a_form_of_the_codes_own_are_not_told_twice(chain):
    """An agent whose model knows no role of tools answers calls with a message of the user's."""
    generate(chain)
    chain.message({"role": "assistant", "content": "Let me see"})
    chain.tool_call("search", {}, "c1").start().observation("found").end()
    chain.message({"role": "user", "content": "Observation: found"})
    assert "unlisted_messages" not in chain.snapshot().data


def test_a_snapshot_copies_no_text(chain):
    """Prompts of any size cost nothing to take: the event refers to the trajectory's own strings."""
    prompt = "ü" * 100_000
    chain.trajectory.messages[0]["content"] = prompt
    assert chain.snapshot().data["messages"][0]["content"] is prompt


def test_messages_are_looked_through_once(chain):
    """What JSON cannot hold is converted at the first snapshot, and what came since at the next."""
    chain.message({"role": "user", "content": [{"type": "image", "image": b"x" * 9}]})
    first = chain.snapshot().data["messages"]
    chain.message({"role": "user", "content": "more"})
    second = chain.snapshot().data["messages"]
    assert first[2]["content"][0]["image"] == "<bytes (9)>"
    assert second[2] is first[2]
    assert len(second) == 4


def test_a_conversation_that_is_cut_short_is_told_as_it_is(chain):
    """Code may replace the messages; what it once listed and then took out is not told."""
    for _ in range(2):
        generate(chain)
        chain.message({"role": "assistant", "content": "Let me see"})
    chain.snapshot()
    chain.trajectory.messages[:] = [{"role": "user", "content": "a summary"}]
    with chain.generation():
        data = chain.snapshot().data
    assert data["messages"] == [{"role": "user", "content": "a summary"}]
    assert "unlisted_messages" not in data


def test_the_prompt_stays_if_a_conversation_is_too_long_for_a_view(chain):
    """The oldest messages after the prompt go first, as they would have gone one by one."""
    for i in range(MAX_MESSAGES):
        chain.message({"role": "user", "content": f"m{i}"})
    view = ChainView.from_snapshot(over_the_wire(chain.snapshot()))
    assert [message["content"] for message in view.messages[:3]] == [HELLO[0]["content"], HELLO[1]["content"], "m2"]  # fmt: skip
    assert view.conversation.omitted == 2


def test_more_open_calls_than_a_view_keeps_are_counted(chain):
    """As they are by one who saw them begin."""
    generate(chain)
    calls = [chain.tool_call("search", {}, f"c{i}").start() for i in range(MAX_CALLS + 2)]
    view = ChainView.from_snapshot(over_the_wire(chain.snapshot()))
    assert (len(view.tool_calls), view.calls_omitted) == (MAX_CALLS, 2)
    for call in calls:
        call.end()


def test_odd_names_are_told(chain):
    """A model may call a tool by half an emoji; the snapshot is JSON all the same."""
    generate(chain)
    chain.tool_call("\ud83e", {"x\udc00": "\ud800"}, "c1").start().end()
    chain.tool_call("\ud83e", {"y": b"z"}, "c\ud83e").start()
    view = ChainView.from_snapshot(over_the_wire(chain.snapshot()))
    assert view.tool_use["\ufffd"].calls == 1
    call = view.tool_calls["c\ufffd"]
    assert call.arguments == {"y": "<bytes (1)>"}
    assert call.started_at is not None


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


async def test_of_a_rollout_every_snapshot_equals_the_view_but_for_messages():
    """The rollout lists what the parser made of a turn; everything else is as the events tell it, at each token."""
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
    snapshots = []

    async def look(request, i):
        run = next(iter(agent.streaming_manager.fanout.runs.values()))
        snapshots.extend(over_the_wire(chain.snapshot()) for chain in run.open_chains.values())

    agent = ToolAgent(
        tools=[add], backend=ScriptedBackend([f"I add. {call}{call}", "It is 4."], before_token=look)
    )
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(3, [{"messages": HELLO}], num_chains=2, enable_streaming=True)
    assert len(snapshots) > 20
    for snapshot in snapshots:
        events = [e for e in capture.events if e.chain_id == snapshot.chain_id and e.seq <= snapshot.seq]
        early, late = known(viewed(events)), known(ChainView.from_snapshot(snapshot))
        assert [m["role"] for m in late["messages"]] == [m["role"] for m in early["messages"]]
        for name in ("messages", "times", "since", "started_at", "last_event_at"):
            del early[name], late[name]
        for call in (
            *early["tool_calls"],
            *late["tool_calls"],
        ):  # noted microseconds before the event is stamped
            assert isinstance(call.pop("started_at"), float)
        assert late == early
