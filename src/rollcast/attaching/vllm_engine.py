"""Watches the engines of vLLM at `OutputProcessor`, which every new token of every request passes, streamed or not.

    process_outputs(outputs) ── original ── new ids, text, log-probabilities ──tell──▶ Requests ──▶ a chain a request

`rollcast.attach.vllm(llm)` hooks the output processor of one engine in this process. The plugin (`rollcast_vllm`) hooks the class, and
so every engine of the process. The hooks are set around methods that vLLM does not promise to keep, so each is looked at first, and what
is missing is said in one warning. No sampling parameter of a request is changed.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, NamedTuple

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.token_text import TextOfIds, TokenReader
from rollcast.attaching.watch import Watch
from rollcast.errors import InputError
from rollcast.records.event import ChainFinishReason, GenerationFinishReason
from rollcast.stream.chain import ChainWriter, GenerationWriter

__all__ = ["Begun", "Requests", "Sampled", "attach", "hook_processor", "logprobs_of", "watch_process"]

logger = logging.getLogger("rollcast.attach")

WRITTEN_FOR = "0.32"

SHOWN = "_rollcast_shown"
"""An output processor with this attribute is left out by the plugin, since somebody else shows what it samples."""

_TAP = "_rollcast_tap"

_REASONS: dict[str, tuple[GenerationFinishReason, ChainFinishReason]] = {
    "stop": ("stop", "answered"),
    "repetition": ("stop", "answered"),
    "length": ("length", "max_tokens"),
    "abort": ("cancelled", "cancelled"),
    "error": ("error", "error"),
}


class Begun(NamedTuple):
    """What is known of a request when it begins.

    Attributes:
        key: the engine's own id of the request, which is unique.
        parent: the id of the request that asked for several samples (n > 1), of which this is one; None otherwise.
        sample: which of them.
        prompt: the text, if the engine was given text.
        prompt_ids: shape (T,); empty if the prompt is embeddings.
        prompt_tokens: T.
        sampling: those parameters that the engine keeps.
        has_text: whether the engine makes text of this request's tokens.
    """

    key: str
    parent: str | None
    sample: int
    prompt: str | None
    prompt_ids: list[int]
    prompt_tokens: int
    sampling: dict[str, Any]
    has_text: bool


class Sampled(NamedTuple):
    """What one step of the engine sampled for one request.

    Attributes:
        key: the request.
        ids: the new ids, shape (T,).
        text: the new text; empty if the engine makes none.
        logprobs: vLLM's own arrays, whose first column is that of the sampled tokens; None if the request did not ask for them.
        version: of the weights, if the engine tells it.
        reason: why the request ended; None if it goes on.
    """

    key: str
    ids: list[int]
    text: str
    logprobs: Any
    version: Any
    reason: Any


class _Open:
    """A request that has not ended: its chain, its open generation, and the text of its ids if the engine makes none."""

    __slots__ = ("about", "chain", "generation", "reason", "text")

    def __init__(self, about: Begun, chain: ChainWriter, text: TextOfIds | None) -> None:
        self.about = about
        self.chain = chain
        self.text = text
        self.generation: GenerationWriter | None = None
        self.reason = "stop"  # why its last generation ended


class Requests:
    """The requests of one engine as chains of a run. All of this runs on the watch's thread.

    Args:
        attachment: whose run it is.
        tokenizer: the engine's; None if it has none.
    """

    def __init__(self, attachment: Attachment, tokenizer: Any) -> None:
        self._attachment = attachment
        self._tokenizer = tokenizer
        self._reader: TokenReader | None = None
        self._open: dict[str, _Open] = {}

    def begin(self, about: Begun) -> None:
        """A request was given to the engine."""
        if not self._open and self._reader is None and self._tokenizer is not None:
            self._reader, self._tokenizer = _reader_of(self._tokenizer), None
        reader = self._reader
        prompt = about.prompt
        if prompt is None and reader is not None:
            prompt = reader.text(about.prompt_ids)
        chain = self._attachment.run.chain(
            [{"role": "user", "content": prompt}] if prompt else [],
            group_id=about.parent or _name_of_prompt(about),
            index=about.sample if about.parent else None,
            row={"request_id": about.key},
        )
        text = TextOfIds(reader) if reader is not None and not about.has_text else None
        request = self._open[about.key] = _Open(about, chain.start(), text)
        self._generate(request, about.prompt_ids)

    def _generate(self, request: _Open, prompt_ids: list[int]) -> GenerationWriter:
        about = request.about
        tokens = about.prompt_tokens if prompt_ids else None
        generation = request.chain.generation(
            prompt_ids=prompt_ids, prompt_tokens=tokens, sampling=about.sampling
        )
        request.generation = generation.start()
        return request.generation

    def step(self, sampled: list[Sampled], left: list[str]) -> None:
        """The engine has taken a step, after which some requests have left it."""
        for new in sampled:
            request = self._open.get(new.key)
            if request is None:  # it was aborted
                continue
            generation = request.generation or self._generate(request, [])  # more input came to a session
            text = new.text if request.text is None else request.text.feed(new.ids)
            generation.chunk(text, new.ids, logprobs_of(new), _version_of(new.version))
            if new.reason is not None:
                request.reason = str(new.reason).lower()
                self._ended(request, request.reason)
        for key in left:
            self.end((key,))

    def _ended(self, request: _Open, reason: str) -> None:
        generation = request.generation
        if generation is not None:
            if request.text is not None:
                generation.chunk(request.text.end())
            generation.end(_REASONS.get(reason, ("stop", "answered"))[0])
            request.generation = None

    def end(self, keys: Iterable[str], reason: str | None = None) -> None:
        """These requests have left the engine, for this reason or the one that their last step told."""
        for key in keys:
            request = self._open.pop(key, None)
            if request is None:
                continue
            reason = reason or request.reason
            self._ended(request, reason)
            chain = request.chain
            turns = chain.trajectory.turns
            chain.end(_REASONS.get(reason, ("stop", "answered"))[1], turns[-1].text if turns else "")

    def fail(self, error: BaseException) -> None:
        """The engine died."""
        for request in self._open.values():
            request.chain.trajectory.error = str(error)
            request.chain.error(error, "backend", goes_on=True)
        self.end(list(self._open), "error")


def _reader_of(tokenizer: Any) -> TokenReader | None:
    try:
        reader = TokenReader(tokenizer)
        reader.text([0, 1])
    except Exception as error:  # noqa: BLE001  (tokenizers come in many kinds, and only texts are missing then)
        logger.debug("no text can be made with a %s: %s", type(tokenizer).__name__, error)
        return None
    return reader


def _name_of_prompt(about: Begun) -> str | None:
    """The group of a request that samples once: those with the same prompt are repeats of it."""
    prompt = ",".join(map(str, about.prompt_ids)) or about.prompt
    return f"prompt_{hashlib.sha256(prompt.encode()).hexdigest()[:12]}" if prompt else None


def logprobs_of(new: Sampled) -> list[float] | None:
    """The log-probabilities of what was sampled, one for each id; None if they were not asked for or are not numbers."""
    if new.logprobs is None or not new.ids:
        return None
    found: list[float] = [float(row[0]) for row in new.logprobs.logprobs]
    known = len(found) == len(new.ids) and all(map(math.isfinite, found)) and -9999.0 not in found
    return found if known else None


def _version_of(version: Any) -> int | None:
    """The version of the weights as a number; None if vLLM gives no version, or a name."""
    text = str(version) if version is not None else ""
    return int(text) if text.isdecimal() else None


# -- the hooks, which run in the engine's own thread ---------------------------------------------------------------------


class Tap:
    """Reads what passes one output processor. The hooks call its methods inside `guarded()`, whose exceptions do not reach vLLM.

    Args:
        watch: on whose thread the requests are told.
        processor: vLLM's.
        requests: what is told: `Requests`, or something with its methods `begin`, `step`, `end` and `fail`.
    """

    def __init__(self, watch: Watch, processor: Any, requests: Any) -> None:
        self._watch = watch
        self.guarded = watch.guarded
        self._states = processor.request_states
        self._requests = requests
        self._shown: dict[str, int] = {}  # characters of each open request that were told

    @property
    def on(self) -> bool:
        """Whether anything is watched still."""
        return self._watch.on

    def begin(self, key: str) -> Any:
        """See that the request is known. Returns its state in the engine; None if it samples no tokens."""
        state = self._states.get(key)
        if state is None or state.detokenizer is None:
            return None
        if key not in self._shown:
            self._shown[key] = _settled(state.detokenizer)
            self._watch.tell(self._requests.begin, _begun(key, state))
        return state

    def before(self, outputs: Any) -> list[tuple[Any, Any]]:
        """Each output of a step with the state of its request, which the processor may forget now."""
        if not isinstance(outputs, list | tuple):
            raise TypeError(f"a step's outputs are {type(outputs).__name__}; expected a list")
        found = ((output, self.begin(output.request_id)) for output in outputs)
        return [(output, state) for output, state in found if state is not None]

    def after(self, step: list[tuple[Any, Any]], version: Any) -> None:
        """Tell what is new.

        Args:
            step: what `before` returned.
            version: of the weights, if the engine tells it.
        """
        sampled, left, states, shown = [], [], self._states, self._shown
        for output, state in step:
            key, reason, text = output.request_id, output.finish_reason, ""
            gone = key not in states
            if gone and reason is None:  # a stop string, which the engine's core does not know of
                reason = "stop"
            end = _settled(state.detokenizer, whole=reason is not None)
            if end > shown[key]:
                text = state.detokenizer.output_text[shown[key] : end]
                shown[key] = end
            ids = [*output.new_token_ids]
            sampled.append(Sampled(key, ids, text, output.new_logprobs, version, reason))
            if gone:
                left.append(key)
                del shown[key]
        self._watch.tell(self._requests.step, sampled, left)

    def aborted(self, keys: Any) -> None:
        """These requests were aborted."""
        gone = [key for key in keys if self._shown.pop(key, None) is not None]
        if gone:
            self._watch.tell(self._requests.end, gone, "abort")

    def died(self, error: BaseException) -> None:
        """The engine died with all its requests."""
        self._shown.clear()
        self._watch.tell(self._requests.fail, error)


def _settled(detokenizer: Any, *, whole: bool = False) -> int:
    """How many characters of its text will not be taken back: vLLM holds back what may be part of a stop string."""
    text = getattr(detokenizer, "output_text", "")
    return len(text) if whole else max(0, len(text) - getattr(detokenizer, "stop_buffer_length", 0))


def _begun(key: str, state: Any) -> Begun:
    parent = state.parent_req
    known = {
        "temperature": state.temperature, "top_p": state.top_p, "n": state.n, "max_tokens": state.max_tokens_param,
        "lora": state.lora_name,
    }  # fmt: skip
    return Begun(
        key,
        None if parent is None else str(parent.request_id),
        state.request_index,
        state.prompt,
        [*(state.prompt_token_ids or ())],
        state.prompt_len,
        {name: value for name, value in known.items() if value is not None},
        hasattr(state.detokenizer, "output_text"),
    )


def process_outputs(original: Any, processor: Any, tap: Tap, args: Any, kwargs: Any) -> Any:
    """Around a step of the engine."""
    step = None
    with tap.guarded():
        step = tap.before(args[0] if args else kwargs["engine_core_outputs"])
    result = original(processor, *args, **kwargs)
    if step:
        with tap.guarded():
            tap.after(step, kwargs.get("weight_version", args[3] if len(args) > 3 else None))
    return result


def add_request(original: Any, processor: Any, tap: Tap, args: Any, kwargs: Any) -> Any:
    """Around a request's arrival."""
    result = original(processor, *args, **kwargs)
    with tap.guarded():
        tap.begin((args[0] if args else kwargs["request"]).request_id)
    return result


