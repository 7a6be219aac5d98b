"""Secrets in what comes from outside are masked and counted; what was sampled is not."""

import asyncio
import json
import re
from typing import get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import InputError, StreamEvent, StreamEventType
from rollcast.archive import Masker
from rollcast.records import PAYLOADS, Trajectory
from rollcast.records.codec import encode_described
from rollcast.records.secrets import _FIELDS, secret_values
from rollcast.testing import capture_events

T = StreamEventType

# Made up for this test; none is anybody's.
SECRETS = {
    "openai-key": "sk-" + "proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2",
    "anthropic-key": "sk-ant-" + "api03-" + "a1B2c3D4e5F6g7H8i9",
    "github-token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "gitlab-token": "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "huggingface-token": "hf_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4",
    "aws-key": "AKIA" + "Q1W2E3R4T5Y6U7I8",
    "google-key": "AIza" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R",
    "slack-token": "xoxb-" + "123456789012-abcdefABCDEF",
    "npm-token": "npm_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
}


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items())
def test_known_shapes_are_masked(kind, secret):
    """Wherever they stand in a text, and each is counted by its kind."""
    masker = Masker(environ={})
    assert masker.text(f"a {secret}, twice: {secret}.") == f"a [masked:{kind}], twice: [masked:{kind}]."
    assert masker.counts == {kind: 2}
    assert masker.text(json.dumps({"key": secret})) == json.dumps({"key": f"[masked:{kind}]"})


def test_shapes_with_their_surroundings():
    """Of a header and a URL the secret alone goes; of a private key everything, its end included or torn off."""
    masker = Masker(environ={})
    assert (
        masker.text("Authorization: Bearer a1B2c3D4e5F6g7H8i9 x")
        == "Authorization: Bearer [masked:bearer-token] x"
    )
    assert masker.text("https://me:hunter22@host/x") == "https://[masked:password-in-url]@host/x"
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"
    assert masker.text(f"x\n{key}\ny") == "x\n[masked:private-key]\ny"
    assert masker.text("x -----BEGIN PRIVATE KEY-----\nMIIEvQ") == "x [masked:private-key]"


@pytest.mark.parametrize(
    "text",
    [
        "ask-me-anything-about-the-weather-today",
        "sk-learn",
        "the word AKIA alone",
        "http://host:8080/path?at=me@there",
        "a bearer of bad news",
        "hf_hub_download",
        "eyJ",
        "an ordinary observation: 42",
    ],
)
def test_ordinary_text_is_left_alone(text):
    """What only resembles a secret stays, the very same object."""
    masker = Masker(environ={})
    assert masker.text(text) is text
    assert not masker.counts


def test_values_of_variables_that_look_secret_are_masked():
    """By the variable's name; short values, paths, numbers and common words are none."""
    environ = {
        "DB_PASSWORD": "correct horse",
        "API_KEY": "zzzz-yyyy-xxxx",
        "api_key_2": "zzzz-yyyy-xxxx-long",
        "TOKEN_FILE": "/run/secrets/token",
        "MAX_TOKENS": "10000000",
        "AUTH": "disabled",
        "SECRET": "short",
        "TOKENIZER": "some/tokenizer-v2",
        "GIT_AUTHOR_NAME": "Somebody Else",
        "HOME": "/home/somebody",
        "PLAIN": "nothing to see",
    }
    assert secret_values(environ) == ["zzzz-yyyy-xxxx-long", "zzzz-yyyy-xxxx", "correct horse"]
    masker = Masker(environ=environ)
    assert masker.text("correct horse zzzz-yyyy-xxxx-long nothing to see") == (
        "[masked:environment] [masked:environment] nothing to see"
    )
    assert masker.counts == {"environment": 2}


def test_patterns_and_functions_of_ones_own():
    """Both are counted; a pattern that is none is refused."""
    masker = Masker(
        ["ACME-[0-9]+", re.compile("(?i)project x")], [lambda text: text.replace("Bob", "…")], environ={}
    )
    assert masker.text("ACME-12 for Bob of Project X") == "[masked:pattern] for … of [masked:pattern]"
    assert masker.counts == {"pattern": 2, "function": 1}
    with pytest.raises(InputError, match="no regular expression"):
        Masker(["("])


def test_objects_of_somebodys_are_masked_as_they_are_written():
    """What JSON lacks is written in some form, and in that form it has no secret."""
    masker = Masker(environ={})
    assert masker.value((SECRETS["jwt"], {1: {SECRETS["jwt"]}})) == ["[masked:jwt]", {"1": ["[masked:jwt]"]}]


def test_what_nests_too_deeply_is_masked_as_it_is_written():
    """A relayed event may nest without end."""
    nested = SECRETS["jwt"]
    for _ in range(50_000):
        nested = [nested, SECRETS["jwt"]]
    event = StreamEvent(
        T.TOOL_CALL_START, "c", 1.0, {"call_id": "a", "tool_name": "t", "arguments": {"x": nested}}
    )
    masked = Masker(environ={}).event(event)
    text = encode_described(masked).decode()
    assert "[masked:jwt]" in text
    assert SECRETS["jwt"] not in text


