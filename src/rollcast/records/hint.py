"""A hint, and how its sentence shows names, texts and durations."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from rollcast.text import plain_line

__all__ = [
    "HINT_KINDS",
    "MAX_NAMED",
    "MAX_SHOWN",
    "Hint",
    "HintKind",
    "named_chains",
    "seconds_text",
    "shown_text",
]

HintKind = Literal[
    "quiet", "tool_fails", "flat_groups", "alike_and_wrong", "reward_without_reference", "truncated", "same_answers", "length_drift"
]  # fmt: skip
HINT_KINDS: tuple[HintKind, ...] = get_args(HintKind)

MAX_NAMED = 64  # chain ids in one hint; `count` counts all of them
MAX_SHOWN = 60  # characters of an answer or a name in a sentence


class Hint(msgspec.Struct, frozen=True):
    """Something that is worth a look.

    Attributes:
        kind: the rule that found it.
        sentence: what it is, in plain English, on one line.
        run_id: the run that shows it; for a trend the last one.
        chains: ids of the chains that show it, at most 64; for a trend those of the last run.
        count: how many chains show it.
        group_id: the group, if it is about one.
        subject: the tool or the state that it is about; empty if it is about neither. `kind`, `run_id`, `group_id` and `subject`
            together identify a hint while its sentence and chains change.
    """

    kind: HintKind
    sentence: str
    run_id: str
    chains: list[str]
    count: int
    group_id: str | None = None
    subject: str = ""


def named_chains(hint: Hint, most: int = 4) -> str:
    """The first chains that show the hint, for the end of its sentence: `chain_1, chain_5 and 6 more`.

    It is empty if the sentence is about one chain, which it names.
    """
    if hint.kind == "quiet" and hint.count == 1:
        return ""
    names = [plain_line(name, MAX_SHOWN) for name in hint.chains[:most]]
    more = hint.count - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def shown_text(text: str) -> str:
    """Text from a model, a tool or a row, in quotation marks."""
    return f"\u201c{plain_line(text, MAX_SHOWN)}\u201d"


def seconds_text(value: float) -> str:
    """A duration in a sentence."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
