"""The embedded backend, through its public face."""

import asyncio
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import rollcast
from rollcast.errors import BackendClosedError, BackendError, InputError, PromptTooLongError
from rollcast.models import engine
from rollcast.models.backend import Backend, GenerationRequest, Sampling
from rollcast.models.tiny import TinyBackend, batch
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.models.tiny.weights import read_weights

END = 2


def request(name="r", prompt=(1, 30, 40, 50), **sampling):
    return GenerationRequest(name, [], [], Sampling(**{"seed": 0, **sampling}), list(prompt))


async def collect(backend, asked):
    return [delta async for delta in backend.generate(asked)]


def ids(deltas):
    return [token for delta in deltas for token in delta.token_ids]


def endless(backend):
    """Let generations run to their limit: no token ends them."""
    backend._engine._end_ids = frozenset()
    return backend


async def until(state):
    """Wait for a state, polling it."""
    async with asyncio.timeout(60):
        while not state():
            await asyncio.sleep(0.001)


@pytest.fixture
async def backend():
    backend = TinyBackend()
    yield backend
    await backend.close()


CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
QUESTION = [{"role": "user", "content": "What is 347 * 28 + 9?"}]


async def test_it_is_a_backend(backend):
    """It has what the protocol asks for."""
    assert isinstance(backend, Backend)
    assert (backend.name, backend.model_name, backend.policy_version) == ("tiny", "rollcast/tiny", 0)
    assert backend.token_exact
    assert backend.logprobs
    assert backend.streams


async def test_it_calls_the_calculator(backend):
    """Asked for arithmetic, the greedy answer is a well-formed call of the tool."""
    asked = GenerationRequest("r", QUESTION, [CALCULATOR], Sampling(temperature=0))
    deltas = await collect(backend, asked)
    text = "".join(delta.text for delta in deltas)
    assert text.startswith("<tool_call>\n")
    assert text.endswith("\n</tool_call>")
    called = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert called == {"name": "calculator", "arguments": {"expression": "347 * 28 + 9"}}


async def test_one_delta_a_token_and_a_reason_on_the_last(backend):
    """Each delta has one id, one log-probability and the version; the stop token's text is empty, and it comes last."""
    asked = GenerationRequest("r", QUESTION, [CALCULATOR], Sampling(temperature=0))
    deltas = await collect(backend, asked)
    assert all(len(delta.token_ids) == len(delta.logprobs) == 1 for delta in deltas)
    assert all(delta.policy_version == 0 for delta in deltas)
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert (deltas[-1].token_ids, deltas[-1].text) == ([END], "")
    assert deltas[0].prompt_tokens == len(backend.renderer.render(QUESTION, [CALCULATOR]))


async def test_a_prompt_of_ids_is_the_rendered_prompt(backend):
    """Messages, or the ids that the renderer makes of them, give the same tokens."""
    prompt = backend.renderer.render(QUESTION, [CALCULATOR])
    rendered = await collect(backend, GenerationRequest("a", QUESTION, [CALCULATOR], Sampling(seed=4)))
    given = await collect(backend, request("b", prompt, seed=4))
    assert ids(rendered) == ids(given)
    assert given[0].prompt_tokens is None


async def test_max_tokens_ends_with_length(backend):
    """The token that reaches the limit has the reason."""
    deltas = await collect(endless(backend), request(max_tokens=7))
    assert [delta.finish_reason for delta in deltas] == [None] * 6 + ["length"]


async def test_a_full_context_ends_with_length(backend):
    """Prompt and completion together have as many tokens as the context holds."""
    deltas = await collect(endless(backend), request(prompt=[5] * 1000, max_tokens=500))
    assert len(deltas) == 24
    assert deltas[-1].finish_reason == "length"


async def test_a_prompt_that_fills_the_context_is_refused(backend):
    """Where not one token fits, the error says so before anything starts."""
    with pytest.raises(PromptTooLongError, match="1024 tokens; expected fewer than the 1024"):
        await collect(backend, request(prompt=[5] * 1024))
    assert len(await collect(backend, request(prompt=[5] * 1023))) == 1


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (request(prompt=[]), "prompt_ids is empty"),
        (request(prompt=[1, 512]), "outside of this model's vocabulary of 512"),
        (request(prompt=[-1]), "outside of this model's vocabulary"),
    ],
)
async def test_what_cannot_be_generated_is_refused(backend, asked, sentence):
    """One sentence, before anything starts."""
    with pytest.raises(InputError, match=sentence):
        await collect(backend, asked)


async def test_two_requests_of_one_name_are_refused(backend):
    """`cancel` would not know which is meant. The name is free again when the first has ended."""
    first = endless(backend).generate(request("same", max_tokens=400))
    await anext(first)
    with pytest.raises(InputError, match="'same' is still running"):
        await collect(backend, request("same"))
    await first.aclose()
    assert len(await collect(backend, request("same", max_tokens=3))) == 3


