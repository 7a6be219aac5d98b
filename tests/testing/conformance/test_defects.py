"""The suite can fail: backends with one defect each, and the checks that are meant to find them."""

import asyncio
import contextlib
import dataclasses

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from conformance_subjects import tiny
from rollcast.errors import BackendClosedError, BackendError, InputError, PromptTooLongError
from rollcast.models.backend import Sampling
from rollcast.models.engine import Engine
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.testing.conformance import CHECKS, Bench

pytestmark = pytest.mark.torch

replace = msgspec.structs.replace

DEFECTS = []
"""A class each, the name of the check that is meant to find it, what its sentence says, and how long it may hang."""


def found_by(check, sentence, timeout_s=60.0):
    def register(cls):
        DEFECTS.append(pytest.param(cls, check, sentence, timeout_s, id=cls.__name__))
        return cls

    return register


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """As large as the defects need."""
    whole = tiny(tmp_path_factory.mktemp("tiny"))
    return dataclasses.replace(whole, concurrency=24, long_tokens=240)


class Changed(TinyBackend):
    """The embedded backend with requests and deltas changed on their way."""

    def asked(self, request):
        return request

    def said(self, delta, request):
        return delta

    async def generate(self, request):
        async with contextlib.aclosing(super().generate(self.asked(request))) as deltas:
            async for delta in deltas:
                changed = self.said(delta, request)
                if changed is not None:
                    yield changed

    def resampled(self, request, **changes):
        return replace(request, sampling=replace(request.sampling, **changes))


# -- text --------------------------------------------------------------------------------------------------------------


@found_by("it-says-what-it-is", "expected a renderer")
class ForgetsItsRenderer(TinyBackend):
    def __init__(self):
        super().__init__()
        self.renderer = None


@found_by("the-last-delta-has-the-reason", "expected 'stop' or 'length'")
class HasNoReason(Changed):
    def said(self, delta, request):
        return replace(delta, finish_reason=None)


@found_by("text-comes-in-pieces", "expected several, or streams = False")
class ComesInOnePiece(TinyBackend):
    async def generate(self, request):
        deltas = [delta async for delta in super().generate(request)]
        yield replace(
            deltas[-1],
            text="".join(delta.text for delta in deltas),
            token_ids=[token for delta in deltas for token in delta.token_ids],
            logprobs=[value for delta in deltas for value in delta.logprobs],
        )


@found_by("ids-and-logprobs-align", "expected one each")
class LosesALogprob(Changed):
    def said(self, delta, request):
        return replace(delta, logprobs=[]) if delta.token_ids[0] % 7 == 3 else delta


@found_by("ids-and-logprobs-align", "expected a finite float")
class GivesNumPyScalars(Changed):
    def said(self, delta, request):
        return replace(delta, logprobs=[np.float32(delta.logprobs[0])])


@found_by("deltas-join-to-the-text", "expected what its ids decode to")
class DropsText(Changed):
    def said(self, delta, request):
        return replace(delta, text="") if delta.token_ids[0] % 11 == 5 else delta


@found_by("deltas-join-to-the-text", "expected what its ids decode to")
class DropsADelta(Changed):
    def said(self, delta, request):
        return None if delta.token_ids[0] % 11 == 5 and delta.finish_reason is None else delta


@found_by("characters-are-whole", "which its ids decode to|a character waits")
class DecodesTokensAlone(Changed):
    def said(self, delta, request):
        (token,) = delta.token_ids
        alone = self._texts.bytes[token].decode("utf-8", "replace")
        return delta if token in self.renderer.eos_token_ids else replace(delta, text=alone)


@found_by("characters-are-whole", "which its ids decode to|a character waits")
class MendsCharactersLater(Changed):
    """Says U+FFFD in the middle of a character; the whole is right where no character is split."""

    def said(self, delta, request):
        return replace(delta, text=delta.text or "\ufffd") if delta.finish_reason is None else delta


@found_by("a-cut-character-is-told", "expected 'length'")
class CallsACutCharacterStop(Changed):
    def said(self, delta, request):
        cut = delta.finish_reason == "length" and delta.text.endswith("\ufffd")
        return replace(delta, finish_reason="stop") if cut else delta


