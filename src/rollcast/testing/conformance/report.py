"""Runs the suite without pytest, and writes its findings as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rollcast.errors import InputError
from rollcast.testing.conformance.bench import Bench
from rollcast.testing.conformance.check import Check
from rollcast.testing.conformance.subject import BackendUnderTest, NotApplicable

__all__ = ["Outcome", "read_table", "run_checks", "table", "update_page"]

BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"

Columns = Mapping[str, Mapping[str, str]]
"""For each backend, the findings by fact."""


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        result: `yes`, `n/a` or `no`.
        reason: why it does not apply, or what was found instead.
    """

    check: Check
    result: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.result}: {self.reason}" if self.reason else self.result


async def run_checks(subject: BackendUnderTest, checks: Iterable[Check]) -> list[Outcome]:
    """Run checks, one after the other, and keep what they find."""
    outcomes = []
    async with Bench(subject) as bench:
        for each in checks:
            try:
                await each(bench)
            except NotApplicable as reason:
                outcomes.append(Outcome(each, "n/a", str(reason)))
            except AssertionError as found:
                outcomes.append(Outcome(each, "no", str(found)))
            else:
                outcomes.append(Outcome(each, "yes"))
    return outcomes


def table(columns: Columns, facts: Sequence[str]) -> str:
    """A Markdown table: a row for each fact, a column for each backend. Reasons are numbered notes below it."""
    notes: list[str] = []

    def cell(found: str) -> str:
        result, _, reason = found.partition(": ")
        if not reason:
            return result or "?"
        if reason not in notes:
            notes.append(reason)
        return f"{result} ({notes.index(reason) + 1})"

    rows = [[fact, *(cell(columns[name].get(fact, "")) for name in columns)] for fact in facts]
    lines = [_row(["", *columns]), _row(["---"] * (len(columns) + 1)), *map(_row, rows)]
    numbered = [f"{number}. {_plain(note)}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, *(["", *numbered] if numbered else [])]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    return " ".join(text.split())


def read_table(page: str) -> dict[str, dict[str, str]]:
    """Read a page's table: by backend, then by fact.

    Raises:
        InputError: the page has no place for a table.
    """
    written = _between(page)
    notes = dict(re.findall(r"^(\d+)\. (.*)$", written, flags=re.MULTILINE))
    lines = [line for line in written.splitlines() if line.startswith("| ")]
    if not lines:
        return {}
    header, _, *rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]

    def found(cell: str) -> str:
        noted = re.fullmatch(r"(.*) \((\d+)\)", cell)
        return f"{noted[1]}: {notes[noted[2]]}" if noted else cell

    return {
        name: {row[0]: found(row[column]) for row in rows} for column, name in enumerate(header) if column > 0
    }


def update_page(page: str, columns: Columns, facts: Sequence[str]) -> str:
    """Return the page with these columns in its table; the other columns stay as they are.

    Raises:
        InputError: the page has no place for a table.
    """
    whole = {**read_table(page), **columns}
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table(whole, facts)}\n{END}{after}"


def _between(page: str) -> str:
    start, end = page.find(BEGIN), page.find(END)
    if not 0 <= start < end:
        raise InputError(f"the page has no place for the table; put the lines {BEGIN} and {END} into it")
    return page[start + len(BEGIN) : end]
