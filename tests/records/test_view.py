"""What a watcher knows of a chain."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast.records import StreamEvent
from rollcast.records.codec import checked_event
from rollcast.records.run_view import RunViews
from rollcast.records.view import ChainView
from rollcast.records.view_parts import MAX_CALLS, MAX_MESSAGES, MAX_OUTPUT, MAX_TEXT, MAX_WEIGHT

CASES = sorted((Path(__file__).parent / "view_cases").glob("*.json"))


def made(kind, data, step=None, seq=-1, **more):
    """An event, whatever it holds."""
    fields = {
        "chain_id": "chain_0",
        "timestamp": 1000.0 + max(seq, 0),
        "run_id": "r",
        "group_id": "group_0",
        **more,
    }
    return StreamEvent(event_type=kind, data=data, step=step, seq=seq, **fields)


def stream(*events):
    """Events from (type, data, step) triples, seq and time rising."""
    return [made(kind, data, *step, seq=seq) for seq, (kind, data, *step) in enumerate(events)]


def viewed(events, view=None):
    """The view of these events."""
    view = ChainView() if view is None else view
    for event in events:
        view.apply(event)
    return view


def through_json(view):
    """The view as another process gets it."""
    return ChainView.from_dict(msgspec.json.decode(msgspec.json.encode(view.to_dict())))


def from_snapshot(view):
    """A view that knows this one's snapshot alone, as it comes over the wire."""
    return viewed([msgspec.json.decode(msgspec.json.encode(view.snapshot()), type=StreamEvent)])


START = (
    "chain_start",
    {"messages": [{"role": "user", "content": "Hi"}], "tools": ["add"], "index": 1, "policy_version": 3},
)
BEGIN = ("llm_generation_start", {"prompt_tokens": 2, "model": "m", "policy_version": 4, "sampling": {}}, 1)
CALL = ("tool_call_start", {"call_id": "a", "tool_name": "add", "arguments": {"a": 1}}, 1)


def chunk(content, offset=None, step=1, **more):
    """One chunk, as the triple of `stream`."""
    return (
        "llm_generation_chunk",
        {"content": content, **({} if offset is None else {"offset": offset}), **more},
        step,
    )


def end(content, reason="stop", step=1, **more):
    """The end of a generation, as the triple of `stream`."""
    return (
        "llm_generation_end",
        {"content": content, "finish_reason": reason, "completion_tokens": 3, **more},
        step,
    )


def observed(text, status="success", partial=False, call_id="a"):
    """What a tool says, as the triple of `stream`."""
    data = {"call_id": call_id, "tool_name": "add", "observation": text, "status": status, "partial": partial}
    return ("tool_observation", data, 1)


def called(status="success", call_id="a"):
    """The end of a call, as the triple of `stream`."""
    return ("tool_call_end", {"call_id": call_id, "tool_name": "add", "status": status, "duration_s": 0.5}, 1)


ENDED = ("chain_end", {"finish_reason": "answered", "final_response": "4", "steps": 1, "completion_tokens": 3, "reward": 1.0,
                       "metrics": {"m": 1}, "duration_s": 9.0}, 1)  # fmt: skip


# -- recorded cases --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_case_gives_the_expected_view(path):
    """Every recorded case gives the view that is kept beside it; `record_view_cases.py` says how to record anew."""
    case = json.loads(path.read_text("utf-8"))
    views = RunViews()
    for event in case["events"]:
        views.apply(StreamEvent(**event))
    found = {
        run_id: {**run.to_dict(), "chains": {name: view.to_dict() for name, view in run.chains.items()}}
        for run_id, run in views.runs.items()
    }
    assert found == case["expected"]


