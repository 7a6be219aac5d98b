"""The agent loops of one verl worker as chains. All of this runs on the watch's thread, and knows nothing of verl's classes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, NamedTuple, Self

import msgspec

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.token_text import TokenReader
from rollcast.failures import class_name_of, text_of
from rollcast.records.event import ChainFinishReason, GenerationFinishReason
from rollcast.records.jsonable import as_json
from rollcast.stream.chain import UNSET, ChainWriter, GenerationWriter, ToolCallWriter
from rollcast.stream.run import RunWriter

__all__ = ["TRAINING", "Begun", "Chains", "Place", "Settings", "Turn"]

logger = logging.getLogger("rollcast.attach")

TRAINING = "rollcast_training"
"""The attribute of a server client that has the id of the training, so that all workers name the run of a step alike."""

_FAILED_TOOL = (
    "Error executing tool '{}': ",
    "Unknown function '{}'. ",
    "Invalid JSON in arguments for '{}': ",
)


class Place(NamedTuple):
    """A step of the training, and whether it is an evaluation."""

    step: int
    validate: bool


class Settings(NamedTuple):
    """What a worker's configuration says of every run.

    Attributes:
        training: the id of the training; None if no manager of ours gave one.
        model: its path.
        name: of the experiment.
    """

    training: str | None
    model: str
    name: str | None

    @classmethod
    def of(cls, worker: Any) -> Self:
        """Read them; what a version of verl does not have is left out."""
        config = worker.config
        try:
            model = str(config.actor_rollout_ref.model.path)
            name = str(config.trainer.experiment_name)
        except Exception as error:  # noqa: BLE001  (a configuration of OmegaConf raises errors of its own)
            logger.debug("verl's configuration names no model or experiment: %s", error)
            model, name = "", None
        return cls(vars(worker.llm_client).get(TRAINING), model, name)


class Begun(NamedTuple):
    """What is known of an agent loop when it begins.

    Attributes:
        key: of this loop in this process.
        place: the step that it is for.
        group: the prompt that it is a repeat of.
        repeat: which repeat of it, from 0.
        messages: its prompt.
        row: fields of its row.
        reference: the answer of its row; None if it has none.
        sampling: as verl gives it to the server.
    """

    key: int
    place: Place
    group: str
    repeat: int
    messages: list[dict[str, Any]]
    row: dict[str, Any]
    reference: Any
    sampling: dict[str, Any]


class Turn(NamedTuple):
    """What the server returned.

    Attributes:
        ids: shape (T,).
        logprobs: shape (T,), or None.
        reason: why it ended, in the words of verl or of the engine.
        version: the step of the weights that sampled its last token.
    """

    ids: list[int]
    logprobs: list[float] | None
    reason: str | None
    version: int | None


class _Open:
    """A chain that has not ended.

    Attributes:
        ids: prompt and samples so far, shape (T,).
        generations: those that are open, by call: more than one if a loop asks for several at once, each in a chain of its own.
        rewards: those of tools, which are given between turns.
    """

    def __init__(self, chain: ChainWriter, run: RunWriter, place: Place) -> None:
        self.chain = chain
        self.run = run
        self.place = place
        self.ids: list[int] = []
        self.generations: dict[int, GenerationWriter] = {}
        self.tools: dict[int, ToolCallWriter] = {}
        self.rewards: list[float] = []
        self.reward: tuple[Any, dict[str, Any]] | None = None


class Chains:
    """Writes the agent loops of a worker.

    Args:
        attachment: whose runs they are in: one for each step.
        tokenizer: the worker's.
        settings: what every run says of itself.
    """

    def __init__(self, attachment: Attachment, tokenizer: Any, settings: Settings) -> None:
        self._attachment = attachment
        self._settings = settings
        self._tokenizer = tokenizer
        self._reader: TokenReader | None = None
        self._open: dict[int, _Open] = {}
        self._runs: dict[Place, RunWriter] = {}
        self._held: Counter[Place] = Counter()
        self._parts: Counter[Place] = Counter()  # how often the run of a step was opened here

    # -- runs ----------------------------------------------------------------------------------------------------------

    def hold(self, place: Place) -> None:
        """The run of this step stays open until `release`."""
        self._held[place] += 1

    def release(self, place: Place) -> None:
        """See `hold`. The run is closed when nobody holds it."""
        self._held[place] -= 1
        if self._held[place] <= 0:
            del self._held[place]
            run = self._runs.pop(place, None)
            if run is not None:
                run.close()

    def _run_of(self, place: Place) -> RunWriter:
        run = self._runs.get(place)
        if run is None:
            self._parts[place] += 1
            settings, split = self._settings, "eval" if place.validate else "train"
            part = "" if self._parts[place] == 1 else f"-{self._parts[place]}"
            run_id = (
                None if settings.training is None else f"{settings.training}-{split}-{place.step:06}{part}"
            )
            run = self._runs[place] = self._attachment.open_run(
                agent="verl", backend="verl", model=settings.model, name=settings.name, run_id=run_id, chains=0, groups=0,
                split="eval" if place.validate else "train", train_step=max(0, place.step),
            )  # fmt: skip
        return run

    # -- chains --------------------------------------------------------------------------------------------------------

    def begin(self, about: Begun) -> None:
        """A loop begins."""
        self.hold(about.place)
        run = self._run_of(about.place)
        at = (
            f"@{run.source}" if run.source else ""
        )  # the workers share the run, so their chains need names of their own
        chain = run.chain(
            [as_json(message) for message in about.messages],
            chain_id=f"chain_{run.chains}{at}",
            group_id=about.group,
            index=about.repeat,
            row=about.row,
            reference=UNSET if about.reference is None else about.reference,
        )
        self._open[about.key] = _Open(chain.start(), run, about.place)

    def reward(self, key: int, reward: Any, metrics: dict[str, Any]) -> None:
        """The loop's output has this reward; None if the trainer computes it later."""
        if (found := self._open.get(key)) is not None and reward is not None:
            found.reward = reward, metrics

    def end(self, key: int, error: BaseException | None) -> None:
        """The loop has ended, or raised this."""
        found = self._open.pop(key, None)
        if found is None:
            return
        chain = found.chain
        for call in list(found.generations):
            self._end_generation(found, call, "error")
        reason = _reason_of(chain) if error is None else _reason_of_error(error)
        if error is not None and reason == "error":
            chain.trajectory.error = text_of(error) or class_name_of(error)
            chain.error(error, "agent", goes_on=True)
        if not chain.ended:
            if error is None:
                self._give_rewards(found)
                if found.reward is not None:
                    chain.reward(found.reward[0], found.reward[1])
            turns = chain.trajectory.turns
            chain.end(reason, turns[-1].text if turns else "")
        self.release(found.place)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def turn_begins(self, key: int, call: int, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        """The loop asks the server."""
        found = self._open.get(key)
        if found is None:
            return
        chain = found.chain
        if found.generations:  # it asks for several at once
            chain = found.run.chain(
                [],
                chain_id=f"{chain.trajectory.chain_id}.{call}",
                group_id=chain.trajectory.group_id,
                parent_chain_id=chain.trajectory.chain_id,
            ).start()
            found.generations[call] = chain.generation(
                prompt_ids=prompt_ids, prompt_tokens=len(prompt_ids), sampling=sampling
            ).start()
            return
        self._give_rewards(found)
        known = len(found.ids)
        goes_on = prompt_ids[:known] == found.ids
        new = prompt_ids[known:] if goes_on else prompt_ids
        turns = chain.trajectory.turns
        if turns and not turns[-1].tools and new and (text := self._text(new)):
            chain.message({"role": "user", "content": text}, from_outside=True)
        found.ids = prompt_ids
        found.generations[call] = chain.generation(
            prompt_ids=new, prompt_tokens=len(prompt_ids), sampling=sampling, fresh=not goes_on
        ).start()

    def turn_ends(self, key: int, call: int, turn: Turn) -> None:
        """The server has answered."""
        found = self._open.get(key)
        generation = None if found is None else found.generations.get(call)
        if found is None or generation is None:
            return
        logprobs = turn.logprobs if turn.logprobs and len(turn.logprobs) == len(turn.ids) else None
        generation.chunk(self._text(turn.ids), turn.ids, logprobs, turn.version)
        if generation.chain is found.chain:
            found.ids = [*found.ids, *turn.ids]
        self._end_generation(found, call, _reason_of_turn(turn.reason))

    def turn_fails(self, key: int, call: int, error: BaseException) -> None:
        """The request raised this."""
        found = self._open.get(key)
        if found is None or call not in found.generations:
            return
        reason = _reason_of_error(error)
        if reason == "error":
            found.generations[call].chain.error(error, "backend", goes_on=True)
        self._end_generation(found, call, reason)

    @staticmethod
    def _end_generation(found: _Open, call: int, reason: Any) -> None:
        generation = found.generations.pop(call)
        generation.end(reason)
        if generation.chain is not found.chain:
            ends: dict[str, ChainFinishReason] = {"stop": "answered", "length": "max_tokens"}
            generation.chain.end(ends.get(reason, reason), generation.turn.text)

    def _text(self, ids: list[int]) -> str:
        if self._tokenizer is not None:
            try:
                self._reader = TokenReader(self._tokenizer)
            except AttributeError as error:
                logger.debug("no text can be made with this tokenizer: %s", error)
            self._tokenizer = None
        return "" if self._reader is None else self._reader.text(ids)

    # -- tools ---------------------------------------------------------------------------------------------------------

    def tool_begins(self, key: int, call: int, name: str, arguments: Any) -> None:
        """The loop calls a tool."""
        found = self._open.get(key)
        if found is None or found.generations or not found.chain.trajectory.turns:
            return
        found.tools[call] = found.chain.tool_call(name, _arguments(arguments)).start()

    def tool_ends(self, key: int, call: int, text: str, reward: Any) -> None:
        """The tool has answered."""
        found = self._open.get(key)
        writer = None if found is None else found.tools.pop(call, None)
        if found is None or writer is None:
            return
        failed = text.startswith(tuple(start.format(writer.record.call.tool_name) for start in _FAILED_TOOL))
        writer.observation(text, "error" if failed else "success")
        writer.end()
        if reward:
            found.rewards.append(float(reward))

    def tool_fails(self, key: int, call: int, error: BaseException) -> None:
        """The tool call raised this, which ends the loop."""
        found = self._open.get(key)
        writer = None if found is None else found.tools.pop(call, None)
        if writer is not None:
            cancelled = _reason_of_error(error) == "cancelled"
            writer.observation(text_of(error) or class_name_of(error), "cancelled" if cancelled else "error")
            writer.end()

    @staticmethod
    def _give_rewards(found: _Open) -> None:
        rewards, found.rewards = found.rewards, []
        for reward in rewards:
            found.chain.step_reward(reward)


def _arguments(arguments: Any) -> dict[str, Any] | str:
    """The object, or the text if it is not one."""
    if isinstance(arguments, dict):
        return arguments
    try:
        found = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, TypeError):
        found = None
    return found if isinstance(found, dict) else str(arguments)


def _reason_of(chain: ChainWriter) -> ChainFinishReason:
    """Why a loop that raised nothing ended: verl does not say, so it is read off its last turn."""
    turns = chain.trajectory.turns
    if not turns:
        return "unknown"
    if turns[-1].tools:
        return "max_steps"
    reasons: dict[Any, ChainFinishReason] = {
        "length": "max_tokens",
        "cancelled": "cancelled",
        "error": "error",
    }
    return reasons.get(turns[-1].finish_reason, "answered")


def _reason_of_turn(reason: str | None) -> GenerationFinishReason:
    reasons: dict[str | None, GenerationFinishReason] = {
        "length": "length",
        "abort": "cancelled",
        "aborted": "cancelled",
    }
    return reasons.get(reason, "stop")


def _reason_of_error(error: BaseException) -> Any:
    return "cancelled" if isinstance(error, asyncio.CancelledError | KeyboardInterrupt) else "error"
