"""Counts, numbers and durations as people read them."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["counted", "duration_text", "number_text", "one_line_of", "span_text"]


def one_line_of(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def number_text(value: Any) -> str:
    """A reward as it is shown to people: a dash stands for a missing one."""
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def counted(n: int, noun: str) -> str:
    """`1 chain`, `2 chains`, `2 trajectories`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"


def duration_text(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else span_text(seconds)


def span_text(seconds: float) -> str:
    """Seconds as people read them, when parts of a second hardly matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