def test_a_function_that_raises_hides_the_text():
    """What could not be looked at is not shown, and the record goes on."""
    masker = Masker(functions=[lambda text: 1 // 0], environ={})
    assert masker.text("who knows") == "[masked: a function of secrets raised ZeroDivisionError]"
    assert masker.counts == {"function": 1}


@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_a_value_without_secrets_is_the_same_object(value):
    """Nothing is copied that need not be."""
    assert Masker(environ={}).value(value) is value


SECRET = SECRETS["openai-key"]
MASKED = "[masked:openai-key]"


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (T.TOOL_CALL_START, {"arguments": {"key": SECRET}}, {"arguments": {"key": MASKED}}),
        (T.TOOL_CALL_START, {"arguments": f"raw {SECRET}"}, {"arguments": f"raw {MASKED}"}),
        (T.TOOL_OBSERVATION, {"observation": SECRET}, {"observation": MASKED}),
        (T.ERROR, {"error": f"401: {SECRET}"}, {"error": f"401: {MASKED}"}),
        (T.CHAIN_START, {"messages": [{"role": "system", "content": SECRET}]}, {"messages": [{"role": "system", "content": MASKED}]}),
        (T.CHAIN_START, {"messages": [{"role": "assistant", "content": SECRET}]}, None),
        (T.CHAIN_START, {"reference": SECRET, "row": {"a": [SECRET]}}, {"reference": MASKED, "row": {"a": [MASKED]}}),
        (T.CHAIN_START, {"messages": [{"role": "assistant", "content": SECRET, "tool_calls": [{"arguments": SECRET}]}]},
         {"messages": [{"role": "assistant", "content": SECRET, "tool_calls": [{"arguments": MASKED}]}]}),
        (T.CHAIN_SNAPSHOT, {"unlisted_messages": [{"at": 1, "message": {"role": "tool", "content": SECRET}}]},
         {"unlisted_messages": [{"at": 1, "message": {"role": "tool", "content": MASKED}}]}),
        (T.CHAIN_SNAPSHOT, {"unlisted_messages": [{"at": 1, "message": {"role": "assistant", "content": SECRET}}]}, None),
        (T.RUN_START, {"settings": {"url": f"https://x?key={SECRET}"}}, {"settings": {"url": f"https://x?key={MASKED}"}}),
        (T.REWARD, {"reward": 1.0, "metrics": {"said": SECRET}}, {"reward": 1.0, "metrics": {"said": MASKED}}),
        (T.RUN_START, {"settings": {"key": SECRET}, "tools": [{"default": SECRET}]}, {"settings": {"key": MASKED}, "tools": [{"default": MASKED}]}),
        (T.MESSAGE, {"role": "user", "content": f"use {SECRET}"}, {"role": "user", "content": f"use {MASKED}"}),
        (T.LLM_GENERATION_END, {"content": SECRET}, None),
        (T.LLM_GENERATION_CHUNK, {"content": SECRET}, None),
        (T.CHAIN_END, {"final_response": SECRET}, None),
        (StreamEventType.of("later"), {"anything": [SECRET]}, {"anything": [MASKED]}),
    ],
)  # fmt: skip
def test_events_are_masked_where_text_comes_from_outside(kind, data, expected):
    """Not where it was sampled; of a type that nobody knows, everywhere."""
    event = StreamEvent(kind, "c", 1.0, data)
    masked = Masker(environ={}).event(event)
    if expected is None:
        assert masked is event
    else:
        assert masked.data == expected
        assert event.data == data


# What no text from outside stands in: what was sampled, names that Rollcast gives, numbers, words of a fixed set.
NOT_FROM_OUTSIDE = {
    "advantage", "agent", "arguments_omitted", "as_of", "at", "attempt", "backend", "call_id", "calls_omitted", "calls_started_at",
    "chain_id", "chains", "completion_tokens", "content", "content_omitted", "depth", "dropped", "dt_ms", "duration_s", "ended_at",
    "errors", "error_type", "failed", "final", "final_response", "final_response_omitted", "finish_reason", "first_token_s",
    "from_seq", "gaps", "generation_step", "generation_tokens", "generations", "group_id", "groups", "index", "joined_late",
    "last_event_at", "leader", "lengths", "logprobs", "mean_reward", "messages_omitted", "offset", "parent_chain_id", "parent_run_id", "partial",
    "policy_version", "prompt_hash", "prompt_length", "prompt_tokens", "reason", "reasoning", "reasoning_omitted", "reward",
    "role", "run_id", "run_status", "seed", "since", "source", "split", "staleness", "started_at", "state", "status", "step", "steps",
    "times", "to_seq", "token_ids", "tool_name", "tool_use", "tools", "train_step", "truncated", "ttft_s", "where",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(T))
