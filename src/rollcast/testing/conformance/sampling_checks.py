"""Checks of sampling: log-probabilities, greedy, seeds, frequencies, and many requests at once."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np

from rollcast.models.backend import GenerationRequest
from rollcast.testing.conformance.bench import Bench, Generated
from rollcast.testing.conformance.check import Check, check
from rollcast.testing.conformance.distribution import chi_square_excess, sampled_distributions

__all__ = ["SAMPLING_CHECKS"]

NARROWED: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
    {"temperature": 0.7},
    {"top_p": 0.8},
    {"top_k": 5},
    {"temperature": 1.5, "top_p": 0.95, "top_k": 50},
)


@check("ids", "logprobs", "reference")
async def logprobs_match_one_forward_pass(bench: Bench) -> None:
    """At temperature 1 the log-probabilities are those of one forward pass over prompt and completion."""
    requests = [bench.request(seed=seed, max_tokens=64) for seed in range(4)]
    requests += [bench.request(bench.prompt(seed), seed=seed, max_tokens=64) for seed in range(4)]
    for got in await bench.together(requests):
        await bench.check_logprobs(got)


@check("ids", "logprobs", "reference", "sampling")
async def logprobs_are_of_what_was_sampled_from(bench: Bench) -> None:
    """With a temperature, top-k and top-p the log-probabilities are of the distribution that they leave."""
    for sampling in NARROWED:
        requests = [
            bench.request(prompt, seed=seed, max_tokens=48, **sampling)
            for seed in range(3)
            for prompt in (None, bench.prompt(seed))
        ]
        for got in await bench.together(requests):
            await bench.check_logprobs(got)


@check("ids", "reference", "sampling")
async def greedy_takes_the_most_probable(bench: Bench) -> None:
    """Temperature 0 takes the reference's most probable token every time."""
    requests = [bench.request(prompt, temperature=0.0) for prompt in (None, *map(bench.prompt, range(6)))]
    for got in await bench.together(requests):
        await _check_greedy(bench, got)
        if bench.has("logprobs"):
            await bench.check_logprobs(got)


@check("ids", "reference", "sampling")
async def a_choice_of_one_is_greedy(bench: Bench) -> None:
    """`top_k` 1 and a tiny `top_p` leave the most probable token, at any temperature."""
    for one in ({"top_k": 1}, {"top_p": 1e-6}, {"top_k": 1, "temperature": min(3.0, bench.subject.hot)}):
        requests = [
            bench.request(prompt, seed=5, **one) for prompt in (None, bench.prompt(0), bench.prompt(1))
        ]
        for got in await bench.together(requests):
            await _check_greedy(bench, got)


async def _check_greedy(bench: Bench, got: Generated) -> None:
    prompt, ids = got.request.prompt_ids, got.ids
    assert prompt is not None
    logprobs = (await bench.reference([*prompt, *ids[:-1]]))[len(prompt) - 1 :]
    for i, token in enumerate(ids):
        best = int(logprobs[i].argmax())
        near = logprobs[i][token] >= logprobs[i][best] - 2 * bench.subject.tolerance
        assert near, f"{got} sampled id {token} as token {i}; expected the most probable one, {best}"


@check("seed")
async def a_seed_repeats(bench: Bench) -> None:
    """The same seed gives the same generation again, even a seed of 63 bits."""
    for seed in (0, 1, 2, 2**63 - 1):
        first, again = [await bench.generate(bench.prompt(0), seed=seed, temperature=1.3) for _ in range(2)]
        assert (first.text, first.ids) == (again.text, again.ids), (
            f"{again} gave ids {again.ids} and text {again.text!r}; expected {first.ids} and {first.text!r} again"
        )


@check("sampling")
async def seeds_differ(bench: Bench) -> None:
    """Other seeds give other generations, even if only their high bits differ, and so does no seed."""
    for seeds in (list(range(8)), [7 + (i << 56) for i in range(8)], [None] * 8):
        got = await bench.together(
            [bench.request(bench.prompt(0), seed=seed, temperature=1.5) for seed in seeds]
        )
        texts = {(one.text, tuple(one.ids)) for one in got}
        assert len(texts) > 1, f"8 generations with seeds {seeds} are all {got[0].text!r}; expected others"


