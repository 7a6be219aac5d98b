"""The wire of engines that speak OpenAI: events, requests, pieces, and answers put together again."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import InputError
from rollcast.records.openai_chunk import chunk_pieces
from rollcast.records.openai_responses import (
    id_of_response,
    is_of_responses,
    pieces_of_event,
    pieces_of_response,
    request_of_responses,
)
from rollcast.records.openai_wire import (
    Answer,
    BodyShape,
    CallDelta,
    CallParts,
    SseReader,
    generation_reason,
    kind_of,
    piece_of,
    pieces_of,
    request_of,
    whole_answer_pieces,
)


def chat_chunk(delta, finish=None, **fields):
    """A chunk as OpenAI and vLLM send it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "choices": [choice],
    } | fields


def put_together(kind, chunks, shape=None):
    answer = Answer(kind, shape)
    for chunk in chunks:
        for piece in pieces_of(json.dumps(chunk).encode()):
            answer.add(piece)
    return answer


# -- events --------------------------------------------------------------------------------------------------------------


def test_an_event_is_its_data_lines():
    """Comments, names and ids are left out, and several data lines are one payload."""
    stream = b': keep-alive\n\nevent: x\nid: 3\ndata: {"a":\ndata:1}\n\n\ndata\n\ndata: [DONE]\n\n'
    assert SseReader().feed(stream) == [b'{"a":\n1}', b"", b"[DONE]"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_any_of_three_ways(end):
    """LF, CRLF and CR end a line."""
    stream = end.join([b"data: 1", b"data: 2", b"", b": c", b"data: 3", b"", b""])
    assert SseReader().feed(stream) == [b"1\n2", b"3"]


payloads = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12),
    min_size=1,
    max_size=6,
)


@given(payloads, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 400), max_size=12))
def test_events_are_the_same_wherever_the_bytes_are_split(texts, end, cuts):
    """A stream that is split anywhere, also inside a character or a line's end, has the same payloads."""
    stream = "".join(f": x{end}data: {text}{end}{end}" for text in texts).encode()
    reader, found = SseReader(), []
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, stop in pairwise(edges):
        found += reader.feed(stream[start:stop])
    assert [each.decode() for each in found] == texts
    assert reader.rest == b""


def test_what_was_cut_is_the_rest():
    """A stream that ends inside an event leaves it in `rest`."""
    reader = SseReader()
    assert reader.feed(b'data: 1\n\ndata: {"a"') == [b"1"]
    assert reader.rest == b'data: {"a"'


@pytest.mark.parametrize("more", [b"x" * 20, b"data: xxxx\n" * 4])
def test_an_endless_event_is_refused(more):
    """An event that is longer than the limit is refused, whether it is one line or many."""
    reader = SseReader(limit=32)
    with pytest.raises(InputError, match="more than 32 bytes"):
        any(reader.feed(more) for _ in range(3))


# -- requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat"),
        ("/chains/a/v1/chat/completions/", "chat"),
        ("/v1/completions?x=1", "completions"),
        ("/inference/v1/generate", "generate"),
        ("/generate", "generate"),
        ("/v1/models", None),
        ("/tokenize", None),
    ],
)
def test_a_path_has_a_kind(path, kind):
    """A path is told by its end."""
    assert kind_of(path) == kind


def test_a_chat_request_is_read():
    """Model, messages, tools and sampling are told apart."""
    body = {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "seed": None, "stream": True,
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}], "user": "me",
    }  # fmt: skip
    request = request_of("chat", json.dumps(body).encode())
    assert (request.model, request.messages, request.stream, request.tool_names) == (
        "m",
        body["messages"],
        True,
        ["add"],
    )
    assert request.sampling == {"temperature": 0.5}
    assert request.lacks is None


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
def test_a_prompt_of_ids_is_read(prompt):
    """A prompt may be ids, or a list with one list of ids."""
    assert request_of("completions", {"prompt": prompt}).prompt_token_ids == [1, 2, 3]


