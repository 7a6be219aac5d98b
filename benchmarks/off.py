"""With streaming off: what a token pays for the possibility of being watched."""

from __future__ import annotations

import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tokens import Token, tokens
from rollcast.records import Turn
from rollcast.stream import GenerationWriter, StreamingManager

__all__ = ["run"]

LENGTH = 256  # tokens per generation


def run(quick: bool) -> list[Figure]:
    """Compare `GenerationWriter.chunk` without a route to the bare `Turn.append` that it wraps."""
    generations, rounds = (20, 2) if quick else (400, 41)
    deltas = tokens(LENGTH)
    results = paired(
        {
            "bare": lambda: _seconds([_turn().append for _ in range(generations)], deltas),
            "off": lambda: _seconds([_generation().chunk for _ in range(generations)], deltas),
        },
        rounds,
    )
    n = generations * LENGTH
    bare, off = ([s / n * 1e6 for s in results[name]] for name in ("bare", "off"))
    return [
        figure("off: Turn.append alone, a token", bare, "µs"),
        figure("off: GenerationWriter.chunk, a token", off, "µs"),
        figure("off: the guard, a token", [b - a for a, b in zip(bare, off, strict=True)], "µs", "<= 0.1"),
        figure("off: chunk / append", ratios(off, bare), "×"),
        figure("off: blocks that the guard keeps, 100 000 tokens", _blocks_kept(deltas), "blocks", "<= 0"),
        figure("off: bytes that the guard takes in passing, a token", _transient(deltas), "B", "<= 0"),
    ]


def _turn() -> Turn:
    return Turn(step=1, ttft_s=0.0)


def _generation() -> GenerationWriter:
    stream = StreamingManager().run(live=False).open()
    generation = stream.chain().start().generation().start()
    assert generation.route is None
    generation.turn.ttft_s = 0.0  # a field of the trajectory that is set once, not by the guard
    return generation


def _seconds(calls: list[Callable[..., None]], deltas: list[Token]) -> float:
    began = time.process_time()
    for call in calls:
        for text, ids, logprobs in deltas:
            call(text, ids, logprobs, 0)
    return time.process_time() - began


def _blocks_kept(deltas: list[Token]) -> int:
    """Memory blocks that are alive after the tokens, beyond those of the bare trajectory."""
    long = deltas * (100_000 // len(deltas))
    bare, generation = _turn(), _generation()
    return _blocks(generation.chunk, long) - _blocks(bare.append, long)


def _blocks(call: Callable[..., None], deltas: list[Token]) -> int:
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for text, ids, logprobs in deltas:
            call(text, ids, logprobs, 0)
        return sys.getallocatedblocks() - before
    finally:
        gc.enable()


def _transient(deltas: list[Token]) -> float:
    """The most memory that is in use during a call, beyond what the bare append uses; mean over the tokens.

    It is the median of a few: what the interpreter keeps for reuse changes a single count by one object.
    """
    beyond = [_peaks(_generation().chunk, deltas) - _peaks(_turn().append, deltas) for _ in range(9)]
    return statistics.median(beyond) / len(deltas)


def _peaks(call: Callable[..., None], deltas: list[Token]) -> int:
    total = 0
    tracemalloc.start()
    try:
        for text, ids, logprobs in deltas:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call(text, ids, logprobs, 0)
            total += tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return total
