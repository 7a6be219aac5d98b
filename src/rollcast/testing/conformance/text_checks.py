"""Checks of a generation's deltas: text, ids, reasons, and where it stops."""

from __future__ import annotations

from typing import Any

from rollcast.models.backend import Backend
from rollcast.testing.conformance.bench import Bench, Generated
from rollcast.testing.conformance.check import Check, check
from rollcast.testing.conformance.subject import NotApplicable

__all__ = ["TEXT_CHECKS"]

LOST = "\ufffd"


async def _varied(bench: Bench) -> list[Generated]:
    """Generations of several kinds: greedy, at temperature 1, and hot, which sample any token."""
    seeded: list[dict[str, Any]] = [
        {"temperature": t, "seed": i} for t in (1.0, bench.subject.hot) for i in range(12)
    ]
    requests = [bench.request(max_tokens=64, temperature=0.0)]
    requests += [bench.request(bench.prompt(i), max_tokens=64, **each) for i, each in enumerate(seeded)]
    return await bench.together(requests)


@check()
async def it_says_what_it_is(bench: Bench) -> None:
    """It has the protocol's attributes and methods, and they agree: ids come with a renderer, log-probabilities with ids."""
    backend = bench.backend
    assert isinstance(backend, Backend), (
        f"{type(backend).__name__} lacks a part of rollcast.models.Backend; derive from BaseBackend"
    )
    for name in ("name", "model_name"):
        said = getattr(backend, name)
        assert isinstance(said, str), f"{name} is {said!r}; expected a string"
        assert said, f"{name} is empty; expected what a run's events call it"
    assert backend.policy_version == 0, (
        f"policy_version of a new backend is {backend.policy_version!r}; expected 0"
    )
    assert (backend.renderer is not None) == backend.token_exact, (
        f"token_exact is {backend.token_exact} and renderer {backend.renderer!r}; expected a renderer if it is exact"
    )
    assert backend.token_exact or not backend.logprobs, (
        "it has log-probabilities without ids; expected token_exact"
    )


@check()
async def the_last_delta_has_the_reason(bench: Bench) -> None:
    """The last delta of a generation has a finish reason, `stop` or `length`, and no other has one."""
    for got in await _varied(bench):
        assert got.deltas, f"{got} gave no delta; expected at least one, with the finish reason"
        reasons = [delta.finish_reason for delta in got.deltas]
        assert reasons[-1] in {"stop", "length"}, (
            f"{got} ended with finish reason {reasons[-1]!r}; expected 'stop' or 'length'"
        )
        assert not any(reasons[:-1]), f"{got} has finish reasons {reasons}; expected one, on the last delta"
        assert all(isinstance(delta.text, str) for delta in got.deltas), (
            f"{got} has a text that is not a string"
        )


@check("streams")
async def text_comes_in_pieces(bench: Bench) -> None:
    """A generation of several tokens comes in more than one delta."""
    got = max(await _varied(bench), key=lambda got: len(got.deltas))
    assert len(got.deltas) > 1, (
        f"no generation came in more than one delta; expected several, or streams = False ({got})"
    )


@check("ids")
async def ids_and_logprobs_align(bench: Bench) -> None:
    """Every id is a plain int of the vocabulary and has one plain, finite log-probability."""
    vocabulary = bench.subject.vocabulary
    for got in await _varied(bench):
        for delta in got.deltas:
            ids, logprobs = delta.token_ids, delta.logprobs
            assert ids is not None or not delta.text, f"{got} gave the text {delta.text!r} without ids"
            if bench.has("logprobs"):
                assert len(logprobs or ()) == len(ids or ()), (
                    f"{got} gave {len(ids or ())} ids with {len(logprobs or ())} log-probabilities in one delta; "
                    "expected one each"
                )
            for token in ids or ():
                known = type(token) is int and 0 <= token < (vocabulary or token + 1)
                assert known, (
                    f"{got} gave the id {token!r}; expected an int from 0 to {(vocabulary or 0) - 1}"
                )
            for value in logprobs or ():
                fine = type(value) is float and float("-inf") < value <= bench.subject.tolerance
                assert fine, f"{got} gave the log-probability {value!r}; expected a finite float of at most 0"


