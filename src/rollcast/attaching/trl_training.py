"""The run of a TRL training: its settings, a `train_step` event for each of its logs, and the runs of its generation batches.

Everything here happens on the watch's thread. `trl_hooks.py` tells it what happens in the trainer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import msgspec

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.trl_ranks import SharedTraining, id_of_batch
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.event import LearnedFrom, RunStatus
from rollcast.stream.run import RunAbout, RunWriter

__all__ = ["AboutTrainer", "Training"]


@dataclass
class AboutTrainer:
    """What a trainer says of itself.

    Attributes:
        agent: the name of its class.
        model: the name of its model.
        backend: what samples: `transformers`, `vllm`.
        tools: the names of the tools that it was given.
        settings: how it learns.
        seed: its seed.
        name, tags: what its owner calls the training.
        first: whether this process is the only one, or the first of several: it tells of the steps.
    """

    agent: str = "trl"
    model: str = ""
    backend: str = "transformers"
    tools: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    first: bool = True


class Training:
    """A training, or a series of evaluations, as one run.

    Args:
        attachment: where runs are opened.
        about: what the trainer says of itself.
        shared: agrees on the run with the other processes; None if there are none.
    """

    def __init__(
        self, attachment: Attachment, about: AboutTrainer, shared: SharedTraining | None = None
    ) -> None:
        self._attachment = attachment
        self.about = about
        self._shared = shared
        self._batches = itertools.count()
        self._run: RunWriter | None = None
        self._learned: dict[str, dict[str, LearnedFrom]] = {}

    def begin(self, step: int) -> None:
        """Begin the run. One that an earlier training left open has failed."""
        self.end("failed")
        self._open(step)

    def _open(self, step: int) -> RunWriter:
        about = self.about
        run_id = None if self._shared is None else self._shared.next_id()
        self._batches = itertools.count()
        self._run = self._attachment.open_run(
            chains=0, groups=0, agent=about.agent, model=about.model, backend=about.backend, policy_version=step,
            run_id=run_id, seed=about.seed, settings=about.settings, name=about.name, tags=about.tags,
        )  # fmt: skip
        return self._run

    def run_at(self, step: int) -> RunWriter:
        """The run. It begins now if nobody said that a training begins, as in `trainer.evaluate()`."""
        run = self._run
        return self._open(step) if run is None or run.status is not None else run

    def open_batch(self, **more: Unpack[RunAbout]) -> RunWriter:
        """Open the run of a generation batch, which names this run as its parent."""
        parent = self.run_at(more.get("policy_version", 0))
        about = self.about
        number = next(self._batches)
        whole: RunAbout = {
            **more, "agent": about.agent, "model": about.model, "backend": about.backend, "parent_run_id": parent.run_id,
            "run_id": None if self._shared is None else id_of_batch(parent.run_id, number),
        }  # fmt: skip
        return self._attachment.open_run(**whole)

    def learned(self, run_id: str, advantages: Sequence[float]) -> None:
        """Note the advantages of a run's chains, in the order of their numbers; the next step's event has them."""
        if self.about.first:
            of_run = self._learned.setdefault(run_id, {})
            for number, advantage in enumerate(advantages):
                of_run[f"chain_{number}"] = {"advantage": advantage, "staleness": 0}

    def log(self, step: int, logs: Mapping[str, Any]) -> None:
        """Emit a `train_step` event for a log about a step or an evaluation; other logs are about neither."""
        about_a_step = "loss" in logs or any(name.startswith("eval_") for name in logs)
        if not about_a_step or not self.about.first:
            return
        run = self.run_at(step)
        metrics = {name: value for name, value in logs.items() if _is_finite(value)}
        event = StreamEvent.now(
            StreamEventType.TRAIN_STEP, train_step=step, policy_version=step, metrics=metrics
        )
        if "loss" in logs and self._learned:
            event.data["chains"], self._learned = self._learned, {}
        self._attachment.streaming_manager.emit(msgspec.structs.replace(event, run_id=run.run_id))

    def end(self, status: RunStatus) -> None:
        """End the run if it is open."""
        run, self._run = self._run, None
        if run is not None and run.status is None:
            run.close(status)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