@found_by("a-stop-token-ends-the-turn", "expected none")
class SaysItsStopToken(Changed):
    def said(self, delta, request):
        ended = delta.token_ids[0] in self.renderer.eos_token_ids
        return replace(delta, text="<|im_end|>") if ended else delta


@found_by("a-stop-token-ends-the-turn", "expected the stop token as the last id")
class HidesItsStopToken(Changed):
    def said(self, delta, request):
        ended = delta.token_ids[0] in self.renderer.eos_token_ids
        return replace(delta, token_ids=[], logprobs=[]) if ended else delta


@found_by("max-tokens-ends-with-length", "expected 'length'")
class CallsEveryEndStop(Changed):
    def said(self, delta, request):
        return replace(delta, finish_reason=delta.finish_reason and "stop")


@found_by("max-tokens-ends-with-length", "gave 2 ids; expected 1")
class SamplesOneTooMany(Changed):
    def asked(self, request):
        return self.resampled(request, max_tokens=request.sampling.max_tokens + 1)


@found_by("a-stop-string-ends-the-text", "has the text")
class IgnoresStopStrings(Changed):
    def asked(self, request):
        return self.resampled(request, stop=())


@found_by("a-stop-string-ends-the-text", "has the text")
class SwallowsItsStopString(Changed):
    def said(self, delta, request):
        stop = next((s for s in request.sampling.stop if delta.text.endswith(s)), "")
        return replace(delta, text=delta.text.removesuffix(stop))


@found_by("a-stop-string-ends-the-text", "has the text")
class FindsStopStringsInOneToken(Changed):
    """Those that span tokens are not seen."""

    def asked(self, request):
        return self.resampled(request, stop=())

    async def generate(self, request):
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                for stop in request.sampling.stop:
                    if stop in delta.text:
                        end = delta.text.index(stop) + len(stop)
                        yield replace(delta, text=delta.text[:end], finish_reason="stop")
                        return
                yield delta


# -- sampling ----------------------------------------------------------------------------------------------------------


@found_by("logprobs-match-one-forward-pass", "the log-probability")
class ShiftsLogprobs(Changed):
    def said(self, delta, request):
        return replace(delta, logprobs=[delta.logprobs[0] - 0.001])


@found_by("logprobs-match-one-forward-pass", "the log-probability")
class DelaysLogprobs(Changed):
    """Each token has the log-probability of the one before it."""

    async def generate(self, request):
        before = [-1.0]
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                yield replace(delta, logprobs=before)
                before = delta.logprobs


@found_by("logprobs-are-of-what-was-sampled-from", "the log-probability")
class GivesLogprobsBeforeTheCut(Changed):
    """Those of temperature 1 without top-k and top-p, or near them."""

    def said(self, delta, request):
        s = request.sampling
        plain = (s.temperature, s.top_p, s.top_k) in {(1.0, 1.0, 0), (0.0, 1.0, 0)}
        return delta if plain else replace(delta, logprobs=[delta.logprobs[0] - 0.05])


@found_by("greedy-takes-the-most-probable", "expected the most probable one")
class IsNeverGreedy(Changed):
    def asked(self, request):
        return request if request.sampling.temperature else self.resampled(request, temperature=1.0)


@found_by("a-choice-of-one-is-greedy", "expected the most probable one")
class IgnoresTopK(Changed):
    def asked(self, request):
        return self.resampled(request, top_k=0)


@found_by("a-choice-of-one-is-greedy", "expected the most probable one")
class IgnoresTopP(Changed):
    def asked(self, request):
        return self.resampled(request, top_p=1.0)


@found_by("a-seed-repeats", "again")
class IgnoresSeeds(Changed):
    def asked(self, request):
        return self.resampled(request, seed=None)


@found_by("seeds-differ", "expected others")
class HasOneSeed(Changed):
    def asked(self, request):
        return self.resampled(request, seed=0)


@found_by("seeds-differ", "expected others")
class CutsSeedsTo32Bits(Changed):
    def asked(self, request):
        seed = request.sampling.seed
        return request if seed is None else self.resampled(request, seed=seed & 0xFFFFFFFF)


