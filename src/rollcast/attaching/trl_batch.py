"""One generation batch of a TRL trainer as a run: each row is a chain, from its prompt to its reward.

    begin ─▶ prompts ─▶ ( turn_begins ─▶ token* ─▶ turn_ends ─▶ messages, tool calls )* ─▶ completed ─▶ rewards ─▶ end

Everything here happens on the watch's thread. `trl_hooks.py` tells it what happens in the trainer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rollcast.attaching.token_text import TextOfIds, TokenReader
from rollcast.attaching.trl_training import Training
from rollcast.records import Message
from rollcast.records.event import ChainFinishReason, RunStatus
from rollcast.records.jsonable import as_json
from rollcast.records.message import ROLES
from rollcast.stream.chain import UNSET, ChainWriter, GenerationWriter, ToolCallWriter
from rollcast.stream.run import RunWriter

__all__ = ["AboutBatch", "Batch", "Call"]

logger = logging.getLogger("rollcast.attach")

_ANSWERS = ("answer", "solution", "ground_truth", "reference", "target")
"""The columns in which data sets keep a row's answer, by convention."""


@dataclass
class AboutBatch:
    """What is known of a batch before its prompts are.

    Attributes:
        split: `train` or `eval`.
        step: how many steps were made, which is the version of the weights.
        sampling: how its generations are sampled.
        repeats: how many rows in a row have one prompt.
        first: the number of this process's first row among those of all processes.
        ends: the ids that end a completion.
    """

    split: Literal["train", "eval"]
    step: int
    sampling: dict[str, Any]
    repeats: int
    first: int
    ends: frozenset[int]


@dataclass(eq=False)
class Call:
    """A tool call that the model asked for.

    Attributes:
        name: the tool's name as the model wrote it.
        arguments: its arguments, as TRL parsed them.
        claimed: whether the trainer has called the tool for it.
        is_async: whether the tool is a coroutine, whose result TRL lists after those of the others.
        failed: whether the tool raised.
        writer: its writer, on the watch's thread.
    """

    name: str
    arguments: Any
    claimed: bool = False
    is_async: bool = False
    failed: bool = False
    writer: ToolCallWriter | None = None


@dataclass(eq=False)
class _Row:
    """One chain of the batch.

    Attributes:
        chain: its writer.
        generation: the open generation.
        text: the text of the open generation's tokens.
        shown: the ids of the open generation that were shown.
        ids: the ids of all its turns and what came between them, after the first prompt.
        prompt: the ids of the first prompt.
        stopped: whether an id that ends a completion was shown in the open generation.
        ended: whether the last turn ended with such an id.
        calls: the tool calls of the last turn, until the next one begins.
        cut: ids that were sampled, and that the trainer took off afterwards.
        answer: the content of the last message of the model.
    """

    chain: ChainWriter
    generation: GenerationWriter | None = None
    text: TextOfIds | None = None
    shown: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    stopped: bool = False
    ended: bool = True
    calls: list[Call] = field(default_factory=list)
    cut: int = 0
    answer: str | None = None