def test_the_parameters_of_generate_are_read():
    """`/generate` has its sampling in an object of its own."""
    request = request_of(
        "/generate", {"input_ids": [1], "sampling_params": {"top_p": 0.9}, "return_logprob": True}
    )
    assert (request.prompt_token_ids, request.sampling) == ([1], {"top_p": 0.9, "return_logprob": True})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"n": 4}, "n = 4"),
        ({"best_of": 2}, "best_of = 2"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt": ["a", "b"]}, "several prompts"),
        ({"prompt": None, "prompt_embeds": "AA"}, "prompt_embeds"),
        ({"max_tokens": 0}, "no tokens"),
        ({"logprob_start_len": 0}, "logprob_start_len"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_streams_lack_is_said(fields, why):
    """A request for something that no stream has says so."""
    assert why in request_of("completions", {"prompt": "p"} | fields).lacks


def test_what_is_off_is_not_lacking():
    """A field with the value that means nothing keeps nothing from streaming."""
    body = {
        "prompt": "p",
        "n": 1,
        "echo": False,
        "prompt_logprobs": None,
        "logprob_start_len": -1,
        "modalities": ["text"],
    }
    assert request_of("completions", body).lacks is None


@pytest.mark.parametrize(
    ("route", "body"), [("/v1/models", b"{}"), ("chat", b"{"), ("chat", b"[]"), ("chat", b"\xff")]
)
def test_what_is_no_request_is_refused(route, body):
    """Another route, and a body that is not a JSON object, are refused with a sentence."""
    with pytest.raises(InputError, match="expected"):
        request_of(route, body)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "message", "index", "text", "content", "reasoning", "tool_calls", "function", "name", "arguments", "logprobs", "tokens", "token_logprobs", "token_ids", "usage", "finish_reason", "error", "meta_info", "output_token_logprobs", "weight_versions", "version", "messages", "prompt", "n", "tools"]
        ),
        inner, max_size=4,
    ),
    max_leaves=14,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["choices", "error", "meta_info", "usage", "messages", "prompt", "tools", "n"]), junk
    )
)
def test_no_chunk_and_no_request_raises(fields):
    """A chunk of whatever fields and types is read as far as it goes, and so is a request."""
    for piece in (*pieces_of(fields), *whole_answer_pieces(fields)):
        assert isinstance(piece.text, str)
    for kind in ("chat", "completions", "generate"):
        request_of(kind, fields)
        answer = Answer(kind)
        answer.add(piece_of(fields))
        answer.body()


items = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        [
            "type",
            "role",
            "content",
            "call_id",
            "name",
            "arguments",
            "output",
            "input",
            "instructions",
            "tools",
            "status",
            "error",
            "usage",
            "item",
            "delta",
            "id",
        ],
        junk,
    )
    | {
        "type": st.sampled_from(
            [
                "message",
                "function_call",
                "function_call_output",
                "reasoning",
                "response.output_item.added",
                "response.completed",
                "error",
            ]
        ),
        "role": st.sampled_from(["user", "assistant", None]),
    },
)


@given(st.lists(items, max_size=4), items)
def test_nothing_of_the_responses_route_raises(given, fields):
    """Items, events and whole responses of whatever fields and types are read as far as they go."""
    request = request_of_responses(fields | {"input": given})
    assert all("role" in message for message in request.messages)
    for each in (*given, fields):
        for piece in (
            *pieces_of_event(each),
            *pieces_of_event({"response": each, **each}),
            *pieces_of_response(each | {"output": given}),
        ):
            assert isinstance(piece.text, str)
        assert id_of_response(each | {"response": each}) is None or is_of_responses(each) in (True, False)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_chunk_are_an_error(data):
    """What is not a JSON object is a piece with an error."""
    piece = piece_of(data)
    assert piece.error is None or piece.error


# -- pieces --------------------------------------------------------------------------------------------------------------


def test_reasoning_has_two_names():
    """vLLM renamed `reasoning_content` to `reasoning`; both are read, and the same text in both once."""
    for names in (["reasoning"], ["reasoning_content"], ["reasoning", "reasoning_content"]):
        piece = piece_of(chat_chunk(dict.fromkeys(names, "hm")))
        assert (piece.reasoning, piece.text) == ("hm", "")


def test_a_content_of_parts_is_read():
    """Mistral's reasoning models send a list of parts, some of which are thoughts."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Four"},
    ]
    piece = piece_of(chat_chunk({"content": parts}))
    assert (piece.reasoning, piece.text) == ("hm", "Four")


def test_ids_and_logprobs_of_completions():
    """vLLM's `/v1/completions` has ids in the choice, and log-probabilities in a list."""
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -1],
        "top_logprobs": [None, None],
        "text_offset": [0, 1],
    }
    chunk = {
        "choices": [
            {"index": 0, "text": "ab", "token_ids": [5, 6], "logprobs": logprobs, "prompt_token_ids": [1]}
        ]
    }
    piece = piece_of(chunk)
    assert (piece.text, piece.token_ids, piece.logprobs, piece.prompt_token_ids) == (
        "ab",
        [5, 6],
        [-0.5, -1],
        [1],
    )