@found_by("parameters-stay-with-their-request", "log-probability|leave out|expected")
class TakesTheBatchsParameters(Changed):
    """As soon as several run, all are sampled by the first one's parameters."""

    first = Sampling()

    def asked(self, request):
        if not self._generations:
            self.first = request.sampling
        first = self.first
        return self.resampled(request, temperature=first.temperature, top_p=first.top_p, top_k=first.top_k)


@found_by("frequencies-match-the-distribution", "not distributed")
class SamplesColder(Changed):
    def asked(self, request):
        return self.resampled(request, temperature=request.sampling.temperature * 0.7)


@found_by("many-at-once-get-their-own", "among others")
class DependsOnTheOthers(Changed):
    def asked(self, request):
        return self.resampled(request, seed=(request.sampling.seed or 0) + len(self._generations))


@found_by("many-at-once-get-their-own", "changed the prompt_ids")
class WritesIntoThePrompt(Changed):
    async def generate(self, request):
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                if request.prompt_ids is not None:
                    request.prompt_ids.extend(delta.token_ids)
                yield delta


# -- inputs ------------------------------------------------------------------------------------------------------------


@found_by("a-long-prompt-is-refused", "expected PromptTooLongError")
class CutsLongPrompts(Changed):
    def asked(self, request):
        keep = self.config.max_position_embeddings - 8
        return replace(request, prompt_ids=request.prompt_ids and request.prompt_ids[-keep:])


@found_by("a-long-prompt-is-refused", "raised BackendError: the engine|expected deltas")
class DiesOfALongPrompt(Changed):
    dead = False

    async def generate(self, request):
        if self.dead:
            raise BackendError("the engine died of a long prompt")
        try:
            async with contextlib.aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        except PromptTooLongError:
            self.dead = True
            raise


@found_by("the-longest-prompt-works", "PromptTooLongError")
class LeavesRoomForTen(Changed):
    def asked(self, request):
        if len(request.prompt_ids or ()) > self.config.max_position_embeddings - 10:
            raise PromptTooLongError("the prompt leaves no room for ten tokens; shorten it")
        return request


@found_by("an-empty-prompt-is-refused", "expected InputError")
class AddsATokenToNothing(Changed):
    def asked(self, request):
        return request if request.prompt_ids else replace(request, prompt_ids=[1])


@found_by("unknown-ids-are-refused", "expected InputError")
class WrapsIdsAround(Changed):
    def asked(self, request):
        return replace(request, prompt_ids=request.prompt_ids and [i % 512 for i in request.prompt_ids])


@found_by("unknown-ids-are-refused", "with id 1.5 of 512")
class RoundsIds(Changed):
    def asked(self, request):
        return replace(request, prompt_ids=request.prompt_ids and [int(i) for i in request.prompt_ids])


@found_by("parameters-stay-with-their-request", "cannot hold it")
class HoldsTopKIn64Bits(Changed):
    def asked(self, request):
        if request.sampling.top_k >= 2**63:
            raise OverflowError("the machine cannot hold it")
        return request


@found_by("new-weights-sample", "policy_version is 0|has the versions")
class KeepsTheOldVersion(Changed):
    def said(self, delta, request):
        return replace(delta, policy_version=0)


@found_by("new-weights-sample", "the log-probability")
class KeepsTheOldWeights(Changed):
    async def update_weights(self, weights, version):
        await super().update_weights(CHECKPOINT, version)


@found_by("new-weights-sample", "the log-probability")
class KeepsStalePrefixes(Changed):
    async def update_weights(self, weights, version):
        self._engine._batch._prefixes.clear = lambda: None
        await super().update_weights(weights, version)


@found_by("new-weights-sample", "no generation ran on")
class UpdatesBetweenGenerations(Changed):
    """Those that run keep the old weights to their end, at least by what they say."""

    async def generate(self, request):
        version = self._engine.version
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                yield replace(delta, policy_version=version)


@found_by("wrong-weights-change-nothing", "expected 0")
class TakesTheVersionOfWrongWeights(Changed):
    async def update_weights(self, weights, version):
        self._engine.version = version
        await super().update_weights(weights, version)


