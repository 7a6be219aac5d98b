"""A chain as its producer sees it: the chain itself, its generations and its tool calls.

Each writes the chain's open trajectory, and emits what somebody wants. See `run.py` for the run around them.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self, get_args

from rollcast.aio import why_left
from rollcast.errors import InputError
from rollcast.failures import FailureLog, text_and_place, text_of
from rollcast.records import (
    Message,
    StreamEvent,
    StreamEventType,
    ToolCall,
    ToolRecord,
    Trajectory,
    Turn,
)
from rollcast.records.event import ChainFinishReason, GenerationFinishReason, ToolStatus
from rollcast.records.jsonable import as_json, bounded_fields, bounded_json, object_or_text
from rollcast.stream.fanout import Fanout, Route, Targets
from rollcast.stream.notes import ChainNotes
from rollcast.stream.queue import Control, EventQueue, chunk_size
from rollcast.stream.waiting import WaitingChunk, only_of
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
    model: str
    policy_version: int
    seq: int
    open_chains: dict[str, ChainWriter]
    failures: FailureLog

    def chain_began(self, chain: ChainWriter) -> None:
        """Count it in. The lock is held.

        Raises:
            InputError: the run is not open, or the chain has begun already.
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
        """Make the event, stamp it and queue it for each target. The lock is held."""
        ...

    def publish_again(
        self, targets: Targets, event_type: StreamEventType, route: Route, data: dict[str, Any], step: int | None,
        depth: int | None, size: int,
    ) -> None:  # fmt: skip
        """Queue the event that was published last for targets that want more data in it; its `seq` is the same."""
        ...


def checked_word(word: Any, words: Any, what: str) -> None:
    """One of the words that events know; a reader of the log would refuse another.

    Raises:
        InputError: it is none of them.
    """
    if word not in get_args(words):
        raise InputError(f"{what} is {word!r}; expected one of {', '.join(get_args(words))}")


def error_data(error: BaseException | str, where: str) -> dict[str, Any]:
    """The payload of an `error` event.

    It tells where in the user's own code the exception was raised, `no such city (agent.py:12)`; not of a backend's,
    since what an engine fails with is seldom the fault of the code that it was called through.
    """
    if isinstance(error, str):
        return {"error": error, "error_type": "", "where": where}
    text = text_of(error) or type(error).__name__ if where == "backend" else text_and_place(error)
    return {"error": well_formed(text), "error_type": type(error).__name__, "where": where}


def _checked_text(text: object) -> str:
    """The text, where it is one; lone surrogates, as JSON of a split emoji gives, are replaced: no encoding takes them."""
    if not isinstance(text, str):
        raise InputError(
            f"a chunk's text is {type(text).__name__}; expected a string, empty where there is none"
        )
    return well_formed(str.__str__(text))


