"""How chains came out, in a word or a number each, and why those failed that did: for a run that ends and for its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from rollcast.terminal.layout import Glyphs, Row
from rollcast.text import shorten, visible

__all__ = ["Outcome", "cause_rows", "outcome_row"]

_AT_A_GLANCE = 8  # chains
_SHOWN_CAUSES = 3
_SHOWN_CHARS = 500  # of a cause


class Outcome(NamedTuple):
    """How one chain came out.

    Attributes:
        chain_id: of the chain.
        reward: None if it has none.
        end: its `finish_reason`, or how it stands if it has no end: `running`, `lost`.
        error: the text of its latest error.
        unscored: its reward failed.
    """

    chain_id: str
    reward: float | None
    end: str
    error: str | None
    unscored: bool

    @property
    def failed(self) -> bool:
        """Whether the chain itself failed, or has no end because its run died."""
        return self.end in ("error", "lost")

    def word(self) -> tuple[str, str]:
        """Its reward, or how it ended, and the style of that."""
        if self.reward is not None:
            return f"{self.reward:g}", "done" if self.reward > 0 else "fail"
        if self.unscored:
            return "reward failed", "fail"
        return self.end, "fail" if self.failed else "stopped"

    def cause(self) -> str:
        """Why it failed, without its own name, so that chains that failed alike share a line."""
        return (self.error or "").replace(f" of {self.chain_id} ", " ")


def outcome_row(outcomes: Iterable[Outcome], glyphs: Glyphs) -> Row:
    """One word for each chain; if there are many chains, each word once and how often it occurred."""
    words = [outcome.word() for outcome in outcomes]
    if len(words) > _AT_A_GLANCE:
        counted = Counter(words).most_common()
        words = [(f"{n}{glyphs.times}{word}", style) for (word, style), n in counted]
    row: Row = []
    for word, style in words:
        row += [*((piece, "escape" if escaped else style) for piece, escaped in visible(word)), (" ", "")]
    return row[:-1]


def cause_rows(outcomes: Iterable[Outcome], glyphs: Glyphs) -> list[Row]:
    """Why chains failed or have no reward: the most frequent causes, each once and how often it occurred."""
    causes = Counter(
        each.cause() for each in outcomes if each.error and (each.end == "error" or each.unscored)
    )
    return [
        [(f"{count} {glyphs.times} ", "bold"), *_shown(cause, glyphs)]
        for cause, count in causes.most_common(_SHOWN_CAUSES)
    ]


def _shown(text: str, glyphs: Glyphs) -> Row:
    head, left_out = shorten(" ".join(text.split("\n")), _SHOWN_CHARS)
    pieces = [(piece, "escape" if escaped else "fail") for piece, escaped in visible(head)]
    return [*pieces, (glyphs.more, "dim")] if left_out else pieces
