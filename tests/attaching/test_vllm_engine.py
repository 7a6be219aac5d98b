"""What is seen of a vLLM engine, with a stand-in that has the methods of vLLM's output processor.

The engine itself is in tests/models/vllm/engine/test_attached.py, which needs an environment of its own.
"""

import logging
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

from attaching.defects import DEFECTS, also
from rollcast import InputError, StreamingManager, attach
from rollcast.attaching import vllm_engine
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.testing import capture_events

TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


class Detokenizer:
    """As vLLM's: text that grows, of which the end may be held back for a stop string."""

    def __init__(self, hold):
        self.output_text = ""
        self.stop_buffer_length = hold


class OutputProcessor:
    """Has the methods and attributes of vLLM 0.32's that are read here."""

    def __init__(self):
        self.tokenizer = TOKENIZER
        self.request_states = {}

    def add_request(self, request, prompt, parent_req=None, request_index=0, queue=None):
        self.request_states[request.request_id] = SimpleNamespace(
            parent_req=parent_req, request_index=request_index, prompt=prompt, prompt_token_ids=request.prompt_token_ids,
            prompt_len=len(request.prompt_token_ids), temperature=0.7, top_p=1.0, n=1, max_tokens_param=9, lora_name=None,
            detokenizer=request.detokenizer,
        )  # fmt: skip

    def process_outputs(
        self, engine_core_outputs, engine_core_timestamp=None, iteration_stats=None, weight_version=None
    ):
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if state is not None and hasattr(state.detokenizer, "output_text"):
                state.detokenizer.output_text += output.text
            if output.finish_reason is not None and not output.session:
                self.request_states.pop(output.request_id, None)
        return len(engine_core_outputs)

    def abort_requests(self, request_ids, internal):
        return [key for key in request_ids if self.request_states.pop(key, None) is not None]

    def propagate_error(self, e):
        pass


class LLM:
    def __init__(self, processor=None):
        self.output_processor = processor or OutputProcessor()
        self.model_config = SimpleNamespace(model="a-model", logprobs_mode="processed_logprobs")

    def add(self, key, prompt=None, ids=(5, 6), hold=0, detokenizer=..., **more):
        detokenizer = Detokenizer(hold) if detokenizer is ... else detokenizer
        request = SimpleNamespace(request_id=key, prompt_token_ids=list(ids), detokenizer=detokenizer)
        self.output_processor.add_request(request, prompt, **more)

    def step(self, *outputs, **more):
        return self.output_processor.process_outputs(list(outputs), **more)


def new(key, text="", ids=(1,), logprobs=None, reason=None, *, session=False, **more):
    found = None if logprobs is None else SimpleNamespace(logprobs=[[value, -9.0] for value in logprobs])
    return SimpleNamespace(
        request_id=key, text=text, new_token_ids=list(ids), new_logprobs=found, finish_reason=reason, session=session, **more
    )  # fmt: skip


@pytest.fixture
def engine():
    return LLM()


@pytest.fixture
def manager():
    return StreamingManager()


def seen(manager, engine, drive):
    """The events of what `drive` does with a watched engine."""
    with capture_events(manager) as capture:
        handle = attach.vllm(engine, manager=manager)
        drive()
        handle.detach()
    capture.check()
    return capture


def test_a_request_is_a_chain(engine, manager):
    """With its prompt, each new token with its text and log-probability, and how it ended."""

    def drive():
        engine.add("r1", "What?")
        assert engine.step(new("r1", "Fo", [7], [-0.5])) == 1
        engine.step(new("r1", "ur", [8, 9], [-0.25, -1.0], reason="length"))

    capture = seen(manager, engine, drive)
    (run,) = capture.of("run_start")
    assert (run.data["model"], run.data["backend"], run.data["agent"]) == ("a-model", "vllm", "vllm")
    assert run.data["settings"]["logprobs_mode"] == "processed_logprobs"
    (start,) = capture.of("chain_start")
    assert start.data["messages"] == [{"role": "user", "content": "What?"}]
    assert start.data["row"] == {"request_id": "r1"}
    (generation,) = capture.of("llm_generation_start")
    assert generation.data["prompt_tokens"] == 2
    assert generation.data["sampling"] == {"temperature": 0.7, "top_p": 1.0, "n": 1, "max_tokens": 9}
    chunks = [
        (c.data["content"], c.data["token_ids"], c.data["logprobs"])
        for c in capture.of("llm_generation_chunk")
    ]
    assert chunks == [("Fo", [7], [-0.5]), ("ur", [8, 9], [-0.25, -1.0])]
    assert [e.data["finish_reason"] for e in capture.of("llm_generation_end")] == ["length"]
    assert [(e.data["finish_reason"], e.data["final_response"]) for e in capture.of("chain_end")] == [
        ("max_tokens", "Four")
    ]