async def test_a_stop_string_ends_the_text(backend):
    """Also where it spans tokens: the text ends after it, and the ids are all that were sampled."""
    endless(backend)
    free = await collect(backend, request(max_tokens=60, seed=3))
    text = "".join(delta.text for delta in free)
    # Reaches from inside of one token's text to inside of another's.
    cut = next(i for i in range(5, 40) if len(free[i].text) > 1 and len(free[i + 1].text) > 1)
    before = len("".join(delta.text for delta in free[:cut]))
    stop = text[before + len(free[cut].text) - 1 : before + len(free[cut].text) + 1]
    stopped = await collect(backend, request(max_tokens=60, seed=3, stop=("never there", stop)))
    assert "".join(delta.text for delta in stopped) == text[: text.index(stop) + len(stop)]
    assert stopped[-1].finish_reason == "stop"
    assert ids(stopped) == ids(free)[: len(stopped)]


async def test_the_same_seed_gives_the_same_tokens(backend):
    """Ids and log-probabilities, to the bit, alone and beside 40 others; None draws fresh ones."""
    endless(backend)
    alone = await collect(backend, request(max_tokens=50, seed=9))
    others = [collect(backend, request(f"o{i}", [i + 3], max_tokens=60, seed=i)) for i in range(40)]
    beside, *_ = await asyncio.gather(collect(backend, request(max_tokens=50, seed=9)), *others)
    assert beside == alone
    fresh = [await collect(backend, request(max_tokens=50, seed=None)) for _ in range(2)]
    assert ids(fresh[0]) != ids(fresh[1])


async def test_cancelling_ends_the_iterator(backend):
    """The iterator ends without a finish reason, and the row leaves the batch; unknown names are ignored."""
    got = []
    async for delta in endless(backend).generate(request(max_tokens=900)):
        got.append(delta)
        if len(got) == 3:
            await backend.cancel("r")
            await backend.cancel("unknown")
    assert 3 <= len(got) < 900
    assert got[-1].finish_reason is None
    await until(lambda: not backend._engine._running)


async def test_closing_the_iterator_frees_the_row(backend):
    """`aclose`, or cancelling the task that reads, ends the generation."""
    iterator = endless(backend).generate(request(max_tokens=900))
    await anext(iterator)
    await iterator.aclose()
    await until(lambda: not backend._engine._running)
    task = asyncio.create_task(collect(backend, request(max_tokens=900)))
    await until(lambda: backend._engine._running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not backend._engine._running)
    assert not backend._generations


async def test_new_weights_take_effect_from_the_next_token(backend):
    """After `update_weights` no token carries the old version, and greedy answers are those of the new weights."""
    weights = {
        name: array * np.float32(0.5)
        for name, array in (await asyncio.to_thread(read_weights, CHECKPOINT)).items()
    }
    endless(backend)
    versions, queued = [], 0
    async for delta in backend.generate(request(max_tokens=900)):
        versions.append(delta.policy_version)
        if len(versions) == 5:
            await backend.update_weights(weights, 7)
            assert backend.policy_version == 7
            queued = len(backend._generations["r"].items)
        elif len(versions) > 5 + queued:
            assert delta.policy_version == 7
    assert versions == sorted(versions)
    assert versions[-1] == 7
    changed = await collect(backend, request(temperature=0, max_tokens=20))
    await backend.update_weights(str(CHECKPOINT), 8)
    original = await collect(backend, request(temperature=0, max_tokens=20))
    assert [delta.logprobs for delta in changed] != [delta.logprobs for delta in original]
    assert {delta.policy_version for delta in original} == {8}
    fresh = endless(TinyBackend())
    assert [d.logprobs for d in await collect(fresh, request(temperature=0, max_tokens=20))] == [
        d.logprobs for d in original
    ]
    await fresh.close()


async def test_wrong_weights_change_nothing(backend):
    """They are refused in a sentence, and the old ones go on."""
    with pytest.raises(InputError, match="lack"):
        await backend.update_weights({}, 1)
    assert backend.policy_version == 0
    assert await collect(backend, request(max_tokens=3))


async def test_weights_out_of_bounds_fail_their_requests_only(backend):
    """Finite weights whose logits are not give a BackendError; after an update the backend samples again."""
    weights = dict(await asyncio.to_thread(read_weights, CHECKPOINT))
    weights["model.norm.weight"] = np.full(96, 1e38)
    await backend.update_weights(weights, 1)
    with pytest.raises(BackendError, match="not finite with the weights of version 1"):
        await collect(backend, request())
    await backend.update_weights(CHECKPOINT, 2)
    assert await collect(backend, request(max_tokens=3))


async def test_closing_fails_what_runs_and_what_comes():
    """Running and later generations raise BackendClosedError; the thread ends; closing twice is fine."""
    backend = endless(TinyBackend())
    tasks = [asyncio.create_task(collect(backend, request(f"r{i}", max_tokens=900))) for i in range(5)]
    await until(lambda: len(backend._engine._running) == 5)
    thread = backend._engine._thread
    assert thread.is_alive()
    await backend.close()
    await backend.close()
    assert not thread.is_alive()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, BackendClosedError)
    with pytest.raises(BackendClosedError, match="was closed"):
        await collect(backend, request())
    with pytest.raises(BackendClosedError):
        await backend.update_weights(CHECKPOINT, 1)