def abort_requests(original: Any, processor: Any, tap: Tap, args: Any, kwargs: Any) -> Any:
    """Around the end of requests that nobody waits for any more. vLLM's method returns their ids."""
    result = original(processor, *args, **kwargs)
    with tap.guarded():
        tap.aborted(result)
    return result


def propagate_error(original: Any, processor: Any, tap: Tap, args: Any, kwargs: Any) -> Any:
    """Around the death of the engine."""
    result = original(processor, *args, **kwargs)
    with tap.guarded():
        tap.died(args[0] if args else kwargs["e"])
    return result


Hook = Callable[[Any, Any, Tap, Any, Any], Any]

# Each hook, the first parameter of the method that it goes around, and what is not seen if vLLM has no such method.
_HOOKS: dict[str, tuple[Hook, str, str]] = {
    "process_outputs": (process_outputs, "engine_core_outputs", ""),
    "add_request": (add_request, "request", "a request is seen from its first token on"),
    "abort_requests": (
        abort_requests,
        "request_ids",
        "a request that is aborted stays open to the end of the run",
    ),
    "propagate_error": (propagate_error, "e", "requests stay open if their engine dies"),
}


def _hookable(owner: type) -> dict[str, Hook]:
    """The hooks for which this class has a method.

    Raises:
        InputError: it has not the one that sees the tokens.
    """
    found = {
        name: hook for name, (hook, first, _) in _HOOKS.items() if _first_parameter(owner, name) == first
    }
    if "process_outputs" not in found:
        raise InputError(
            f"this vLLM ({_version()}) has no {owner.__name__}.process_outputs(engine_core_outputs, …), at which tokens are seen; expected "
            f"vLLM {WRITTEN_FOR}, or a version like it: watch its server through `rollcast proxy` instead"
        )
    less = [what for name, (_, _, what) in _HOOKS.items() if name not in found]
    if less:
        logger.warning(
            "this vLLM (%s) is another than Rollcast was written for (%s), so %s",
            _version(),
            WRITTEN_FOR,
            ", and ".join(less),
        )
    return found


