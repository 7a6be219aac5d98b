"""Measures what it costs a watcher to know a chain's state: to `apply` an event, beside decoding it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tokens import tokens
from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.records.run_view import RunViews
from rollcast.records.view import ChainView

__all__ = ["run"]

LENGTH = 512  # tokens per generation
TURNS = 8  # generations per chain, each followed by a tool call
RUN = "01a22362-9796-7bd9-b031-b70bcfaca05b"

T = StreamEventType


def run(quick: bool) -> list[Figure]:
    """Measure a chain of 8 turns of 512 tokens each, with a tool call each, and one event per token."""
    rounds = 2 if quick else 21
    lines = _chain()
    decoder = msgspec.json.Decoder(StreamEvent)
    events = [decoder.decode(line) for line in lines]
    snapshot = _viewed(events[: len(events) - 3])
    trials: dict[str, Callable[[], float]] = {
        "decode": lambda: _timed(lambda: [decoder.decode(line) for line in lines]),
        "view": lambda: _timed(lambda: _viewed(events)),
        "views": lambda: _timed(lambda: _all_viewed(events)),
        "snapshot": lambda: _timed(lambda: encode(snapshot.snapshot())),
    }
    results = paired(trials, rounds)
    cost = {name: [seconds / len(lines) * 1e6 for seconds in values] for name, values in results.items()}
    return [
        figure("views: reference: decode an event with msgspec", cost["decode"], "µs"),
        figure("views: ChainView.apply, an event", cost["view"], "µs"),
        figure("views: the same / decode", ratios(cost["view"], cost["decode"]), "×"),
        figure("views: RunViews.apply, which finds the run and the chain", cost["views"], "µs"),
        figure("views: the same / decode", ratios(cost["views"], cost["decode"]), "×"),
        figure("views: a snapshot of the chain as JSON", [s * 1e6 for s in results["snapshot"]], "µs"),
    ]


def _chain() -> list[bytes]:
    """The events of one chain as they come over the wire."""
    made: list[tuple[StreamEventType, dict[str, object], int]] = [
        (
            T.CHAIN_START,
            {"messages": [{"role": "user", "content": "?"}], "tools": ["t"], "index": 0, "policy_version": 0},
            0,
        )
    ]
    for step in range(1, TURNS + 1):
        made.append(
            (
                T.LLM_GENERATION_START,
                {"prompt_tokens": 9, "model": "m", "policy_version": 0, "sampling": {}},
                step,
            )
        )
        offset = 0
        for text, ids, logprobs in tokens(LENGTH):
            made.append(
                (
                    T.LLM_GENERATION_CHUNK,
                    {"content": text, "offset": offset, "token_ids": ids, "logprobs": logprobs},
                    step,
                )
            )
            offset += len(text)
        whole = "".join(text for text, _, _ in tokens(LENGTH))
        end = {
            "content": whole,
            "finish_reason": "tool_call",
            "prompt_tokens": 9,
            "completion_tokens": LENGTH,
        }
        made.append((T.LLM_GENERATION_END, {**end, "ttft_s": 0.1, "duration_s": 1.0}, step))
        call = {"call_id": f"call_{step}", "tool_name": "t"}
        made += [
            (T.TOOL_CALL_START, {**call, "arguments": {"a": step}}, step),
            (T.TOOL_OBSERVATION, {**call, "observation": "42", "status": "success", "partial": False}, step),
            (T.TOOL_CALL_END, {**call, "status": "success", "duration_s": 0.1}, step),
        ]
    now = time.time()
    return [
        encode(StreamEvent(kind, "chain_0", now + seq / 1000, data, step, step, seq, RUN, "group_0", ""))
        for seq, (kind, data, step) in enumerate(made)
    ]


def _viewed(events: list[StreamEvent]) -> ChainView:
    view = ChainView()
    for event in events:
        view.apply(event)
    return view


def _all_viewed(events: list[StreamEvent]) -> RunViews:
    views = RunViews()
    for event in events:
        views.apply(event)
    return views


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
