"""`rollcast.attach.vllm(engine)` and the plugin, on engines of vLLM that know nothing of Rollcast."""

import asyncio
import threading

import pytest

import rollcast
from rollcast import StreamingManager
from rollcast.attaching import vllm_engine
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.testing import capture_events

from .conftest import OPTIONS

PROMPTS = ["What is 12 * 34?", "Say something: 漢字 🙂", "What is 12 * 34?"]


@pytest.fixture(scope="module")
def llm(model, environment):
    """An engine in this process, as TRL and scripts have it."""
    from vllm import LLM

    return LLM(model=str(model), **OPTIONS, logprobs_mode="processed_logprobs", seed=0)


def parameters(**given):
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": 24, "temperature": 1.0, "seed": 7, "logprobs": 0, **given})


def plain(outputs):
    """What a caller gets, without the ids of requests, as plain values."""
    return [
        (
            output.prompt,
            output.prompt_token_ids,
            [
                (
                    sample.index,
                    sample.text,
                    list(sample.token_ids),
                    sample.finish_reason,
                    sample.stop_reason,
                    sample.cumulative_logprob,
                    [{i: entry.logprob for i, entry in row.items()} for row in sample.logprobs or ()],
                )
                for sample in output.outputs
            ],
        )
        for output in outputs
    ]


def watched(llm, prompts, params):
    """What a caller gets while somebody watches every token, and what was seen."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = rollcast.attach.vllm(llm, manager=manager)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        handle.detach()
    capture.check()
    return outputs, capture


def chains_of(capture):
    """By request: the ids, the text, the log-probabilities, how many chunks there were, and how it ended."""
    found = {}
    for start in capture.of("chain_start"):
        chunks = capture.of("llm_generation_chunk", start.chain_id)
        (end,) = capture.of("chain_end", start.chain_id)
        found[start.data["row"]["request_id"]] = (
            [i for chunk in chunks for i in chunk.data["token_ids"]],
            "".join(chunk.data["content"] for chunk in chunks),
            [x for chunk in chunks for x in chunk.data.get("logprobs", ())],
            len(chunks),
            end.data["finish_reason"],
        )
    return found


def test_every_token_of_a_plain_generate_is_seen(llm):
    """One by one, although the caller does not stream: with the ids, text and log-probabilities that the caller gets at the end."""
    outputs, capture = watched(llm, PROMPTS, parameters(n=2))
    samples = [sample for output in outputs for sample in output.outputs]
    seen = chains_of(capture)
    assert len(seen) == len(samples) == 6
    expected = sorted(
        (
            list(sample.token_ids),
            sample.text,
            [row[i].logprob for row, i in zip(sample.logprobs, sample.token_ids, strict=True)],
            {"stop": "answered", "length": "max_tokens"}[sample.finish_reason],
        )
        for sample in samples
    )
    assert sorted((ids, text, logprobs, end) for ids, text, logprobs, _, end in seen.values()) == expected
    assert all(count >= len(ids) - 1 for ids, _, _, count, _ in seen.values())


def test_what_a_caller_gets_is_the_same(llm):
    """Text, ids, log-probabilities and reasons, with several samples, stop strings and without text."""
    for params in (
        parameters(),
        parameters(n=2),
        parameters(stop=["a", "e"]),
        parameters(stop=["a", "e"], include_stop_str_in_output=True),
        parameters(detokenize=False, logprobs=None),
        parameters(logprobs=3, prompt_logprobs=1),
    ):
        without = plain(llm.generate(PROMPTS, params, use_tqdm=False))
        outputs, _ = watched(llm, PROMPTS, params)
        assert plain(outputs) == without


def test_samples_of_one_prompt_are_a_group(llm):
    """Those of one request, or of requests with equal prompts."""
    for params, sizes in ((parameters(n=2), [2, 2, 2]), (parameters(), [1, 2])):
        _, capture = watched(llm, PROMPTS, params)
        groups = [start.group_id for start in capture.of("chain_start")]
        assert sorted(map(groups.count, set(groups))) == sizes


def test_the_prompt_is_shown(llm):
    """Also if the engine got ids, and makes no text of what it samples."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    ids = tokenizer.encode(PROMPTS[1]).ids
    outputs, capture = watched(llm, [{"prompt_token_ids": ids}], parameters(detokenize=False))
    (start,) = capture.of("chain_start")
    assert start.data["messages"] == [
        {"role": "user", "content": tokenizer.decode(ids, skip_special_tokens=False)}
    ]
    (end,) = capture.of("llm_generation_end")
    assert end.data["prompt_tokens"] == len(ids)
    sampled = outputs[0].outputs[0]
    assert sampled.text == ""
    kept = sampled.token_ids[:-1] if sampled.finish_reason == "stop" else sampled.token_ids
    assert end.data["content"].startswith(tokenizer.decode(kept, skip_special_tokens=False))