def _first_parameter(owner: type, name: str) -> str | None:
    method = getattr(owner, name, None)
    names = [*inspect.signature(method).parameters] if callable(method) else []
    return names[1] if len(names) > 1 else None


def _version() -> str:
    return str(getattr(sys.modules.get("vllm"), "__version__", "of an unknown version"))


def attach(engine: Any, attachment: Attachment) -> None:
    """Hook the output processor of one engine: an `LLM`, an `LLMEngine` or an `AsyncLLM` of this process.

    Raises:
        InputError: it has no output processor that can be watched.
    """
    if engine is every_engine:
        every_engine.attachment = attachment
        return
    inner = getattr(engine, "llm_engine", engine)
    processor = getattr(inner, "output_processor", None)
    if processor is None:
        raise InputError(
            f"{type(engine).__name__} has no output processor; expected vLLM's LLM, LLMEngine or AsyncLLM (V1)"
        )
    config = getattr(inner, "model_config", None)
    mode = getattr(config, "logprobs_mode", None)
    attachment.about_run(
        model=str(getattr(config, "model", "")) or _model_of(processor),
        backend="vllm",
        settings=None if mode is None else {"logprobs_mode": str(mode)},
    )
    hook_processor(processor, attachment, Requests(attachment, processor.tokenizer))