def test_there_are_cases():
    """Real runs and hostile events are among the recorded cases."""
    assert {"tools_and_errors", "late_join", "fell_behind", "training", "tiny_grid", "hostile"} <= {
        p.stem for p in CASES
    }


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_case_goes_on_from_a_snapshot_at_any_place(path):
    """A view that is written as JSON and read back, at any place of a recorded case, comes to the same end."""
    events = [StreamEvent(**event) for event in json.loads(path.read_text("utf-8"))["events"]]
    by_chain = {}
    for event in events:
        if event.chain_id:
            by_chain.setdefault((event.run_id, event.chain_id), []).append(event)
    for chain in list(by_chain.values())[:2]:
        whole = viewed(chain).to_dict()
        for i in range(1, len(chain), 7):
            assert viewed(chain[i:], through_json(viewed(chain[:i]))).to_dict() == whole
            assert viewed(chain[i:], from_snapshot(viewed(chain[:i]))).to_dict() == whole


def test_a_snapshot_of_a_chain_takes_nothing_from_what_its_events_told():
    """The whole text of the turns before it stays, and how long their calls took; the chain's own messages have neither."""
    path = next(path for path in CASES if path.stem == "known_before_a_snapshot")
    events = [StreamEvent(**event) for event in json.loads(path.read_text("utf-8"))["events"]]
    chain = [event for event in events if event.chain_id]
    assert [event.event_type for event in chain].count("chain_snapshot") == 1
    told = [event for event in chain if event.event_type != "chain_snapshot"]
    known, whole = viewed(chain).messages, viewed(told).messages
    assert [message for message in known if message["role"] != "tool"] == [
        m for m in whole if m["role"] != "tool"
    ]
    assert all(message in whole for message in known), "a chain has the answers in the order of its calls"


def test_a_snapshot_of_another_attempt_takes_the_place_of_what_is_known():
    """What an attempt that died wrote is not that of the next one."""
    turn = {"role": "assistant", "content": "New"}
    data = {
        "messages": [{"role": "user", "content": "Hi"}, turn],
        "content": None,
        "tool_calls": [],
        "as_of": 9,
    }
    more = {"state": "waiting", "attempt": 2, "joined_late": False, "prompt_length": 1}
    view = viewed(
        [*stream(START, BEGIN, chunk("Old", 0), end("Old")), made("chain_snapshot", data | more, 1, 9)]
    )
    assert [message["content"] for message in view.messages] == ["Hi", "New"]


# -- properties --------------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def chains(draw):
    """A whole chain as the rollout emits it: turns of pieces, calls that interleave, rewards, an end."""
    events, step = (
        [
            (
                "chain_start",
                {"messages": [{"role": "user", "content": draw(texts)}], "tools": [], "index": 0},
                None,
            )
        ],
        0,
    )
    for step in range(1, draw(st.integers(1, 3)) + 1):
        events.append(("llm_generation_start", {"prompt_tokens": 3, "policy_version": step}, step))
        pieces, at = draw(st.lists(st.tuples(texts, st.integers(0, 3)), max_size=6)), 0
        for text, n in pieces:
            events.append(
                ("llm_generation_chunk", {"content": text, "offset": at, "token_ids": [7] * n}, step)
            )
            at += len(text)
        calls = draw(st.integers(0, 2))
        tokens = sum(n for _, n in pieces)
        data = {"content": "".join(t for t, _ in pieces), "finish_reason": "tool_call" if calls else "stop"}
        events.append(("llm_generation_end", {**data, "completion_tokens": tokens, "ttft_s": 0.25}, step))
        places = {
            f"c{i}": ["tool_call_start", "part", "tool_observation", "tool_call_end"] for i in range(calls)
        }
        while places:
            name = draw(st.sampled_from(sorted(places)))
            kind = places[name].pop(0)
            data = {
                "call_id": name,
                "tool_name": "add",
                "arguments": {"x": 1},
                "observation": draw(texts),
                "status": "success",
            }
            data["partial"] = kind == "part"
            events.append(("tool_observation" if kind == "part" else kind, data, step))
            if not places[name]:
                del places[name]
    events.append(("reward", {"reward": draw(st.floats(-1, 1)), "metrics": {}, "final": True}, step))
    if draw(st.booleans()):
        events.append(
            (
                "chain_end",
                {"finish_reason": "answered", "final_response": "x", "steps": step, "reward": 1.0},
                step,
            )
        )
    return stream(*events)