def test_ids_that_are_written_as_tokens():
    """With `return_tokens_as_token_ids` the tokens are ids in words."""
    content = [{"token": "token_id:7", "logprob": -0.25, "top_logprobs": []}]
    piece = piece_of({"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": content}}]})
    assert (piece.token_ids, piece.logprobs) == ([7], [-0.25])


@pytest.mark.parametrize("value", [-9999.0, None, "x"])
def test_a_missing_logprob_is_missing(value):
    """-9999 stands for a log-probability that there is none of, so the chunk has none."""
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, value]}
    assert piece_of({"choices": [{"text": "ab", "logprobs": logprobs}]}).logprobs is None


def test_the_last_chunk_has_the_usage():
    """A chunk without choices has what the engine counted."""
    piece = piece_of(chat_chunk({}, choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5}))
    assert (piece.count("prompt_tokens"), piece.count("completion_tokens"), piece.count("other")) == (
        3,
        5,
        None,
    )


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": "out of memory", "code": 500}},
        {"error": "out of memory"},
        {"object": "error", "message": "out of memory"},
    ],
)
def test_an_error_in_a_stream_is_read(chunk):
    """Engines report errors inside a stream that began well."""
    assert piece_of(chunk).error == "out of memory"


def test_sglang_s_own_route_is_read():
    """`/generate` of SGLang has text, reason, counts and versions beside each other."""
    meta = {
        "finish_reason": {"type": "stop"}, "completion_tokens": 2, "prompt_tokens": 3, "weight_version": "4",
        "output_token_logprobs": [[-0.5, 8, None], [-0.25, 9, None]],
    }  # fmt: skip
    piece = piece_of({"text": "ab", "meta_info": meta})
    assert (piece.text, piece.token_ids, piece.logprobs, piece.finish_reason) == (
        "ab",
        [8, 9],
        [-0.5, -0.25],
        "stop",
    )
    assert (piece.count("completion_tokens"), [span.version for span in piece.weight_versions]) == (2, ["4"])


def test_spans_of_weight_versions_are_read():
    """vLLM's `/inference/v1/generate` says which version sampled which tokens."""
    spans = [{"version": "3", "start": 0, "end": 2}, {"version": "4", "start": 2, "end": 5}]
    found = piece_of({"choices": [{"index": 0, "token_ids": [1], "weight_versions": spans}]}).weight_versions
    assert [(span.version, span.start, span.end) for span in found] == [("3", 0, 2), ("4", 2, 5)]


def test_several_choices_are_several_pieces():
    """A chunk may speak of several choices; the usage comes once."""
    chunk = {
        "choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}],
        "usage": {"completion_tokens": 2},
    }
    pieces = pieces_of(chunk)
    assert [(piece.index, piece.text, piece.count("completion_tokens")) for piece in pieces] == [
        (1, "b", 2),
        (0, "a", None),
    ]


def test_finish_reasons_in_our_words():
    """`tool_calls` is `tool_call`, an abort is a cancellation, and an engine that says `stop` after a call is understood."""
    assert [generation_reason(r) for r in ("stop", "length", "tool_calls", "abort", "content_filter", None)] == [
        "stop", "length", "tool_call", "cancelled", "stop", "stop",
    ]  # fmt: skip
    assert generation_reason("stop", calls=True) == "tool_call"