class ChainWriter:
    """One chain: `chain_start` on entering the block, `chain_end` on leaving it, whatever is raised.

    Attributes:
        trajectory: what the chain has said and done so far.
        live: somebody may be watching.
        generation_open: the generation that has begun and not ended, or None.
        tools_open: the tool calls that have begun and not ended, by call id.
        depth: turns since the chain's last fresh prompt; None before the first.
        notes: what a snapshot needs beside the trajectory; kept if somebody may be watching.
    """

    def __init__(self, run: RunOfChain, trajectory: Trajectory, tools: list[str], reference: Any) -> None:
        self.run = run
        self.trajectory = trajectory
        self.live = run.live
        self.lock = run.lock
        self.route = (
            Route(run.fanout, run.run_id, trajectory.chain_id, trajectory.group_id) if run.live else None
        )
        self.generation_open: GenerationWriter | None = None
        self.tools_open: dict[str, ToolCallWriter] = {}
        self.notes = ChainNotes()
        self._tools = tools
        self._reference = reference
        self._began = time.perf_counter()
        self.around: ChainWriter | None = None  # the chain in which this one was begun
        self._calls = 0  # call ids that were made
        self.depth: int | None = None

    # -- the chain itself --------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin.

        Raises:
            InputError: the run is not open, or the chain has begun already.
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
                self.notes.began(data)
                self.emit(T.CHAIN_START, data)
        logger.debug("%s begins", trajectory.chain_id)
        return self

    def end(self, finish_reason: ChainFinishReason, final_response: str | None = None) -> None:
        """End what is still open, then the chain. Ending twice does nothing.

        Raises:
            InputError: the finish reason is none, or the chain has not begun.
        """
        trajectory = self.trajectory
        if trajectory.finish_reason is not None:
            return
        checked_word(finish_reason, ChainFinishReason, "a chain's finish_reason")
        self.must_be_open("end")
        self.around = innermost(
            self.around
        )  # chains that ended are not kept alive by those begun inside them
        if chain_here.get() is self:
            chain_here.set(self.around)
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
        """Nothing more may come."""
        return self.trajectory.finish_reason is not None

    def must_be_open(self, doing: str) -> None:
        """Refuse what would stand outside of the chain.

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

    def must_be_idle(self, doing: str, *, tools: bool = False) -> None:
        """Refuse what may not stand inside a generation, nor beside tool calls where `tools`.

        Raises:
            InputError: one is open.
        """
        open_now = "generation" if self.generation_open is not None else ""
        if tools and self.tools_open:
            open_now = f"tool call {next(iter(self.tools_open.values())).record.call.tool_name}"
        if open_now:
            raise InputError(
                f"{self.trajectory.chain_id} cannot {doing} while its {open_now} is open; end that first"
            )

    def message(self, message: Message) -> None:
        """Add a message to the conversation; it is shown through the events of what made it."""
        with self.lock:
            self.trajectory.messages.append(message)

    def error(self, error: BaseException | str, where: str, *, goes_on: bool = False) -> None:
        """Something failed.

        An exception of the user's own code is logged with its traceback, once for each place in a run.

        Args:
            error: what happened.
            where: `backend`, `parser`, `reward`, `agent` or `tool:NAME`.
            goes_on: whether the exception is raised to the caller, who will see its traceback anyway.
        """
        if isinstance(error, BaseException) and not goes_on:
            self.run.failures.log(logger, f"{self.trajectory.chain_id}: {where}", error)
        if self.live:
            data = error_data(error, where)
            with self.lock:
                self.notes.failed(data)
                self.emit(T.ERROR, data)

    def reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        """The chain's reward, once, when its last generation and tool call are over and before its end.

        Raises:
            InputError: it stands elsewhere, the chain has a reward already, or it is no number.
        """
        name = self.trajectory.chain_id
        with self.lock:
            self.must_be_open("be rewarded")
            self.must_be_idle("be rewarded", tools=True)
            if self.trajectory.reward is not None:
                raise InputError(
                    f"{name} has a reward already ({self.trajectory.reward}); a chain has one: "
                    "add up the rewards of its steps, and give the parts as metrics"
                )
            try:
                number = float(reward)  # NumPy's and torch's numbers are none of JSON's
            except (TypeError, ValueError) as error:
                raise InputError(f"{name}'s reward is {type(reward).__name__}; expected a number") from error
            if not math.isfinite(number):
                raise InputError(f"{name}'s reward is {number}; expected a finite number")
            self.trajectory.reward = number
            self.trajectory.metrics = as_json(dict(metrics or {}))
            if self.live:
                self.notes.heard()
                self.emit(T.REWARD, {"reward": number, "metrics": bounded_fields(self.trajectory.metrics)})

    # -- what it opens -----------------------------------------------------------------------------------------------

    def generation(
        self,
        *,
        prompt_ids: list[int] | None = None,
        prompt_tokens: int | None = None,
        sampling: dict[str, Any] | None = None,
        policy_version: int | None = None,
        fresh: bool = False,
    ) -> GenerationWriter:
        """The next generation; use it as a context manager.

        Args:
            prompt_ids: ids that are new in this prompt, shape (T,).
            prompt_tokens: length of the whole prompt in tokens.
            sampling: how it is sampled.
            policy_version: of the weights that are loaded now.
            fresh: `prompt_ids` are the whole prompt, which does not go on from the turns before: a new segment begins.

        One that is still open when the next begins ends with `error`.
        """
        turn = Turn(
            step=len(self.trajectory.turns) + 1,
            prompt_ids=prompt_ids or [],
            prompt_tokens=prompt_tokens,
            fresh=fresh,
        )
        version = self.run.policy_version if policy_version is None else policy_version
        return GenerationWriter(self, turn, sampling or {}, version)

    def tool_call(
        self, tool_name: str, arguments: dict[str, Any] | str, call_id: str | None = None
    ) -> ToolCallWriter:
        """A call of a tool by this turn; use it as a context manager.

        Args:
            tool_name: as the model wrote it.
            arguments: the object, or the text where it is not a valid one.
            call_id: unique among the chain's open calls; made where None or empty.
        """
        if not call_id:
            with self.lock:
                call_id, self._calls = f"call_{self._calls}", self._calls + 1
        return ToolCallWriter(self, ToolRecord(ToolCall(call_id, tool_name, arguments)))

    # -- watching ----------------------------------------------------------------------------------------------------

    def wants(self, event_type: StreamEventType) -> bool:
        """Whether anybody watches this type of event of this chain."""
        with self.lock:
            return self.route is not None and bool(self.route.targets_locked(StreamEventType(event_type)))

    def emit(self, event_type: StreamEventType, data: dict[str, Any], step: int | None = None) -> None:
        """Emit an event of this chain, where somebody wants it. The lock is held."""
        assert self.route is not None
        targets = self.route.targets_locked(event_type)
        if targets:
            step = step or len(self.trajectory.turns) or None
            self.run.publish(targets, event_type, self.route, as_json(data), step, self.depth)

    def snapshot(self) -> StreamEvent:
        """How the chain stands. The lock is held."""
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
    """One generation: `llm_generation_start` on entering the block, `llm_generation_end` on leaving it."""

    __slots__ = ("_began", "_run", "_sampling", "_version", "chain", "lock", "route", "turn")

    def __init__(self, chain: ChainWriter, turn: Turn, sampling: dict[str, Any], version: int) -> None:
        self.chain = chain
        self._run = chain.run
        self.turn = turn
        self.route = chain.route
        self.lock = chain.lock
        self._sampling = sampling
        self._version = version
        self._began = time.perf_counter()

    def start(self) -> Self:
        """Begin.

        Raises:
            InputError: the chain is not open, has its reward, or has open tool calls.
        """
        chain, turn = self.chain, self.turn
        with self.lock:
            chain.must_be_open("generate")
            if chain.generation_open is not None:
                chain.generation_open.end("error")
            chain.must_be_idle("generate", tools=True)
            if chain.trajectory.reward is not None:
                raise InputError(f"{chain.trajectory.chain_id} has its reward; generate before that")
            turn.step = len(chain.trajectory.turns) + 1
            turn.fresh = turn.fresh and turn.step > 1
            chain.trajectory.turns.append(turn)
            chain.generation_open = self
            chain.depth = 1 if turn.fresh else (chain.depth or 0) + 1
            self._began = time.perf_counter()
            if chain.live:
                chain.notes.generation_began(chain.trajectory, chain.run.model, self._version)
                data = {
                    "prompt_tokens": turn.prompt_tokens,
                    "model": chain.run.model,
                    "policy_version": self._version,
                    "sampling": self._sampling,
                }
                chain.emit(T.LLM_GENERATION_START, data, turn.step)
        return self

    def chunk(
        self,
        text: str,
        token_ids: list[int] | None = None,
        logprobs: list[float] | None = None,
        policy_version: int | None = None,
    ) -> None:
        """New text of the generation, with its ids and log-probabilities where there are any (same length).

        This is the path of every token: it becomes an event only where somebody wants it. The lists are kept as they
        are given, plain numbers, and must not be changed afterwards. After the generation's end: nothing.

        Raises:
            InputError: the generation has not begun, or the text is no string; or, where it may be watched, there is not
                one log-probability an id.
        """
        turn, route = self.turn, self.route
        if text.__class__ is not str or not text.isascii():
            text = _checked_text(text)
        if not text and not token_ids and not logprobs:
            self._must_have_begun()
            return  # a finish reason alone, as many backends send at last: nothing was sampled
        if turn.ttft_s is None:
            self._must_have_begun()
            turn.ttft_s = time.perf_counter() - self._began
        if route is None:  # streaming is off
            if turn.finish_reason is None:
                turn.append(text, token_ids, logprobs, policy_version)
            return
        if logprobs and len(logprobs) != len(token_ids or ()):
            raise InputError(
                f"a chunk has {len(token_ids or ())} token ids and {len(logprobs)} logprobs; expected one logprob an id"
            )
        run = self._run
        fanout = run.fanout
        lock = fanout.lock
        lock.acquire()  # half of what `with` costs
        try:
            if turn.finish_reason is not None:
                return
            offset = turn.chars
            turn.append(text, token_ids, logprobs, policy_version)
            targets = route.chunk
            if targets is None or route.version != fanout.version:
                targets = route.targets_locked(CHUNK)
            if targets:
                run.seq = seq = run.seq + 1
                place, depth, now = route.place, self.chain.depth, time.time()
                size = chunk_size(text, token_ids)
                if fanout.crowded:
                    ids, logs = only_of(token_ids, int), only_of(logprobs, float)
                    waiting = WaitingChunk(
                        place, text, offset, ids, logs, turn.step, depth, seq, now, len(targets) > 1
                    )
                    fanout.publish_waiting_locked(waiting, targets, size)
                    return
                data: dict[str, Any] = {"content": text, "offset": offset}
                if token_ids is not None:
                    data["token_ids"] = token_ids
                if logprobs is not None:
                    data["logprobs"] = logprobs
                event = StreamEvent(
                    CHUNK, place.chain_id, now, data, turn.step, depth, seq, place.run_id, place.group_id, place.source
                )  # fmt: skip
                fanout.chunks += 1
                EventQueue.put_in_each(targets, event, size)
        finally:
            lock.release()

    def _must_have_begun(self) -> None:
        if self.turn.finish_reason is None and self.chain.generation_open is not self:
            raise InputError(
                f"a generation of {self.chain.trajectory.chain_id} has not begun; enter it "
                "(`with chain.generation() as generation:`) or call its start()"
            )

    def end(self, finish_reason: GenerationFinishReason = "stop") -> None:
        """End it. Ending twice does nothing.

        Raises:
            InputError: the finish reason is none.
        """
        chain, turn = self.chain, self.turn
        checked_word(finish_reason, GenerationFinishReason, "a generation's finish_reason")
        with self.lock:
            if turn.finish_reason is not None:
                return
            turn.finish_reason = finish_reason
            turn.duration_s = time.perf_counter() - self._began
            chain.generation_open = None
            if chain.live:
                chain.notes.generation_ended(finish_reason)
                chain.run.fanout.completion_tokens += turn.completion_tokens
                data = {
                    "content": turn.text,
                    "finish_reason": finish_reason,
                    "prompt_tokens": turn.prompt_tokens,
                    "completion_tokens": turn.completion_tokens,
                    "ttft_s": turn.ttft_s,
                    "duration_s": turn.duration_s,
                }
                self._emit_end(data)

    def _emit_end(self, data: dict[str, Any]) -> None:
        """Emit the end, with ids for whoever asks for them. The lock is held."""
        chain, turn, route = self.chain, self.turn, self.route
        assert route is not None
        targets = route.targets_locked(T.LLM_GENERATION_END)
        at = route.place
        with_ids = tuple(
            target
            for target in targets
            if turn.token_ids and target.wants_ids(at.chain_id, at.group_id, at.run_id)
        )
        if not with_ids:
            chain.emit(T.LLM_GENERATION_END, data, turn.step)
            return
        run, depth, data = self._run, chain.depth, as_json(data)
        others = tuple(target for target in targets if target not in with_ids)
        run.publish(others, T.LLM_GENERATION_END, route, data, turn.step, depth)
        whole = data | {"token_ids": turn.token_ids, "logprobs": turn.logprobs}
        size = chunk_size(turn.text, turn.token_ids)
        run.publish_again(with_ids, T.LLM_GENERATION_END, route, whole, turn.step, depth, size)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end("stop")
        else:
            self.end("cancelled" if why_left(error) == "cancelled" else "error")


class ToolCallWriter:
    """One tool call: `tool_call_start` on entering the block; its final observation and `tool_call_end` on leaving it."""

    def __init__(self, chain: ChainWriter, record: ToolRecord) -> None:
        self.chain = chain
        self.record = record
        self._began = time.perf_counter()

    def start(self) -> Self:
        """Begin.

        Raises:
            InputError: the chain is not open, its generation is, or it had none; or a call of this id is open.
        """
        chain, call = self.chain, self.record.call
        with chain.lock:
            chain.must_be_open(f"call {call.tool_name}")
            chain.must_be_idle(f"call {call.tool_name}")
            if not chain.trajectory.turns:
                raise InputError(
                    f"{chain.trajectory.chain_id} calls {call.tool_name} before any generation; open one first"
                )
            if call.call_id in chain.tools_open:
                raise InputError(
                    f"{chain.trajectory.chain_id} has an open call {call.call_id!r} already; "
                    "leave call_id out, and one is made"
                )
            chain.trajectory.turns[-1].tools.append(self.record)
            chain.tools_open[call.call_id] = self
            self._began = time.perf_counter()
            if chain.live:
                chain.notes.call_began(call.call_id)
                arguments = object_or_text(call.arguments)
                data = {"call_id": call.call_id, "tool_name": call.tool_name, "arguments": arguments}
                chain.emit(T.TOOL_CALL_START, data)
        logger.debug("%s calls %s", chain.trajectory.chain_id, call.tool_name)
        return self

    def observation(self, observation: str, status: ToolStatus = "success", *, partial: bool = False) -> Self:
        """What the tool says: the whole where it is final, a piece where it is partial. After the final one: nothing.

        Gives the call itself, so that `call.observation(text).end()` closes one that was begun without a block.

        Raises:
            InputError: it is no text, or the status is none.
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
        """End the call; one that gave no final observation ends as `left` says. Ending twice does nothing."""
        chain, record = self.chain, self.record
        if record.duration_s is not None:
            return
        with chain.lock:
            if record.status is None:
                why = "cancelled" if left == "cancelled" else "error: the tool gave no result"
                self.observation(why, "cancelled" if left == "cancelled" else "error")
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
    """The chain itself, or the first one around it that has not ended: it may have been ended from another context."""
    while chain is not None and chain.ended:
        chain = chain.around
    return chain