def test_text_that_may_be_a_stop_string_waits(engine, manager):
    """It is shown once it is certain that the caller gets it."""

    def drive():
        engine.add("r1", hold=2)
        engine.step(new("r1", "abc"))
        engine.step(new("r1", "d", reason="stop"))

    texts = [chunk.data["content"] for chunk in seen(manager, engine, drive).of("llm_generation_chunk")]
    assert texts == ["a", "bcd"]


def test_a_request_that_wants_no_text_has_text_all_the_same(engine, manager):
    """Trainers take ids; people read text. Half a character waits for its other half."""
    ids = TOKENIZER.encode("ok 🙂!").ids

    def drive():
        engine.add("r1", ids=TOKENIZER.encode("Well?").ids, detokenizer=SimpleNamespace())
        for token in ids:
            engine.step(new("r1", ids=[token]))
        engine.step(new("r1", ids=[], reason="stop"))

    capture = seen(manager, engine, drive)
    assert "".join(chunk.data["content"] for chunk in capture.of("llm_generation_chunk")) == "ok 🙂!"
    assert capture.of("chain_start")[0].data["messages"][0]["content"] == "Well?"


def test_samples_of_one_request_are_a_group(engine, manager):
    """With n > 1; otherwise requests of the same prompt are."""
    parent = SimpleNamespace(request_id="p")

    def drive():
        for index in range(2):
            engine.add(f"{index}_p", "What?", parent_req=parent, request_index=index)
        engine.add("q", ids=(1, 2))
        engine.add("r", ids=(1, 2))
        engine.add("s", ids=(1, 3))

    starts = seen(manager, engine, drive).of("chain_start")
    groups = [start.group_id for start in starts]
    assert groups[:2] == ["p", "p"]
    assert groups[2] == groups[3] != groups[4]
    assert [start.data["index"] for start in starts] == [0, 1, 0, 1, 0]


def test_an_aborted_request_is_cancelled(engine, manager):
    """And what the engine had on its way for it is not shown."""

    def drive():
        engine.add("r1")
        engine.step(new("r1", "a"))
        assert engine.output_processor.abort_requests(["r1", "unknown"], internal=True) == ["r1"]
        engine.step(new("r1", "b"))

    capture = seen(manager, engine, drive)
    assert [e.data["finish_reason"] for e in capture.of("llm_generation_end")] == ["cancelled"]
    assert [e.data["finish_reason"] for e in capture.of("chain_end")] == ["cancelled"]
    assert len(capture.of("llm_generation_chunk")) == 1


def test_requests_end_with_their_engine(engine, manager):
    """An engine that dies tells every caller; so do their chains."""

    def drive():
        engine.add("r1")
        engine.add("r2")
        engine.step(new("r1", "a"))
        engine.output_processor.propagate_error(RuntimeError("out of memory"))

    capture = seen(manager, engine, drive)
    assert [e.data["finish_reason"] for e in capture.of("chain_end")] == ["error", "error"]
    assert [e.data["error"] for e in capture.of("error")] == ["out of memory", "out of memory"]


def test_a_session_that_gets_more_input_goes_on_in_its_chain(engine, manager):
    """Each answer is a generation of it."""

    def drive():
        engine.add("r1")
        engine.step(new("r1", "a", reason="stop", session=True))
        engine.step(new("r1", "b"))
        engine.step(new("r1", "c", reason="stop"))

    capture = seen(manager, engine, drive)
    assert [e.data["content"] for e in capture.of("llm_generation_end")] == ["a", "bc"]
    assert len(capture.of("chain_end")) == 1