@found_by("wrong-weights-change-nothing", "expected InputError")
class SwallowsWrongWeights(Changed):
    async def update_weights(self, weights, version):
        with contextlib.suppress(InputError):
            await super().update_weights(weights, version)


# -- chat --------------------------------------------------------------------------------------------------------------


class _Trusting:
    """A renderer that encodes whatever the template gives."""

    def __init__(self, renderer):
        self._inner = renderer
        self._tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def render(self, messages, tools):
        ids = self._inner.render(messages, tools)
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def extend(self, ids, messages, new, tools):
        return self._inner.extend(ids, messages, new, tools)


@found_by("outside-text-stays-text", "render of a conversation")
class TrustsTextFromOutside(Changed):
    def __init__(self):
        super().__init__()
        self.renderer = _Trusting(self.renderer)


class _TrustingExtend(_Trusting):
    def render(self, messages, tools):
        return self._inner.render(messages, tools)

    def extend(self, ids, messages, new, tools):
        text = self._tokenizer.decode(
            self._inner.extend(ids, messages, new, tools), skip_special_tokens=False
        )
        return self._tokenizer.encode(text, add_special_tokens=False).ids


@found_by("outside-text-stays-text", "extend of a conversation")
class TrustsWhatIsAppended(Changed):
    def __init__(self):
        super().__init__()
        self.renderer = _TrustingExtend(self.renderer)


class _Forgetful(_Trusting):
    def render(self, messages, tools):
        return self._inner.render(messages, tools)

    def extend(self, ids, messages, new, tools):
        suffix = self._inner.extend(ids, messages, new, tools)
        return suffix[1:] if suffix[0] in self.eos_token_ids else suffix


@found_by("extending-is-rendering", "a turn that was cut")
class ForgetsToEndACutTurn(Changed):
    def __init__(self):
        super().__init__()
        self.renderer = _Forgetful(self.renderer)


@found_by("a-rendered-prompt-is-the-same", "prompt_tokens")
class KeepsThePromptsLength(Changed):
    def said(self, delta, request):
        return replace(delta, prompt_tokens=None)


@found_by("an-agent-runs-on-it", "another trajectory")
class CountsItsRequests(Changed):
    count = 0

    def asked(self, request):
        if not request.request_id.startswith("conformance/"):
            self.count += 1
        return self.resampled(request, seed=(request.sampling.seed or 0) + self.count)


# -- ends --------------------------------------------------------------------------------------------------------------


async def pumped(deltas, queue):
    """Reads a generation to its end, whether anybody wants it or not."""
    try:
        async for delta in deltas:
            queue.put_nowait(delta)
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


class Pumps(TinyBackend):
    """A task of its own reads each generation."""

    def __init__(self):
        super().__init__()
        self.tasks = set()

    async def generate(self, request):
        queue = asyncio.Queue()
        task = asyncio.create_task(pumped(super().generate(request), queue))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish_reason is not None:
                return

    async def close(self):
        await super().close()
        await asyncio.gather(*self.tasks)


@found_by("closing-the-iterator-ends-it", "not released")
class GoesOnUnread(Pumps):
    pass


@found_by("a-cancelled-reader-ends-it", "not released")
class GoesOnUncancelled(Pumps):
    """Closing ends it, cancelling its reader does not."""

    async def generate(self, request):
        try:
            async with contextlib.aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        except GeneratorExit:
            await self.cancel(request.request_id)
            raise


@found_by("closing-the-iterator-ends-it", "because another was ended")
class EndsAllAtOnce(Changed):
    async def generate(self, request):
        ended = False
        try:
            async with contextlib.aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
                    ended = delta.finish_reason is not None
        finally:
            if not ended:
                for other in self._generations.values():
                    self._engine.leave(other)


@found_by("cancel-ends-it", "not released|did not end")
class IgnoresCancel(Changed):
    async def cancel(self, request_id):
        pass


@found_by("cancel-ends-it", "expected its iterator to end")
class RaisesWhenCancelled(Changed):
    def __init__(self):
        super().__init__()
        self.cancelled = set()

    async def generate(self, request):
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                yield delta
        if request.request_id in self.cancelled:
            raise BackendClosedError("cancelled")

    async def cancel(self, request_id):
        self.cancelled.add(request_id)
        await super().cancel(request_id)


