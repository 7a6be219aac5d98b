"""The writers that a producer uses for a chain, its generations and its tool calls.

Each writes to the chain's open trajectory, and emits the events that an observer wants. `run.py` has the run around them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from operator import sub
from types import TracebackType
from typing import Any, Protocol, Self, get_args

from rollcast.aio import why_left
from rollcast.errors import InputError
from rollcast.failures import FailureLog, class_name_of, text_and_place, text_of
from rollcast.records import (
    Message,
    OutsideMessage,
    StepReward,
    StreamEvent,
    StreamEventType,
    ToolCall,
    ToolRecord,
    Trajectory,
    Turn,
    prompt_hash,
    validated_messages,
)
from rollcast.records.event import ChainFinishReason, GenerationFinishReason, ToolStatus
from rollcast.records.jsonable import (
    as_json,
    bounded_fields,
    bounded_json,
    bounded_row,
    plain_scalar,
    shown_arguments,
)
from rollcast.stream.asked import TOLD_ANYWAY, ChainSoFar
from rollcast.stream.fanout import Fanout, Route, Silence, Targets
from rollcast.stream.notes import ChainNotes
from rollcast.stream.queue import Control, EventQueue, chunk_size
from rollcast.stream.waiting import ChunkData, EncodableChunk, WaitingChunk, only_of, packed
from rollcast.text import well_formed

__all__ = [
    "ChainWriter",
    "GenerationWriter",
    "RunOfChain",
    "ToolCallWriter",
    "chain_here",
    "error_data",
    "innermost",
]

logger = logging.getLogger("rollcast.stream")

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK
UNSET: Any = object()

chain_here: ContextVar[ChainWriter | None] = ContextVar("rollcast_chain", default=None)


class RunOfChain(Protocol):
    """What a chain needs of the run that it belongs to."""

    fanout: Fanout
    lock: AbstractContextManager[Any]
    live: bool
    run_id: str
    source: str
    model: str
    policy_version: int
    seq: int
    open_chains: dict[str, ChainWriter]
    failures: FailureLog

    def chain_began(self, chain: ChainWriter) -> None:
        """Add the chain to the open ones. The lock is held.

        Raises:
            InputError: the run is not open, or the chain has already begun.
        """
        ...

    def chain_ended(self, chain: ChainWriter) -> None:
        """Add it to the totals. The lock is held."""
        ...

    def publish(
        self,
        targets: Targets,
        event_type: StreamEventType,
        route: Route,
        data: dict[str, Any],
        step: int | None,
        depth: int | None = None,
    ) -> None:
        """Make the event, stamp it with its `seq` and queue it for each target. The lock is held."""
        ...

    def publish_again(
        self, targets: Targets, event_type: StreamEventType, route: Route, data: dict[str, Any], step: int | None,
        depth: int | None, size: int,
    ) -> None:  # fmt: skip
        """Queue the event that was published last for targets that want more data in it; its `seq` is the same."""
        ...


def checked_word(word: Any, words: Any, what: str) -> None:
    """Check a word against those that events allow, since a reader of the log would refuse any other.

    Raises:
        InputError: it is not one of them.
    """
    if word not in get_args(words):
        raise InputError(f"{what} is {word!r}; expected one of {', '.join(get_args(words))}")


def error_data(error: BaseException | str, where: str, error_type: str = "") -> dict[str, Any]:
    """The payload of an `error` event. `error_type` is for an error that is given as text.

    The text ends with the place in the user's own code that raised the exception, `no such city (agent.py:12)`, but not for a
    backend's error, since the code that called an engine is seldom at fault.
    """
    if isinstance(error, str):
        return {"error": well_formed(error), "error_type": error_type, "where": where}
    text = text_of(error) or class_name_of(error) if where == "backend" else text_and_place(error)
    return {"error": well_formed(text), "error_type": class_name_of(error), "where": where}


def _finite(reward: object, whose: str) -> float:
    """A reward as a plain number, since JSON does not take NumPy's and torch's numbers.

    Raises:
        InputError: it is not a finite number.
    """
    try:
        number = float(reward)  # type: ignore[arg-type]  # what cannot be converted is refused below
    except (TypeError, ValueError) as error:
        raise InputError(f"{whose} is {type(reward).__name__}; expected a number") from error
    if not math.isfinite(number):
        raise InputError(f"{whose} is {number}; expected a finite number")
    return number


def _checked_text(text: object) -> str:
    """Check that this is text; replace lone surrogates, as in the JSON of a split emoji, which cannot be encoded."""
    if not isinstance(text, str):
        raise InputError(
            f"a chunk's text is {type(text).__name__}; expected a string, empty if there is no text"
        )
    return well_formed(str.__str__(text))


def _checked_count(count: object, what: str) -> int | None:
    """A count of tokens, or None if it is not known."""
    if count is None or (type(count) is int and count >= 0):
        return count
    number = plain_scalar(count)
    if type(number) is int and number >= 0:
        return number
    raise InputError(
        f"{what} is {class_name_of(count) if type(number) is not int else number}; expected a whole number from 0 upward"
    )


def _chunk_data(
    text: str, offset: int, token_ids: list[int] | None, logprobs: list[float] | None
) -> dict[str, Any]:
    """The data of a chunk's event, with lists of its own."""
    data: dict[str, Any] = {"content": text, "offset": offset}
    if token_ids is not None:
        data["token_ids"] = [*token_ids]
    if logprobs is not None:
        data["logprobs"] = [*logprobs]
    return data