@pytest.mark.parametrize("fault", [ValueError("a fault"), SystemExit(1)])
async def test_a_dead_engine_hangs_nobody(monkeypatch, fault):
    """Whatever kills the thread, every request raises BackendError with its cause, later ones too."""
    backend = endless(TinyBackend())
    steps = iter(range(5))

    def step(self, original=batch.Batch.step):
        if next(steps) == 4:
            raise fault
        return original(self)

    monkeypatch.setattr(batch.Batch, "step", step)
    asked = [collect(backend, request(f"r{i}", max_tokens=900)) for i in range(3)]
    async with asyncio.timeout(60):
        results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        assert isinstance(result, BackendError)
        assert type(fault).__name__ in str(result)
        assert result.__cause__ is fault
    with pytest.raises(BackendError, match="engine died"):
        await collect(backend, request())
    await backend.close()


async def test_the_thread_ends_without_work_and_comes_back(backend, monkeypatch):
    """It lingers, ends by itself, and the next request starts another; the BLAS threads are given back before."""
    monkeypatch.setattr(engine, "LINGER_S", 0.01)
    before = [info["num_threads"] for info in threadpool_info()]
    first = await collect(backend, request(max_tokens=5))
    await until(lambda: backend._engine._thread is None)
    assert [info["num_threads"] for info in threadpool_info()] == before
    assert await collect(backend, request(max_tokens=5)) == first


def test_one_backend_serves_loops_one_after_the_other():
    """`asyncio.run` again and again works, also where a loop ended amid a generation."""
    backend = endless(TinyBackend())

    async def abandon():
        iterator = backend.generate(request("abandoned", max_tokens=900))
        await anext(iterator)

    expected = asyncio.run(collect(backend, request(max_tokens=20)))
    for _ in range(3):
        asyncio.run(abandon())
        assert asyncio.run(collect(backend, request(max_tokens=20))) == expected
    asyncio.run(backend.close())


def test_one_backend_serves_loops_side_by_side():
    """Loops in several threads share the batch, and each gets its own tokens."""
    backend = endless(TinyBackend())
    expected = {seed: asyncio.run(collect(backend, request(seed=seed, max_tokens=40))) for seed in range(3)}
    results = {}

    def serve(seed):
        results[seed] = asyncio.run(collect(backend, request(f"r{seed}", seed=seed, max_tokens=40)))

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results == expected
    asyncio.run(backend.close())


def test_a_closed_loop_drops_its_requests():
    """Where nobody is left to read, the rows leave the batch."""
    backend = endless(TinyBackend())
    loop = asyncio.new_event_loop()
    iterator = backend.generate(request(max_tokens=900))
    loop.run_until_complete(anext(iterator))
    assert backend._engine._running
    loop.close()
    deadline = time.monotonic() + 60
    while backend._engine._running and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not backend._engine._running
    # The iterator's own end: its loop is gone, so it is only let go of.
    del iterator
    gc.collect()
    asyncio.run(backend.close())


async def test_a_copy_of_the_checkpoint_is_the_same_model(tmp_path):
    """Another folder loads by its path, and names the model."""
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    copy, original = TinyBackend(tmp_path), TinyBackend()
    assert copy.model_name == str(tmp_path)
    assert await collect(copy, request()) == await collect(original, request())
    await copy.close()
    await original.close()


def test_the_package_loads_lazily():
    """Importing `rollcast.models.tiny` loads neither NumPy nor the tokenizer."""
    code = "import sys, rollcast.models.tiny; print({'numpy', 'tokenizers', 'jinja2'} & set(sys.modules))"
    source = str(Path(rollcast.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.torch
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_a_teacher_forced_pass(backend, temperature):
    """What is reported with the tokens is what transformers computes for them."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    prompt = backend.renderer.render(QUESTION, [CALCULATOR])
    asked = [request(f"r{i}", prompt, temperature=temperature, seed=i, max_tokens=100) for i in range(8)]
    for deltas in await asyncio.gather(*(collect(backend, one) for one in asked)):
        sampled = ids(deltas)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + sampled])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, -1)[range(len(sampled)), sampled]
        reported = [delta.logprobs[0] for delta in deltas]
        np.testing.assert_allclose(reported, expected.numpy(), atol=1e-4)


async def test_megabytes_of_prompt_are_refused_before_they_are_encoded():
    """Encoding one word of that length would hold the event loop for seconds."""
    from rollcast import BaseAgent

    (t,) = await BaseAgent().run_async(1, [{"role": "user", "content": "x" * 3_000_000}])
    assert t.finish_reason == "error"
    assert "3000000 characters" in t.error