@given(chains(), st.data())
def test_a_snapshot_in_between_changes_nothing(events, data):
    """A prefix, the view as JSON and back or as a snapshot, then the rest: as everything at once."""
    cut = data.draw(st.integers(1, len(events)))
    whole = viewed(events).to_dict()
    assert viewed(events[cut:], through_json(viewed(events[:cut]))).to_dict() == whole
    assert viewed(events[cut:], from_snapshot(viewed(events[:cut]))).to_dict() == whole


@given(chains(), st.data())
def test_how_chunks_are_cut_changes_nothing(events, data):
    """Neighbouring chunks merged, as a slow observer gets them, give the same view as each alone; and so do they after any event."""
    merged = []
    for event in events:
        last = merged[-1] if merged else None
        chunks = event.event_type == "llm_generation_chunk" == (last.event_type if last is not None else None)
        if chunks and last.step == event.step and data.draw(st.booleans()):
            both = {
                "content": last.data["content"] + event.data["content"],
                "offset": last.data["offset"],
                "token_ids": last.data["token_ids"] + event.data["token_ids"],
                "from_seq": last.data.get("from_seq", last.seq),
            }
            merged[-1] = msgspec.structs.replace(event, data=both)
        else:
            merged.append(event)
    assert viewed(merged).to_dict() == viewed(events).to_dict()
    assert (
        viewed(merged[:5]).to_dict()["content"]
        == viewed([e for e in events if e.seq <= merged[:5][-1].seq]).content
    )


@given(chains(), st.data())
def test_events_that_were_seen_change_nothing(events, data):
    """Events that come again, whole stretches too, are known by their seq."""
    twice = []
    for i, event in enumerate(events):
        twice.append(event)
        back = data.draw(st.integers(0, 3))
        twice += events[max(i - back, 0) : i + 1] if back else []
    assert viewed(twice).to_dict() == viewed(events).to_dict()


@given(chains(), st.data())
def test_a_late_joiner_knows_the_same_of_what_is_open(events, data):
    """From the short snapshot of a chain, the state, the open text and the open calls are as for one who saw it all."""
    cut = data.draw(st.integers(1, len(events)))
    known = viewed(events[:cut])
    if known.state == "ended":
        return
    short = {
        "messages": known.messages,
        "content": known.content,
        "tool_calls": [call.to_dict() for call in known.tool_calls.values()],
        "as_of": known.as_of,
    }
    late = viewed(
        [made("chain_snapshot", short, known.step, known.as_of, timestamp=known.last_event_at), *events[cut:]]
    )
    whole = viewed(events)
    assert late.joined_late
    assert not late.complete
    assert (late.content, late.to_dict()["tool_calls"]) == (whole.content, whole.to_dict()["tool_calls"])
    assert late.state == whole.state or (late.state, whole.state) == ("waiting", "scoring")
    assert [m["content"] for m in late.messages] == [m["content"] for m in whole.messages]


KINDS = [
    "chain_start", "llm_generation_start", "llm_generation_chunk", "llm_generation_end", "tool_call_start", "tool_observation",
    "tool_call_end", "message", "reward", "chain_end", "error", "run_start", "run_end", "train_step", "chain_snapshot", "gap",
    "from_the_future",
]  # fmt: skip
FIELDS = [
    "messages", "tools", "index", "policy_version", "content", "offset", "token_ids", "reasoning", "finish_reason", "reward",
    "completion_tokens", "ttft_s", "call_id", "tool_name", "arguments", "observation", "status", "partial", "duration_s", "metrics",
    "final", "final_response", "steps", "error", "where", "chains", "tool_calls", "as_of", "to_seq", "state", "times", "tool_use",
    "unlisted_messages", "at", "message", "calls_started_at", "rewards", "prompt_length", "messages_omitted", "content_omitted", "generation_step", "as_of", "since", "role", "reference",
]  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["waiting", "tool", "ended", "r", "chain_0", "a", "stop", "tool_call", "user", "assistant"])
)  # fmt: skip
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=4)
)  # fmt: skip
anything = st.builds(
    lambda **fields: StreamEvent(**fields),
    event_type=st.sampled_from(KINDS) | leaves,
    chain_id=st.sampled_from(["chain_0", ""]) | leaves,
    timestamp=st.floats() | leaves,
    data=st.dictionaries(st.sampled_from(FIELDS), values, max_size=8) | values,
    step=st.integers(0, 3) | leaves,
    depth=leaves,
    seq=st.integers(-1, 9) | leaves,
    run_id=st.just("r") | leaves,
    group_id=leaves,
    source=st.just("") | leaves,
)


