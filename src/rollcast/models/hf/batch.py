"""All running generations as one batch in torch, which they join and leave at any token. No threads, no clocks."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from rollcast.errors import BackendError
from rollcast.models.engine import Sampled
from rollcast.models.hf.cache import PrecisionChangedError, SlotCache
from rollcast.models.hf.forward import Forward
from rollcast.models.hf.mode import SamplingMode
from rollcast.models.hf.sampling import SamplingPlan, sample, sampling_plan
from rollcast.models.hf.settings import Limits
from rollcast.models.hf.slots import Row, Slots, shared_ids
from rollcast.models.hf.weights import NewWeights

__all__ = ["Batch"]

# Attention's width grows by this many tokens at a time: shapes that change at every step cost the allocator and the kernels.
_STRIDE = 16

# Parts of prompts up to this length are read together, whatever their lengths.
_SHORT = 64

# A row waits for another that reads the same prompt if that saves it at least this many tokens.
_WORTH_WAITING = 32

# How often the precision may change within one step: a trainer may prepare a model in several assignments.
_CHANGES = 4


class Batch:
    """Rows that wait, read their prompts or decode, and the step that moves them all by one token.

    Args:
        forward: the model.
        limits: limits of memory and work.
        mode: switches the model, which may be in training, to sampling and back.
        keep_cache: whether the memory for keys and values is held while there are no rows.
    """

    def __init__(self, forward: Forward, limits: Limits, mode: SamplingMode, *, keep_cache: bool) -> None:
        self._forward = forward
        self._limits = limits
        self._keep_cache = keep_cache
        self._mode = mode
        self._waiting: list[Row] = []
        self._reading: list[Row] = []
        self._slots = self._new_slots()
        self._device, self._dtype = forward.device, forward.dtype
        # Less than `limits.max_batch` after the device was out of memory, until nothing runs.
        self._max_rows = limits.max_batch
        self._plan: tuple[list[Row], SamplingPlan] | None = None

    def _new_slots(self) -> Slots:
        limits = self._limits
        return Slots(
            SlotCache(self._forward.shapes), limits.cache_tokens, limits.context, 2 * limits.max_batch
        )

    def add(self, row: Row) -> None:
        """Add a row; it samples its first token as soon as its prompt is read."""
        self._waiting.append(row)

    def remove(self, row: Row) -> None:
        """Remove a row. What it computed is kept for prompts that begin with the same ids."""
        if row.slot < 0:
            self._waiting.remove(row)
        else:
            self._take(row, keep=True)
        if not (self._waiting or self._reading or self._slots.decoding):
            self._leave_sampling_mode()

    def set_parameters(self, parameters: NewWeights) -> None:
        """Compute with these weights from the next step on. Rows keep the keys and values that they have."""
        parameters.write()
        self._slots.forget()

    @torch.no_grad()
    def step(self) -> Sampled:
        """Sample one token for each row that decodes or has its prompt read. The caller removes rows that are done."""
        self._mode.enter()
        try:
            return self._step_in_one_precision()
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            return self._retry_smaller(error)

    def _step_in_one_precision(self) -> Sampled:
        """Step. If autocast was put around the model or taken away, every row is read again first."""
        if (self._forward.device, self._forward.dtype) != (self._device, self._dtype):
            self._rebuild()
        for changes_left in reversed(range(_CHANGES)):
            try:
                return self._step()
            except PrecisionChangedError:
                if not changes_left:
                    raise
                self._rebuild()
        raise AssertionError("the last try returns or raises")

    def _step(self) -> Sampled:
        # 1. Room for one more token of each row that decodes; rows that wait begin to read.
        self._make_room()
        self._admit()
        decoding = list(self._slots.decoding)
        parts = self._parts()
        # 2. One forward pass for those that decode, and one for each group of prompt parts of about one length.
        rows = list(decoding)
        logits = [self._decoded()] if decoding else []
        for group in _by_length(parts):
            last = self._read(group, parts)
            ready = [i for i, row in enumerate(group) if row.remaining == parts[row]]
            rows += [group[i] for i in ready]
            logits.append(last if len(ready) == len(group) else last[ready])
        # 3. A token for each row that decodes or whose prompt is now read: one copy from the device.
        tokens, logprobs = self._sample(torch.cat(logits), rows) if rows else ([], [])
        # 4. Only now does anything count as done: a step that failed is done again.
        for row in decoding:
            row.filled += 1
        for row, part in parts.items():
            row.filled += part
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.ids.append(token)
            row.sampled += 1
            if not isfinite(logprob):
                # 0 times a value that is not finite is not 0: the next row here would see it through its mask.
                row.mixed = True
                self._slots.cache.clear(row.slot)
        for row in [row for row in self._reading if row.remaining == 1]:
            self._begin(row)
        return Sampled(rows, tokens, logprobs)

    # -- who takes part ------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Widen the slots for the longest row; if memory runs out, the rows that came last wait for the others."""
        rows = sorted(self._slots.rows(), key=lambda row: row.number)
        while rows and not self._slots.fits(len(rows), longest := max(len(row.ids) for row in rows)):
            self._put_back(rows.pop())
        if rows:
            self._slots.widen(longest)

    def _admit(self) -> None:
        """Let waiting rows begin to read, in order, as long as this step has room for their prompts."""
        budget = self._budget()
        room = budget - sum(min(row.remaining, budget // 2) for row in self._reading)
        for row in list(self._waiting):
            count = len(self._reading) + len(self._slots.decoding) + 1
            longest = max([len(other.ids) for other in self._slots.rows()], default=0)
            if count > self._max_rows or not self._slots.fits(count, max(longest, len(row.ids))):
                break
            if self._reading and room < min(row.remaining, budget // 2):
                break
            if self._soon_known(row):
                continue
            self._slots.widen(len(row.ids))
            if not self._slots.put(row):
                break
            self._waiting.remove(row)
            self._reading.append(row)
            room -= min(row.remaining, budget // 2)
            if row.remaining == 1:
                self._begin(row)

    def _budget(self) -> int:
        """The most prompt tokens that this step reads: more if more rows wait for that than decode."""
        base, decoding = self._limits.prompt_tokens, len(self._slots.decoding)
        if not decoding:
            return 4 * base
        idle = len(self._reading) + len(self._waiting)
        return min(4 * base, base + base * idle // decoding)

    def _soon_known(self, row: Row) -> bool:
        """Whether a row that reads will have read much of what this one begins with."""
        soon = [
            shared
            for other in self._reading
            if not other.mixed and (shared := shared_ids(row.to_read[:-1], other.to_read)) > other.filled
        ]
        return bool(soon) and max(soon) - self._slots.known(row.to_read[:-1])[0] >= _WORTH_WAITING

    def _begin(self, row: Row) -> None:
        self._reading.remove(row)
        self._slots.begin(row)
        self._plan = None

    def _take(self, row: Row, *, keep: bool) -> None:
        if row in self._reading:
            self._reading.remove(row)
        self._slots.end(row, keep=keep)
        self._plan = None

    def _rebuild(self) -> None:
        """Begin anew with slots that fit: the model now computes on another device or in another precision."""
        self._start_over()
        self._forward.inspect()
        self._slots = self._new_slots()
        self._device, self._dtype = self._forward.device, self._forward.dtype

    def _put_back(self, row: Row) -> None:
        """Let a row wait at the head of the queue; it is read again when there is room."""
        self._take(row, keep=False)
        row.wait()
        self._waiting.insert(0, row)

    def _start_over(self) -> None:
        """Let all rows wait, in the order in which they came, and free the memory."""
        rows = sorted(self._slots.rows(), key=lambda row: row.number)
        self._slots.drop()
        self._reading = []
        for row in rows:
            row.wait()
        self._waiting[:0] = rows
        self._plan = None

    def _retry_smaller(self, error: BaseException) -> Sampled:
        """Begin again with half the rows after the device was out of memory; a row that was alone fails."""
        rows = self._slots.rows()
        self._start_over()
        if self._forward.device.type == "cuda":
            torch.cuda.empty_cache()
        self._max_rows = max(1, len(rows) // 2)
        if len(rows) > 1:
            return Sampled([], [], [])
        failed = BackendError(
            f"the device ran out of memory over one generation of {len(self._waiting[0].ids)} tokens; lower "
            "cache_bytes or prompt_tokens of the backend, or free memory"
        )
        failed.__cause__ = error
        row = self._waiting.pop(0)
        if not self._waiting:
            self._leave_sampling_mode()
        return Sampled([], [], [], [(row, failed)])

    def _leave_sampling_mode(self) -> None:
        """Nothing runs: put the model back as it was, before the last token is delivered."""
        self._max_rows = self._limits.max_batch
        self._mode.leave()
        if not self._keep_cache:
            self._slots.drop()

    # -- what is computed ----------------------------------------------------------------------------------------------

    def _decoded(self) -> Tensor:
        """Logits (B, V) of the rows that decode."""
        rows = self._slots.decoding
        device = self._device
        # Both in one tensor: each tensor that goes to the device costs.
        fed = torch.tensor([[row.ids[-1] for row in rows], [row.filled for row in rows]], device=device)
        index = torch.arange(len(rows), device=device)
        seen = self._seen(max(row.filled for row in rows) + 1)
        return self._forward(
            self._slots.cache, slice(len(rows)), index, fed[0][:, None], fed[1][:, None], seen
        )

    def _parts(self) -> dict[Row, int]:
        """How many tokens of its prompt each row reads in this step: short ones all, long ones share the rest evenly."""
        left, parts = self._budget(), {}
        rows = sorted(self._reading, key=lambda row: row.remaining)
        for others, row in zip(range(len(rows), 0, -1), rows, strict=True):
            parts[row] = min(row.remaining, max(1, left // others))
            left -= parts[row]
        return parts

    def _read(self, rows: list[Row], parts: dict[Row, int]) -> Tensor:
        """Logits (R, V) after the next tokens of some prompts. Short parts repeat their last token, at its place."""
        ids, positions = [], []
        most = max(parts[row] for row in rows)
        for row in rows:
            end = row.filled + parts[row]
            missing = most - parts[row]
            ids.append(row.ids[row.filled : end] + row.ids[end - 1 : end] * missing)
            positions.append([*range(row.filled, end)] + [end - 1] * missing)
        fed = torch.tensor([ids, positions], device=self._device)
        index = torch.tensor([row.slot for row in rows], device=self._device)
        seen = self._seen(max(place[-1] for place in positions) + 1)
        first, last = rows[0].slot, rows[-1].slot
        together = [row.slot for row in rows] == list(range(first, last + 1))
        where = slice(first, last + 1) if together else index
        return self._forward(self._slots.cache, where, index, fed[0], fed[1], seen)

    def _seen(self, tokens: int) -> int:
        return min(-(-tokens // _STRIDE) * _STRIDE, self._slots.cache.width)

    def _sample(self, logits: Tensor, rows: list[Row]) -> tuple[list[int], list[float]]:
        if self._plan is None or self._plan[0] != rows:
            self._plan = rows, sampling_plan([row.sampling for row in rows], self._device)
        uniform = torch.tensor([row.uniform() for row in rows], dtype=torch.float32, device=self._device)
        return _copied_to_host(*sample(logits, self._plan[1], uniform))


def _copied_to_host(tokens_B: Tensor, logprobs_B: Tensor) -> tuple[list[int], list[float]]:
    """Copy tokens and log-probabilities from the device, in one copy. Ids are exact in float32 up to 16 million."""
    found = torch.stack([tokens_B.to(logprobs_B.dtype), logprobs_B]).tolist()
    return [int(token) for token in found[0]], found[1]


def _by_length(parts: dict[Row, int]) -> list[list[Row]]:
    """Group the rows so that parts are padded to less than twice their length, except for short ones."""
    groups: list[list[Row]] = []
    for row in reversed(parts):
        if not groups or max(2 * parts[row], _SHORT) < parts[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return groups


def _out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, which has no exception of its own, ran out of memory."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text