@check("ids", "decode")
async def deltas_join_to_the_text(bench: Bench) -> None:
    """The deltas' texts join to what the ids decode to, without the stop token."""
    for got in await _varied(bench):
        expected = await _decoded(bench, got)
        # A character that was cut off by the end may be left out.
        assert got.text == expected or (expected.endswith(LOST) and got.text == expected.rstrip(LOST)), (
            f"{got} has the text {got.text!r}; expected what its ids decode to, {expected!r}"
        )


@check("ids", "decode", "sampling", "vocabulary")
async def characters_are_whole(bench: Bench) -> None:
    """A character that is split over tokens comes whole, never as U+FFFD; only the end may cut one."""
    decode = bench.subject.decode
    assert decode is not None
    split = 0
    for batch in range(4):
        requests = [
            bench.request(bench.prompt(i), max_tokens=48, temperature=bench.subject.hot, seed=i)
            for i in range(batch * 32, batch * 32 + 32)
        ]
        for got in await bench.together(requests):
            expected = await _decoded(bench, got)
            assert expected.startswith(got.text.rstrip(LOST)), (
                f"{got} has the text {got.text!r}; expected {expected!r}, which its ids decode to"
            )
            said, ids = "", list[int]()
            for delta in got.deltas:
                said += delta.text
                ids += delta.token_ids or ()
                assert expected.startswith(said), (
                    f"{got} said {said!r} after {len(ids)} tokens; expected the beginning of {expected!r}: a character "
                    "waits until its last token is there"
                )
                partial = decode(ids)
                split += partial.endswith(LOST) and not expected.startswith(partial)
        if split:
            return
    raise NotApplicable("no sampled text had a character that is split over tokens")


@check("ids", "decode", "sampling", "seed", "vocabulary", "max_tokens")
async def a_cut_character_is_told(bench: Bench) -> None:
    """If `max_tokens` cuts a character, the reason is `length`, and the text ends before it or with U+FFFD."""
    decode, found = bench.subject.decode, 0
    assert decode is not None
    for number in range(32):
        whole = await bench.generate(
            bench.prompt(number), max_tokens=24, temperature=bench.subject.hot, seed=number
        )
        ids = whole.ids
        for count in range(1, len(ids)):
            ends_inside = decode(ids[:count]).endswith(LOST) and not decode(ids).startswith(
                decode(ids[:count])
            )
            if not ends_inside:
                continue
            found += 1
            got = await bench.generate(
                bench.prompt(number), max_tokens=count, temperature=bench.subject.hot, seed=number
            )
            assert (got.reason, got.ids) == ("length", ids[:count]), (
                f"{got} ended with {got.reason!r} after ids {got.ids}; expected 'length' after {ids[:count]}"
            )
            expected = decode(ids[:count])
            assert got.text in {expected, expected.rstrip(LOST)}, (
                f"{got} was cut inside a character and gave {got.text!r}; expected {expected!r}, with or without the "
                "U+FFFD at its end"
            )
        if found >= 3:
            return
    if not found:
        raise NotApplicable("no sampled text had a character that is split over tokens")