def test_each_field_of_an_event_is_masked_or_holds_nothing_from_outside(kind):
    """Whoever adds a field to an event decides which of both it is: in `records/secrets.py`, or here."""
    fields = get_type_hints(PAYLOADS[kind]).keys()
    assert fields - set(_FIELDS.get(kind, ())) <= NOT_FROM_OUTSIDE


async def test_a_record_has_no_secrets_from_outside(stage):
    """Neither in its events nor in rows nor in trajectories; how many there were stands in `run.json`."""
    stage.observe(masker=Masker(environ={}))
    async with stage.manager.run() as run:
        with run.chain([{"role": "user", "content": f"use {SECRET}"}], row={"key": SECRET}) as chain:
            with chain.generation(prompt_ids=[1]) as generation:
                generation.chunk(f"I use {SECRET}", [2], [-0.5])
            with chain.tool_call("get", {"key": SECRET}) as call:
                call.observation(f"refused {SECRET}")
            with chain.generation(prompt_ids=[1]) as generation:
                generation.chunk("no", [2], [-0.5])
    archive = await stage.close()
    text = b"".join(
        line + b"\n"
        for e in archive.events()
        if not e.event_type.value.startswith("llm_generation")
        for line in [json.dumps(e.to_dict()).encode()]
    )
    assert SECRET.encode() not in text + (stage.path / "chains.jsonl").read_bytes()
    trajectory = archive.trajectory("chain_0")
    assert trajectory.row == {"key": MASKED}
    assert trajectory.tool_calls[0].observation == f"refused {MASKED}"
    assert trajectory.turns[0].text == f"I use {SECRET}"
    assert archive.facts.totals.masked == {"openai-key": archive.facts.totals.masked["openai-key"]}
    assert archive.facts.totals.masked["openai-key"] >= 5


async def test_what_is_named_like_a_secret_is_not_recorded(stage):
    """In arguments and rows, in events, snapshots and trajectories; the tool gets what the model asked for."""
    stage.observe(masker=Masker(environ={}))
    arguments = {"user": SECRET, "password": "correct horse", "deep": {"api_key": "staple battery"}}
    async with stage.manager.run() as run:
        with run.chain([{"role": "user", "content": "q"}], row={"token": "hunter22hunter"}) as chain:
            with chain.generation():
                pass
            with chain.tool_call("login", arguments) as call:
                assert call.record.call.arguments == arguments
                with capture_events(stage.manager) as early:
                    call.observation("in")
                await stage.recorded()
                await asyncio.to_thread(stage.observer._recorder.beat)
                opened = (stage.path / "open.jsonl").read_bytes()
            with capture_events(stage.manager) as late:
                chain.end("answered")
    archive = await stage.close()
    assert late.events[0].event_type == "chain_snapshot"
    recorded = [*archive.events(), archive.trajectory("chain_0").to_dict()]
    recorded_text = opened + b"".join(map(msgspec.json.encode, recorded))
    text = recorded_text + b"".join(map(msgspec.json.encode, [*early.events, *late.events]))
    assert opened.count(b"[masked:name]") == 2
    assert SECRET.encode() not in recorded_text
    for secret in (b"correct horse", b"staple battery", b"hunter22hunter"):
        assert secret not in text


async def test_the_hash_of_a_masked_prompt_is_that_of_what_was_asked(stage):
    """So that the same question has the same hash wherever it is masked."""
    from rollcast.archive.format import prompt_hash

    asked = [{"role": "user", "content": f"use {SECRET}"}]
    stage.observe(masker=Masker(environ={}))
    async with stage.manager.run() as run:
        run.chain(asked).start().end("answered")
    archive = await stage.close()
    assert archive.chain("chain_0")["prompt_hash"] == prompt_hash(asked)


def test_masking_a_trajectory_leaves_what_was_sampled():
    """The assistant's messages stay."""
    value = Trajectory("r", "c", None, messages=[{"role": "assistant", "content": SECRET}]).to_dict()
    Masker(environ={}).trajectory(value)
    assert value["messages"][0]["content"] == SECRET


@given(
    st.text(), st.sampled_from([*SECRETS.values(), 'pass"word\\ä\n', "https://me:hunter22@host"]), st.text()
)
def test_the_quick_look_misses_nothing(before, secret, after):
    """What is masked in a text is noticed in its JSON, whatever stands around it and however it is escaped."""
    masker = Masker(environ={"MY_SECRET": 'pass"word\\ä\n'})
    text = before + secret + after
    if masker.text(text) != text:
        assert masker.may_hold(msgspec.json.encode({"observation": text}))
    assert not masker.may_hold(b'{"observation":"an ordinary one"}')


@pytest.mark.parametrize("secret", SECRETS.values())
def test_every_known_shape_is_noticed(secret):
    """By the quick look too."""
    assert Masker(environ={}).may_hold(secret.encode())
