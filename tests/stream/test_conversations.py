"""Which chain a request to a model belongs to, and what its chain shows."""

from __future__ import annotations

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rollcast import InputError, StreamingManager
from rollcast.records.openai_wire import CallDelta, Piece, VersionSpan, pieces_of, request_of
from rollcast.stream.conversation_messages import message_key, shown_message
from rollcast.stream.conversations import Conversations
from rollcast.testing import EventCapture

ASK = {"role": "user", "content": "What is 2 + 2?"}
LOOK = CallDelta(0, "call_abcdefgh", "search", '{"q": "2 + 2"}')


def chat(*messages, **fields):
    return request_of("chat", {"model": "m", "messages": list(messages), **fields})


def said(text, *calls):
    """An answer as an agent sends it back."""
    message = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in calls
        ]
    return message


def result(call, text):
    return {"role": "tool", "tool_call_id": call.id, "content": text}


def answer(call, text="Four.", *calls, **piece):
    """Answer a call."""
    call.piece(Piece(text=text, calls=list(calls), finish_reason="stop", **piece))
    call.end()
    return call


@pytest.fixture
def watched():
    """Conversations in a watched run, on a clock that stands still."""
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    run = manager.run(chains=0, groups=0).open()
    clock = SimpleNamespace(now=0.0)
    here = Conversations(run, 60, clock=lambda: clock.now)
    seen = SimpleNamespace(here=here, run=run, clock=clock, capture=capture)

    def events(*types):
        manager.drain_sync()
        return [e for e in capture.events if not types or e.event_type.value in types]

    seen.events = events
    yield seen
    here.close_all()
    run.close()
    manager.close()
    capture.check()


def shown(events, *fields):
    return [(e.event_type.value, *(e.data.get(field) for field in fields)) for e in events]


# -- who is the chain ----------------------------------------------------------------------------------------------------


def test_a_request_that_goes_on_is_the_same_chain(watched):
    """The next request of a conversation has the answer and more behind it."""
    first = answer(watched.here.begin(chat(ASK)))
    more = {"role": "user", "content": "And 3 + 3?"}
    second = answer(watched.here.begin(chat(ASK, said("Four."), more)), "Six.")
    assert first.chain_id == second.chain_id
    assert shown(watched.events("message"), "role", "content") == [("message", "user", "And 3 + 3?")]
    turns = second.chain.trajectory.turns
    assert ([turn.text for turn in turns], turns[1].fresh) == (["Four.", "Six."], False)


@pytest.mark.parametrize(
    "sent_back",
    [
        {"role": "assistant", "content": " Four.\n"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Four."}],
            "refusal": None,
            "annotations": [],
        },
        {"role": "assistant", "content": "Four.", "tool_calls": None, "reasoning_content": "2 + 2 = 4"},
        {"role": "assistant", "content": "<think>2 + 2</think>Four."},
    ],
)
def test_an_answer_is_known_again_however_it_is_sent_back(watched, sent_back):
    """Agents leave out reasoning, add nulls, and strip spaces."""
    first = answer(watched.here.begin(chat(ASK)), reasoning="2 + 2")
    second = answer(watched.here.begin(chat(ASK, sent_back, ASK)))
    assert first.chain_id == second.chain_id


def test_arguments_are_compared_as_objects():
    """Spaces in arguments, and the order of their keys, make no difference; another value does."""
    one, other, third = (
        said("", CallDelta(0, "a", "f", text))
        for text in ('{"x": 1, "y": 2}', '{"y":2,"x":1}', '{"y":2,"x":3}')
    )
    assert message_key(one) == message_key(other) != message_key(third)


def test_equal_prompts_are_repeats_of_one_group(watched):
    """The same question, asked again or at the same time, is another chain of its group."""
    calls = [watched.here.begin(chat(ASK)) for _ in range(2)]
    for call in calls:
        answer(call)
    calls.append(answer(watched.here.begin(chat(ASK))))
    trajectories = [call.chain.trajectory for call in calls]
    assert len({t.chain_id for t in trajectories}) == 3
    assert len({t.group_id for t in trajectories}) == 1
    assert [t.index for t in trajectories] == [0, 1, 2]