@found_by("unknown-names-are-ignored", "never was")
class KnowsItsRequests(Changed):
    async def cancel(self, request_id):
        if request_id not in self._generations:
            raise InputError(f"there is no request {request_id!r}; it never was, or has ended")
        await super().cancel(request_id)


@found_by("names-are-unique", "expected InputError")
class GivesSecondsNewNames(Changed):
    count = 0

    def asked(self, request):
        self.count += 1
        return replace(request, request_id=f"{request.request_id}#{self.count}")


@found_by("names-are-unique", "not free again")
class NeverFreesANameThatWasLeft(Changed):
    def __init__(self):
        super().__init__()
        self.left = set()

    async def generate(self, request):
        if request.request_id in self.left:
            raise InputError("the name is in use; give each request its own")
        self.left.add(request.request_id)
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                yield delta
        self.left.discard(request.request_id)


@found_by("a-stalled-reader-stalls-nobody", "hangs", timeout_s=5.0)
class TakesTurns(Changed):
    """Everybody waits for the slowest reader."""

    def __init__(self):
        super().__init__()
        self.turn = asyncio.Lock()

    async def generate(self, request):
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                async with self.turn:
                    yield delta


@found_by("a-stalled-reader-stalls-nobody", "after its reader stalled")
class ForgetsWhatIsNotRead(Changed):
    """Keeps eight deltas."""

    async def generate(self, request):
        async with contextlib.aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                items = self._generations[request.request_id].items
                while len(items) > 100:
                    items.popleft()
                yield delta


@found_by("other-loops-are-served", "in another event loop")
class KnowsOneLoop(Changed):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.get_running_loop()

    def asked(self, request):
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this engine belongs to another event loop")
        return request


@found_by("a-dead-engine-hangs-nobody", "hang", timeout_s=5.0)
class HangsAtDeath(Changed):
    def __init__(self):
        super().__init__()
        self._engine._die = lambda error: None


@found_by("a-dead-engine-hangs-nobody", "expected BackendError")
class DiesWithAForeignError(Changed):
    async def generate(self, request):
        try:
            async with contextlib.aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        except Exception as error:
            raise RuntimeError(f"the engine: {error}") from error


@found_by("closing-ends-what-runs", "expected BackendClosedError")
class EndsQuietlyAtClose(Changed):
    async def generate(self, request):
        with contextlib.suppress(BackendClosedError):
            async with contextlib.aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    yield delta


@found_by("closing-ends-what-runs", "expected BackendClosedError")
class WorksAfterClose(Changed):
    """Only what runs ends."""

    async def close(self):
        old = self._engine
        self._engine = Engine(old._name, old._make_batch, old._end_ids, old._working)
        await asyncio.to_thread(old.close, BackendClosedError("closed; make another"))


@found_by("an-unused-backend-closes", "closed already")
class ClosesOnce(Changed):
    closed = False

    async def close(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True
        await super().close()


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name", "sentence", "timeout_s"), DEFECTS)
async def test_a_defect_fails_the_check_that_is_meant_for_it(subject, make, name, sentence, timeout_s):
    """And the sentence says which it is."""
    (check,) = [check for check in CHECKS if check.name == name]
    with pytest.raises(AssertionError, match=sentence):
        await check(dataclasses.replace(subject, make=make, timeout_s=timeout_s))


def test_every_check_finds_a_defect():
    """None of them passes whatever it is given."""
    assert {defect.values[1] for defect in DEFECTS} == {check.name for check in CHECKS}


async def test_a_failed_check_leaves_nothing_to_the_next(subject):
    """After a failure the bench makes another backend."""
    made = []

    def make():
        made.append(HasNoReason() if not made else TinyBackend())
        return made[-1]

    (check,) = [check for check in CHECKS if check.name == "the-last-delta-has-the-reason"]
    async with Bench(dataclasses.replace(subject, make=make)) as bench:
        with pytest.raises(AssertionError):
            await check(bench)
        await check(bench)
    assert len(made) == 2