def test_log_probabilities_that_are_none_are_left_out(engine, manager):
    """vLLM writes -9999 and infinities for what it does not know."""

    def drive():
        engine.add("r1")
        for wrong in (-9999.0, float("-inf"), float("nan")):
            engine.step(new("r1", "a", logprobs=[wrong]))
        engine.step(new("r1", "a", ids=[1, 2], logprobs=[-1.0]))

    assert not [c for c in seen(manager, engine, drive).of("llm_generation_chunk") if "logprobs" in c.data]


def test_the_version_of_the_weights_stands_with_its_tokens(engine, manager):
    """If the engine tells it, as a number."""
    kept = []
    manager.fanout.chain_closings.append(lambda trajectory: kept.append(trajectory.turns[0].policy_versions))

    def drive():
        engine.add("r1")
        engine.step(new("r1", "a"), weight_version="default")
        engine.step(new("r1", "b"), weight_version="3")
        engine.output_processor.process_outputs([new("r1", "c", reason="stop")], None, None, "4")

    seen(manager, engine, drive)
    assert kept == [[3, 4]]


def test_pooling_requests_are_left_alone(engine, manager):
    """They sample nothing."""

    def drive():
        engine.add("r1", detokenizer=None)
        assert engine.step(new("r1", reason="stop")) == 1

    assert not seen(manager, engine, drive).of("chain_start")


def test_what_the_caller_changes_afterwards_was_seen_as_it_was(engine, manager):
    """The caller gets the very list of ids."""

    def drive():
        engine.add("r1")
        output = new("r1", "a", [7])
        engine.step(output)
        output.new_token_ids.append(99)

    (chunk,) = seen(manager, engine, drive).of("llm_generation_chunk")
    assert chunk.data["token_ids"] == [7]


def test_a_hook_that_somebody_put_on_later_stays(engine, manager):
    """Detaching takes out only what was put in."""
    handle = attach.vllm(engine, manager=manager)
    later = engine.output_processor.process_outputs = lambda outputs: "theirs"
    handle.detach()
    assert engine.output_processor.process_outputs is later
    assert set(vars(engine.output_processor)) == {"tokenizer", "request_states", "process_outputs"}


def test_an_exception_of_the_engine_goes_on(engine, manager):
    """Unchanged, and the next step is watched again."""
    engine.output_processor.__class__ = type("Raising", (OutputProcessor,), {})
    calls = []

    def raising(self, engine_core_outputs, *rest):
        calls.append(engine_core_outputs)
        if len(calls) == 1:
            raise ConnectionError("theirs")
        return OutputProcessor.process_outputs(self, engine_core_outputs)

    type(engine.output_processor).process_outputs = raising

    def drive():
        engine.add("r1")
        with pytest.raises(ConnectionError, match=r"^theirs$"):
            engine.step(new("r1", "a"))
        engine.step(new("r1", "b", reason="stop"))

    capture = seen(manager, engine, drive)
    assert [c.data["content"] for c in capture.of("llm_generation_chunk")] == ["b"]


def test_outputs_of_another_kind_are_passed_on_unread(engine, manager, caplog):
    """What can be read only once is the engine's to read."""
    handle = attach.vllm(engine, manager=manager)
    taken = []
    type(engine.output_processor).process_outputs, original = (
        lambda self, engine_core_outputs: taken.extend(engine_core_outputs),
        OutputProcessor.process_outputs,
    )
    try:
        other = LLM()
        again = attach.vllm(other, manager=manager)
        other.output_processor.process_outputs(iter([1, 2, 3]))
        again.detach()
    finally:
        OutputProcessor.process_outputs = original
    handle.detach()
    assert taken == [1, 2, 3]
    assert "steps aside from vllm" in caplog.text


def test_a_vllm_without_the_method_is_refused(manager):
    """In a sentence that says what was found, and what else can be done."""

    class Older:
        tokenizer = None
        request_states = ()

        def process(self, outputs):
            pass

    with pytest.raises(
        InputError, match=r"no Older.process_outputs\(engine_core_outputs, …\).*rollcast proxy"
    ):
        attach.vllm(LLM(Older()), manager=manager)