def hook_processor(processor: Any, attachment: Attachment, requests: Any) -> None:
    """Hook the output processor of one engine, until the attachment is detached. The plugin then leaves it out.

    Args:
        processor: an `OutputProcessor` of vLLM's.
        attachment: what is detached, on whose watch's thread the requests are told.
        requests: what is told: `Requests`, or something with its methods `begin`, `step`, `end` and `fail`.

    Raises:
        InputError: this vLLM has no method at which tokens can be seen.
    """
    hooks = _hookable(type(processor))
    tap = Tap(attachment.watch, processor, requests)
    setattr(processor, SHOWN, True)
    attachment.on_detach(partial(_unset, processor, SHOWN, True))
    for name, hook in hooks.items():
        method = _of_instance(hook, processor, tap, getattr(type(processor), name))
        setattr(processor, name, method)
        attachment.on_detach(partial(_unset, processor, name, method))


def _of_instance(hook: Hook, processor: Any, tap: Tap, original: Any) -> Any:
    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        if not tap.on:
            return original(processor, *args, **kwargs)
        return hook(original, processor, tap, args, kwargs)

    return method


def _unset(owner: Any, name: str, value: Any) -> None:
    """Take out what was set on an instance, unless somebody has set something else since."""
    if vars(owner).get(name) is value:
        delattr(owner, name)


def _model_of(processor: Any) -> str:
    return str(getattr(processor.tokenizer, "name_or_path", ""))


# -- the plugin --------------------------------------------------------------------------------------------------------


class _EveryEngine:
    """What the plugin attaches: all engines of this process, as one run.

    Attributes:
        attachment: made with the first engine, since vLLM loads its plugins in processes that have none, too.
    """

    def __init__(self) -> None:
        self.attachment: Attachment | None = None

    def hook(self, owner: Any) -> None:
        """Put the hooks on vLLM's class. Does nothing the second time, since vLLM may load its plugins twice."""
        if hasattr(owner.__init__, "_rollcast"):
            return
        hooks = _hookable(owner)
        owner.__init__ = self._watching(owner.__init__)
        for name, hook in hooks.items():
            setattr(owner, name, self._around(hook, getattr(owner, name)))

    def _watching(self, original: Any) -> Any:
        @wraps(original)
        def method(processor: Any, *args: Any, **kwargs: Any) -> None:
            original(processor, *args, **kwargs)
            try:
                self._watch(processor)
            except Exception:  # an engine must start whatever is wrong here
                logger.exception("Rollcast steps aside from this engine, which goes on unwatched")

        method._rollcast = True  # type: ignore[attr-defined]  # noqa: SLF001  (read in `hook`)
        return method

    def _watch(self, processor: Any) -> None:
        from rollcast.attaching.front import attach as front  # noqa: PLC0415  (not in processes without an engine)

        front.vllm(self, record=None)  # the hub records
        if self.attachment is not None:
            self.attachment.about_run(model=_model_of(processor), backend="vllm")
            requests = Requests(self.attachment, processor.tokenizer)
            setattr(processor, _TAP, Tap(self.attachment.watch, processor, requests))

    @staticmethod
    def _around(hook: Hook, original: Any) -> Any:
        @wraps(original)
        def method(processor: Any, *args: Any, **kwargs: Any) -> Any:
            seen = vars(processor)
            tap = seen.get(_TAP)
            if tap is None or not tap.on or SHOWN in seen:
                return original(processor, *args, **kwargs)
            return hook(original, processor, tap, args, kwargs)

        return method


every_engine = _EveryEngine()


def watch_process() -> None:
    """Watch every engine of this process that nobody else shows. The plugin calls this.

    Raises:
        InputError: this vLLM has no method at which tokens can be seen.
    """
    from vllm.v1.engine.output_processor import OutputProcessor  # noqa: PLC0415  (the plugin runs inside vLLM)

    every_engine.hook(OutputProcessor)