# -- tool calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deltas",
    [
        [
            CallDelta(0, "a", "add", ""),
            CallDelta(0, "", "", "{1"),
            CallDelta(0, "", "", "}"),
            CallDelta(1, "b", "mul", "{2}"),
        ],
        [CallDelta(3, "a", "add", "{1}"), CallDelta(4, "b", "mul", "{2}")],  # the first index is not 0
        [
            CallDelta(None, "a", "add", "{1"),
            CallDelta(None, "", "", "}"),
            CallDelta(None, "b", "mul", "{2}"),
        ],  # none at all
        [
            CallDelta(None, "a", "add", "{1"),
            CallDelta(None, "a", "", "}"),
            CallDelta(None, "b", "mul", "{2}"),
        ],
        [CallDelta(0, "a", "add", "{1}"), CallDelta(0, "b", "mul", "{2}")],  # 0 for each
        [
            CallDelta(1, "b", "", ""),
            CallDelta(0, "a", "add", "{1}"),
            CallDelta(1, "b", "mul", "{2}"),
        ],  # interleaved
    ],
)
def test_parts_of_calls_are_put_together(deltas):
    """Calls are told apart by index, or by id or name where an engine gets the index wrong."""
    parts = CallParts()
    for delta in deltas:
        parts.add([delta])
    assert sorted((call.id, call.name, call.text) for call in parts.calls) == [
        ("a", "add", "{1}"),
        ("b", "mul", "{2}"),
    ]


# -- whole answers -------------------------------------------------------------------------------------------------------


VLLM_WHOLE = {
    "id": "c", "object": "chat.completion", "created": 7, "model": "m",
    "choices": [{
        "index": 0,
        "message": {"role": "assistant", "content": "Four.", "refusal": None, "annotations": None, "audio": None,
                    "function_call": None, "reasoning": "2 + 2"},
        "logprobs": None, "finish_reason": "stop", "stop_reason": None, "token_ids": [5, 6, 7], "routed_experts": None,
    }],
    "service_tier": None, "system_fingerprint": None,
    "usage": {"prompt_tokens": 3, "total_tokens": 6, "completion_tokens": 3, "prompt_tokens_details": None, "completion_tokens_details": None},
    "prompt_logprobs": None, "prompt_token_ids": [1, 2, 3], "prompt_text": None, "kv_transfer_params": None,
    "ec_transfer_params": None, "metrics": None,
}  # fmt: skip
VLLM_CHUNKS = [
    chat_chunk({"role": "assistant", "content": ""}, prompt_token_ids=[1, 2, 3]),
    chat_chunk({"reasoning": "2 "}),
    chat_chunk({"reasoning": "+ 2"}),
    chat_chunk({"content": "Four"}),
    chat_chunk({"content": "."}, "stop"),
    chat_chunk({}, choices=[], usage={"prompt_tokens": 3, "total_tokens": 6, "completion_tokens": 3}),
]
for chunk, ids in zip(VLLM_CHUNKS, ([], [5], [], [6], [7], []), strict=True):
    for each in chunk["choices"]:
        each["token_ids"] = ids


def test_a_vllm_answer_is_put_together_to_the_byte():
    """The pieces of a vLLM stream make the body that it sends without one, fields and nulls in the same order."""
    assert put_together("chat", VLLM_CHUNKS).body() == json.dumps(VLLM_WHOLE, separators=(",", ":")).encode()


def test_what_was_not_asked_for_is_left_out():
    """Ids that somebody else asked for are not in the answer of a caller who did not; there is a null where the engine has one."""
    answer = put_together("chat", VLLM_CHUNKS)
    (choice,) = VLLM_WHOLE["choices"]
    expected = VLLM_WHOLE | {"prompt_token_ids": None, "choices": [choice | {"token_ids": None}]}
    assert (
        answer.body(without=("token_ids", "logprobs")) == json.dumps(expected, separators=(",", ":")).encode()
    )