@settings(max_examples=100)
@given(st.lists(anything, max_size=12))
def test_nothing_is_raised_whatever_comes(events):
    """Events of any type with anything in them raise nothing, and the view has JSON from which it can go on."""
    view, views = ChainView(), RunViews()
    for event in events:
        view.apply(event)
        views.apply(event)
    written = view.to_dict()
    assert through_json(view).to_dict() == written
    assert msgspec.json.decode(msgspec.json.encode(written)) == written
    for run in views.runs.values():
        msgspec.json.encode(run.to_dict())


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(FIELDS), values) | values)
def test_any_json_is_read_as_a_view(value):
    """`from_dict` takes anything, and gives a view whose own form is stable."""
    view = ChainView.from_dict(value)
    assert through_json(view).to_dict() == view.to_dict()


# -- states ------------------------------------------------------------------------------------------------------------------------


def test_state_follows_what_is_open():
    """A chain waits, generates, waits for tools until the last of them ends, is scored, and ends."""
    events = stream(
        START, BEGIN, chunk("x", 0), end("x", "tool_call"), CALL, (CALL[0], {**CALL[1], "call_id": "b"}, 1), observed("1"), called(),
        observed("2", call_id="b"), called(call_id="b"), (*BEGIN[:2], 2), end("4", step=2), ("reward", {"reward": 1.0}, 2), ENDED,
    )  # fmt: skip
    view, states = ChainView(), []
    for event in events:
        view.apply(event)
        states.append(view.state)
    assert states == [
        "waiting", "generating", "generating", "waiting", "tool", "tool", "tool", "tool", "tool", "waiting", "generating", "scoring",
        "scoring", "ended",
    ]  # fmt: skip
    assert {name: (time.seconds, time.stays) for name, time in view.times.items()} == {
        "waiting": (3.0, 3), "generating": (3.0, 2), "tool": (5.0, 1), "scoring": (2.0, 1),
    }  # fmt: skip


def test_a_view_of_nothing_says_so():
    """Before any event the state is unknown and nothing is claimed."""
    view = ChainView()
    assert (view.state, view.content, view.messages, view.complete) == ("unknown", None, [], False)


def test_a_gap_makes_what_is_open_unknown():
    """After a gap nothing is claimed to be open, and totals are marked as too low."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0)))
    view.apply(made("gap", {"from_seq": 3, "to_seq": 9, "dropped": {}, "reason": ""}, chain_id=""))
    assert (view.state, view.content, view.gaps, view.as_of, view.complete) == ("unknown", None, 1, 9, False)


def test_a_gap_before_what_is_known_changes_nothing():
    """A gap of events that the view has seen is none."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0)))
    view.apply(made("gap", {"from_seq": 0, "to_seq": 2, "dropped": {}, "reason": ""}, chain_id=""))
    assert (view.state, view.content, view.gaps) == ("generating", "Hel", 0)


def test_a_snapshot_after_a_gap_tells_what_is_open():
    """The short snapshot that follows a gap makes the state known again, and the totals stay marked."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0)))
    view.apply(made("gap", {"from_seq": 3, "to_seq": 9, "dropped": {}, "reason": ""}, chain_id=""))
    calls = [{"call_id": "a", "tool_name": "add", "arguments": "{", "observation": "so f"}]
    view.apply(
        made("chain_snapshot", {"messages": [], "content": None, "tool_calls": calls, "as_of": 9}, 2, 9)
    )
    view.apply(made("tool_observation", {**observed("ar")[1], "partial": True}, 2, 10))
    assert (view.state, view.step, view.tool_calls["a"].output.text, view.gaps) == ("tool", 2, "so far", 1)


def test_an_older_snapshot_changes_nothing():
    """A snapshot from before what the view knows is ignored."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0)))
    view.apply(
        made("chain_snapshot", {"messages": [], "content": None, "tool_calls": [], "as_of": 1}, None, 1)
    )
    assert view.content == "Hel"


