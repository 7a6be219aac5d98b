"""Turns trajectories into one padded batch, which every trainer needs.

It is pure, and needs only NumPy. In names a suffix gives the shape: B rows, T tokens, G chains of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rollcast.errors import InputError
from rollcast.records import Trajectory
from rollcast.records.event import LearnedFrom
from rollcast.records.trajectory import Segment

__all__ = ["BatchStatistics", "Sample", "TrainBatch", "Truncation", "group_advantages", "make_batch"]

Truncation = Literal["drop", "cut", "error"]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One segment of one chain, unpadded: a sequence to train on.

    Attributes:
        token_ids: shape (T,).
        loss_mask: 1 where the model sampled the token in this segment, 0 where a prompt, the template or a tool wrote it;
            shape (T,).
        logprobs: log-probabilities in the distribution that was sampled from, 0.0 where the mask is 0; shape (T,).
        policy_versions: versions of the weights that sampled the tokens, -1 where the mask is 0 or the backend does not
            tell them; shape (T,).
        advantage, reward: the chain's.
        group: the group's number, in the order in which groups came.
        chain_id: unique within its run.
        index: the segment's index within the chain, from 0.
    """

    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float]
    policy_versions: list[int]
    advantage: float
    reward: float
    group: int
    chain_id: str
    index: int