def test_an_openai_answer_with_calls_is_put_together():
    """Calls lose their index, and the empty text with which the stream began is null."""
    chunks = [
        chat_chunk({"role": "assistant", "content": None, "refusal": None}),
        chat_chunk(
            {
                "tool_calls": [
                    {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
                ]
            }
        ),
        chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x":1}'}}]}),
        chat_chunk({}, "tool_calls"),
    ]
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = put_together("chat", chunks)
    assert answer.ended
    assert answer.whole() == {
        "id": "c", "object": "chat.completion", "created": 7, "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}],
    }  # fmt: skip


def test_completions_with_logprobs_are_put_together():
    """The lists of the log-probabilities are joined, and so are the ids."""

    def chunk(text, ids, at, finish=None):
        logprobs = {"text_offset": [at], "token_logprobs": [-0.5], "tokens": [text], "top_logprobs": [None]}
        choice = {
            "index": 0,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": None,
            "token_ids": ids,
        }
        return {"id": "c", "object": "text_completion", "created": 7, "model": "m", "choices": [choice]}

    whole = put_together("completions", [chunk("a", [5], 0), chunk("b", [6], 1, "length")]).whole()
    (choice,) = whole["choices"]
    assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("ab", [5, 6], "length")
    assert choice["logprobs"] == {
        "text_offset": [0, 1], "token_logprobs": [-0.5, -0.5], "tokens": ["a", "b"], "top_logprobs": [None, None],
    }  # fmt: skip
    assert list(choice) == [
        "index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts",
    ]  # fmt: skip


def test_several_choices_are_put_together():
    """Choices come in any order and are kept apart."""
    chunks = [{"choices": [{"index": i, "text": t}]} for i, t in ((1, "b"), (0, "a"), (1, "B"), (0, "A"))]
    whole = put_together("completions", chunks).whole()
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [(0, "aA"), (1, "bB")]


def test_a_shape_is_learnt_from_a_whole_answer():
    """Fields that this engine has, and their order, are learnt from an answer that did not stream."""
    body = {
        "model": "m", "id": "z", "object": "chat.completion", "created": 1, "extra": None,
        "choices": [{"finish_reason": "stop", "index": 0, "message": {"content": "x", "tool_calls": [], "role": "assistant"}}],
        "usage": {"completion_tokens": 1, "prompt_tokens": 2, "details": None},
    }  # fmt: skip
    shape = BodyShape("chat")
    shape.learn(body)
    chunks = [
        chat_chunk(
            {"role": "assistant", "content": "Four"},
            "stop",
            usage={"prompt_tokens": 3, "completion_tokens": 1},
        )
    ]
    for each in chunks[0]["choices"]:
        del each["logprobs"]
    assert json.dumps(put_together("chat", chunks, shape).whole()) == json.dumps({
        "model": "m", "id": "c", "object": "chat.completion", "created": 7, "extra": None,
        "choices": [
            {"finish_reason": "stop", "index": 0, "message": {"content": "Four", "tool_calls": [], "role": "assistant"}}
        ],
        "usage": {"completion_tokens": 1, "prompt_tokens": 3, "details": None},
    })  # fmt: skip


@pytest.mark.parametrize("empty", [None, ""])
def test_what_an_empty_answer_is_is_learnt(empty):
    """Some engines send null for an answer without text, others an empty text."""
    shape = BodyShape("chat")
    assert put_together("chat", VLLM_CHUNKS[:1], shape).whole()["choices"][0]["message"]["content"] == ""
    shape.learn({"choices": [{"index": 0, "message": {"role": "assistant", "content": empty}}]})
    assert put_together("chat", VLLM_CHUNKS[:1], shape).whole()["choices"][0]["message"]["content"] == empty


def test_a_later_answer_adds_to_a_shape():
    """A field that only some answers have stands where it stood, and is left out if it is not there."""
    shape = BodyShape("completions")
    for choice in (
        {"index": 0, "text": "a", "finish_reason": "stop"},
        {"index": 0, "new": 1, "text": "a", "finish_reason": "stop"},
    ):
        shape.learn({"choices": [choice]})
    assert list(shape.filled("choice", {"finish_reason": "stop", "text": "a", "new": 2, "index": 0})) == [
        "index", "new", "text", "finish_reason",
    ]  # fmt: skip
    assert list(shape.filled("choice", {"finish_reason": "stop", "text": "a", "index": 0})) == [
        "index",
        "text",
        "finish_reason",
    ]


def test_an_error_in_the_stream_is_kept():
    """An answer that broke off says what the engine reported, and has not ended."""
    answer = put_together(
        "completions", [{"choices": [{"index": 0, "text": "a"}]}, {"error": {"message": "out of memory"}}]
    )
    assert (answer.error, answer.ended) == ("out of memory", False)


parts_of_text = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6)


@given(
    parts_of_text,
    parts_of_text,
    st.lists(st.tuples(st.text(max_size=3), st.text(max_size=9)), max_size=3),
    st.data(),
)
def test_an_answer_is_the_same_however_it_was_split(texts, thoughts, calls, data):
    """Text, reasoning and calls that come in whatever parts are the whole ones in the end."""
    chunks = [chat_chunk({"role": "assistant", "content": ""})]
    chunks += [chat_chunk({"reasoning": each}) for each in thoughts]
    chunks += [chat_chunk({"content": each}) for each in texts]
    for at, (name, arguments) in enumerate(calls):
        cut = data.draw(st.integers(0, len(arguments)))
        first = {
            "index": at,
            "id": f"c{at}",
            "type": "function",
            "function": {"name": name, "arguments": arguments[:cut]},
        }
        chunks.append(chat_chunk({"tool_calls": [first]}))
        chunks.append(chat_chunk({"tool_calls": [{"index": at, "function": {"arguments": arguments[cut:]}}]}))
    chunks.append(chat_chunk({}, "stop"))
    message = put_together("chat", chunks).whole()["choices"][0]["message"]
    assert (message.get("content") or "", message.get("reasoning", "")) == ("".join(texts), "".join(thoughts))
    found = [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
    ]
    assert found == calls