def test_equal_answers_go_on_apart(watched):
    """Two chains that said the same are each gone on with once."""
    first, second = (watched.here.begin(chat(ASK)) for _ in range(2))
    answer(first), answer(second)
    third, fourth = (watched.here.begin(chat(ASK, said("Four."), ASK)) for _ in range(2))
    assert {third.chain_id, fourth.chain_id} == {first.chain_id, second.chain_id}


def test_one_conversation_that_is_gone_on_with_twice_is_a_branch(watched):
    """The second of two requests that go on from one answer begins a chain beside the first."""
    first = answer(watched.here.begin(chat(ASK)))
    again = [watched.here.begin(chat(ASK, said("Four."), ASK)) for _ in range(2)]
    assert again[0].chain_id == first.chain_id != again[1].chain_id
    starts = watched.events("chain_start")
    assert [start.data.get("parent_chain_id") for start in starts] == [None, first.chain_id]
    assert starts[0].group_id == starts[1].group_id


def test_a_session_is_a_chain(watched):
    """Requests of one session are one chain, and those of another another, though they ask the same."""
    calls = [answer(watched.here.begin(chat(ASK), session=name)) for name in ("a", "b")]
    calls += [answer(watched.here.begin(chat(ASK, said("Four."), ASK), session=name)) for name in ("b", "a")]
    assert [call.chain_id for call in calls] == ["chain_0", "chain_1", "chain_1", "chain_0"]
    assert watched.events("chain_start")[0].data["row"] == {"session": "a"}


def test_a_conversation_is_gone_on_with_by_its_own_key(watched):
    """Callers with keys of their own are kept apart, though they ask and are told the same; a session's name goes before its key."""
    keys = ("k", "l", None)
    calls = [answer(watched.here.begin(chat(ASK), key=key)) for key in keys]
    assert [answer(watched.here.begin(chat(ASK, said("Four."), ASK), key=key)).chain_id for key in keys[::-1]] == [call.chain_id for call in calls[::-1]]  # fmt: skip
    (other,) = [answer(watched.here.begin(chat(ASK, said("Four."), ASK, said("Four."), ASK), key="m"))]
    assert other.chain_id not in [call.chain_id for call in calls]
    named = [answer(watched.here.begin(chat(ASK), session="a", key=key)) for key in keys]
    assert len({call.chain_id for call in named}) == 1


def test_a_result_of_another_key_is_not_taken(watched):
    """Whoever knows the id of a call, but has another key, goes on with nobody's conversation."""
    first = answer(watched.here.begin(chat(ASK), key="k"), "", LOOK)
    rewritten = {"role": "user", "content": "Shorter."}
    assert answer(watched.here.begin(chat(rewritten, result(LOOK, "4")), key="l")).chain_id != first.chain_id
    assert answer(watched.here.begin(chat(rewritten, result(LOOK, "4")), key="k")).chain_id == first.chain_id


def test_a_chain_may_be_named(watched):
    """The id that a caller gives is the chain's id, and its group the chain's group."""
    call = answer(watched.here.begin(chat(ASK), chain="mine", group="ours"))
    watched.here.reward("mine", 1.0)
    assert (call.chain_id, call.chain.trajectory.group_id, call.chain.trajectory.reward) == (
        "mine",
        "ours",
        1.0,
    )


def test_parallel_calls_of_a_session_are_chains_of_their_own(watched):
    """While a session generates, its further requests begin chains that name it as their parent, and go on with these."""
    main = watched.here.begin(chat(ASK), session="s")
    aside = answer(watched.here.begin(chat({"role": "user", "content": "Summarise."}), session="s"), "Short.")
    answer(main)
    more = chat({"role": "user", "content": "Summarise."}, said("Short."), ASK)
    assert answer(watched.here.begin(more, session="s")).chain_id == aside.chain_id
    assert [start.data.get("parent_chain_id") for start in watched.events("chain_start")] == [
        None,
        main.chain_id,
    ]