@check("ids", "stop_ids")
async def a_stop_token_ends_the_turn(bench: Bench) -> None:
    """The stop token is the last id, has no text, and the reason is `stop`; no other id is one."""
    stops = bench.subject.stop_ids
    everything = [await bench.generate(max_tokens=128, temperature=0.0), *await _varied(bench)]
    for got in everything:
        assert stops.isdisjoint(got.ids[:-1]), f"{got} went on after a stop token: its ids are {got.ids}"
        assert got.reason != "stop" or stops.intersection(got.ids[-1:]), (
            f"{got} ended with 'stop' and id {got.ids[-1:]}; expected the stop token as the last id, one of {set(stops)}"
        )
    ended = [got for got in everything if stops.intersection(got.ids[-1:])]
    for got in ended:
        assert got.reason == "stop", f"{got} ended with a stop token and {got.reason!r}; expected 'stop'"
        last = got.deltas[-1]
        assert len(last.token_ids or ()) > 1 or not last.text.strip(LOST), (
            f"{got} gave the text {last.text!r} with the stop token; expected none"
        )
    if not ended:
        raise NotApplicable("no sampled turn ended with a stop token")


@check("max_tokens")
async def max_tokens_ends_with_length(bench: Bench) -> None:
    """A generation has at most `max_tokens` tokens, and the reason is `length` if there would be more."""
    (prompt,) = await bench.long_prompts(1)
    for count in (1, 2, 7, 33):
        got = await bench.generate(prompt, max_tokens=count, temperature=0.0)
        assert got.reason == "length", f"{got} ended with {got.reason!r}; expected 'length'"
        if bench.has("ids"):
            assert len(got.ids) == count, f"{got} gave {len(got.ids)} ids; expected {count}"


@check("stop_strings")
async def a_stop_string_ends_the_text(bench: Bench) -> None:
    """The text ends after the first stop string, also if it spans tokens, and the reason is `stop`."""
    (prompt,) = await bench.long_prompts(1)
    free = await bench.generate(prompt, max_tokens=64, temperature=0.0)
    for stop in _stop_strings(free):
        got = await bench.generate(prompt, max_tokens=64, temperature=0.0, stop=("\0 never said", stop))
        expected = free.text[: free.text.index(stop) + len(stop)]
        assert got.text == expected, f"{got} has the text {got.text!r}; expected {expected!r}"
        assert got.reason == "stop", f"{got} ended with {got.reason!r} at a stop string; expected 'stop'"
        assert got.ids == free.ids[: len(got.ids)], (
            f"{got} has the ids {got.ids}; expected the first of {free.ids}: stop strings change no sampling"
        )
        if bench.has("ids", "decode"):
            assert bench.subject.decode is not None
            before = bench.subject.decode(got.ids[:-1])
            assert stop not in before, (
                f"{got} went on after the stop string: all but its last id say {before!r}"
            )
    never = await bench.generate(prompt, max_tokens=64, temperature=0.0, stop=("\0 never said",))
    assert (never.text, never.reason) == (free.text, free.reason), (
        f"{never} has another text with a stop string that is never said; expected the same"
    )


def _stop_strings(got: Generated) -> list[str]:
    """The text of one, two and three deltas that others follow, whole and without the characters at its ends."""
    pieces = [delta.text for delta in got.deltas]
    found = []
    for count in (1, 2, 3):
        places = [i for i in range(4, len(pieces)) if all(pieces[i : i + count]) and any(pieces[i + count :])]
        if places:
            said = "".join(pieces[places[-1] : places[-1] + count])
            found += [said, said[1:-1]] if len(said) > 2 else [said]
    if not found:
        raise NotApplicable("no generation is long enough to be stopped inside")
    return found


async def _decoded(bench: Bench, got: Generated) -> str:
    """Decode a generation's ids, without the stop token."""
    decode, ids = bench.subject.decode, got.ids
    assert decode is not None
    if got.reason == "stop" and ids and ids[-1] in bench.subject.stop_ids:
        ids = ids[:-1]
    return decode(ids)


TEXT_CHECKS: tuple[Check, ...] = (
    it_says_what_it_is,
    the_last_delta_has_the_reason,
    text_comes_in_pieces,
    ids_and_logprobs_align,
    deltas_join_to_the_text,
    characters_are_whole,
    a_cut_character_is_told,
    a_stop_token_ends_the_turn,
    max_tokens_ends_with_length,
    a_stop_string_ends_the_text,
)