@pytest.mark.parametrize(
    "ids", [[1 << 63], [10**30, 1], [True], [1.0]], ids=["64 bits", "huge", "bool", "float"]
)
def test_what_is_no_id_is_left_out(ids):
    """Numbers that cannot be token ids are no ids, in a request and in a chunk."""
    assert request_of("completions", json.dumps({"prompt": ids}).encode()).prompt_token_ids is None
    chunk = {"choices": [{"index": 0, "text": "a", "token_ids": ids, "prompt_token_ids": ids}]}
    for read in (pieces_of, chunk_pieces):
        (piece,) = read(json.dumps(chunk).encode())
        assert (piece.token_ids, piece.prompt_token_ids, piece.text) == (None, None, "a")


@pytest.mark.parametrize("value", [1, "true", "false", 0, {}])
def test_a_stream_in_other_words_stays_as_it_is(value):
    """If `stream` is not true or false, the engine decides what it means, and the request is not made a stream."""
    assert "stream" in request_of("chat", {"messages": [], "stream": value}).lacks


def test_only_what_whole_answers_have_is_put_together():
    """What only streams have, such as `obfuscation` or an empty field, is left out of the whole answer."""
    whole = {
        "id": "c",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    }
    shape = BodyShape("chat")
    shape.learn(whole)
    only = {"obfuscation": "xyz", "system_fingerprint": None, "usage": None}
    chunks = [
        chat_chunk({"role": "assistant", "content": ""}, "", **only),
        chat_chunk({"role": "", "content": "H"}, "", **only),
        chat_chunk({"role": None, "content": "i"}, "stop", **only),
    ]
    assert put_together("chat", chunks[:2], shape).ended is False
    answer = put_together("chat", chunks, shape)
    assert answer.missing() == set()
    assert json.loads(answer.body()) == whole


@pytest.mark.parametrize("place", ["top", "choice", "message", "usage"])
def test_what_a_stream_lacks_is_noticed(place):
    """A field of its own that an engine gives in every whole answer is missing if the stream does not have it."""
    whole = {
        "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1},
    }
    choice = whole["choices"][0]
    where = {"top": whole, "choice": choice, "message": choice["message"], "usage": whole["usage"]}[place]
    where["its_own"] = {"weight_version": "3"}
    shape = BodyShape("chat")
    shape.learn(whole)
    answer = put_together("chat", [chat_chunk({"content": "Hi"}, "stop", usage={"prompt_tokens": 1})], shape)
    assert answer.missing() == {"its_own"}
    del where["its_own"]
    shape.learn(whole)
    assert answer.missing() == set()


def test_the_lists_of_chunks_are_not_changed():
    """Putting an answer together leaves the chunks as they are: a watcher may hold them."""
    chunks = [
        chat_chunk({"content": "a"}),
        {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "a"}]}, "token_ids": [1]}]},
        {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "b"}]}, "token_ids": [2]}]},
    ]
    answer, pieces = Answer("chat"), [pieces_of(chunk)[0] for chunk in chunks]
    for piece in pieces:
        answer.add(piece)
    assert answer.whole()["choices"][0]["token_ids"] == [1, 2]
    assert [piece.token_ids for piece in pieces] == [None, [1], [2]]


# -- vLLM's /inference/v1/generate ---------------------------------------------------------------------------------------

TOKENS_WHOLE = {
    "request_id": "g", "model": "m", "created": 7,
    "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None, "completion_tokens_details": None},
    "prompt_logprobs": None, "prompt_token_id_logprobs": None, "prompt_token_ids": None, "mm_placeholders": None, "metrics": None,
    "kv_transfer_params": None, "ec_transfer_params": None, "output_mode": "tokens",
    "choices": [{
        "index": 0, "finish_reason": "length", "stop_reason": None, "token_ids": [5, 6], "routed_experts": None,
        "sampling_mask": [[5, 9], [6]], "weight_versions": [{"version": "3", "start": 0, "end": 2}],
        "logprobs": {"content": [
            {"token_id": 5, "logprob": -0.5, "rank": 1, "top_logprobs": []}, {"token_id": 6, "logprob": -0.25, "rank": 1, "top_logprobs": []},
        ]},
    }],
}  # fmt: skip