def test_a_request_in_the_middle_of_a_tool_call_is_a_sub_agent_s(watched):
    """A session that waits for a tool and asks something else has a tool that asks."""
    main = answer(watched.here.begin(chat(ASK), session="s"), "", LOOK)
    inner = answer(watched.here.begin(chat({"role": "user", "content": "Rank these."}), session="s"))
    last = answer(watched.here.begin(chat(ASK, said("", LOOK), result(LOOK, "4")), session="s"))
    assert main.chain_id == last.chain_id != inner.chain_id
    assert main.chain.trajectory.tool_calls[0].observation == "4"


def test_a_session_that_rewrites_its_history_forks(watched):
    """A prompt that does not go on from the last one begins a segment, and shows the messages that are new."""
    call = answer(watched.here.begin(chat(ASK), session="s"))
    short = {"role": "user", "content": "Summary: 4."}
    assert answer(watched.here.begin(chat(short), session="s")).chain_id == call.chain_id
    assert [turn.fresh for turn in call.chain.trajectory.turns] == [False, True]
    assert shown(watched.events("message"), "content") == [("message", "Summary: 4.")]


def test_a_result_finds_its_call_though_the_history_was_rewritten(watched):
    """Without a session the id of a tool call tells whose the request is."""
    call = answer(watched.here.begin(chat(ASK)), "I look.", LOOK)
    again = answer(
        watched.here.begin(chat({"role": "user", "content": "…"}, said("", LOOK), result(LOOK, "4")))
    )
    assert again.chain_id == call.chain_id
    assert call.chain.trajectory.tool_calls[0].observation == "4"
    assert call.chain.trajectory.turns[1].fresh


def test_ids_that_go_on_are_the_same_chain(watched):
    """A prompt that begins with the ids of prompt and answer is the next turn, with the rest as its new ids."""
    ask = request_of("completions", {"prompt": [1, 2, 3]})
    first = answer(watched.here.begin(ask), "ab", token_ids=[4, 5], logprobs=[-0.5, -0.25])
    second = watched.here.begin(request_of("completions", {"prompt": [1, 2, 3, 4, 5, 6, 7]}))
    answer(second, "c", token_ids=[8], logprobs=[-1.0])
    t = first.chain.trajectory
    assert second.chain_id == first.chain_id
    assert (t.token_ids, t.loss_mask, t.forked) == ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 1, 1, 0, 0, 1], False)
    assert t.logprobs == [0, 0, 0, -0.5, -0.25, 0, 0, -1.0]


def test_other_ids_are_another_chain(watched):
    """A prompt with one id changed belongs to nobody."""
    first = answer(watched.here.begin(request_of("completions", {"prompt": [1, 2]})), "a", token_ids=[4])
    second = watched.here.begin(request_of("completions", {"prompt": [1, 2, 5, 6]}))
    assert first.chain_id != second.chain_id


def test_an_answer_without_ids_is_gone_on_with_if_it_is_the_only_one(watched):
    """If the engine gives no ids, the prompt alone tells, and only if no other chain has the same one."""
    ask = request_of("completions", {"prompt": [1, 2]})
    more = request_of("completions", {"prompt": [1, 2, 3, 4]})
    first = answer(watched.here.begin(ask))
    assert answer(watched.here.begin(more)).chain_id == first.chain_id
    repeats = [answer(watched.here.begin(ask)) for _ in range(2)]
    assert watched.here.begin(more).chain_id not in {call.chain_id for call in repeats}


def test_text_that_goes_on_is_the_same_chain(watched):
    """A prompt of text that begins with prompt and answer shows what is new as a message."""
    first = answer(watched.here.begin(request_of("completions", {"prompt": "2 + 2 ="})), " 4")
    second = answer(watched.here.begin(request_of("completions", {"prompt": "2 + 2 = 4\n3 + 3 ="})), " 6")
    assert first.chain_id == second.chain_id
    assert shown(watched.events("message"), "content") == [("message", "\n3 + 3 =")]