@dataclass(frozen=True)
class BatchStatistics:
    """What became of the chains of a batch.

    Attributes:
        groups: how many groups there were.
        flat_groups: how many of these have equal rewards, or fewer than two chains with a reward: there is nothing to learn
            from them, and they are not in the batch.
        chains: how many chains there were.
        failed: chains without a reward: they failed, were cancelled, or their reward failed. They are not in the batch.
        truncated: rows that were cut to `max_tokens`.
        dropped_long: rows that were left out, since they are longer than `max_tokens`.
        tokens: how many tokens are trained on.
        mean_reward, reward_std: over all chains with a reward, also those of flat groups; the deviation is the population's.
        staleness_mean, staleness_max: how many versions behind the tokens trained on are.
    """

    groups: int
    flat_groups: int
    chains: int
    failed: int
    truncated: int
    dropped_long: int
    tokens: int
    mean_reward: float
    reward_std: float
    staleness_mean: float
    staleness_max: int


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Sequences to train on, padded at their ends to the longest of them.

    Attributes:
        input_ids_BT: the ids, `pad_id` at padding, int64.
        attention_mask_BT: False at padding, bool.
        loss_mask_BT: True where the model sampled the token, bool. Position t is the token itself: its log-probability comes
            from the logits at t - 1.
        logprobs_BT: as sampled, 0 where the loss mask is False, float32.
        policy_versions_BT: versions of the weights that sampled the tokens, -1 where the loss mask is False, int64.
        advantages_B, rewards_B: the chain's, float32.
        groups_B: the group's number, int64.
        chain_ids: the chain of each row; a forked chain has several rows.
        statistics: the statistics of the whole batch, even in a batch that `rows` returns.
    """

    input_ids_BT: NDArray[np.int64]
    attention_mask_BT: NDArray[np.bool_]
    loss_mask_BT: NDArray[np.bool_]
    logprobs_BT: NDArray[np.float32]
    policy_versions_BT: NDArray[np.int64]
    advantages_B: NDArray[np.float32]
    rewards_B: NDArray[np.float32]
    groups_B: NDArray[np.int64]
    chain_ids: tuple[str, ...]
    statistics: BatchStatistics

    def __len__(self) -> int:
        return len(self.chain_ids)

    def learned_from(self, version: int) -> dict[str, LearnedFrom]:
        """Each chain's advantage and staleness, by its id, as a `train_step` event tells them.

        Args:
            version: the version of the weights that learned.

        Returns:
            A chain has no staleness if the versions of its tokens are unknown.
        """
        known_BT = self.loss_mask_BT & (self.policy_versions_BT >= 0)
        oldest_B = np.where(known_BT, self.policy_versions_BT, version + 1).min(axis=1, initial=version + 1)
        told: dict[str, LearnedFrom] = {}
        for chain_id, advantage, oldest in zip(
            self.chain_ids, self.advantages_B.tolist(), oldest_B.tolist(), strict=True
        ):
            chain = told.setdefault(chain_id, {"advantage": advantage})  # its other segments count, too
            if oldest <= version:
                chain["staleness"] = max(version - oldest, chain.get("staleness", 0))
        return told

    def learned_of(self, trajectories: Iterable[Trajectory], version: int) -> dict[str, LearnedFrom]:
        """The part of each chain with a reward in a training step, by its id, also of those that teach nothing.

        Chains of groups whose rewards are equal, and those whose sequences were too long, have the advantage 0.

        Args:
            trajectories: the chains that the batch was made of, of one run.
            version: as in `learned_from`.
        """
        learned = self.learned_from(version)
        told: dict[str, LearnedFrom] = {}
        for t in trajectories:
            if t.chain_id in learned:
                told[t.chain_id] = learned[t.chain_id]
            elif t.reward is not None:
                told[t.chain_id] = {"advantage": 0.0}
                versions = [v for turn in t.turns for v in turn.policy_versions if v >= 0]
                if versions and min(versions) <= version:
                    told[t.chain_id]["staleness"] = version - min(versions)
        return told

    def rows(self, indices: ArrayLike) -> TrainBatch:
        """Return these rows, in this order, cut to the longest of them: for minibatches and micro-batches.

        Args:
            indices: whole numbers from 0 to B - 1, shape (N,).

        Raises:
            InputError: they are not.
        """
        chosen_N = np.asarray(indices)
        if chosen_N.ndim != 1 or (chosen_N.size and not np.issubdtype(chosen_N.dtype, np.integer)):
            raise InputError(
                f"indices have shape {chosen_N.shape} and type {chosen_N.dtype}; expected whole numbers in one dimension"
            )
        chosen_N = chosen_N.astype(np.int64)
        if chosen_N.size and not (chosen_N.min() >= 0 and chosen_N.max() < len(self)):
            raise InputError(
                f"indices go from {chosen_N.min()} to {chosen_N.max()}; the batch has rows 0 to {len(self) - 1}"
            )
        attention_mask_NT = self.attention_mask_BT[chosen_N]
        width = int(attention_mask_NT.sum(axis=1).max(initial=0))
        return TrainBatch(
            self.input_ids_BT[chosen_N, :width],
            attention_mask_NT[:, :width],
            self.loss_mask_BT[chosen_N, :width],
            self.logprobs_BT[chosen_N, :width],
            self.policy_versions_BT[chosen_N, :width],
            self.advantages_B[chosen_N],
            self.rewards_B[chosen_N],
            self.groups_B[chosen_N],
            tuple(self.chain_ids[i] for i in chosen_N),
            self.statistics,
        )


def group_advantages(rewards_G: Sequence[float], scale: bool = True) -> NDArray[np.float64]:
    """How much better each chain of a group was than their mean, shape (G,).

    It is `(r - mean) / (std + 1e-4)` with the sample's deviation, as in GRPO (Shao et al. 2024, arXiv:2402.03300, section
    4.1.2); with `scale=False` it is `r - mean`, which gives easy and hard questions no extra weight (Liu et al. 2025,
    arXiv:2503.20783). It is zero if the rewards are equal, or if there is only one.

    Raises:
        InputError: a reward is not a finite number.
    """
    values_G = np.array([_number(r, f"reward {i} of the group") for i, r in enumerate(rewards_G)], np.float64)
    if values_G.size < 2 or values_G.min() == values_G.max():
        return np.zeros_like(values_G)
    centred_G: NDArray[np.float64] = values_G - values_G.mean()
    return centred_G / (values_G.std(ddof=1) + 1e-4) if scale else centred_G


def make_batch(
    trajectories: Iterable[Trajectory],
    *,
    version: int | None = None,
    pad_id: int = 0,
    max_tokens: int | None = None,
    truncation: Truncation = "drop",
    scale: bool = True,
) -> TrainBatch:
    """Make one batch of the chains that can be learned from.

    A chain is compared with those of its group, which is its run and group id. Chains without a reward are left out, and
    so are groups whose rewards are equal; `statistics` counts both. If every group is flat, the batch has no rows. A forked
    chain gives one row per segment, each with the chain's advantage.

    Args:
        trajectories: trajectories of one run or several, in whole groups.
        version: the version of the weights that are trained, for staleness; None: the newest that sampled.
        pad_id: the id for padding.
        max_tokens: the most tokens in a row; None: no limit.
        truncation: what happens to longer rows: they are dropped, cut at the end, or an error. Their chains' rewards count
            for the group's mean all the same.
        scale: as in `group_advantages`.

    Raises:
        InputError: there are no trajectories, or none has a reward; one has no group, no token ids, no log-probabilities,
            or a reward that is not a finite number; a token was sampled by a later version than `version`.
    """
    if truncation not in ("drop", "cut", "error"):
        raise InputError(f"truncation is {truncation!r}; expected 'drop', 'cut' or 'error'")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens!r}; expected a whole number from 1 upward, or None")
    groups = _groups(trajectories)
    rewards = [t.reward for chains in groups for t in chains if t.reward is not None]
    samples: list[Sample] = []
    flat = 0
    for g, chains in enumerate(groups):
        scored = [t for t in chains if t.reward is not None]
        advantages_G = group_advantages([t.reward or 0.0 for t in scored], scale)
        if not advantages_G.any():
            flat += 1
            continue
        for t, advantage in zip(scored, advantages_G.tolist(), strict=True):
            samples += _samples(t, advantage, g)
    kept = [_within(sample, max_tokens, truncation) for sample in samples]
    rows = [sample for sample in kept if sample is not None]
    arrays = _padded(rows, pad_id)
    stale_N = _staleness(arrays, rows, version)
    total = sum(map(len, groups))
    statistics = BatchStatistics(
        groups=len(groups),
        flat_groups=flat,
        chains=total,
        failed=total - len(rewards),
        truncated=sum(a is not b and b is not None for a, b in zip(samples, kept, strict=True)),
        dropped_long=len(samples) - len(rows),
        tokens=int(arrays["loss_mask_BT"].sum()),
        mean_reward=float(np.mean(rewards)),
        reward_std=float(np.std(rewards)),
        staleness_mean=float(stale_N.mean()) if stale_N.size else 0.0,
        staleness_max=int(stale_N.max(initial=0)),
    )
    return TrainBatch(**arrays, chain_ids=tuple(s.chain_id for s in rows), statistics=statistics)


def _groups(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """The groups in the order in which they came, checked.

    Raises:
        InputError: see `make_batch`.
    """
    groups: dict[tuple[str, str], list[Trajectory]] = {}
    unrewarded: list[Trajectory] = []
    for t in trajectories:
        if not isinstance(t, Trajectory):
            raise InputError(
                f"a trajectory is {type(t).__name__}; expected rollcast.Trajectory objects, as a RunResult has"
            )
        if t.group_id is None:
            raise InputError(
                f"{t.chain_id} has no group; chains are compared with the repeats of their row: give run.chain(…) a group_id"
            )
        if t.reward is None:
            unrewarded.append(t)
        else:
            _number(t.reward, f"the reward of {t.chain_id}")
            for segment in t.segments:
                _check_segment(segment, t.chain_id)
        groups.setdefault((t.run_id, t.group_id), []).append(t)
    if not groups:
        raise InputError(
            "there are no trajectories; give those of a run: make_batch(await agent.run_async(…))"
        )
    if len(unrewarded) == sum(map(len, groups.values())):
        error = next((t.error for t in unrewarded if t.error), None)
        raise InputError(
            f"none of the {len(unrewarded)} chains has a reward; "
            + (
                f"the first that failed says: {error}"
                if error
                else "give the agent one: BaseAgent(…, reward=…)"
            )
        )
    return list(groups.values())


def _number(value: Any, what: str) -> float:
    if isinstance(value, int | float | np.number) and math.isfinite(value):
        number = float(value)
        if abs(number) <= _LARGEST:
            return number
        raise InputError(f"{what} is {value!r}; expected a number that float32 can hold")
    raise InputError(f"{what} is {value!r}; expected a finite number")


def _samples(t: Trajectory, advantage: float, group: int) -> Iterable[Sample]:
    """The segments in which the model sampled something."""
    for index, segment in enumerate(t.segments):
        loss_mask = segment.loss_mask
        if any(loss_mask):
            yield Sample(
                segment.token_ids, loss_mask, segment.logprobs, segment.policy_versions,
                advantage, float(t.reward or 0.0), group, t.chain_id, index,
            )  # fmt: skip


def _check_segment(segment: Segment, chain_id: str) -> None:
    for turn in segment.turns:
        where = f"turn {turn.step} of {chain_id}"
        sampled = len(turn.token_ids)
        if sampled == 0 and turn.completion_tokens:
            raise InputError(
                f"{where} has no token ids, only text; training needs the ids that were sampled: run the agent on a backend "
                "that is token_exact, such as tiny, transformers, async_vllm, or openai on a server that gives token ids"
            )
        if len(turn.logprobs) != sampled:
            raise InputError(
                f"{where} has {sampled} token ids and {len(turn.logprobs)} log-probabilities; training needs one for each: "
                "use a backend that yields logprobs"
            )
        if not all(map(math.isfinite, turn.logprobs)):
            raise InputError(
                f"{where} has a log-probability that is not finite; a token that was sampled has one"
            )
        if turn.policy_versions and len(turn.policy_versions) != sampled:
            raise InputError(
                f"{where} has {sampled} token ids and {len(turn.policy_versions)} policy versions; expected one for each, or none"
            )
    first = segment.turns[0]
    if first.token_ids and not first.prompt_ids:
        raise InputError(
            f"turn {first.step} of {chain_id} has no prompt ids, so what the model read is not known; give them: "
            "chain.generation(prompt_ids=…)"
        )


def _within(sample: Sample, max_tokens: int | None, truncation: Truncation) -> Sample | None:
    """The sample, cut if it is too long; None if it is left out."""
    length = len(sample.token_ids)
    if max_tokens is None or length <= max_tokens:
        return sample
    if truncation == "error":
        raise InputError(
            f"{sample.chain_id} has a sequence of {length} tokens, and max_tokens is {max_tokens}; allow more, give chains "
            "fewer steps or tokens, or choose truncation='drop' or 'cut'"
        )
    if truncation == "drop" or not any(sample.loss_mask[:max_tokens]):
        return None
    return replace(
        sample,
        token_ids=sample.token_ids[:max_tokens],
        loss_mask=sample.loss_mask[:max_tokens],
        logprobs=sample.logprobs[:max_tokens],
        policy_versions=sample.policy_versions[:max_tokens],
    )


def _padded(rows: list[Sample], pad_id: int) -> dict[str, Any]:
    """The arrays of a `TrainBatch`."""
    shape = len(rows), max((len(row.token_ids) for row in rows), default=0)
    input_ids_BT = np.full(shape, pad_id, np.int64)
    attention_mask_BT, loss_mask_BT = np.zeros(shape, bool), np.zeros(shape, bool)
    logprobs_BT, policy_versions_BT = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
    for b, row in enumerate(rows):
        length = len(row.token_ids)
        input_ids_BT[b, :length] = row.token_ids
        attention_mask_BT[b, :length] = True
        loss_mask_BT[b, :length] = row.loss_mask
        logprobs_BT[b, :length] = row.logprobs
        policy_versions_BT[b, :length] = row.policy_versions
    return {
        "input_ids_BT": input_ids_BT,
        "attention_mask_BT": attention_mask_BT,
        "loss_mask_BT": loss_mask_BT,
        "logprobs_BT": logprobs_BT,
        "policy_versions_BT": policy_versions_BT,
        "advantages_B": np.array([row.advantage for row in rows], np.float32),
        "rewards_B": np.array([row.reward for row in rows], np.float32),
        "groups_B": np.array([row.group for row in rows], np.int64),
    }


def _staleness(arrays: dict[str, Any], rows: list[Sample], version: int | None) -> NDArray[np.int64]:
    """How many versions behind each trained token is, if its version is known, shape (N,)."""
    versions_BT: NDArray[np.int64] = arrays["policy_versions_BT"]
    known_BT = arrays["loss_mask_BT"] & (versions_BT >= 0)
    newest = int(versions_BT[known_BT].max(initial=-1))
    if version is None:
        version = newest
    elif version < newest:
        row = int((versions_BT == newest).any(axis=1).argmax())
        raise InputError(
            f"{rows[row].chain_id} was sampled by version {newest} of the weights, and the batch is for version {version}; "
            "give the version that the trainer holds now"
        )
    stale_N: NDArray[np.int64] = version - versions_BT[known_BT]
    return stale_N