@check("ids", "logprobs", "reference", "sampling", "seed", "vocabulary")
async def parameters_stay_with_their_request(bench: Bench) -> None:
    """Requests with other parameters in the same batch change nothing: each is sampled with its own."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {},
        *NARROWED,
        {"temperature": 0.0, "max_tokens": 5},
        {"top_k": 2**70},  # keeps all, and does not fit into a machine's integers
    ]
    requests = [
        bench.request(bench.prompt(i), **{"max_tokens": 24 + i % 5, **kinds[i % len(kinds)]}, seed=i)
        for i in range(3 * len(kinds))
    ]
    for got in await bench.together(requests):
        await bench.check_logprobs(got)
        if got.request.sampling.temperature == 0:
            await _check_greedy(bench, got)
        limit = got.request.sampling.max_tokens
        assert len(got.ids) <= limit, f"{got} has {len(got.ids)} tokens; expected at most {limit}"


@check("ids", "reference", "sampling", "vocabulary")
async def frequencies_match_the_distribution(bench: Bench) -> None:
    """Over many seeds the first token is as frequent as the reference says, by a chi-square test at one in a million."""
    prompts = [prompt for prompt in map(bench.prompt, range(32)) if prompt is not None]
    last = [(await bench.reference(prompt))[-1] for prompt in prompts]
    spread = [-(np.exp(each) * each).sum() for each in last]
    chosen = int(np.argmin(np.abs(np.array(spread) - 2.0)))
    for sampling in ({}, {"temperature": 2.0}, NARROWED[0]):
        requests = [
            bench.request(prompts[chosen], max_tokens=1, seed=seed, **sampling) for seed in range(512)
        ]
        counts = np.zeros(len(last[chosen]))
        for got in await bench.together(requests):
            counts[got.ids[0]] += 1
        allowed = sampled_distributions(last[chosen], requests[0].sampling, bench.subject.tolerance)
        excess = min(chi_square_excess(counts, np.exp(each)) for each in allowed)
        assert excess <= 1, (
            f"512 first tokens with {requests[0].sampling} are not distributed as the reference says: their chi-square "
            f"statistic is {excess:.2f} times what happens by chance once in a million; the most frequent id is "
            f"{counts.argmax()}, {counts.max():.0f} times"
        )


@check()
async def many_at_once_get_their_own(bench: Bench) -> None:
    """Requests that join and leave at any time get the same as alone, and the backend only reads them."""
    draw = random.Random(11)
    requests = [_drawn(bench, draw, number) for number in range(bench.subject.concurrency)]
    leavers = {request.request_id: draw.randrange(1, 20) for request in requests[::5]}
    got = [Generated(request) for request in requests]
    prompts = [None if request.prompt_ids is None else list(request.prompt_ids) for request in requests]
    await _all_at_once(bench, got, leavers, draw)
    assert [request.prompt_ids for request in requests] == prompts, (
        "the backend changed the prompt_ids of a request; expected it to read them only"
    )
    for one in got:
        assert one.error is None, f"{one} raised {one.error!r}; expected deltas"
        if one.request.request_id not in leavers:
            assert one.reason in {"stop", "length"}, (
                f"{one} ended with {one.reason!r}; expected 'stop' or 'length'"
            )
        if bench.has("ids", "logprobs", "reference"):
            await bench.check_logprobs(one)
    if bench.has("deterministic", "seed"):
        for one in got[:16]:
            await _check_alone(bench, one)


async def _check_alone(bench: Bench, one: Generated) -> None:
    """Compare a generation in a batch with the same one alone; it may have been left early."""
    alone = await bench.read(Generated(one.request))
    count = len(one.ids)
    assert one.ids == alone.ids[:count], (
        f"{one} gave ids {one.ids} among others; expected {alone.ids[:count]}"
    )
    assert one.logprobs == alone.logprobs[:count], (
        f"{one} gave other log-probabilities among others than alone; expected the same to the bit"
    )
    whole = (
        "".join(delta.text for delta in alone.deltas[: len(one.deltas)]) if one.reason is None else alone.text
    )
    assert one.text == whole, f"{one} gave {one.text!r} among others; expected {whole!r}"


def _drawn(bench: Bench, draw: random.Random, number: int) -> GenerationRequest:
    sampling: dict[str, Any] = dict(draw.choice([{}, {"temperature": 0.0}, *NARROWED]))
    if not bench.has("sampling"):
        sampling = {}
    prompt = bench.prompt(number, draw.randrange(1, 40))
    return bench.request(prompt, max_tokens=draw.randrange(1, 64), seed=number, **sampling)


async def _all_at_once(
    bench: Bench, got: list[Generated], leavers: dict[str, int], draw: random.Random
) -> None:
    """Begin each request when the others have got some tokens; close the leavers after theirs."""
    waits = [draw.randrange(0, 200) if i else 0 for i in range(len(got))]

    def arrived() -> int:
        return sum(len(one.deltas) for one in got)

    async def one(generated: Generated, wait: int) -> None:
        # It begins at the latest when all that began have ended.
        while arrived() < wait and not all(other.ended for other in started):
            # A busy wait would take the interpreter from an engine in this process.
            await asyncio.sleep(0.005)
        started.append(generated)
        await bench.read(generated, leave_after=leavers.get(generated.request.request_id))

    started: list[Generated] = []
    async with asyncio.TaskGroup() as group:
        for generated, wait in zip(got, waits, strict=True):
            group.create_task(one(generated, wait))


SAMPLING_CHECKS: tuple[Check, ...] = (
    logprobs_match_one_forward_pass,
    logprobs_are_of_what_was_sampled_from,
    greedy_takes_the_most_probable,
    a_choice_of_one_is_greedy,
    a_seed_repeats,
    seeds_differ,
    parameters_stay_with_their_request,
    frequencies_match_the_distribution,
    many_at_once_get_their_own,
)