def test_a_request_that_failed_is_tried_again_in_its_chain(watched):
    """The same request after a failure is the next turn of the same chain."""
    first = watched.here.begin(chat(ASK))
    first.piece(Piece(text="Fo"))
    first.failed(ConnectionError("the engine went away"))
    second = answer(watched.here.begin(chat(ASK)))
    assert first.chain_id == second.chain_id
    assert [turn.finish_reason for turn in first.chain.trajectory.turns] == ["error", "stop"]
    (error,) = watched.events("error")
    assert (error.data["where"], error.data["error"]) == ("backend", "the engine went away")


# -- what is shown -------------------------------------------------------------------------------------------------------


def test_arguments_are_not_glued_to_the_text(watched):
    """A tool call is opened when the answer is whole, with its arguments as an object, and none of it is in the text."""
    call = watched.here.begin(chat(ASK, tools=[{"type": "function", "function": {"name": "search"}}]))
    for piece in (
        Piece(text="I look."), Piece(calls=[CallDelta(0, "call_abcdefgh", "search", '{"q": ')]),
        Piece(calls=[CallDelta(0, "", "", '"2 + 2"}')], finish_reason="tool_calls"),
    ):  # fmt: skip
        call.piece(piece)
    assert not watched.events("tool_call_start")
    call.end()
    answer(watched.here.begin(chat(ASK, said("I look.", LOOK), result(LOOK, "4"))))
    assert call.generation.turn.text == "I look."
    assert shown(
        watched.events("tool_call_start", "tool_observation"), "tool_name", "arguments", "observation"
    ) == [
        ("tool_call_start", "search", {"q": "2 + 2"}, None),
        ("tool_observation", "search", None, "4"),
    ]
    assert watched.events("chain_start")[0].data["tools"] == ["search"]
    assert watched.events("llm_generation_end")[0].data["finish_reason"] == "tool_call"


@pytest.mark.parametrize("arguments", ['{"q": ', "[1]", "look"])
def test_arguments_that_are_no_object_are_raw_text(watched, arguments):
    """Arguments that broke off, or are something else, are shown as the text that they are."""
    answer(watched.here.begin(chat(ASK)), "", CallDelta(0, "a", "search", arguments))
    assert watched.events("tool_call_start")[0].data["arguments"] == arguments


def test_calls_of_the_same_id_are_kept_apart(watched):
    """An engine that numbers its calls anew, or gives two the same id, does not mix them."""
    twice = [CallDelta(0, "a", "f", "{}"), CallDelta(1, "a", "g", "{}"), CallDelta(2, "", "h", "{}")]
    call = answer(watched.here.begin(chat(ASK)), "", *twice)
    assert len({record.call.call_id for record in call.chain.trajectory.tool_calls}) == 3


def test_results_that_never_came_are_cancelled(watched):
    """A call whose result is not in the next request is over."""
    call = answer(watched.here.begin(chat(ASK)), "", LOOK)
    answer(watched.here.begin(chat(ASK, said("", LOOK), ASK)))
    assert call.chain.trajectory.tool_calls[0].status == "cancelled"


def test_reasoning_and_counts_are_shown(watched):
    """Reasoning stands apart from the text, and the engine's counts are the turn's."""
    call = watched.here.begin(chat(ASK))
    call.piece(Piece(reasoning="2 + 2"))
    call.piece(Piece(text="Four."))
    answer(call, "", usage={"prompt_tokens": 9, "completion_tokens": 7})
    assert shown(watched.events("llm_generation_chunk"), "reasoning", "content") == [
        ("llm_generation_chunk", "2 + 2", ""), ("llm_generation_chunk", None, "Four."),
    ]  # fmt: skip
    (end,) = watched.events("llm_generation_end")
    assert (end.data["prompt_tokens"], end.data["completion_tokens"], end.data["content"]) == (9, 7, "Four.")
    assert call.chain.trajectory.messages[-1]["reasoning_content"] == "2 + 2"


