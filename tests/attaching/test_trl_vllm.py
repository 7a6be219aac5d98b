"""The tokens of a vLLM that a TRL trainer holds, by the path of their code: an engine that plays what it is told stands in for vLLM.

The hook at vLLM's output processor is tested on a real engine in tests/models/vllm.
"""

from types import SimpleNamespace

import pytest

pytest.importorskip("trl", reason="needs the extra")

from attaching.trl_trainings import is_equal, new_trainer, one_thread, outcome
from rollcast import attach
from rollcast.attaching import trl_vllm
from rollcast.attaching.vllm_engine import Begun, Sampled
from rollcast.records import StreamEventType
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

T = StreamEventType
LONG, SHORT = [60, 61, 62], [70]  # ids of the completions, before the one that ends them


class Generation:
    """In the place of TRL's `VLLMGeneration`: each row alternately gives a long and a short completion, a token a step.

    What it tells is what a hooked output processor tells.
    """

    def __init__(self, end, mode="colocate"):
        self.end, self.mode, self.tensor_parallel_size = end, mode, 1
        self.llm = SimpleNamespace(llm_engine=SimpleNamespace(output_processor=object()))
        self.tell = self.told = None
        self.synced = 0
        self.wrong = 0  # added to each id that is told

    def hook(self, processor, attachment, requests):
        assert processor is self.llm.llm_engine.output_processor
        self.tell, self.told = attachment.watch.tell, requests

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        ids = [[*(SHORT if i % 2 else LONG), self.end] for i in range(len(prompts))]
        logprobs = [[[-0.5 - i / 10] for i in range(len(row))] for row in ids]
        if self.told is not None:
            for i, prompt in enumerate(prompts):
                self.tell(
                    self.told.begin, Begun(f"r{i}", None, 0, None, list(prompt), len(prompt), {}, False)
                )
            for step in range(max(map(len, ids))):
                rows = [i for i, row in enumerate(ids) if step < len(row)]
                sampled = [
                    Sampled(
                        f"r{i}",
                        [ids[i][step] + self.wrong],
                        "",
                        SimpleNamespace(logprobs=[logprobs[i][step]]),
                        None,
                        None,
                    )
                    for i in reversed(rows)
                ]
                self.tell(self.told.step, sampled, [])
        return prompts, ids, logprobs, None


@one_thread()
def trained(folder, watched, monkeypatch, mode="colocate", wrong=0):
    trainer = new_trainer(folder, max_steps=2)
    trainer.vllm_generation = generation = Generation(trainer.processing_class.eos_token_id, mode)
    generation.wrong = wrong
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, mode, -1
    trainer.vllm_importance_sampling_correction = False
    monkeypatch.setattr(trl_vllm, "hook_processor", generation.hook)
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach(trainer, manager=manager) if watched else None
        trainer.train()
        if handle is not None:
            handle.detach()
    return trainer, capture


def test_tokens_of_a_colocated_engine_are_those_of_their_rows(tmp_path, monkeypatch):
    """One at a time, with their log-probabilities, whatever the order in which the engine tells of its requests."""
    alone, _ = trained(tmp_path / "alone", False, monkeypatch)
    attached, capture = trained(tmp_path / "attached", True, monkeypatch)
    assert is_equal(outcome(alone), outcome(attached))
    capture.check()
    first = capture.of("run_start")[1].run_id
    chunks = [e for e in capture.of("llm_generation_chunk") if e.run_id == first]
    for i in range(4):
        of_row = [event for event in chunks if event.chain_id == f"chain_{i}"]
        expected = SHORT if i % 2 else LONG
        assert [event.data["token_ids"] for event in of_row][:-1] == [[token_id] for token_id in expected]
        assert [event.data["logprobs"] for event in of_row] == [[-0.5 - n / 10] for n in range(len(of_row))]
    assert not capture.of("error")
    assert {event.data["finish_reason"] for event in capture.of("llm_generation_end")} == {"stop"}


def test_ids_that_differ_from_what_is_trained_on_are_told(tmp_path, monkeypatch, caplog):
    """The chain says so, and the trainer's ids follow as a generation of their own."""
    trainer, capture = trained(tmp_path, True, monkeypatch, wrong=1)
    capture.check()
    assert len(capture.of("error")) == 8
    assert "not those that the trainer learns from" in capture.of("error")[0].data["error"]
    first = capture.of("run_start")[1].run_id
    of_row = [e for e in capture.events if e.run_id == first and e.chain_id == "chain_1"]
    reasons = [e.data["finish_reason"] for e in of_row if e.event_type is T.LLM_GENERATION_END]
    assert reasons == ["error", "stop"]
    chunks = [e.data["token_ids"] for e in of_row if e.event_type is T.LLM_GENERATION_CHUNK]
    assert chunks[-1] == [*SHORT, trainer.processing_class.eos_token_id]


def test_turns_from_a_server_are_shown_when_they_are_whole(tmp_path, monkeypatch):
    """With the log-probabilities that the trainer has of them."""
    _, capture = trained(tmp_path, True, monkeypatch, mode="server")
    capture.check()
    first = capture.of("run_start")[1].run_id
    chunks = [e for e in capture.of("llm_generation_chunk") if e.run_id == first]
    assert len(chunks) == 4
    assert len(chunks[0].data["token_ids"]) == len(chunks[0].data["logprobs"]) == len(LONG) + 1
    assert capture.of("run_start")[0].data["backend"] == "vllm (server)"


def test_an_engine_of_another_make_is_said_once(tmp_path, monkeypatch, caplog):
    """Its turns are shown when they are whole."""
    from rollcast.errors import InputError

    def refuse(self, *_):
        raise InputError("this vLLM has no process_outputs")

    monkeypatch.setattr(Generation, "hook", refuse)
    _, capture = trained(tmp_path, True, monkeypatch)
    assert len(capture.of("llm_generation_chunk")) == 8
    said = [record.getMessage() for record in caplog.records if "not seen one by one" in record.getMessage()]
    assert len(said) == 1