def test_a_vllm_that_lacks_less_is_watched_as_far_as_it_goes(manager, caplog):
    """One warning says what will not be seen."""

    class Other:
        def __init__(self):
            self.tokenizer = None
            self.request_states = {}

        add_request = OutputProcessor.add_request
        process_outputs = OutputProcessor.process_outputs

    engine = LLM(Other())
    with caplog.at_level(logging.WARNING):
        capture = seen(
            manager, engine, lambda: (engine.add("r1"), engine.step(new("r1", "a", reason="stop")))
        )
    assert [e.data["finish_reason"] for e in capture.of("chain_end")] == ["answered"]
    (said,) = [r.getMessage() for r in caplog.records if "written for" in r.getMessage()]
    assert "aborted" in said


OURS = [
    *DEFECTS,
    *also(vllm_engine.Requests, "begin", "step", "end"),
    *also(vllm_engine.Tap, "begin", "before", "after", "aborted", ways=("raises", "returns a wrong type")),
]


@pytest.mark.parametrize("defect", OURS, ids=str)
def test_a_fault_of_ours_does_not_reach_the_engine(engine, manager, defect):
    """Whatever breaks, and however, its methods return what they return, and its states are the same."""

    def drive(engine):
        engine.add("r1", "What?")
        engine.add("r2", "What?")
        returned = [engine.step(new("r1", "a"), new("r2", "b"))]
        returned += [engine.output_processor.abort_requests(["r1"], internal=True)]
        returned += [engine.step(new("r1", "c"), new("r2", "d", reason="stop"))]
        return returned, engine.output_processor.request_states

    expected = drive(LLM())
    with defect.injected():
        handle = attach.vllm(engine, manager=manager, record=None)
        assert drive(engine) == expected
        handle.detach(0.1)
    assert set(vars(engine.output_processor)) == {"tokenizer", "request_states"}


# -- the plugin --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hooked(monkeypatch):
    """A class of output processors that the plugin has hooked."""
    every = vllm_engine._EveryEngine()
    monkeypatch.setattr(vllm_engine, "every_engine", every)
    made = type("Hooked", (OutputProcessor,), dict(vars(OutputProcessor)))
    every.hook(made)
    yield made
    if every.attachment is not None:
        every.attachment.detach()


def test_the_plugin_watches_every_engine_of_the_process(hooked, monkeypatch):
    """As one run, although nobody attached anything."""
    first, second = LLM(hooked()), LLM(hooked())
    manager = vllm_engine.every_engine.attachment.streaming_manager
    with capture_events(manager) as capture:
        for engine in (first, second):
            engine.add("r1", "What?")
            engine.step(new("r1", "a", reason="stop"))
        vllm_engine.every_engine.attachment.detach()
    capture.check()
    assert len(capture.of("run_start")) == 1
    assert len(capture.of("chain_start")) == 2


def test_the_plugin_leaves_out_what_somebody_else_shows(hooked, manager):
    """An engine that is attached by name, and one that a backend of ours owns."""
    engine, ours = LLM(hooked()), LLM(hooked())
    ours.output_processor._rollcast_shown = True  # as models/vllm/engine.py does
    plugin = vllm_engine.every_engine.attachment.streaming_manager
    with capture_events(plugin) as capture:
        mine = seen(manager, engine, lambda: (engine.add("r1"), engine.step(new("r1", "a", reason="stop"))))
        ours.add("r1")
        ours.step(new("r1", "a", reason="stop"))
        assert len(mine.of("chain_start")) == 1
        engine.add("r2")  # it was detached
        engine.step(new("r2", "a", reason="stop"))
        vllm_engine.every_engine.attachment.detach()
    assert [start.data["row"] for start in capture.of("chain_start")] == [{"request_id": "r2"}]


def test_the_plugin_hooks_a_class_once(hooked):
    """vLLM may load its plugins several times in one process."""
    method = hooked.process_outputs
    vllm_engine.every_engine.hook(hooked)
    assert hooked.process_outputs is method