def test_ids_that_are_not_complete_are_left_out(watched):
    """Text without ids among text with ids, or fewer ids than the engine counted, leave a turn without ids."""
    for pieces in (
        [Piece(text="a", token_ids=[1], logprobs=[-1.0]), Piece(text="b")],
        [Piece(text="ab", token_ids=[1], logprobs=[-1.0]), Piece(usage={"completion_tokens": 2})],
    ):
        call = watched.here.begin(request_of("completions", {"prompt": [7]}))
        for piece in pieces:
            call.piece(piece)
        call.end()
        assert (call.generation.turn.token_ids, call.generation.turn.logprobs) == ([], [])


def test_logprobs_that_are_not_complete_are_left_out(watched):
    """One missing log-probability leaves the turn without any; its ids stay."""
    call = watched.here.begin(request_of("completions", {"prompt": [7]}))
    call.piece(Piece(text="a", token_ids=[1], logprobs=[-1.0]))
    answer(call, "b", token_ids=[2])
    assert (call.generation.turn.token_ids, call.generation.turn.logprobs) == ([1, 2], [])


def test_versions_come_as_spans(watched):
    """The spans at the end of an answer say which version sampled which token."""
    call = watched.here.begin(request_of("generate", {"token_ids": [7]}))
    call.piece(Piece(token_ids=[1, 2]))
    answer(call, "", token_ids=[3], weight_versions=[VersionSpan("4", 0, 2), VersionSpan("5", 2, 3)])
    assert call.generation.turn.policy_versions == [4, 4, 5]


def test_prompt_ids_come_with_the_answer(watched):
    """A chat whose engine tells the prompt's ids is one sequence, as long as each prompt goes on from the last."""
    first = watched.here.begin(chat(ASK))
    answer(first, "a", token_ids=[3], logprobs=[-1.0], prompt_token_ids=[1, 2])
    answer(
        watched.here.begin(chat(ASK, said("a"), ASK)),
        "b",
        token_ids=[5],
        logprobs=[-1.0],
        prompt_token_ids=[1, 2, 3, 4],
    )
    t = first.chain.trajectory
    assert (t.forked, t.token_ids) == (False, [1, 2, 3, 4, 5])
    answer(
        watched.here.begin(chat(ASK, said("a"), ASK, said("b"), ASK)),
        "c",
        token_ids=[9],
        prompt_token_ids=[1, 8],
    )
    assert [turn.fresh for turn in t.turns] == [False, False, True]
    assert [segment.token_ids for segment in t.segments] == [[1, 2, 3, 4, 5], [1, 8, 9]]


def test_sglang_s_texts_so_far_are_taken_apart(watched):
    """SGLang's own route sends all of the answer in each piece, unless the server was started otherwise."""
    for texts in (["a", "ab", "abc"], ["a", "b", "c"]):
        call = watched.here.begin(request_of("generate", {"input_ids": [7]}))
        so_far = texts[1] != "b"
        for n, text in enumerate(texts, start=1):
            sampled = [[-0.5, k, None] for k in (range(1, n + 1) if so_far else [n])]
            meta = {
                "completion_tokens": n,
                "output_token_logprobs": sampled,
                "finish_reason": {"type": "stop"} if n == 3 else None,
            }
            for piece in pieces_of(json.dumps({"text": text, "meta_info": meta}).encode()):
                call.piece(piece)
        call.end()
        turn = call.generation.turn
        assert (turn.text, turn.token_ids, turn.logprobs) == ("abc", [1, 2, 3], [-0.5] * 3)


def test_further_choices_are_chains_of_the_group(watched):
    """With `n` answers to one prompt each is a chain, and each can be gone on with."""
    call = watched.here.begin(chat(ASK, n=2))
    for index, text in ((1, "5"), (0, "4"), (1, "!")):
        call.piece(Piece(index=index, text=text))
    call.piece(Piece(usage={"prompt_tokens": 9, "completion_tokens": 3}))
    call.end()
    starts, ends = watched.events("chain_start"), watched.events("llm_generation_end")
    assert len({start.group_id for start in starts}) == 1
    assert {(end.data["content"], end.data["completion_tokens"]) for end in ends} == {("4", 1), ("5!", 2)}
    assert watched.here.begin(chat(ASK, said("5!"), ASK)).chain_id == starts[1].chain_id
    assert "parent_chain_id" not in starts[1].data


