"""Turns each event into rows of styled pieces for a terminal. Pure: no output, no state, no width.

Chunks of text are not handled here; the console gathers them (gathering.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.hints import Hint, named_chains
from rollcast.terminal.layout import Glyphs, Row
from rollcast.text import is_terminal_safe, shorten, visible

__all__ = ["EventRows"]

T = StreamEventType
_NAME_CHARS = 60
_TAGS = 4  # of a run that are shown
_QUESTION_CHARS = 240
_ARGUMENT_CHARS = 400
_ERROR_CHARS = 600
_HINT_CHARS = 400
_METRICS = 6
_NBSP = "\u00a0"  # keeps a number and its unit on one row; printed as a space


class EventRows:
    """Makes rows of events. A payload with an unknown or wrong shape is shown raw and never raises.

    Args:
        glyphs: the symbols to use.
        encoding: the output's encoding, if it lacks characters; None: it has them all.
        max_lines: how many lines of an observation are shown.
        max_chars: how many characters of each of its lines are shown.
    """

    def __init__(self, glyphs: Glyphs, encoding: str | None, max_lines: int, max_chars: int) -> None:
        self.glyphs = glyphs
        self._encoding = encoding
        self._max_lines = max_lines
        self._max_chars = max_chars
        self._describe: dict[str, Callable[[StreamEvent], list[Row]]] = {
            T.RUN_START: self._run_start,
            T.RUN_END: self._run_end,
            T.CHAIN_START: self._chain_start,
            T.CHAIN_END: self._chain_end,
            T.TOOL_CALL_START: self._tool_call_start,
            T.REWARD: self._reward,
            T.MESSAGE: self._message,
            T.ERROR: self._error,
            T.TRAIN_STEP: self._train_step,
            T.CHAIN_SNAPSHOT: self._snapshot,
            T.GAP: self._gap,
        }

    def of(self, event: StreamEvent) -> list[Row]:
        """The rows of this event."""
        try:
            return self._describe.get(event.event_type, self.raw)(event)
        except Exception:  # noqa: BLE001  a payload with another shape (user-made or from a later version) is shown raw
            return self.raw(event)

    def text(self, text: str, style: str = "") -> Row:
        """Text from outside as safe pieces."""
        return [(t, "escape" if escaped else style) for t, escaped in visible(text, self._encoding)]

    def safe(self, row: Row) -> Row:
        """The row with every piece made safe, whatever payload it came from."""
        if all(is_terminal_safe(text) for text, _ in row):
            return row
        return [piece for text, style in row for piece in self.text(text, style)]

    def line(self, text: str, limit: int, style: str = "") -> Row:
        """One line from text that may be huge or have several lines; what is left out is counted."""
        return self._one_line(text.strip(" \t\r\n"), limit, style)

    def _one_line(self, text: str, limit: int, style: str) -> Row:
        head, left_out = shorten(text, limit)
        row = self.text(" ".join(head.split("\n")), style)
        if left_out:
            row.append((f" {self.glyphs.more} {left_out:,} more characters", "dim"))
        return row

    def observation(self, text: str, style: str, tail: Row) -> list[Row]:
        """A tool's output, bounded in lines and in characters per line; `tail` goes after the first line."""
        lines = text.replace("\r\n", "\n").strip("\n").split("\n", self._max_lines)
        more = lines.pop() if len(lines) > self._max_lines else None
        rows = [self._one_line(line.rstrip(" \t\r"), self._max_chars, style) for line in lines]
        if not text:
            rows = [[("(nothing)", "dim")]]
        rows[0] += tail
        rows[1:] = [[(f"{self.glyphs.below} ", "dim"), *row] for row in rows[1:]]
        if more is not None:
            rows.append([(f"{self.glyphs.below} {more.count(chr(10)) + 1:,} more lines", "dim")])
        return rows

    def tool_result(self, name: str, text: str, status: str, duration_s: Any, *, named: bool) -> list[Row]:
        """A tool call's result. `named`: whether to name the tool, since other calls are open."""
        g = self.glyphs
        tail: Row = []
        if isinstance(duration_s, int | float):
            tail = [(f"  ({_duration(duration_s)})", "dim")]
        if status == "success":
            head: Row = [(f"{g.result} ", "result")]
            rows = self.observation(text, "", tail)
        else:
            head = [(f"{g.fail} ", "fail")]
            verb = {"error": "failed", "timeout": "timed out", "cancelled": "was cancelled"}
            head += [
                *self.line(name or "a call", _NAME_CHARS, "fail"),
                (f" {verb.get(status, _plain(status))}: ", "fail"),
            ]
            rows = self.observation(text, "", tail)
            named = False
        if named:
            head += [*self.line(name, _NAME_CHARS, "result"), (": ", "result")]
        return [head + rows[0], *rows[1:]]

    def partial(self, text: str) -> list[Row]:
        """Output of a tool that is still running."""
        rows = self.observation(text, "dim", [])
        return [[(f"{self.glyphs.below} ", "result"), *rows[0]], *rows[1:]]

    def hint(self, hint: Hint, *, gone: bool = False) -> Row:
        """A hint and the first chains that show it; `gone`: it is no longer true."""
        row: Row = [("! ", "gap"), *([("no longer: ", "dim")] if gone else [])]
        row += self.line(hint.sentence, _HINT_CHARS, "dim" if gone else "")
        names = named_chains(hint)
        if names and not gone:
            row += [(" ", ""), *self.line(f"({names})", _HINT_CHARS, "dim")]
        return row

    def _run_start(self, event: StreamEvent) -> list[Row]:
        if "leader" in event.data:  # which has said all of it
            return []
        data, dot = event.data, f" {self.glyphs.dot} "
        chains, groups = int(data["chains"]), int(data["groups"])
        count = _count(chains, "chain")
        if 1 < groups < chains and chains % groups == 0:
            count = f"{groups} prompts {self.glyphs.times} {chains // groups} = {count}"
        # A run without chains of its own is a training; its rollouts are runs that name it as their parent.
        # How many chains there will be of what is attached is not known.
        attached = _attached(data.get("settings"))
        row: Row = [("run", "title"), (dot, "rule"), (count, "")] if chains else [("training", "title")]
        if attached and not chains:
            row = [("run", "title"), (dot, "rule"), *self.line(f"{attached}, attached", _NAME_CHARS)]
        if (name := _plain(data.get("name") or "")) and name != data["agent"]:
            row += [(dot, "rule"), *self.line(name, _NAME_CHARS, "bold")]
        if who := _plain(data["model"]) or _plain(data["agent"]):  # a user's own loop may name neither
            row += [(dot, "rule"), *self.line(who, _NAME_CHARS)]
        row += [(f"{dot}policy {_plain(data['policy_version'])}", "dim")]
        if data.get("split"):
            row += [(dot, "rule"), *self.line(_plain(data["split"]), _NAME_CHARS)]
        tags = data.get("tags")
        for tag in tags[:_TAGS] if isinstance(tags, list) else ():
            row += [(dot, "rule"), *self.line(_plain(tag), _NAME_CHARS, "dim")]
        return [row]

    def _run_end(self, event: StreamEvent) -> list[Row]:
        if "leader" in event.data:
            return []
        data, dot = event.data, f" {self.glyphs.dot} "
        style = {"completed": "done", "cancelled": "stopped"}.get(data["status"], "fail")
        if not data["chains"]:
            what = f"training {_plain(data['status'])}"
            return [[(what, style), (dot + _duration(data["duration_s"]), "")]]
        facts = [_count(int(data["chains"]), "chain")]
        if data["mean_reward"] is not None:
            facts.append(f"mean reward {data['mean_reward']:.3g}")
        facts.append(_count(int(data["completion_tokens"]), "token"))
        facts.append(_duration(data["duration_s"]))
        if data["duration_s"] > 0:
            facts.append(f"{data['completion_tokens'] / data['duration_s']:,.0f} tokens/s")
        row: Row = [(_plain(data["status"]), style)]
        row += [
            (dot + fact.replace(" ", _NBSP), "") for fact in facts
        ]  # a narrow terminal breaks between facts
        if data["failed"]:
            row.insert(2, (f"{dot}{data['failed']:,} failed", "fail"))
        return [row]

    def _chain_start(self, event: StreamEvent) -> list[Row]:
        messages = event.data["messages"]
        asked = [m for m in messages if m.get("role") == "user"] or messages
        content = _content(asked[-1].get("content") if asked else "")
        return [
            [
                (f"{self.glyphs.start} ", "question"),
                *self.line(content, _QUESTION_CHARS, "question"),
            ]
        ]

    def _chain_end(self, event: StreamEvent) -> list[Row]:
        data, dot = event.data, f" {self.glyphs.dot} "
        reason = _plain(data["finish_reason"])
        good = reason in ("answered", "terminal_tool")
        style = "done" if good else "fail" if reason == "error" else "stopped"
        facts = [
            _count(int(data["steps"]), "step"),
            _count(int(data["completion_tokens"]), "token"),
            _duration(data["duration_s"]),
        ]
        words = self.line(reason.replace("_", " "), _NAME_CHARS, style)
        end: Row = [(f"{self.glyphs.end} ", style), *words, (dot + dot.join(facts), "dim")]
        said = data.get("final_response")
        if data["steps"] == 0 and isinstance(said, str) and said:  # no generation has shown it
            return [*self.observation(said, "", []), end]
        return [end]

    def _tool_call_start(self, event: StreamEvent) -> list[Row]:
        arguments = event.data["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False, default=str)
        row: Row = [
            (f"{self.glyphs.call} ", "call"),
            *self.line(event.data["tool_name"] or "?", _NAME_CHARS, "call"),
        ]
        return [[*row, ("(", "call"), *self.line(arguments, _ARGUMENT_CHARS), (")", "call")]]

    def _reward(self, event: StreamEvent) -> list[Row]:
        what = "step reward" if event.data.get("final") is False else "reward"
        row: Row = [
            (f"{self.glyphs.reward} ", "reward"),
            (f"{what} {_number(event.data['reward'])}", "reward"),
        ]
        return [row + self._metrics(event.data.get("metrics") or {})]

    def _message(self, event: StreamEvent) -> list[Row]:
        row: Row = [(f"{self.glyphs.start} ", "question")]
        if event.data["role"] != "user":
            row += [*self.line(_plain(event.data["role"]), _NAME_CHARS, "dim"), (": ", "dim")]
        return [[*row, *self.line(_content(event.data["content"]), _QUESTION_CHARS, "question")]]

    def _error(self, event: StreamEvent) -> list[Row]:
        data = event.data
        row: Row = [(f"{self.glyphs.fail} ", "fail"), *self.line(data["error_type"], _NAME_CHARS, "fail")]
        row += [(" in ", "dim"), *self.line(data["where"], _NAME_CHARS), (": ", "dim")]
        lines = self.observation(_plain(data["error"]), "", [])
        return [row + lines[0], *lines[1:]]

    def _train_step(self, event: StreamEvent) -> list[Row]:
        data = event.data
        row: Row = [(f"{self.glyphs.train} ", "train"), (f"step {_plain(data['train_step'])}", "train")]
        row.append((f" {self.glyphs.dot} policy {_plain(data['policy_version'])}", "dim"))
        return [row + self._metrics(data.get("metrics") or {})]

    def _snapshot(self, event: StreamEvent) -> list[Row]:
        data, g = event.data, self.glyphs
        facts = [f"joined at step {event.step}" if event.step else "joined"]
        facts.append(_count(len(data["messages"]), "message") + " before")
        if data["tool_calls"]:
            facts.append(_count(len(data["tool_calls"]), "tool call") + " open")
        return [[(f"{g.joined} " + f" {g.dot} ".join(facts), "gap")]]

    def _gap(self, event: StreamEvent) -> list[Row]:
        data, glyph = event.data, self.glyphs.gap
        dropped = data["dropped"]
        reason = (": ", "dim"), *self.line(_plain(data["reason"]), _ERROR_CHARS)
        if not dropped:  # it is not known which events they were; a filter may have left some out
            first, last = data["from_seq"], data["to_seq"]  # the last is None if it is not known
            most = 1 if last is None else int(last) - int(first) + 1
            what = f"up to {_count(most, 'event')}" if most > 1 else "events"
            return [[(f"{glyph} {what} not shown", "gap"), *reason]]
        kinds = ", ".join(f"{int(n):,} {kind}" for kind, n in dropped.items())
        row: Row = [(f"{glyph} {_count(sum(dropped.values()), 'event')} not shown", "gap")]
        return [[*row, (" (", "dim"), *self.line(kinds, _ERROR_CHARS, "dim"), (")", "dim"), *reason]]

    def raw(self, event: StreamEvent) -> list[Row]:
        """An event with an unknown type or shape, as JSON."""
        try:
            data = json.dumps(event.data, ensure_ascii=False, default=repr)
        except Exception as error:  # noqa: BLE001  a user-made payload's keys or repr may raise anything
            data = f"({type(error).__name__} while showing its data)"
        return [
            [
                *self.line(str(event.event_type), _NAME_CHARS, "gap"),
                (" ", ""),
                *self.line(data, _ARGUMENT_CHARS),
            ]
        ]

    def _metrics(self, metrics: dict[str, Any]) -> Row:
        row: Row = []
        shown = list(metrics.items())[:_METRICS]
        for name, value in shown:
            row += [
                (f" {self.glyphs.dot} ", "dim"),
                *self.line(f"{name} {_number(value)}", _NAME_CHARS, "dim"),
            ]
        if len(metrics) > len(shown):
            row.append((f" {self.glyphs.dot} {len(metrics) - len(shown)} more", "dim"))
        return row


def _content(content: Any) -> str:
    """A message's content as text; of parts without text, their types."""
    if isinstance(content, list):
        parts = [p.get("text") or f"[{_plain(p.get('type'))}]" for p in content]
        content = " ".join(map(_plain, parts))
    return _plain(content)


def _attached(settings: Any) -> str:
    """The host, if this is the run of something that is attached."""
    host = settings.get("attached") if isinstance(settings, dict) else None
    return host if isinstance(host, str) else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    short = f"{value:.4g}"
    return short if any(c in short for c in ".en") else f"{short}.0"


def _duration(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}{_NBSP}ms" if seconds >= 0.00095 else f"{seconds * 1000:.1f}{_NBSP}ms"
    if seconds < 60:
        return f"{seconds:.2f}{_NBSP}s" if seconds < 9.995 else f"{seconds:.1f}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{_NBSP}min{_NBSP}{rest:02d}{_NBSP}s"
