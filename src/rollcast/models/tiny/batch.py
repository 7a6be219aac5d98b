"""All running generations as one batch, which they join and leave at any token. No threads, no clocks, no I/O."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rollcast.models.engine import Sampled
from rollcast.models.tiny.memory import Arena, PrefixCache, Row, copy_slot, new_memory
from rollcast.models.tiny.model import Memory, Model, Segment, forward, key_mask, key_width
from rollcast.models.tiny.product import MAX_ROWS, padded_rows, row_product
from rollcast.models.tiny.sampler import SamplingPlan, sample, sampling_plan
from rollcast.models.tiny.weights import Array, ModelConfig, Parameters

__all__ = ["Batch", "Row"]

Ints = NDArray[np.intp]

PROMPT_ROWS = 64
"""The most prompt tokens that one step reads, so that decoding rows hardly wait for those that join."""

MAX_DECODING = MAX_ROWS - PROMPT_ROWS
"""The most rows that decode at once; the others wait their turn."""

# Waiting for another's prompt to be read pays if it saves reading at least this many tokens for each step of waiting.
_WORTH_A_STEP = 8


class Batch:
    """Rows that wait, read their prompts or decode, and the step that moves them all by one token.

    Args:
        config: the model's sizes.
        parameters: its weights.
        block: what `measure_block` found on this machine.
    """

    def __init__(self, config: ModelConfig, parameters: Parameters, block: int) -> None:
        self.config = config
        self._model = Model(config, parameters, row_product(block))
        self._block = block
        self._waiting: list[Row] = []
        self._reading: list[Row] = []
        self._arenas: dict[int, Arena] = {}
        self._prefixes = PrefixCache(config.max_position_embeddings)
        # The plan of the rows that decode; rebuilt when one joins or leaves.
        self._plan: tuple[list[Row], SamplingPlan] | None = None

    def __len__(self) -> int:
        return (
            len(self._waiting) + len(self._reading) + sum(len(arena.rows) for arena in self._arenas.values())
        )

    def add(self, row: Row) -> None:
        """Add a row; it samples its first token as soon as its prompt is read."""
        self._waiting.append(row)

    def remove(self, row: Row) -> None:
        """Remove a row. What it computed is remembered for prompts that begin with the same ids."""
        if row.arena is not None:
            self._remember(row, row.arena)
            row.arena.take(row.slot)
            row.arena = None
            self._plan = None
        elif row in self._reading:
            self._reading.remove(row)
        elif row in self._waiting:
            self._waiting.remove(row)

    def set_parameters(self, parameters: Parameters) -> None:
        """Compute with these weights from the next step on. Rows keep the keys and values that they have."""
        self._model = self._model._replace(parameters=parameters)
        self._prefixes.clear()
        for row in (*self._reading, *(row for arena in self._arenas.values() for row in arena.rows)):
            row.mixed = True

    def step(self) -> Sampled:
        """Sample one token for each row that decodes or has its prompt read. The caller removes rows that are done."""
        # 1. Rows that decode: one token each, arena after arena.
        self._widen()
        segments = self._decode_segments()
        decoding = segments[-1].stop if segments else 0
        ids = [arena.ids[: len(arena.rows)] for arena in self._arenas.values()]
        # 2. Rows that join: as much of their prompts as one step reads.
        self._admit()
        ready: list[Row] = []
        wanted = list(range(decoding))
        for row, chunk in self._chunks():
            start = segments[-1].stop if segments else 0
            segments += _prompt_segments(row, start, chunk)
            ids.append(row.prompt[row.read : row.read + chunk].astype(np.intp))
            row.read += chunk
            if row.read == row.prompt_tokens:
                ready.append(row)
                wanted.append(start + chunk - 1)
        if not segments:
            return Sampled([], [], [])
        # 3. One forward pass over all of them.
        logits = forward(
            self._model,
            self._padded(ids),
            self._padded([segment.positions for segment in segments]),
            segments,
            self._padded([np.array(wanted, np.intp)]) if self._reading else None,
        )
        # 4. A token for each row that decodes or whose prompt is now read; the latter begin to decode.
        sampled = self._sample(logits[: len(wanted)], ready)
        for row in ready:
            self._begin(row)
        return sampled

    def _widen(self) -> None:
        """Move the rows that have filled their arena's width to a wider one."""
        for arena in list(self._arenas.values()):
            for slot in arena.full():
                row, token, position = arena.rows[slot], int(arena.ids[slot]), int(arena.positions[slot])
                self._arena(position + 1).put(row, arena.memory, slot, token, position)
                arena.take(slot)
                self._plan = None

    def _arena(self, length: int) -> Arena:
        width = key_width(length)
        if width not in self._arenas:
            self._arenas[width] = Arena(self.config, width)
        return self._arenas[width]

    def _decode_segments(self) -> list[Segment]:
        segments, start = [], 0
        for arena in self._arenas.values():
            count = len(arena.rows)
            if count:
                positions = arena.positions[:count]
                memory = Memory(arena.memory.keys[:, :count], arena.memory.values[:, :count])
                mask = key_mask(positions, arena.width)
                segments.append(Segment(start, start + count, memory, arena.slots[:count], positions, mask))
                start += count
        return segments

    def _admit(self) -> None:
        """Let waiting rows begin to read, in order, as long as this step has room for their prompts."""
        if not self._waiting:
            return
        room = PROMPT_ROWS - sum(row.prompt_tokens - row.read for row in self._reading)
        free = MAX_DECODING - len(self._reading) - sum(len(arena.rows) for arena in self._arenas.values())
        held = []
        for index, row in enumerate(self._waiting):
            if room <= 0 or free <= 0:
                held += self._waiting[index:]
                break
            known, block = self._prefixes.longest(row.prompt)
            if any(_worth_waiting(row, known, other) for other in self._reading):
                held.append(row)
                continue
            # The last token is always read: the first sample is drawn from its logits.
            row.read = min(known, row.prompt_tokens - 1)
            row.block = new_memory(self.config, 1, key_width(row.prompt_tokens))
            if block is not None:
                copy_slot(block, 0, row.block, 0, row.read)
            row.new_prompt = row.prompt_tokens - row.read > 1
            self._reading.append(row)
            room -= row.prompt_tokens - row.read
            free -= 1
        self._waiting = held

    def _chunks(self) -> list[tuple[Row, int]]:
        room, chunks = PROMPT_ROWS, []
        for row in self._reading:
            chunk = min(room, row.prompt_tokens - row.read)
            if chunk:
                chunks.append((row, chunk))
                room -= chunk
        return chunks

    def _padded(self, parts: list[Ints]) -> Ints:
        rows = sum(map(len, parts))
        missing = padded_rows(rows, self._block) - rows
        if len(parts) == 1 and not missing:
            return parts[0]
        return np.concatenate([*parts, np.zeros(missing, np.intp)])

    def _sample(self, logits: Array, ready: list[Row]) -> Sampled:
        if ready or self._plan is None:
            rows = [row for arena in self._arenas.values() for row in arena.rows] + ready
            self._plan = rows, sampling_plan([row.sampling for row in rows])
        rows, plan = self._plan
        if not rows:
            return Sampled([], [], [])
        drawn, logprobs = sample(logits, plan, np.array([row.uniforms[row.sampled] for row in rows]))
        start = 0
        for arena in self._arenas.values():
            count = len(arena.rows)
            arena.advance(drawn[start : start + count])
            start += count
        tokens = drawn.tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.ids.append(token)
            row.sampled += 1
        return Sampled(rows, tokens, logprobs.tolist())

    def _begin(self, row: Row) -> None:
        """Move a row from reading to decoding."""
        assert row.block is not None
        block, row.block = row.block, None
        if row.new_prompt and not row.mixed:
            self._prefixes.store(row.ids[: row.prompt_tokens], block)
        self._reading.remove(row)
        self._arena(row.prompt_tokens + 1).put(row, block, 0, row.ids[-1], row.prompt_tokens)
        self._plan = None

    def _remember(self, row: Row, arena: Arena) -> None:
        # The token that was sampled last has not been fed: it has no keys and values yet.
        filled = int(arena.positions[row.slot])
        if not row.mixed:
            block = new_memory(self.config, 1, filled)
            copy_slot(arena.memory, row.slot, block, 0, filled)
            self._prefixes.store(row.ids[:filled], block)


def _prompt_segments(row: Row, start: int, chunk: int) -> list[Segment]:
    """The next tokens of a prompt, cut where the key width changes."""
    assert row.block is not None
    segments, position, end = [], row.read, row.read + chunk
    while position < end:
        width = key_width(position + 1)
        stop = min(end, width)
        positions = np.arange(position, stop)
        rows = stop - position
        mask = key_mask(positions, width)
        memory = Memory(row.block.keys[..., :width], row.block.values[..., :width, :])
        segments.append(Segment(start, start + rows, memory, 0, positions, mask))
        start, position = start + rows, stop
    return segments


def _worth_waiting(row: Row, known: int, other: Row) -> bool:
    """Whether the other's prompt, which is being read, begins like this row's for long enough."""
    steps = -(-(other.prompt_tokens - other.read) // PROMPT_ROWS)
    return _shared(row.prompt, other.prompt) - known > _WORTH_A_STEP * steps


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many ids two sequences share from the start."""
    length = min(len(a), len(b))
    same = a[:length] == b[:length]
    return length if same.all() else int(same.argmin())
