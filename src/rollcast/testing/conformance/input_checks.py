"""Checks of what a backend is given: prompts that do not fit or are not for this model, and new weights."""

from __future__ import annotations

import asyncio
from typing import cast

from rollcast.errors import InputError, PromptTooLongError
from rollcast.testing.conformance.bench import Bench, Generated
from rollcast.testing.conformance.check import Check, check

__all__ = ["INPUT_CHECKS"]

Prompt = list[int] | None


async def _refused(bench: Bench, prompt: list[int], kind: type[Exception], what: str) -> None:
    got = await bench.read(Generated(bench.request(prompt, max_tokens=4)))
    assert isinstance(got.error, kind), (
        f"a prompt {what} gave {got.error!r} and {len(got.deltas)} deltas; expected {kind.__name__}"
    )
    assert str(got.error).strip(), (
        f"the {kind.__name__} for a prompt {what} says nothing; expected a sentence"
    )
    await bench.generate(max_tokens=4)


@check("ids", "context", "vocabulary")
async def a_long_prompt_is_refused(bench: Bench) -> None:
    """A prompt that leaves no room for a token raises PromptTooLongError; later requests work."""
    context = bench.subject.context
    assert context is not None
    for length in (context, context + 1, 4 * context):
        prompt = bench.prompt(0, length)
        assert prompt is not None
        await _refused(bench, prompt, PromptTooLongError, f"of {length} tokens for a context of {context}")


@check("ids", "context", "vocabulary")
async def the_longest_prompt_works(bench: Bench) -> None:
    """A prompt that leaves room for one token gives one, and one that leaves some gives no more than fit."""
    context = bench.subject.context
    assert context is not None
    for room in (1, 5):
        got = await bench.generate(bench.prompt(1, context - room), max_tokens=room + 20, seed=1)
        assert 1 <= len(got.ids) <= room, (
            f"a prompt of {context - room} tokens in a context of {context} gave {len(got.ids)} tokens; expected 1 to {room}"
        )
        assert got.reason == "length" or len(got.ids) < room or got.ids[-1] in bench.subject.stop_ids, (
            f"{got} ended with {got.reason!r} at the end of the context; expected 'length'"
        )
        if bench.has("logprobs", "reference"):
            await bench.check_logprobs(got)


@check("ids", "input_checks")
async def an_empty_prompt_is_refused(bench: Bench) -> None:
    """An empty prompt raises InputError; later requests work."""
    await _refused(bench, [], InputError, "without tokens")


@check("ids", "input_checks", "vocabulary")
async def unknown_ids_are_refused(bench: Bench) -> None:
    """An id outside the vocabulary raises InputError; later requests work."""
    vocabulary = bench.subject.vocabulary
    assert vocabulary is not None
    for wrong in (-1, vocabulary, 2**40, 1.5):
        await _refused(bench, [1, cast("int", wrong), 2], InputError, f"with id {wrong} of {vocabulary}")


@check("new_weights", "ids", "max_tokens", "streams", fresh=True)
async def new_weights_sample(bench: Bench) -> None:
    """After `update_weights`, under load, each new token carries the version and is sampled from the new weights."""
    prompts = await bench.long_prompts(4)
    probes = [*prompts, None, *map(bench.prompt, range(4))]
    for got in await bench.together([bench.request(prompt, seed=1) for prompt in probes]):
        await _check_version(bench, got, version=0, weights=0)
    version = 0

    async def attempt() -> bool:
        nonlocal version
        version += 1
        return await _update_under_load(bench, prompts, probes, version)

    await bench.in_time(
        attempt, "no generation ran on after update_weights had returned and carried the new version"
    )


async def _update_under_load(bench: Bench, prompts: list[Prompt], probes: list[Prompt], version: int) -> bool:
    """Update while generations run; return whether one that ran before ended with the new version."""
    tokens = bench.subject.long_tokens
    running = [
        Generated(bench.request(prompt, temperature=float(i % 2), max_tokens=tokens, seed=i))
        for i, prompt in enumerate(prompts)
    ]
    tasks = [asyncio.create_task(bench.read(one)) for one in running]
    try:
        await bench.until(lambda: all(one.deltas for one in running), "running generations gave no deltas")
        await bench.backend.update_weights(bench.subject.new_weights, version)
        assert bench.backend.policy_version == version, (
            f"policy_version is {bench.backend.policy_version} after update_weights(…, {version}); expected {version}"
        )
        # The same prompts as before: what the backend remembers of them was computed by the old weights.
        for got in await bench.together([bench.request(prompt, seed=1) for prompt in probes]):
            await _check_version(bench, got, version, weights=1)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for one in running:
        assert one.error is None, f"{one} raised {one.error!r} because the weights changed under it"
        versions = one.versions
        rise = set(versions) <= {version - 1, version} and versions == sorted(versions, key=lambda v: v or 0)
        assert rise, f"{one} has the versions {versions}; expected {version - 1}, then {version}"
    return any(one.versions[0] == version - 1 and one.versions[-1] == version for one in running)


async def _check_version(bench: Bench, got: Generated, version: int, weights: int) -> None:
    assert set(got.versions) == {version}, (
        f"{got} has the versions {sorted(set(got.versions), key=str)}; expected {version} on every token"
    )
    if bench.has("logprobs", "reference"):
        await bench.check_logprobs(got, weights)


@check("wrong_weights", fresh=True)
async def wrong_weights_change_nothing(bench: Bench) -> None:
    """Weights that do not fit are refused with InputError, and the old ones go on."""
    problem: Exception | None = None
    try:
        await bench.backend.update_weights(bench.subject.wrong_weights, 5)
    except Exception as error:  # noqa: BLE001  (the check looks at its type)
        problem = error
    assert isinstance(problem, InputError), f"wrong weights gave {problem!r}; expected InputError"
    assert bench.backend.policy_version == 0, (
        f"policy_version is {bench.backend.policy_version} after weights that were refused; expected 0"
    )
    got = await bench.generate(seed=1)
    assert not {*got.versions} - {0, None}, f"{got} has the versions {got.versions}; expected 0"
    if bench.has("ids", "logprobs", "reference"):
        await bench.check_logprobs(got)


INPUT_CHECKS: tuple[Check, ...] = (
    a_long_prompt_is_refused,
    the_longest_prompt_works,
    an_empty_prompt_is_refused,
    unknown_ids_are_refused,
    new_weights_sample,
    wrong_weights_change_nothing,
)