def test_text_that_a_stop_string_takes_back_is_not_shown(llm):
    """The text that is seen is the text that the caller gets."""
    outputs, capture = watched(llm, PROMPTS, parameters(stop=["a", "the", "1"], max_tokens=200))
    texts = sorted(output.outputs[0].text for output in outputs)
    assert sorted(text for _, text, _, _, _ in chains_of(capture).values()) == texts


def test_after_detaching_nothing_is_seen_and_nothing_is_left(llm):
    """The methods are vLLM's own again, and in the middle of a run the open chains end with `unknown`."""
    processor = llm.llm_engine.output_processor
    before = dict(vars(processor))
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = rollcast.attach.vllm(llm, manager=manager)
        assert rollcast.attach.vllm(llm) is handle
        llm.enqueue(PROMPTS, parameters(ignore_eos=True), use_tqdm=False)
        llm.llm_engine.step()
        llm.llm_engine.step()
        handle.detach()
        assert vars(processor).keys() == before.keys()
        outputs = llm.wait_for_completion(use_tqdm=False)
    capture.check()
    assert [len(output.outputs[0].token_ids) for output in outputs] == [24] * 3
    assert {end.data["finish_reason"] for end in capture.of("chain_end")} == {"unknown"}


def test_a_request_that_runs_already_is_seen_from_its_next_token(llm):
    """What it sampled before is not known."""
    llm.enqueue(PROMPTS[:1], parameters(ignore_eos=True), use_tqdm=False)
    llm.llm_engine.step()
    llm.llm_engine.step()
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = rollcast.attach.vllm(llm, manager=manager)
        (output,) = llm.wait_for_completion(use_tqdm=False)
        handle.detach()
    capture.check()
    ((ids, text, _, _, _),) = chains_of(capture).values()
    sample = output.outputs[0]
    assert 0 < len(ids) < 24
    assert list(sample.token_ids)[-len(ids) :] == ids
    assert sample.text.endswith(text)


class Broken(Exception):
    pass


def breaks(*args, **kwargs):
    raise Broken


DEFECTS = [
    (vllm_engine.Requests, "begin"),
    (vllm_engine.Requests, "step"),
    (vllm_engine.Requests, "end"),
    (vllm_engine.Tap, "begin"),
    (vllm_engine.Tap, "before"),
    (vllm_engine.Tap, "after"),
]


@pytest.mark.parametrize("wrong", [breaks, lambda *_, **__: 5], ids=["raises", "wrong type"])
@pytest.mark.parametrize(("owner", "name"), DEFECTS, ids=[f"{o.__name__}.{n}" for o, n in DEFECTS])
def test_a_fault_of_ours_does_not_reach_the_engine(llm, monkeypatch, caplog, owner, name, wrong):
    """The caller gets the same, and one message says that Rollcast steps aside."""
    without = plain(llm.generate(PROMPTS, parameters(n=2), use_tqdm=False))
    monkeypatch.setattr(owner, name, wrong)
    handle = rollcast.attach.vllm(llm, manager=StreamingManager())
    outputs = llm.generate(PROMPTS, parameters(n=2), use_tqdm=False)
    handle.watch.flush(30)
    handle.detach()
    assert plain(outputs) == without
    said = [record for record in caplog.records if "steps aside" in record.getMessage()]
    assert len(said) <= 1
    assert len(said) == 1 or wrong is not breaks


def test_code_of_ours_that_hangs_does_not_reach_the_engine(llm, monkeypatch):
    """The caller gets the same, and detaching does not wait for it."""
    without, over = plain(llm.generate(PROMPTS, parameters(n=2), use_tqdm=False)), threading.Event()
    monkeypatch.setattr(vllm_engine.Requests, "step", lambda *_: over.wait())
    handle = rollcast.attach.vllm(llm, manager=StreamingManager())
    try:
        assert plain(llm.generate(PROMPTS, parameters(n=2), use_tqdm=False)) == without
        handle.detach(0.1)
        assert plain(llm.generate(PROMPTS, parameters(n=2), use_tqdm=False)) == without
    finally:
        over.set()


async def test_an_aborted_request_is_cancelled(model, environment):
    """With vLLM's async engine: the caller leaves in the middle of a stream."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), **OPTIONS))
    manager = StreamingManager()
    try:
        with capture_events(manager) as capture:
            handle = rollcast.attach(engine, manager=manager)
            params = parameters(max_tokens=500, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
            outputs = engine.generate(PROMPTS[0], params, "one")
            async for _ in outputs:
                if len(capture.of("llm_generation_chunk")) >= 3:
                    break
            await outputs.aclose()
            await engine.abort("one")
            await asyncio.to_thread(handle.detach)
        capture.check()
        assert [end.data["finish_reason"] for end in capture.of("chain_end")] == ["cancelled"]
    finally:
        engine.shutdown()


def test_what_has_no_output_processor_is_refused():
    """In one sentence that says what is expected."""
    with pytest.raises(rollcast.InputError, match="expected vLLM's LLM, LLMEngine or AsyncLLM"):
        rollcast.attach.vllm(object())