def test_an_error_in_the_stream_ends_the_generation(watched):
    """An engine that reports an error inside its answer has failed; what comes after is dropped."""
    call = watched.here.begin(chat(ASK))
    call.piece(Piece(text="Fo"))
    call.piece(Piece(error="out of memory"))
    call.piece(Piece(text="ur"))
    call.end()
    (end,) = watched.events("llm_generation_end")
    assert (end.data["content"], end.data["finish_reason"]) == ("Fo", "error")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "function", "name": "f", "content": "4"}, {"role": "user", "content": None}, {"role": "critic", "content": 4},
        {"content": ["a", {"text": "b"}]}, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x" * 9999}}]},
        {"role": "assistant", "content": None, "tool_calls": "none"},
    ],
)  # fmt: skip
def test_every_message_can_be_shown(watched, message):
    """Whatever an agent sends is shown, and a picture without its bytes."""
    answer(watched.here.begin(chat(message), session="s"))
    answer(watched.here.begin(chat(message, said("Four."), message), session="s"))
    assert len(json.dumps(shown_message(message))) < 300


# -- how chains end ------------------------------------------------------------------------------------------------------


def test_a_chain_is_rewarded_and_ended_by_its_session(watched):
    """The reward closes tool calls that were left, and the end closes what the session began beside it."""
    call = answer(watched.here.begin(chat(ASK), session="s"), "", LOOK)
    answer(watched.here.begin(chat({"role": "user", "content": "x"}), session="s"))
    watched.here.reward("s", 0.5, {"right": 1})
    watched.here.end("s")
    assert (call.chain.trajectory.reward, call.chain.trajectory.finish_reason) == (0.5, "unknown")
    assert watched.here.open_chains == 0


@pytest.mark.parametrize("tell", [lambda here: here.reward("x", 1.0), lambda here: here.end("x")])
def test_a_name_that_nobody_has_is_refused(watched, tell):
    """A reward or an end for a chain that is not open says so."""
    with pytest.raises(InputError, match="no open chain or session is called 'x'"):
        tell(watched.here)


def test_a_rewarded_session_begins_anew(watched):
    """A request after the reward is a new chain of the same session."""
    first = answer(watched.here.begin(chat(ASK), session="s"))
    watched.here.reward("s", 1.0)
    second = answer(watched.here.begin(chat(ASK, said("Four."), ASK), session="s"))
    assert first.chain_id != second.chain_id
    assert first.chain.trajectory.finish_reason == "unknown"


def test_an_idle_chain_is_closed(watched):
    """A chain that nobody goes on with ends with `unknown` and its last answer; one that generates does not."""
    idle = answer(watched.here.begin(chat(ASK)))
    busy = watched.here.begin(chat(ASK))
    watched.clock.now = 61
    assert watched.here.close_idle() == 1
    (end,) = watched.events("chain_end")
    assert (end.chain_id, end.data["finish_reason"], end.data["final_response"]) == (
        idle.chain_id,
        "unknown",
        "Four.",
    )
    answer(busy)
    assert watched.here.open_chains == 1


def test_nothing_is_kept_of_closed_chains(watched):
    """When all chains are closed, nothing is left of them, so memory is bounded by what is open."""
    for name in ("a", "b", None):
        call = answer(watched.here.begin(chat(ASK), session=name), "", LOOK)
        answer(watched.here.begin(chat(ASK, said("", LOOK), result(LOOK, "4")), session=name))
    answer(watched.here.begin(request_of("completions", {"prompt": [1]})), "a", token_ids=[2])
    call = watched.here.begin(chat(ASK))
    watched.here.close_all()
    assert call.generation.turn.finish_reason == "cancelled"
    left = {name: value for name, value in vars(watched.here).items() if isinstance(value, dict) and value}
    assert left == {"_lengths": {"ids": {}, "text": {}}}


# -- all of it together --------------------------------------------------------------------------------------------------

texts = st.sampled_from(["", "a", "ab", "<think>x</think>y", "\u00e9 "])
names = st.none() | st.sampled_from(["s", "t"])