def _unequal(token_ids: list[int] | None, logprobs: list[float]) -> InputError:
    ids = len(token_ids or ())
    return InputError(
        f"a chunk has {ids} token ids and {len(logprobs)} logprobs; expected one logprob for each id"
    )


class ChainWriter:
    """One chain: emits `chain_start` on entering the block and `chain_end` on leaving it, whatever is raised.

    Attributes:
        trajectory: the conversation, turns and tool calls so far.
        live: whether the run emits events.
        generation_open: the generation that has begun and not ended, or None.
        tools_open: the tool calls that have begun and not ended, by call id.
        spoken_to: whether a message from outside came after the latest turn, so that the next one comes before any tool call.
        depth: how many turns the chain has had since its last fresh prompt; None before the first.
        notes: what a snapshot needs besides the trajectory; kept if the run is live.
    """

    def __init__(
        self,
        run: RunOfChain,
        trajectory: Trajectory,
        tools: list[str],
        reference: Any,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.trajectory = trajectory
        self.live = run.live
        self.lock = run.lock
        self.route = (
            Route(run.fanout, run.run_id, trajectory.chain_id, trajectory.group_id, run.source, asked=True)
            if run.live
            else None
        )
        self.generation_open: GenerationWriter | None = None
        self.tools_open: dict[str, ToolCallWriter] = {}
        self.spoken_to = False
        self.notes = ChainNotes()
        self._tools = tools
        self._reference = reference
        self._about = {} if about is None else about  # further fields of `chain_start`
        self._began = time.perf_counter()
        self.around: ChainWriter | None = None  # the chain in which this one was begun
        self._calls = 0  # how many call ids were made here
        self.depth: int | None = None

    # -- the chain itself --------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin the chain.

        Raises:
            InputError: the run is not open, or the chain has already begun.
        """
        self._began = time.perf_counter()
        trajectory = self.trajectory
        with self.lock:
            self.run.chain_began(self)
            self.around = innermost(chain_here.get())
            chain_here.set(self)
            if self.live:
                data = {
                    "messages": list(trajectory.messages),
                    "tools": self._tools,
                    "index": trajectory.index,
                    "policy_version": self.run.policy_version,
                }
                if self._reference is not UNSET:
                    data["reference"] = bounded_json(self._reference)
                if trajectory.messages:
                    data["prompt_hash"] = prompt_hash(trajectory.messages)
                data.update(self._about)
                self.notes.began(data)
                if fields := {
                    n: v for n, v in trajectory.row.items() if n != "answer" or "reference" not in data
                }:
                    data["row"] = bounded_row(fields)
                self.emit(T.CHAIN_START, data)
        logger.debug("%s begins", trajectory.chain_id)
        return self

    def end(self, finish_reason: ChainFinishReason, final_response: str | None = None) -> None:
        """End what is still open, then the chain. Ending twice does nothing.

        Raises:
            InputError: the finish reason is unknown, or the chain has not begun.
        """
        trajectory = self.trajectory
        if trajectory.finish_reason is not None:
            return
        checked_word(finish_reason, ChainFinishReason, "a chain's finish_reason")
        self.must_be_open("end")
        self.around = innermost(
            self.around
        )  # so that an ended chain is not kept alive by those begun inside it
        if chain_here.get() is self:
            chain_here.set(self.around)
        self.end_if_it_gives_way()
        left: Any = finish_reason if finish_reason in ("cancelled", "error") else "error"
        if self.generation_open is not None:
            self.generation_open.end(left)
        for call in list(self.tools_open.values()):
            call.end(left)
        with self.lock:
            trajectory.finish_reason = finish_reason
            if final_response is not None:
                trajectory.final_response = final_response
            trajectory.duration_s = time.perf_counter() - self._began
            self.run.chain_ended(self)
            if self.live:
                self._tell_askers_of_end()
                self.emit(
                    T.CHAIN_END,
                    {
                        "finish_reason": finish_reason,
                        "final_response": trajectory.final_response,
                        "steps": len(trajectory.turns),
                        "completion_tokens": trajectory.completion_tokens,
                        "reward": trajectory.reward,
                        "metrics": bounded_fields(trajectory.metrics),
                        "duration_s": trajectory.duration_s,
                    },
                )
                self.run.fanout.broadcast_locked(
                    Control("chain_closed", self.run.run_id, trajectory.chain_id)
                )
                for closed in self.run.fanout.chain_closings:
                    closed(trajectory)
        logger.debug("%s is %s after %d steps", trajectory.chain_id, finish_reason, len(trajectory.turns))

    @property
    def ended(self) -> bool:
        """Whether the chain has its finish reason, so that nothing more may come."""
        return self.trajectory.finish_reason is not None

    def must_be_open(self, doing: str) -> None:
        """Refuse an action before the chain's start or after its end.

        Raises:
            InputError: it has not begun, or it has ended.
        """
        name = self.trajectory.chain_id
        if self.ended:
            raise InputError(f"{name} has ended ({self.trajectory.finish_reason}); it cannot {doing}")
        if self.run.open_chains.get(name) is not self:
            raise InputError(
                f"{name} has not begun; enter it (`with run.chain(...) as chain:`) or call its start(), then {doing}"
            )

    def end_if_it_gives_way(self) -> None:
        """End the open generation with `cancelled` if it gives way to whatever comes next."""
        if self.generation_open is not None and self.generation_open.gives_way:
            self.generation_open.end("cancelled")

    def must_be_idle(self, doing: str, *, tools: bool = False) -> None:
        """Refuse an action inside a generation, and if `tools`, also during tool calls.

        Raises:
            InputError: a generation or such a call is open.
        """
        self.end_if_it_gives_way()
        open_now = "generation" if self.generation_open is not None else ""
        if tools and self.tools_open:
            open_now = f"tool call {next(iter(self.tools_open.values())).record.call.tool_name}"
        if open_now:
            raise InputError(
                f"{self.trajectory.chain_id} cannot {doing} while its {open_now} is open; end that first"
            )

    def message(self, message: Message, *, from_outside: bool = False) -> None:
        """Add a message to the conversation.

        Args:
            message: the message.
            from_outside: whether no turn or tool call is behind it, as with a user's next turn. It is then checked, and shown
                in a `message` event. Otherwise this emits nothing, since the turn or tool call has its own events.

        Raises:
            InputError: for a message from outside: the chain is not open, already has its reward, or has an open generation
                or tool call.
            MessagesError: for a message from outside: it has the wrong shape.
        """
        if not from_outside:
            with self.lock:
                self.trajectory.messages.append(message)
            return
        (message,) = validated_messages([message], f"a message for {self.trajectory.chain_id}")
        with self.lock:
            self._must_be_between_turns("take a message")
            if self.live:
                self.notes.message_came(self.trajectory)
            place = OutsideMessage(len(self.trajectory.turns), len(self.trajectory.messages))
            self.trajectory.messages.append(message)
            self.trajectory.from_outside.append(place)
            self.spoken_to = True
            if self.live:
                self.emit(T.MESSAGE, dict(message))

    def error(
        self, error: BaseException | str, where: str, *, goes_on: bool = False, error_type: str = ""
    ) -> None:
        """Record a failure.

        An exception from the user's own code is logged with its traceback, once for each place in a run.

        Args:
            error: what happened.
            where: `backend`, `parser`, `reward`, `agent` or `tool:NAME`.
            goes_on: whether the exception also reaches the caller, where its traceback is seen anyway.
            error_type: the class of an error that is given as text.
        """
        if isinstance(error, BaseException) and not goes_on:
            self.run.failures.log(logger, f"{self.trajectory.chain_id}: {where}", error)
        if self.live:
            data = error_data(error, where, error_type)
            with self.lock:
                self.notes.failed(data)
                self.emit(T.ERROR, data)

    def reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        """Set the chain's reward, once, after its last generation and tool call and before its end.

        Raises:
            InputError: this is not the moment for it, the chain already has a reward, or it is not a finite number.
        """
        with self.lock:
            self._must_be_between_turns("be rewarded")
            number = _finite(reward, f"{self.trajectory.chain_id}'s reward")
            self.trajectory.reward = number
            self.trajectory.metrics = as_json(dict(metrics or {}))
            self._emit_reward(number, self.trajectory.metrics, final=True)

    def step_reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        """Give a reward for what the chain has done so far, between two turns or after the last; as often as you like.

        It is kept in `trajectory.step_rewards`, and not added to the chain's own reward, which `reward` sets.

        Raises:
            InputError: this is not the moment for it, the chain already has its own reward, or it is not a finite number.
        """
        with self.lock:
            self._must_be_between_turns("be given the reward of a step")
            number = _finite(reward, f"the reward of a step of {self.trajectory.chain_id}")
            given = StepReward(len(self.trajectory.turns), number, as_json(dict(metrics or {})))
            self.trajectory.step_rewards.append(given)
            self._emit_reward(number, given.metrics, final=False)

    def _must_be_between_turns(self, doing: str) -> None:
        """Refuse an action inside a generation or a tool call, or after the chain's own reward.

        Raises:
            InputError: this is not the moment for it.
        """
        self.must_be_open(doing)
        self.must_be_idle(doing, tools=True)
        if self.trajectory.reward is not None:
            raise InputError(
                f"{self.trajectory.chain_id} has a reward already ({self.trajectory.reward}), which comes last, so it cannot {doing}: "
                "before it, give rewards of steps with step_reward; give its parts as metrics"
            )

    def _emit_reward(self, reward: float, metrics: dict[str, Any], *, final: bool) -> None:
        if self.live:
            self.notes.heard()
            self.emit(T.REWARD, {"reward": reward, "metrics": bounded_fields(metrics), "final": final})

    # -- what it opens -----------------------------------------------------------------------------------------------

    def generation(
        self,
        *,
        prompt_ids: list[int] | None = None,
        prompt_tokens: int | None = None,
        sampling: dict[str, Any] | None = None,
        policy_version: int | None = None,
        fresh: bool = False,
        model: str | None = None,
    ) -> GenerationWriter:
        """Make the next generation; use it as a context manager.

        Args:
            prompt_ids: the ids that are new in this prompt, shape (T,).
            prompt_tokens: the length of the whole prompt in tokens.
            sampling: the sampling parameters.
            policy_version: the version of the weights that are loaded now; None: that of the run.
            model: the model that generates; None: that of the run.
            fresh: `prompt_ids` are the whole prompt, which does not continue the turns before; a new segment begins.

        A generation that is still open when the next one begins ends with `error`.
        """
        turn = Turn(
            step=len(self.trajectory.turns) + 1,
            prompt_ids=prompt_ids or [],
            prompt_tokens=prompt_tokens,
            fresh=fresh,
        )
        version = self.run.policy_version if policy_version is None else policy_version
        kind = _TimedGenerationWriter if self._ids_are_wanted() else GenerationWriter
        return kind(self, turn, sampling or {}, version, self.run.model if model is None else model)

    def _ids_are_wanted(self) -> bool:
        """Whether an observer wants the ids of this chain's generations, and so when each of their tokens arrived."""
        if self.route is None:
            return False
        with self.lock:
            return bool(self.route.targets_of_ids_locked())

    def tool_call(
        self, tool_name: str, arguments: dict[str, Any] | str, call_id: str | None = None
    ) -> ToolCallWriter:
        """Make a tool call in the latest turn; use it as a context manager.

        Args:
            tool_name: the name as the model wrote it.
            arguments: the object, or the model's text if that is not a valid object.
            call_id: an id that is unique among the chain's open calls; if None or empty, one is made.
        """
        if not call_id:
            with self.lock:
                while f"call_{self._calls}" in self.tools_open:  # a producer's own ids may look like these
                    self._calls += 1
                call_id, self._calls = f"call_{self._calls}", self._calls + 1
        return ToolCallWriter(self, ToolRecord(ToolCall(call_id, tool_name, arguments)))

    # -- watching ----------------------------------------------------------------------------------------------------

    def wants(self, event_type: StreamEventType) -> bool:
        """Whether any observer wants events of this type from this chain."""
        with self.lock:
            return self.route is not None and bool(self.route.targets_locked(StreamEventType(event_type)))

    def emit(self, event_type: StreamEventType, data: dict[str, Any], step: int | None = None) -> None:
        """Emit an event of this chain if an observer wants it. The lock is held."""
        assert self.route is not None
        targets = self.route.targets_locked(event_type)
        if targets:
            step = step or len(self.trajectory.turns) or None
            self.run.publish(targets, event_type, self.route, as_json(data), step, self.depth)
        if self.run.fanout.asking and event_type not in TOLD_ANYWAY:
            self.note_change()

    # -- being asked -------------------------------------------------------------------------------------------------

    @property
    def key(self) -> tuple[str, str]:
        """The run's id and the chain's."""
        return self.trajectory.run_id, self.trajectory.chain_id

    def so_far(self, *, rewarded: bool = True) -> ChainSoFar:
        """See `AskedChain`. The lock is held."""
        return self.notes.so_far(self.trajectory, self.depth, self.run.seq, rewarded=rewarded)

    def note_change(self) -> None:
        """Note, for readers that ask, that the chain has done something. The lock is held."""
        if self.route is not None and self.route.asked:
            for asking in self.run.fanout.asking:
                asking.changed_locked(self)

    def _tell_askers_of_end(self) -> None:
        if self.route is not None and self.route.asked:
            for asking in self.run.fanout.asking:
                asking.ends_locked(self)

    def tell_all(self) -> None:
        """Give every event from now on also to readers that ask, since somebody makes events of this chain by hand. The lock is held."""
        if self.route is None or not self.route.asked:
            return
        self.route.tell_all()
        if self.generation_open is not None:
            self.generation_open.silence = None
        for asking in self.run.fanout.asking:
            asking.told_locked(self)
        self.run.fanout.snapshot_for_askers_locked(self.snapshot())

    # -- watching ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> StreamEvent:
        """Make a `chain_snapshot` of the chain's current state. The lock is held."""
        t, seq, now = self.trajectory, self.run.seq, time.time()
        data = self.notes.snapshot(t, self.depth, seq, now)
        return StreamEvent(
            T.CHAIN_SNAPSHOT, t.chain_id, now, data, len(t.turns) or None, self.depth, seq, t.run_id, t.group_id,
            self.run.fanout.source,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            turn = self.trajectory.turns[-1] if self.trajectory.turns else None
            self.end("answered", turn.text if turn is not None else "")
            return
        if why_left(error) == "error" and self.trajectory.finish_reason is None:
            self.trajectory.error = str(error)
            self.error(error, "agent", goes_on=True)
        self.end("cancelled" if why_left(error) == "cancelled" else "error")


class GenerationWriter:
    """One generation: emits `llm_generation_start` on entering the block and `llm_generation_end` on leaving it.

    Attributes:
        chain: the chain that it belongs to.
        turn: what it has generated so far.
        gives_way: whether it ends with `cancelled` as soon as its chain does something else, which is refused otherwise. It is for
            code that only looks on: the reader of a stream may leave it half read, and nobody is told.
    """

    __slots__ = (
        "_began",
        "_model",
        "_run",
        "_sampling",
        "_version",
        "chain",
        "depth",
        "gives_way",
        "lock",
        "route",
        "silence",
        "turn",
    )

    def __init__(
        self, chain: ChainWriter, turn: Turn, sampling: dict[str, Any], version: int, model: str
    ) -> None:
        self.chain = chain
        self._run = chain.run
        self.turn = turn
        self.route = chain.route
        self.silence: Silence | None = None  # while it lasts, nobody wants this chain's tokens
        self.lock = chain.lock
        self._sampling = sampling
        self._version = version
        self._model = model
        self._began = time.perf_counter()
        self.gives_way = False
        self.depth: int | None = (
            None  # the chain's; a token of many chains finds it here without another object
        )

    def start(self) -> Self:
        """Begin the generation.

        Raises:
            InputError: the chain is not open, already has its reward, or has open tool calls.
        """
        chain, turn = self.chain, self.turn
        with self.lock:
            chain.must_be_open("generate")
            chain.end_if_it_gives_way()
            if chain.generation_open is not None:
                chain.generation_open.end("error")
            chain.must_be_idle("generate", tools=True)
            if chain.trajectory.reward is not None:
                raise InputError(f"{chain.trajectory.chain_id} has its reward; generate before that")
            turn.step = len(chain.trajectory.turns) + 1
            turn.fresh = turn.fresh and turn.step > 1
            chain.trajectory.turns.append(turn)
            chain.generation_open = self
            chain.spoken_to = False
            chain.depth = self.depth = 1 if turn.fresh else (chain.depth or 0) + 1
            self._began = time.perf_counter()
            if chain.live:
                chain.notes.generation_began(chain.trajectory, self._model, self._version)
                data = {
                    "prompt_tokens": turn.prompt_tokens,
                    "model": self._model,
                    "policy_version": self._version,
                    "sampling": self._sampling,
                }
                chain.emit(T.LLM_GENERATION_START, data, turn.step)
        return self

    def chunk(
        self, text: str, token_ids: list[int] | None = None, logprobs: list[float] | None = None,
        policy_version: int | None = None, reasoning: str | None = None,
    ) -> None:  # fmt: skip
        """Add new text to the generation, with its ids and log-probabilities if there are any (same length).

        This is on the path of every token; only if an observer wants it, it becomes an event. The lists must have plain numbers; they
        are kept, and must not be changed afterwards. `reasoning` is new reasoning text that the server sends apart. After the
        generation's end this does nothing.

        Raises:
            InputError: the generation has not begun, or a text is not a string; or, in a live run, there is not exactly one
                log-probability for each id.
        """
        if reasoning is not None and reasoning:  # the first test alone costs half as much
            self._chunk_with_reasoning(text, reasoning, token_ids, logprobs, policy_version)
            return
        turn = self.turn
        if text.__class__ is not str or not text.isascii():
            text = _checked_text(text)
        if not text and not token_ids and not logprobs:  # such as a last chunk with only a finish reason
            self._must_have_begun()
            return
        if turn.ttft_s is None:
            self._must_have_begun()
            turn.ttft_s = time.perf_counter() - self._began
        silence = self.silence
        if silence is not None and silence.lasts:
            # Nobody wants this chain's tokens, as with most of many chains. Then even the lock costs, and a look at the chain's route.
            if logprobs and len(logprobs) != len(token_ids or ()):
                raise _unequal(token_ids, logprobs)
            if turn.finish_reason is None:
                turn.append(text, token_ids, logprobs, policy_version)
            if not silence.lasts or self.silence is not silence:  # type: ignore[redundant-expr]  # in another thread
                self._show_to_newcomers()
            return
        route = self.route
        if route is None:  # streaming is off
            if turn.finish_reason is None:
                turn.append(text, token_ids, logprobs, policy_version)
            return
        if logprobs and len(logprobs) != len(token_ids or ()):
            raise _unequal(token_ids, logprobs)
        lock: Any = self.lock  # the manager's
        lock.acquire()  # half of what `with` costs
        try:
            if turn.finish_reason is not None:
                return
            offset = turn.chars
            turn.append(text, token_ids, logprobs, policy_version)
            targets, fanout = route.chunk, self._run.fanout
            if targets is None or route.version != fanout.version:
                targets = route.targets_locked(CHUNK)
            if targets:
                self._publish_locked(route, targets, text, offset, token_ids, logprobs)
            else:
                self.silence = fanout.silence
        finally:
            lock.release()

    def _publish_locked(
        self, route: Route, targets: Targets, text: str, offset: int, token_ids: list[int] | None, logprobs: list[float] | None
    ) -> None:  # fmt: skip
        """Queue new text for those who want it."""
        run, place, depth, step, now = self._run, route.place, self.depth, self.turn.step, time.time()
        run.seq = seq = run.seq + 1
        fanout, size = run.fanout, chunk_size(text, token_ids)
        if route.encoded:
            kind: Any = EncodableChunk
            token_ids, logprobs = packed(token_ids, int), packed(logprobs, float)
            data: Any = ChunkData(text, offset, token_ids, logprobs)
        elif fanout.crowded:
            ids, logs, shared = only_of(token_ids, int), only_of(logprobs, float), len(targets) > 1
            waiting = WaitingChunk(place, text, offset, ids, logs, step, depth, seq, now, shared)
            fanout.publish_waiting_locked(waiting, targets, size)
            return
        else:
            kind, data = StreamEvent, _chunk_data(text, offset, token_ids, logprobs)
        event = kind(
            CHUNK, place.chain_id, now, data, step, depth, seq, place.run_id, place.group_id, place.source
        )
        fanout.chunks += 1
        EventQueue.put_in_each(targets, event, size)

    def _show_to_newcomers(self) -> None:
        """Give those who began to want this chain's tokens while one was added a new snapshot, since theirs may be without it."""
        with self.lock:
            assert self.route is not None
            newcomers = [d for d in self.route.targets_locked(CHUNK) if d.tokens == "wanted"]
            if newcomers:
                snapshot = self.chain.snapshot()
                for delivery in newcomers:
                    delivery.put_uncounted([snapshot])

    def _chunk_with_reasoning(
        self,
        text: str,
        reasoning: str,
        token_ids: list[int] | None,
        logprobs: list[float] | None,
        policy_version: int | None,
    ) -> None:
        """Add new reasoning text, and perhaps text, as `chunk` does for text alone."""
        turn, route = self.turn, self.route
        text, reasoning = _checked_text(text), _checked_text(reasoning)
        if turn.ttft_s is None:
            self._must_have_begun()
            turn.ttft_s = time.perf_counter() - self._began
        if route is not None and logprobs and len(logprobs) != len(token_ids or ()):
            raise _unequal(token_ids, logprobs)
        with self.lock:
            if turn.finish_reason is not None:
                return
            data: dict[str, Any] = {"content": text, "offset": turn.chars, "reasoning": reasoning}
            turn.append_reasoning(reasoning)
            if text or token_ids:
                turn.append(text, token_ids, logprobs, policy_version)
            else:
                turn.completion_tokens += 1
            targets = () if route is None else route.targets_locked(CHUNK)
            if route is None or not targets:
                return
            if token_ids is not None:
                data["token_ids"] = token_ids
            if logprobs is not None:
                data["logprobs"] = logprobs
            self._run.publish(targets, CHUNK, route, as_json(data), turn.step, self.depth)

    def _must_have_begun(self) -> None:
        if self.turn.finish_reason is None and self.chain.generation_open is not self:
            raise InputError(
                f"a generation of {self.chain.trajectory.chain_id} has not begun; enter it "
                "(`with chain.generation() as generation:`) or call its start()"
            )

    def end(
        self,
        finish_reason: GenerationFinishReason = "stop",
        *,
        completion_tokens: int | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        """End the generation. Ending twice does nothing.

        Args:
            finish_reason: why it ended.
            completion_tokens: how many tokens the engine says it sampled; None: the ids are counted, or the chunks if there are none.
            prompt_tokens: how long the engine says the whole prompt was, in tokens; None: what `chain.generation` was given.

        Raises:
            InputError: the finish reason is unknown, or a count is not a whole number from 0 upward.
        """
        chain, turn = self.chain, self.turn
        checked_word(finish_reason, GenerationFinishReason, "a generation's finish_reason")
        completion_tokens = _checked_count(completion_tokens, "completion_tokens")
        prompt_tokens = _checked_count(prompt_tokens, "prompt_tokens")
        with self.lock:
            if turn.finish_reason is not None:
                return
            if completion_tokens is not None:
                turn.completion_tokens = completion_tokens
            if prompt_tokens is not None:
                turn.prompt_tokens = prompt_tokens
            turn.finish_reason = finish_reason
            turn.duration_s = time.perf_counter() - self._began
            chain.generation_open = None
            if chain.live:
                chain.notes.generation_ended(turn)
                chain.run.fanout.completion_tokens += turn.completion_tokens
                data = {
                    "content": turn.text,
                    "finish_reason": finish_reason,
                    "prompt_tokens": turn.prompt_tokens,
                    "completion_tokens": turn.completion_tokens,
                    "ttft_s": turn.ttft_s,
                    "duration_s": turn.duration_s,
                }
                if turn.reasoning_pieces:
                    data["reasoning"] = turn.reasoning
                self._emit_end(data)

    def _emit_end(self, data: dict[str, Any]) -> None:
        """Emit the end, with ids for whoever asks for them. The lock is held."""
        chain, turn, route = self.chain, self.turn, self.route
        assert route is not None
        with_ids = route.targets_of_ids_locked() if turn.token_ids else ()
        if not with_ids:
            chain.emit(T.LLM_GENERATION_END, data, turn.step)
            return
        targets = route.targets_locked(T.LLM_GENERATION_END)
        if self._run.fanout.asking:
            chain.note_change()
        run, depth, data = self._run, chain.depth, as_json(data)
        others = tuple(target for target in targets if target not in with_ids)
        run.publish(others, T.LLM_GENERATION_END, route, data, turn.step, depth)
        whole = data | {"token_ids": turn.token_ids, "logprobs": turn.logprobs}
        size = chunk_size(turn.text, turn.token_ids)
        if (times := self._times_between_tokens()) is not None:
            whole["dt_ms"], size = times, size + 32 * len(times)
        run.publish_again(with_ids, T.LLM_GENERATION_END, route, whole, turn.step, depth, size)

    def _times_between_tokens(self) -> list[float] | None:
        """Milliseconds from each token to the next one; None if they were not noted."""
        return None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end("stop")
        else:
            self.end("cancelled" if why_left(error) == "cancelled" else "error")


class _TimedGenerationWriter(GenerationWriter):
    """A generation that notes when each token arrives, since an observer wants its ids. No other generation pays for it."""

    __slots__ = ("_arrivals",)

    def __init__(
        self, chain: ChainWriter, turn: Turn, sampling: dict[str, Any], version: int, model: str
    ) -> None:
        super().__init__(chain, turn, sampling, version, model)
        self._arrivals: list[float] = []  # one for each id of the turn, in seconds

    def chunk(
        self,
        text: str,
        token_ids: list[int] | None = None,
        logprobs: list[float] | None = None,
        policy_version: int | None = None,
        reasoning: str | None = None,
    ) -> None:
        """See `GenerationWriter.chunk`."""
        if token_ids:
            now = time.perf_counter()
            if len(token_ids) == 1:
                self._arrivals.append(now)
            else:
                self._arrivals += [now] * len(token_ids)
        # `super()` costs more
        GenerationWriter.chunk(self, text, token_ids, logprobs, policy_version, reasoning)

    def _times_between_tokens(self) -> list[float] | None:
        if len(self._arrivals) != len(self.turn.token_ids):
            return None  # a chunk was refused
        # Rounded to hundredths: a third digit would make records 5 % larger, and this twice as slow.
        return [round(apart * 1e5) / 100 for apart in map(sub, self._arrivals[1:], self._arrivals)]


class ToolCallWriter:
    """One tool call: emits `tool_call_start` on entering the block, a final observation and `tool_call_end` on leaving it."""

    def __init__(self, chain: ChainWriter, record: ToolRecord) -> None:
        self.chain = chain
        self.record = record
        self._began = time.perf_counter()

    def start(self) -> Self:
        """Begin the call.

        Raises:
            InputError: the chain is not open, a generation is open or there was none, or a call with this id is open.
        """
        chain, call = self.chain, self.record.call
        with chain.lock:
            chain.must_be_open(f"call {call.tool_name}")
            chain.must_be_idle(f"call {call.tool_name}")
            if not chain.trajectory.turns:
                raise InputError(
                    f"{chain.trajectory.chain_id} calls {call.tool_name} before any generation; open one first"
                )
            if chain.spoken_to:
                raise InputError(
                    f"{chain.trajectory.chain_id} calls {call.tool_name} after a message from outside; open a generation first, "
                    "or add the message after the turn's calls"
                )
            if call.call_id in chain.tools_open:
                raise InputError(
                    f"{chain.trajectory.chain_id} already has an open call {call.call_id!r}; "
                    "leave call_id out, and one is made"
                )
            chain.trajectory.turns[-1].tools.append(self.record)
            chain.tools_open[call.call_id] = self
            self._began = time.perf_counter()
            if chain.live:
                chain.notes.call_began(call.call_id)
                arguments = shown_arguments(call.arguments)
                data = {"call_id": call.call_id, "tool_name": call.tool_name, "arguments": arguments}
                chain.emit(T.TOOL_CALL_START, data)
        logger.debug("%s calls %s", chain.trajectory.chain_id, call.tool_name)
        return self

    def observation(self, observation: str, status: ToolStatus = "success", *, partial: bool = False) -> Self:
        """Set what the tool returned, or add a piece of it if `partial`. After the final observation this does nothing.

        Returns the call, so that `call.observation(text).end()` closes one that was begun without a block.

        Raises:
            InputError: it is not text, or the status is unknown.
        """
        chain, record = self.chain, self.record
        if not isinstance(observation, str):
            raise InputError(
                f"the observation of {record.call.tool_name} is {type(observation).__name__}; expected text: "
                "str(...) or json.dumps(...) makes it"
            )
        checked_word(status, ToolStatus, "a tool call's status")
        if observation.__class__ is not str or not observation.isascii():
            observation = well_formed(str.__str__(observation))
        with chain.lock:
            if record.status is not None:
                return self
            record.observation = record.observation + observation if partial else observation
            record.status = None if partial else status
            if chain.live:
                chain.notes.heard()
                data = {
                    "call_id": record.call.call_id,
                    "tool_name": record.call.tool_name,
                    "observation": observation,
                    "status": status,
                    "partial": partial,
                }
                chain.emit(T.TOOL_OBSERVATION, data)
        return self

    def end(self, left: str = "error") -> None:
        """End the call. If it has no final observation, its status is `left`. Ending twice does nothing.

        Args:
            left: `cancelled` or `error`.
        """
        chain, record = self.chain, self.record
        if record.duration_s is not None:
            return
        if record.status is None:
            why = "cancelled" if left == "cancelled" else "error: the tool gave no result"
            self.observation(why, "cancelled" if left == "cancelled" else "error")
        with chain.lock:
            record.duration_s = time.perf_counter() - self._began
            chain.tools_open.pop(record.call.call_id, None)
            if chain.live:
                chain.notes.call_ended(record)
                data = {
                    "call_id": record.call.call_id,
                    "tool_name": record.call.tool_name,
                    "status": record.status,
                    "duration_s": record.duration_s,
                }
                chain.emit(T.TOOL_CALL_END, data)
        logger.debug("%s: %s is %s", chain.trajectory.chain_id, record.call.tool_name, record.status)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.record.status is None and why_left(error) == "error":
            self.observation(f"error: {error}", "error")
        self.end(why_left(error))


def innermost(chain: ChainWriter | None) -> ChainWriter | None:
    """The chain itself, or if it has ended, perhaps in another context, the first one around it that has not."""
    while chain is not None and chain.ended:
        chain = chain.around
    return chain