def test_a_chain_whose_end_was_not_seen_is_lost_when_its_run_ends():
    """No chain end is invented."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0)))
    view.apply(made("run_end", {"status": "completed"}, chain_id="", seq=9))
    assert (view.state, view.finish_reason, view.messages[-1]["content"]) == ("lost", None, "Hel")


def test_after_the_end_only_the_trainer_and_rewards_are_heard():
    """What would stand inside the chain changes nothing after its end; the advantage comes then."""
    view = viewed(
        [*stream(START, BEGIN, end("4"), ENDED), made("llm_generation_chunk", {"content": "late"}, 1)]
    )
    before = view.to_dict()
    learned = {"train_step": 7, "chains": {"r": {"chain_0": {"advantage": 0.5, "staleness": 2}}, "q": 1}}
    view.apply(made("train_step", learned, seq=0, run_id="training", chain_id=""))
    assert view.to_dict() == {**before, "train_step": 7, "advantage": 0.5, "staleness": 2}


def test_events_of_other_chains_change_nothing():
    """Another chain, another run, a gap of another source."""
    view = viewed(stream(START, BEGIN))
    before = view.to_dict()
    for other in ({"chain_id": "chain_1"}, {"run_id": "q"}):
        view.apply(made("llm_generation_chunk", {"content": "x"}, 1, 8, **other))
    view.apply(made("gap", {"from_seq": 2, "to_seq": 9}, chain_id="", source="other"))
    assert view.to_dict() == before


def test_a_clock_that_is_set_back_takes_no_time():
    """Time by state never falls, and goes on from where the clock stands."""
    events = stream(START, BEGIN, end("x"))
    back = [
        msgspec.structs.replace(event, timestamp=at)
        for event, at in zip(events, (1000.0, 400.0, 402.5), strict=True)
    ]
    view = viewed(back)
    assert (view.times["waiting"].seconds, view.times["generating"].seconds) == (0.0, 2.5)


# -- text ---------------------------------------------------------------------------------------------------------------------------


def test_a_chunk_that_overlaps_adds_what_is_new():
    """A merged chunk that begins before a snapshot's end is cut; one that is wholly known adds nothing."""
    view = viewed(
        stream(
            START, BEGIN, chunk("Hello", 0), chunk("lo wor", 3, from_seq=2), chunk("ell", 1), chunk("ld", 9)
        )
    )
    assert view.content == "Hello world"