class Batch:
    """A generation batch: a run, with a chain a row.

    Args:
        training: the training that it is part of.
        about: what is known of it.
        reader: reads the ids as text.
    """

    def __init__(self, training: Training, about: AboutBatch, reader: TokenReader) -> None:
        self._training = training
        self._about = about
        self._reader = reader
        self._run: RunWriter | None = None
        self._data: list[dict[str, Any]] = []
        self._rows: list[_Row] = []
        self._turn: list[_Row] = []
        self._masks: Sequence[Sequence[int]] | None = None
        self._logprobs: Sequence[Sequence[float | None]] | None = None

    # -- the batch -----------------------------------------------------------------------------------------------------

    def begin(self, data: list[dict[str, Any]]) -> None:
        """Note the rows of the data set, each as often as it has generations."""
        self._data = data

    def prompts(self, prompts: Sequence[Any], tools: Sequence[Sequence[str]] = ()) -> None:
        """Begin the run and its chains.

        Args:
            prompts: one for each row: messages, or text.
            tools: the names of the tools of each row.
        """
        about, count = self._about, len(prompts)
        places = [divmod(about.first + j, about.repeats) for j in range(count)]
        self._run = run = self._training.open_batch(
            chains=count, groups=sum(index == 0 for _, index in places), policy_version=about.step, split=about.split,
            train_step=about.step + (about.split == "train"), sampling=about.sampling,
        )  # fmt: skip
        for j, (prompt, (group, index)) in enumerate(zip(prompts, places, strict=True)):
            row = dict(self._data[j]) if j < len(self._data) else {}
            row.pop("prompt", None)
            reference = next((row[name] for name in _ANSWERS if row.get(name) is not None), UNSET)
            chain = run.chain(
                _messages(prompt),
                chain_id=f"chain_{about.first + j}",
                group_id=f"group_{group}",
                index=index,
                tools=tools[j] if j < len(tools) else (),
                row=row,
                reference=reference,
            )
            self._rows.append(_Row(chain.start()))

    def end(self, advantages: Sequence[float]) -> None:
        """The trainer has scored the batch.

        Args:
            advantages: those of all rows, of all processes.
        """
        if self._run is None:
            return
        for row in self._rows:
            self._end_chain(row)
        self._run.close("completed")
        if self._about.split == "train":
            self._training.learned(self._run.run_id, advantages)

    def failed(self, error: BaseException | None, where: str, status: RunStatus) -> None:
        """The trainer raised inside the batch, in which nothing more will happen."""
        if self._run is None:
            return
        for row in self._rows:
            if row.chain.ended:
                continue
            self._close_turn(row)
            self._close_calls(row)
            if status == "cancelled":
                row.chain.end("cancelled")
            else:
                row.chain.end("error")
        if error is not None and status == "failed":
            self._run.error(error, where)
        self._run.close(status)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def turn_begins(self, numbers: Sequence[int], prompt_ids: Sequence[list[int]]) -> None:
        """These rows are generated now, in one batch.

        Args:
            numbers: the rows.
            prompt_ids: the whole prompt of each.
        """
        self._turn = [self._rows[number] for number in numbers]
        for row, ids in zip(self._turn, prompt_ids, strict=True):
            self._close_turn(row)
            self._close_calls(row)
            before = row.prompt + row.ids
            fresh = ids[: len(before)] != before
            new = ids if fresh else ids[len(before) :]
            if not row.chain.trajectory.turns:
                row.prompt = ids
            elif not fresh:
                row.ids += new
            row.generation = row.chain.generation(
                prompt_ids=new, prompt_tokens=len(ids), sampling=self._about.sampling, fresh=fresh
            ).start()
            row.text, row.shown, row.stopped, row.calls = TextOfIds(self._reader), [], False, []

    def tokens(self, ids: Sequence[int]) -> None:
        """One more id for each row of the turn; what comes after the end of a row is padding."""
        ends = self._about.ends
        for row, token_id in zip(self._turn, ids, strict=True):
            if not row.stopped:
                row.stopped = token_id in ends
                self._show(row, token_id)

    def token(self, place: int, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """More ids for one row of the turn, from an engine that samples each row by itself."""
        row = self._turn[place]
        for i, token_id in enumerate(ids):
            self._show(row, token_id, None if logprobs is None else logprobs[i])

    def _show(self, row: _Row, token_id: int, logprob: float | None = None) -> None:
        if row.generation is not None and row.text is not None:
            row.shown.append(token_id)
            row.generation.chunk(
                row.text.feed([token_id]), [token_id], None if logprob is None else [logprob]
            )

    def turn_ends(
        self, ids: Sequence[list[int]], logprobs: Sequence[Sequence[float | None]] | None, may_call: bool
    ) -> None:
        """The turn is generated.

        Args:
            ids: the completion of each row, as the trainer has it.
            logprobs: of these ids, if the trainer has them.
            may_call: whether there are tools: then the generations end when it is known which of them call some.
        """
        for i, (row, completion) in enumerate(zip(self._turn, ids, strict=True)):
            self._show_rest(row, completion, None if logprobs is None else logprobs[i])
            row.ended = bool(completion) and completion[-1] in self._about.ends
            row.ids += completion
            if not may_call:
                self._close_turn(row)

    def _show_rest(self, row: _Row, completion: list[int], logprobs: Sequence[float | None] | None) -> None:
        """Show what was not shown while it was sampled: all of it, or half a character."""
        if row.generation is None or row.text is None:
            return
        shown = row.shown
        if completion[: len(shown)] != shown:
            self._say_differs(row)
            row.generation.end("error")
            row.generation = row.chain.generation(prompt_tokens=row.generation.turn.prompt_tokens).start()
            row.text, shown = TextOfIds(self._reader), []
        new = completion[len(shown) :]
        known = None if logprobs is None else _numbers(logprobs[len(shown) :], len(new))
        row.generation.chunk(row.text.rest(new), new or None, known)

    def _say_differs(self, row: _Row) -> None:
        text = "the ids that were shown are not those that the trainer learns from; those follow"
        row.chain.error(text, "backend")
        logger.warning("%s of %s: %s", row.chain.trajectory.chain_id, row.chain.run.run_id, text)

    def _close_turn(self, row: _Row, *, calls: bool = False) -> None:
        generation, row.generation, row.text = row.generation, None, None
        if generation is not None:
            generation.end("tool_call" if calls else "stop" if row.ended else "length")

    # -- tools ---------------------------------------------------------------------------------------------------------

    def messages(self, number: int, messages: Sequence[Mapping[str, Any]], calls: list[Call]) -> None:
        """TRL added these to a row's completion: what the model said, or what tools returned.

        Args:
            number: the row.
            messages: what was added.
            calls: the calls of the model's last message.
        """
        row = self._rows[number]
        results = [message for message in messages if message.get("role") == "tool"]
        answers = [message for message in messages if message.get("role") == "assistant"]
        order = [call for call in row.calls if not call.is_async] + [
            call for call in row.calls if call.is_async
        ]
        for call, result in zip(order, results, strict=False):
            self._returned(row, call, _text_of(result.get("content")))
        for message in messages:
            row.chain.message(_message(message))
        if answers:
            row.answer = _text_of(answers[-1].get("content"))
            self._close_turn(row, calls=bool(calls))
            row.calls = calls

    def calls(self, number: int, call: Call) -> None:
        """A row's tool is called now."""
        row = self._rows[number]
        self._close_turn(row, calls=True)
        self._begin_call(row, call)

    def called(self, number: int, call: Call, text: str | None) -> None:
        """A row's tool has returned, or raised. Its text is None if only TRL can make it."""
        if text is not None:
            self._returned(self._rows[number], call, text)

    def _begin_call(self, row: _Row, call: Call) -> ToolCallWriter:
        if call.writer is None:
            arguments = as_json(call.arguments)
            if not isinstance(arguments, dict):
                arguments = str(arguments)
            call.writer = row.chain.tool_call(call.name, arguments).start()
        return call.writer

    def _returned(self, row: _Row, call: Call, text: str) -> None:
        writer = self._begin_call(row, call)
        writer.observation(text, "error" if call.failed or not call.claimed else "success").end()

    def _close_calls(self, row: _Row) -> None:
        """End the calls whose results the trainer took back, since they would have made the completion too long."""
        for call in row.calls:
            if call.writer is not None:
                call.writer.observation("the trainer left the result out", "cancelled").end()

    # -- the end -------------------------------------------------------------------------------------------------------

    def rolled_out(
        self, masks: Sequence[Sequence[int]] | None, logprobs: Sequence[Sequence[float | None]] | None
    ) -> None:
        """Note what a `rollout_func` returned beside the ids.

        Args:
            masks: 1 for each id of a completion that the model sampled, 0 for the others; None: all are the model's.
            logprobs: of each id of a completion; None if it gave none.
        """
        self._masks, self._logprobs = masks, logprobs

    def completed(self, prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[list[int]]) -> None:
        """All rows are complete, and are scored now.

        Args:
            prompts: as for `prompts`, in case that was not called.
            completions: the completion of each row: messages, or text.
            ids: its ids, as the trainer learns from them.
        """
        if not self._rows:
            self.prompts(prompts)
        for j, row in enumerate(self._rows):
            self._close_turn(row)
            if not row.chain.trajectory.turns:
                self._show_whole(
                    row, ids[j], None if self._masks is None else self._masks[j],
                    None if self._logprobs is None else self._logprobs[j],
                )  # fmt: skip
            elif len(row.ids) > len(ids[j]) and row.ids[: len(ids[j])] == ids[j]:
                row.cut = len(row.ids) - len(ids[j])
                row.ended = False
            elif row.ids != ids[j] and not row.chain.trajectory.turns[-1].fresh:
                self._say_differs(row)
            completion = completions[j]
            if row.answer is None:
                row.answer = completion if isinstance(completion, str) else _last_answer(completion)

    def _show_whole(
        self, row: _Row, ids: list[int], mask: Sequence[int] | None, logprobs: Sequence[float | None] | None
    ) -> None:
        """Show a completion of which nothing was seen while it was made, a generation for each part that the model sampled."""
        row.ids = ids
        row.ended = bool(ids) and ids[-1] in self._about.ends
        between: list[int] = []
        at = 0
        parts = _parts(ids, mask)
        for number, (is_model, part) in enumerate(parts):
            of_part = None if logprobs is None else logprobs[at : at + len(part)]
            at += len(part)
            if not is_model:
                between = part
                continue
            with row.chain.generation(prompt_ids=between, sampling=self._about.sampling) as generation:
                generation.chunk(self._reader.text(part), part, _numbers(of_part, len(part)))
                generation.end("stop" if row.ended or number < len(parts) - 1 else "length")
            between = []

    def rewards(
        self, names: Sequence[str], rewards: Sequence[Sequence[float]], weights: Sequence[float]
    ) -> None:
        """Give each chain its reward, and end it.

        Args:
            names: the names of the reward functions.
            rewards: what each of them gave each row of this process; NaN if it gave none.
            weights: the weight of each function.
        """
        for row, given in zip(self._rows, rewards, strict=True):
            known = {name: value for name, value in zip(names, given, strict=True) if not math.isnan(value)}
            total = sum(w * value for w, value in zip(weights, given, strict=True) if not math.isnan(value))
            self._close_calls(row)
            metrics: dict[str, Any] = known | ({"cut_tokens": row.cut} if row.cut else {})
            if known and math.isfinite(total):
                row.chain.reward(total, metrics)
            elif known:
                row.chain.error(f"the reward is {total}; expected a finite number", "reward")
            self._end_chain(row)

    def _end_chain(self, row: _Row) -> None:
        if row.chain.ended:
            return
        reason: ChainFinishReason = "answered"
        if not row.ended or any(
            call.claimed for call in row.calls
        ):  # whose results are not in the completion
            reason = "max_tokens"
        elif row.calls:  # for which the trainer has no more iterations
            reason = "max_steps"
        row.chain.end(reason, row.answer)


def _numbers(logprobs: Sequence[float | None] | None, count: int) -> list[float] | None:
    """The log-probabilities of `count` ids, if all of them are known."""
    if not logprobs or len(logprobs) != count:
        return None
    known = [float(value) for value in logprobs if value is not None]
    return known if len(known) == count else None


def _parts(ids: list[int], mask: Sequence[int] | None) -> list[tuple[bool, list[int]]]:
    """The ids in parts, each sampled by the model or not."""
    if mask is None or all(mask):
        return [(True, ids)]
    parts: list[tuple[bool, list[int]]] = []
    for token_id, is_model in zip(ids, mask, strict=True):
        if not parts or parts[-1][0] != bool(is_model):
            parts.append((bool(is_model), []))
        parts[-1][1].append(token_id)
    return parts


def _messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [_message(message) for message in prompt]


def _message(message: Mapping[str, Any]) -> Message:
    """A message as the events have it: a known role, and text."""
    shown: dict[str, Any] = {
        name: as_json(value) for name, value in message.items() if value is not None and name != "content"
    }
    role = shown.get("role")
    shown["role"] = role if role in ROLES else "user"
    shown["content"] = _text_of(message.get("content"))
    return shown  # type: ignore[return-value]  # put together above, field by field


def _text_of(content: Any) -> str:
    """The text of a message; pictures and the like are named by their type."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part if isinstance(part, Mapping) else {"type": type(part).__name__} for part in content]
        return "".join(
            str(part["text"]) if isinstance(part.get("text"), str) else f"[{part.get('type', 'part')}]"
            for part in parts
        )
    return str(as_json(content))


def _last_answer(completion: Sequence[Mapping[str, Any]]) -> str | None:
    for message in reversed(completion):
        if message.get("role") == "assistant":
            return _text_of(message.get("content"))
    return None