def tokens_chunks():
    """What vLLM 0.32 streams for `TOKENS_WHOLE`."""
    (whole,) = TOKENS_WHOLE["choices"]
    for at, reason in enumerate((None, "length")):
        choice = whole | {
            "finish_reason": reason,
            "token_ids": whole["token_ids"][at : at + 1],
            "sampling_mask": whole["sampling_mask"][at : at + 1],
            "weight_versions": whole["weight_versions"] if reason else None,
            "logprobs": {"content": whole["logprobs"]["content"][at : at + 1]},
        }
        yield {"request_id": "g", "usage": None, "output_mode": "tokens", "choices": [choice]}
    usage = {name: value for name, value in TOKENS_WHOLE["usage"].items() if value is not None}
    yield {"request_id": "g", "usage": usage, "output_mode": "tokens", "choices": []}


def test_an_answer_of_ids_is_put_together_to_the_byte():
    """Its chunks have neither the model nor the time: the one is that of the whole answers, the other when the engine was asked."""
    shape = BodyShape("generate")
    shape.learn(TOKENS_WHOLE | {"created": 3})
    answer = put_together("generate", tokens_chunks(), shape)
    assert answer.missing() == set()
    assert answer.body(created=7) == json.dumps(TOKENS_WHOLE, separators=(",", ":")).encode()


def test_an_answer_of_ids_from_an_older_vllm():
    """If whole answers have no model, time and usage, that which is put together has none."""
    old = {
        name: TOKENS_WHOLE[name]
        for name in ("request_id", "choices", "prompt_logprobs", "kv_transfer_params")
    }
    shape = BodyShape("generate")
    shape.learn(old)
    chunks = [{name: chunk[name] for name in ("request_id", "usage", "choices")} for chunk in tokens_chunks()]
    assert (
        put_together("generate", chunks, shape).body(created=7)
        == json.dumps(old, separators=(",", ":")).encode()
    )


@pytest.mark.parametrize("name", ["id", "created", "model"])
def test_a_stream_without_the_stamps_of_whole_answers_is_not_enough(name):
    """If chunks of a chat lack what says whose the whole answers are, nothing is made up."""
    shape = BodyShape("chat")
    shape.learn(VLLM_WHOLE)
    chunks = [{key: value for key, value in chunk.items() if key != name} for chunk in VLLM_CHUNKS]
    assert put_together("chat", VLLM_CHUNKS, shape).missing() == set()
    assert put_together("chat", chunks, shape).missing() == {name}


def test_a_usage_that_only_streams_have_is_left_out():
    """A stream is asked for its usage; the caller gets none if whole answers have none."""
    shape = BodyShape("chat")
    shape.learn(VLLM_WHOLE | {"usage": None})
    assert put_together("chat", VLLM_CHUNKS, shape).whole()["usage"] is None


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("choice", [[{"start_token": 0, "end_token": 1}], [{"start_token": 1, "end_token": 2}]]),
        ("choice", [[0.0], [0.0]]),
        ("choice", [{"ids": [1]}, {"ids": [1]}]),
        ("choice", ["a", "b"]),
        ("delta", [{"ids": [1]}, {"ids": [1]}]),
        ("delta", ["a", "b"]),
    ],
)
def test_a_field_in_parts_is_not_put_together(place, parts):
    """If an unknown field comes in several chunks, nobody knows whether its values add up, so the stream is not enough."""
    shape = BodyShape("chat")
    shape.learn(VLLM_WHOLE)
    chunks = json.loads(json.dumps(VLLM_CHUNKS))
    for at, part in zip((3, 4), parts, strict=True):
        (choice,) = chunks[at]["choices"]
        (choice if place == "choice" else choice["delta"])["policy_token_spans"] = part
    assert put_together("chat", chunks, shape).missing() == {"policy_token_spans"}
    (choice,) = chunks[3]["choices"]
    del (choice if place == "choice" else choice["delta"])["policy_token_spans"]
    assert put_together("chat", chunks, shape).missing() == set()