def test_a_hole_in_the_text_is_marked():
    """Where chunks are missing the text goes on behind the hole, and says how much stood before it."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0), chunk("world", 6)))
    assert (view.content, view.content_omitted) == ("world", 6)
    view.apply(made(*end("Hello world")[:2], 1, 9))
    assert view.messages[-1]["content"] == "Hello world"


def test_a_chunk_of_the_next_turn_begins_another_text():
    """With a filter that lets chunks alone through, the step tells when a generation ended."""
    view = viewed(stream(chunk("one", 0), chunk("two", 0, 2)))
    assert (view.content, [m["content"] for m in view.messages], view.joined_late) == ("two", ["one"], True)


def test_growing_text_is_not_copied():
    """A text of many pieces takes time that grows with its length alone; its last part is kept."""
    view = viewed(stream(START, BEGIN))
    for i in range(3 * MAX_TEXT // 4):
        view.apply(made("llm_generation_chunk", {"content": "abcd", "offset": 4 * i}, 1, 5 + i))
    assert (len(view.content), view.content_omitted, view.content[-4:]) == (MAX_TEXT, 2 * MAX_TEXT, "abcd")
    assert len(view.generation.pieces) <= 1024
    assert sum(map(len, view.generation.pieces)) <= 2 * MAX_TEXT


def test_reasoning_is_kept_apart():
    """New reasoning text is gathered beside the content, and stands in the message."""
    view = viewed(
        stream(START, BEGIN, chunk("", 0, reasoning="hm, "), chunk("4", 0, reasoning="yes"), end("4"))
    )
    assert (view.messages[-1]["content"], view.messages[-1]["reasoning"]) == ("4", "hm, yes")


def test_half_an_emoji_is_replaced():
    """Lone surrogates, which no JSON in UTF-8 can hold, become U+FFFD one by one, so that offsets stay right."""
    view = viewed(stream(START, BEGIN, chunk("a\ud83d", 0), chunk("b", 2)))
    assert view.content == "a\ufffdb"
    msgspec.json.encode(view.to_dict())


# -- what is bounded -----------------------------------------------------------------------------------------------------------------


def test_messages_are_bounded_and_the_prompt_stays():
    """The oldest message after the prompt goes first, and is counted."""
    view = viewed(stream(START))
    for i in range(2 * MAX_MESSAGES):
        view.apply(made("message", {"role": "user", "content": f"m{i}"}))
    assert len(view.messages) == MAX_MESSAGES
    assert (view.messages[0]["content"], view.conversation.prompt_length) == ("Hi", 1)
    assert view.conversation.omitted == 1 + 2 * MAX_MESSAGES - MAX_MESSAGES
    assert view.messages[-1]["content"] == f"m{2 * MAX_MESSAGES - 1}"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x" * 3 * MAX_TEXT},
        {"role": "user", "content": [{"type": "image", "data": "x" * 3 * MAX_TEXT}]},
        {"role": "user", "content": "x", "tool_calls": ["x" * 3 * MAX_WEIGHT]},
    ],
)
def test_large_messages_are_shortened_and_say_so(message):
    """A prompt of many large messages weighs no more than the limit, and each that was shortened tells."""
    view = viewed([made("chain_start", {"messages": [message] * 40})])
    assert len(msgspec.json.encode(view.to_dict())) < 2 * MAX_WEIGHT
    assert all(m["omitted"] for m in view.messages)
    assert view.conversation.prompt_length == len(view.messages)


def test_a_tool_that_floods_is_bounded():
    """Of output without end the last part is kept, and what stood before is counted."""
    view = viewed(stream(START, BEGIN, end("x", "tool_call"), CALL))
    for i in range(50):
        view.apply(made("tool_observation", {**observed("x" * MAX_OUTPUT)[1], "partial": True}, 1, 10 + i))
    call = view.to_dict()["tool_calls"][0]
    assert (len(call["observation"]), call["omitted"]) == (MAX_OUTPUT, 49 * MAX_OUTPUT)


def test_calls_beyond_the_limit_are_counted():
    """More calls than are kept open are counted, and what they give is in the conversation all the same."""
    calls = [(CALL[0], {**CALL[1], "call_id": f"c{i}"}, 1) for i in range(MAX_CALLS + 5)]
    view = viewed(stream(START, BEGIN, end("x", "tool_call"), *calls))
    assert (len(view.tool_calls), view.calls_omitted) == (MAX_CALLS, 5)
    view.apply(made(*called("error", f"c{MAX_CALLS}"), 500))
    assert (view.tool_use["add"].calls, view.tool_use["add"].failed, view.state) == (1, 1, "tool")


def test_the_events_data_is_not_changed_and_not_kept():
    """A view changes nothing that it was given, and is not changed with it."""
    data = {"messages": [{"role": "assistant", "content": "x", "tool_calls": []}], "tools": ["add"]}
    start = made("chain_start", data)
    view = viewed([start, made(*CALL)])
    data["messages"][0]["content"] = "changed"
    data["tools"].append("more")
    assert (view.messages[0]["content"], view.tools) == ("x", ["add"])
    assert data["messages"][0]["tool_calls"] == []


# -- what else is known ----------------------------------------------------------------------------------------------------------------


def test_tool_calls_stand_in_the_conversation():
    """The assistant's message lists its calls; each answer has its status and time; failures are counted by tool."""
    view = viewed(
        stream(START, BEGIN, end("I add", "tool_call"), CALL, observed("no", "error"), called("error"))
    )
    assert view.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert view.messages[2] == {
        "role": "tool", "content": "no", "tool_call_id": "a", "name": "add", "status": "error", "duration_s": 0.5, "step": 1,
    }  # fmt: skip
    assert (view.tool_use["add"].calls, view.tool_use["add"].failed, view.tool_use["add"].seconds) == (
        1,
        1,
        0.5,
    )