class Agents(RuleBasedStateMachine):
    """Agents that talk at the same time, over one proxy: whatever they do, the events obey the grammar, and a conversation that
    only goes on is one chain."""

    @initialize()
    def start(self):
        self.manager, self.capture, self.now = StreamingManager(), EventCapture(), 0.0
        self.manager.add_observer(self.capture)
        self.run = self.manager.run(chains=0, groups=0).open()
        self.here = Conversations(self.run, 50, clock=lambda: self.now)
        self.agents, self.number = [], 0

    @rule(name=names, text=texts)
    def an_agent_comes(self, name, text):
        self.number += 1
        ask = {"role": "user", "content": f"{text} {self.number}"}  # no two agents ask the same
        self.agents.append(
            SimpleNamespace(name=name, messages=[ask], call=None, chains=set(), lone=name is None, calls=[])
        )

    def agent(self, data, *, busy):
        found = [a for a in self.agents if (a.call is not None) is busy]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data())
    def asks(self, data):
        agent = self.agent(data, busy=False)
        if agent is None:
            return
        for call in agent.calls:
            agent.messages.append({"role": "tool", "tool_call_id": call.id, "content": "ok"})
        agent.calls = []
        agent.call = self.here.begin(chat(*agent.messages), session=agent.name)
        agent.chains.add(agent.call.chain_id)
        agent.text = ""

    @rule(
        data=st.data(), text=texts, reasoning=texts, ids=st.none() | st.lists(st.integers(0, 9), max_size=2)
    )
    def a_piece_comes(self, data, text, reasoning, ids):
        if (agent := self.agent(data, busy=True)) is not None:
            agent.call.piece(Piece(text=text, reasoning=reasoning, token_ids=ids))
            agent.text += text

    @rule(data=st.data(), tools=st.integers(0, 2))
    def the_answer_ends(self, data, tools):
        if (agent := self.agent(data, busy=True)) is None:
            return
        self.number += 1
        agent.calls = [CallDelta(n, f"call_{self.number:06}_{n}", "f", "{}") for n in range(tools)]
        agent.call.piece(Piece(calls=agent.calls, finish_reason="stop"))
        agent.call.end()
        agent.messages.append(said(agent.text, *agent.calls))
        if not agent.calls:
            agent.messages.append({"role": "user", "content": "more"})
        agent.call = None

    @rule(data=st.data(), how=st.sampled_from(["failed", "cancelled"]))
    def the_answer_breaks_off(self, data, how):
        if (agent := self.agent(data, busy=True)) is not None:
            agent.call.failed("gone") if how == "failed" else agent.call.cancelled()
            agent.call = None

    @rule(data=st.data())
    def history_is_rewritten(self, data):
        if (agent := self.agent(data, busy=False)) is not None:
            self.number += 1
            agent.messages = [{"role": "system", "content": f"summary {self.number}"}, *agent.messages[-1:]]
            agent.lone = False

    @rule(name=st.sampled_from(["s", "t"]), value=st.floats(0, 1))
    def a_reward_comes(self, name, value):
        with suppress(InputError):  # nobody is called that, or it is not the moment
            self.here.reward(name, value)

    @rule(name=st.sampled_from(["s", "t"]))
    def a_session_ends(self, name):
        with suppress(InputError):
            self.here.end(name)
        self.leave_busy()

    def leave_busy(self):
        for agent in self.agents:
            if agent.call is not None and agent.call.done:
                agent.call = None

    @precondition(lambda self: len(self.agents) > 1)
    @rule()
    def time_passes(self):
        self.now += 51
        self.here.close_idle()
        for agent in self.agents:
            agent.lone = agent.lone and agent.call is not None

    def teardown(self):
        if not hasattr(self, "here"):
            return
        for agent in self.agents:
            assert not agent.lone or len(agent.chains) <= 1
        self.here.close_all()
        assert self.here.open_chains == 0
        assert not self.run.open_chains
        self.run.close()
        self.manager.close()
        self.capture.check()


TestAgents = Agents.TestCase
TestAgents.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
