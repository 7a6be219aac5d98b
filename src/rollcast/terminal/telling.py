"""Prints a chain's events: text as it comes, and lines for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.bounded import MAX_WORD
from rollcast.records.view_parts import count_of
from rollcast.terminal.gathering import Gathering
from rollcast.terminal.printer import Printer
from rollcast.terminal.shown import VisibleChain
from rollcast.terminal.tags import REASONING

__all__ = ["Telling"]

T = StreamEventType


class Telling:
    """Prints the events of chains, or gathers their text. The caller holds the output's lock.

    A chain's view is in its state from before the event.
    """

    def __init__(self, printer: Printer, gathering: Gathering) -> None:
        self._out = printer
        self._gathering = gathering
        self._handlers: dict[str, Callable[[StreamEvent, VisibleChain], None]] = {
            T.LLM_GENERATION_CHUNK: self._chunk,
            T.LLM_GENERATION_START: self._generation_start,
            T.LLM_GENERATION_END: self._generation_end,
            T.TOOL_CALL_START: self._tool_call_start,
            T.TOOL_OBSERVATION: self._tool_observation,
            T.TOOL_CALL_END: self._tool_call_end,
            T.CHAIN_END: self._chain_end,
            T.CHAIN_SNAPSHOT: self._snapshot,
        }

    def take(self, event: StreamEvent, chain: VisibleChain) -> None:
        """Print or gather one event, whatever it contains."""
        try:
            self._handlers.get(event.event_type, self._any)(event, chain)
        except (TypeError, ValueError, KeyError, AttributeError):
            # A payload with another shape, user-made or from a later version, is shown raw.
            self._out.print_rows(self._out.rows.raw(event), chain, event.timestamp)

    def _any(self, event: StreamEvent, chain: VisibleChain) -> None:
        self._gathering.end_text(chain)
        self._out.print_rows(self._out.rows.of(event), chain, event.timestamp)

    def _note(self, text: str, chain: VisibleChain, stamp: float) -> None:
        self._out.print_rows([[(f"{self._out.glyphs.more} {text}", "gap")]], chain, stamp)

    # -- text --------------------------------------------------------------------------------------------------------

    def _chunk(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        content = _text(data, "content")
        offset = data.get("offset", chain.offset)
        if not isinstance(offset, int):
            raise TypeError("an offset is a number of characters")
        if offset != chain.offset:
            self._jump(chain, offset, event.timestamp)
        chain.offset += len(content)
        if not len(data.get("token_ids") or ()):
            chain.without_ids += bool(content or data.get("reasoning"))
        if "reasoning" in data and (reasoning := _text(data, "reasoning")):
            if chain.tag != REASONING:
                self._gathering.end_text(chain)
                chain.tag = REASONING
            chain.reasoning = True
            self._gathering.add_text(chain, reasoning, event.timestamp)
        if content:
            self._answer(chain, content, event.timestamp)

    def _answer(self, chain: VisibleChain, text: str, stamp: float) -> None:
        if chain.tag == REASONING:  # the answer begins a new line
            self._gathering.end_text(chain)
            chain.tag = None
        self._gathering.add_text(chain, text, stamp)

    def _jump(self, chain: VisibleChain, offset: int, stamp: float) -> None:
        """Continue at another offset, since chunks were left out or another generation began."""
        if offset < chain.offset:  # of another generation, whose start a filter leaves out
            self._gathering.end_text(chain)
        if offset > chain.offset:
            missing = offset - chain.offset
            self._gathering.end_text(chain)
            self._note(f"{missing:,} characters not shown", chain, stamp)
        chain.offset = offset

    def _generation_start(self, event: StreamEvent, chain: VisibleChain) -> None:
        del event  # its numbers would be noise on the console
        self._gathering.end_text(chain)
        chain.offset, chain.tag, chain.reasoning = 0, None, False

    def _generation_end(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        if "reasoning" in data and not chain.reasoning:  # its chunks were left out
            self._gathering.end_text(chain)
            chain.tag = REASONING
            self._gathering.add_text(chain, _text(data, "reasoning"), event.timestamp)
        rest = _text(data, "content")[chain.offset :]
        if chain.tag == REASONING:
            self._gathering.end_text(chain)
            chain.tag = None
        if rest:  # the backend does not stream, or chunks were left out
            self._gathering.add_text(chain, rest, event.timestamp)
        self._gathering.end_text(chain)
        int(data.get("completion_tokens", 0))  # raises if it is not a number, and the event is then shown raw
        chain.offset, chain.without_ids, chain.tag, chain.reasoning = 0, 0, None, False
        why = {
            "length": f"cut off after {data.get('completion_tokens')} tokens",
            "cancelled": "cancelled",
            "error": "broken off by an error",
        }.get(str(data.get("finish_reason")))
        if why:
            self._note(why, chain, event.timestamp)

    # -- tool calls --------------------------------------------------------------------------------------------------

    def _tool_call_start(self, event: StreamEvent, chain: VisibleChain) -> None:
        call_id, _ = _text(event.data, "call_id"), _text(event.data, "tool_name")
        self._any(event, chain)
        chain.printed.discard(call_id)

    def _tool_observation(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        call_id, name, text = _text(data, "call_id"), _text(data, "tool_name"), _text(data, "observation")
        status = _text(data, "status") if "status" in data else "success"
        self._gathering.end_text(chain)
        if data.get("partial"):
            self._out.print_rows(self._out.rows.partial(text), chain, event.timestamp)
            return
        self._gathering.hold_result(
            chain, call_id, _called(chain, call_id, name), text, status, event.timestamp
        )

    def _tool_call_end(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        call_id, name, status = _text(data, "call_id"), _text(data, "tool_name"), _text(data, "status")
        if call_id not in chain.printed:
            # If a filter leaves out the observation, only the end is shown.
            name = _called(chain, call_id, name)
            chain.held.setdefault(call_id, (name, "done", status, event.timestamp))
            self._gathering.print_result(chain, call_id, data.get("duration_s"))
        chain.printed.discard(call_id)
        self._gathering.settle(chain)

    # -- the chain itself --------------------------------------------------------------------------------------------

    def _chain_end(self, event: StreamEvent, chain: VisibleChain) -> None:
        self._gathering.print_all_of(chain)
        self._any(event, chain)

    def _snapshot(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        for call in data["tool_calls"]:
            _text(call, "call_id")
            _text(call, "tool_name")
        content = "" if data["content"] is None else _text(data, "content")
        before = count_of(data.get("content_omitted")) or 0  # the text was too long for the snapshot
        if _is_known(event, chain):  # the chain was shown all along, and somebody wants its tokens again
            chain.reasoning = chain.reasoning or bool(data.get("reasoning"))
            if rest := content[max(chain.offset - before, 0) :]:
                chain.offset += len(rest)
                self._answer(chain, rest, event.timestamp)
            return
        self._gathering.print_all_of(chain)
        self._any(event, chain)
        chain.printed.clear()
        chain.offset, chain.without_ids, chain.tag = before + len(content), 0, None
        chain.reasoning = bool(data.get("reasoning"))
        if content:
            chain.partial_line = True
            self._gathering.add_text(chain, content, event.timestamp)


def _is_known(snapshot: StreamEvent, chain: VisibleChain) -> bool:
    """Whether a snapshot tells of the state in which the chain is shown, so that it adds at most text of the open generation."""
    view, data = chain.view, snapshot.data
    if data.get("state") != view.state or view.state == "unknown" or snapshot.source != view.source:
        return False
    if view.generation is None or data["content"] is None:
        return view.generation is data["content"] is None and snapshot.step == view.step
    before = count_of(data.get("content_omitted")) or 0
    return data.get("generation_step") == view.generation_step and before <= chain.offset


def _called(chain: VisibleChain, call_id: str, name: str) -> str:
    """The tool's name when its call began, otherwise that in the event. A view has only the beginning of a long name."""
    call = chain.view.tool_calls.get(call_id)
    return call.tool_name if call is not None and len(name) <= MAX_WORD else name


def _text(data: dict[str, Any], field: str) -> str:
    """A field that must be text, since payloads may come from anywhere."""
    value = data[field]
    if not isinstance(value, str):
        raise TypeError(f"{field} must be text, found {type(value).__name__}")
    return value