def test_a_cancelled_call_did_not_fail():
    """`cancelled` is not the tool's fault."""
    view = viewed(stream(START, BEGIN, end("", "tool_call"), CALL, called("cancelled")))
    assert (view.tool_use["add"].calls, view.tool_use["add"].failed) == (1, 0)


def test_the_reward_is_the_final_one():
    """A step's reward counts until the final one comes; what the chain's end says holds."""
    view = viewed(stream(START, ("reward", {"reward": 0.2}, 1)))
    assert view.reward == 0.2
    view.apply(made("reward", {"reward": 0.9, "final": True}, 1, 5))
    view.apply(made("reward", {"reward": 0.1}, 1, 6))
    assert (view.reward, [r["final"] for r in view.rewards]) == (0.9, [None, True, None])
    view.apply(made("chain_end", {"finish_reason": "answered", "reward": None}, 1, 7))
    assert view.reward is None


def test_ends_correct_what_was_counted():
    """A generation's end says how many tokens there were, and the chain's end how many in all."""
    view = viewed(stream(START, BEGIN, chunk("x", 0, token_ids=[1, 2])))
    assert view.tokens == 2
    view.apply(made(*end("x")[:2], 1, 9))
    assert (view.tokens, view.generation_tokens) == (3, 0)
    view.apply(made("chain_end", {"completion_tokens": 40}, 1, 10))
    assert view.tokens == 40


def test_a_snapshot_of_a_view_is_an_event_of_the_contract():
    """The long form has what the short form promises."""
    view = viewed(stream(START, BEGIN, chunk("Hel", 0), CALL, observed("so f", partial=True)))
    snapshot = view.snapshot()
    assert checked_event(snapshot) is snapshot
    assert set(snapshot.data) >= {"messages", "content", "tool_calls", "as_of"}


def test_events_of_an_unknown_type_are_taken():
    """They tell that the chain is alive, and nothing else."""
    view = viewed([*stream(START), made("from_the_future", {"content": "?"}, 1, 5)])
    assert (view.state, view.as_of, view.last_event_at) == ("waiting", 5, 1005.0)


def test_unlisted_messages_stand_where_they_belong():
    """A snapshot may have messages beside its list, each with the number of the one that it stands before."""
    told = [{"role": "user", "content": text} for text in "ac"]
    beside = [{"at": at, "message": {"role": "assistant", "content": text}} for at, text in ((1, "b"), (2, "d"), (9, "e"))]  # fmt: skip
    data = {"messages": told, "content": None, "tool_calls": [], "as_of": 3, "state": "waiting"}
    view = ChainView.from_snapshot(made("chain_snapshot", {**data, "unlisted_messages": beside}, 1, 3))
    assert [message["content"] for message in view.messages] == ["a", "b", "c", "d", "e"]


def test_a_snapshot_stays_as_it_was_taken():
    """It shares the view's messages, which later events replace and do not change."""
    view = viewed(stream(START, BEGIN, end("x", "tool_call")))
    taken = view.snapshot()
    before = msgspec.json.encode(taken)
    for event in (made(*CALL, 9), made(*observed("4"), 10), made(*called(), 11)):
        view.apply(event)
    assert len(view.messages) == 3
    assert msgspec.json.encode(taken) == before


def test_a_view_that_let_go_of_its_text_goes_on_counting():
    """Places, counts and states are as in one that kept it; what comes later is text again."""
    events = stream(START, BEGIN, chunk("Hel", 0, token_ids=[1]), chunk("lo", 3, token_ids=[2]))
    whole, lean = viewed(events), viewed(events[:3])
    lean.forget_text()
    lean.apply(events[3])
    assert (lean.content, lean.content_omitted, lean.tokens) == ("lo", 3, whole.tokens)
    assert (lean.state, lean.generation.end, lean.messages) == ("generating", whole.generation.end, [])
