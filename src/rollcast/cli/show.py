"""`rollcast show`: one screen of what a recorded run, a training step, a group or a chain came to."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollcast.archive.index import find_record, list_records, resumed_as
from rollcast.archive.reader import Archive
from rollcast.archive.selection import check_names, runs_of_step, steps_of
from rollcast.archive.story import story_of, views_of
from rollcast.cli.chain_screen import chain_rows
from rollcast.cli.itself import this_command
from rollcast.cli.outcomes import Outcome, cause_rows, outcome_row
from rollcast.cli.output import Output
from rollcast.cli.records import ended_at, lacking, state_word, warn_of_damage, word_for
from rollcast.cli.wording import counted, duration_text, number_text, one_line_of
from rollcast.errors import ArchiveError, InputError
from rollcast.records import StreamEventType
from rollcast.records.hints import Hint, StepSummary, hints, summary, trend_hints
from rollcast.terminal.event_rows import EventRows
from rollcast.terminal.hint_lines import folded_row
from rollcast.terminal.layout import Row

__all__ = ["ShowOptions", "show_command"]

_GROUPS = 12  # that have a line
_CHAINS = 24
_HINTS = 6
_SETTINGS = 12
_HINTED = 20_000  # chains in which hints are looked for: of more it would take seconds


@dataclass(frozen=True)
class ShowOptions:
    """The options on the command line; see `rollcast show --help`."""

    record: str
    step: int | None
    worst: bool
    best: bool
    failed: bool
    group: str | None
    chain: str | None
    tokens: bool
    color: bool | None


def show_command(directory: Path, options: ShowOptions) -> int:
    """Print the screen; the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, it cannot be read, or it has no such step, group or chain.
        InputError: two options mean different chains, or the output cannot be written.
        BrokenPipeError: the output's reader has gone.
    """
    picks = [n for n in ("worst", "best", "failed") if getattr(options, n)] + ["chain"] * bool(options.chain)
    if len(picks) > 1:
        raise InputError(f"--{picks[0]} and --{picks[1]} mean different chains; give one of them")
    if options.tokens and not picks:
        raise InputError("--tokens shows one chain; also give --chain, --worst, --best or --failed")
    archive = Archive.open(find_record(directory, options.record))
    out = Output(sys.stdout, color=options.color)
    if options.chain and options.step is None and options.group is None:
        row, note = _last_chain(archive, options.chain)
        out.say(*_head(archive, out.printer.rows))
        _show_chain(archive, row, out, options, note=note)
    else:
        _show_selected(archive, out, options)
    out.must_have_printed()
    return 0


def _show_selected(archive: Archive, out: Output, options: ShowOptions) -> None:
    rows, step = _selected(archive, options)
    texts = out.printer.rows
    if options.chain:
        check_names(archive, rows, "chain_id", [options.chain])
        rows = [row for row in rows if row["chain_id"] == options.chain]
        out.say(*_head(archive, texts))
        _show_chain(archive, rows[-1], out, options)
        return
    found = _hints(archive, rows, step, whole=options.group is None)
    out.say(*_head(archive, texts), *_settings_rows(archive, texts))
    out.say(*_totals(archive, rows, step, texts))
    out.say(*cause_rows(map(_outcome, rows), texts.glyphs), *_hint_rows(found, len(rows), texts))
    picked = _picked(archive, rows, options)
    if picked is not None:
        out.say([])
        _show_chain(archive, picked, out, options)
        return
    if options.failed:
        out.say([("no chain failed", "done")])
    elif options.group:
        out.say([], *_group_rows(archive, rows, texts))
    else:
        out.say([], *_overview(archive, rows, texts))
        more = f"more: {this_command()} show {word_for(archive.path)} --worst, --best, --failed, --group or --chain"
        out.say([(more, "dim")])
    warn_of_damage(archive, [])


def _selected(archive: Archive, options: ShowOptions) -> tuple[list[dict[str, Any]], int | None]:
    """The rows that are meant, and of which training step they are."""
    rows = archive.chains().rows
    steps = steps_of(rows)
    step = options.step if options.step is not None or not steps else steps[-1]
    if step is not None:
        runs = set(runs_of_step(archive, rows, step))
        rows = [row for row in rows if row.get("run_id") in runs]
    if options.group is not None:
        check_names(archive, rows, "group_id", [options.group])
        rows = [row for row in rows if row.get("group_id") == options.group]
    return rows, step


def _picked(archive: Archive, rows: list[dict[str, Any]], options: ShowOptions) -> dict[str, Any] | None:
    """The one chain that is asked for; None if there is none, or all are."""
    if options.failed:
        failed = [row for row in rows if _outcome(row).failed]
        return next(iter(failed or [row for row in rows if _outcome(row).unscored]), None)
    if not (options.worst or options.best):
        return None
    rewarded = [row for row in rows if isinstance(row.get("reward"), int | float)]
    if not rewarded:
        raise ArchiveError(
            f"none of these chains of {archive.path.name} has a reward; --failed shows one that failed, and --chain any"
        )
    return (min if options.worst else max)(rewarded, key=lambda row: row["reward"])


def _last_chain(archive: Archive, chain_id: str) -> tuple[dict[str, Any], str | None]:
    """The chain of that name in the last training step that has one, or else in the last run; and which one that is, if it is not
    the only one.

    Raises:
        ArchiveError: no run has such a chain.
    """
    row = archive.chain(chain_id)
    if archive.facts.totals.runs <= 1:
        return row, None
    rollouts = archive.chains(chain_id=chain_id, split="train").rows
    if not rollouts:
        return (
            row,
            f"the record has several runs; this is the last one with a {chain_id}, and --step names another",
        )
    row = rollouts[-1]
    step = row.get("train_step")
    of = (
        "the last training step that has one"
        if step is None
        else f"training step {step}, the last that has one"
    )
    return row, f"this is {chain_id} of {of}; --step names another"


def _show_chain(
    archive: Archive, row: dict[str, Any], out: Output, options: ShowOptions, *, note: str | None = None
) -> None:
    story = story_of(archive, row)
    if note is not None:
        out.say([(note, "dim")])
    if options.chain:  # else those of all chains stand above
        out.say(*_hint_rows(_hints_of_chain(archive, row), 1, out.printer.rows))
    out.say(*chain_rows(story, out.printer.rows, tokens=options.tokens))
    warn_of_damage(archive, story.reader.damage)


# -- what many chains came to --------------------------------------------------------------------------------------------


def _head(archive: Archive, rows: EventRows) -> list[Row]:
    """The record's name and state, and the records of the same training before and after it."""
    facts = archive.facts
    dot = (f" {rows.glyphs.dot} ", "dim")
    head: Row = [*rows.line(archive.path.name, 80, "title")]
    for text in (facts.name, state_word(facts, archive.state), *facts.tags[:4]):
        if text:
            head += [dot, *rows.line(text, 40)]
    if facts.started_at:
        head += [dot, (duration_text(max(ended_at(facts, archive.state) - facts.started_at, 0.0)), "")]
    related: Row = []
    for word, name in (("resumed from", facts.parent), ("resumed as", _resumed_as(archive))):
        if name is not None:
            related += [*([dot] if related else []), (f"{word} ", "dim"), *rows.line(name, 80)]
    return [head, related] if related else [head]


def _resumed_as(archive: Archive) -> str | None:
    """The record in the same directory that continues this one."""
    path = archive.path.absolute()
    try:
        return resumed_as(list_records(path.parent)).get(path.name)
    except ArchiveError:  # this record can be read, and the folder around it cannot be listed
        return None


def _settings_rows(archive: Archive, texts: EventRows) -> list[Row]:
    """How the first run of the record goes: its seed, sampling and settings."""
    first = next(iter(archive.events(0, until=1)), None)
    if first is None or first.event_type is not StreamEventType.RUN_START:
        return []
    facts = [f"seed {first.data['seed']}"] if first.data.get("seed") is not None else []
    for field in ("sampling", "settings"):
        given = first.data.get(field)
        for name, value in given.items() if isinstance(given, dict) else ():
            if value is not None and value != []:
                facts.append(f"{name} {one_line_of(value)}")
    shown = f" {texts.glyphs.dot} ".join(facts[:_SETTINGS])
    more = f" {texts.glyphs.more} {len(facts) - _SETTINGS} more" if len(facts) > _SETTINGS else ""
    return [texts.line(shown + more, 400, "dim")] if facts else []


def _totals(archive: Archive, rows: list[dict[str, Any]], step: int | None, texts: EventRows) -> list[Row]:
    dot = f" {texts.glyphs.dot} "
    rewards = [row["reward"] for row in rows if isinstance(row.get("reward"), int | float)]
    facts = [f"training step {step}"] if step is not None else []
    groups = len({row.get("group_id") for row in rows} - {None})
    facts.append(counted(len(rows), "chain") + (f" in {counted(groups, 'group')}" if groups else ""))
    if rewards:
        mean = sum(rewards) / len(rewards)
        facts.append(f"mean reward {mean:.3g} ({min(rewards):.3g} to {max(rewards):.3g})")
    outcomes = [_outcome(row) for row in rows]
    if rows:
        ends = ", ".join(f"{n:,} {why}" for why, n in Counter(each.end for each in outcomes).most_common(4))
        unscored = sum(each.unscored for each in outcomes)
        facts.append(ends + (f"; {unscored:,} of the rewards failed" if unscored else ""))
    tokens = counted(sum(row.get("completion_tokens") or 0 for row in rows), "token")
    facts.append(tokens + (" in chains that ended" if any(r.get("state") != "ended" for r in rows) else ""))
    found: list[Row] = [texts.line(dot.join(facts), 400)]
    if (missing := lacking(archive.facts)) is not None:
        found.append([(f"{texts.glyphs.gap} {missing}", "gap")])
    learned = [
        r for r in archive.train_rows() if r.get("train_step") == step and r.get("row") == "train_step"
    ]
    metrics = learned[-1].get("metrics") if step is not None and learned else None
    if isinstance(metrics, dict) and metrics:
        parts = [f"{name} {number_text(value)}" for name, value in list(metrics.items())[:6]]
        found.append([("learned: ", "train"), *texts.line(dot.join(parts), 400, "dim")])
    return found


def _hints(archive: Archive, rows: list[dict[str, Any]], step: int | None, *, whole: bool) -> list[Hint]:
    """What is worth a look in the chains that are shown; `whole`: they are all of a step, so its training is looked at too."""
    if len(rows) > _HINTED:
        return []
    return hints(views_of(rows)) + (trend_hints(_steps(archive, step)) if whole and step is not None else [])


def _steps(archive: Archive, until: int) -> list[StepSummary]:
    """The rollouts of each training step up to one, as far back as there are not too many chains."""
    of_step: dict[int, list[dict[str, Any]]] = {}
    for row in archive.chains().rows:
        step = row.get("train_step")
        if isinstance(step, int) and step <= until:
            of_step.setdefault(step, []).append(row)
    found: list[StepSummary] = []
    left = _HINTED
    for step in sorted(of_step, reverse=True):
        left -= len(of_step[step])
        if left < 0:
            break
        summed = summary(views_of(of_step[step]))
        found += [] if summed is None else [summed]
    return found[::-1]


def _hints_of_chain(archive: Archive, row: dict[str, Any]) -> list[Hint]:
    """The hints in the chain's run that the chain is among those to show. It is put first, since a hint names only some."""
    chain_id, run_id = row["chain_id"], row["run_id"]
    if archive.has_more_chains(_HINTED, run_id):
        return []
    rows = archive.chains(run_id=run_id).rows
    first = sorted(rows, key=lambda each: each["chain_id"] != chain_id)
    return [hint for hint in hints(views_of(first)) if chain_id in hint.chains]


def _hint_rows(found: list[Hint], chains: int, texts: EventRows) -> list[Row]:
    if chains > _HINTED:
        text = f"no hints: they are looked for in at most {_HINTED:,} chains; name a step or a group"
        return [[(text, "dim")]]
    shown = [texts.hint(hint) for hint in found[:_HINTS]]
    more = Counter(hint.kind for hint in found[_HINTS:])
    return shown + ([folded_row(more)] if more else [])


def _overview(archive: Archive, rows: list[dict[str, Any]], texts: EventRows) -> list[Row]:
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["run_id"], row.get("group_id")), []).append(row)
    if all(name is None for _, name in groups):
        return _chain_lines(archive, rows, texts)
    found: list[Row] = []
    for (_, name), chains in list(groups.items())[:_GROUPS]:
        rewards = [row.get("reward") for row in chains]
        known = [reward for reward in rewards if isinstance(reward, int | float)]
        line: Row = [*texts.line("without a group" if name is None else str(name), 24, "bold"), ("  ", "")]
        line += [(f"{sum(known) / len(known):.2f}" if known else "-", "reward"), ("  ", "")]
        line += outcome_row(map(_outcome, chains), texts.glyphs)
        found += [line, *_question(archive, chains[0], texts)]
        if not known and (said := _last_answer(archive, chains)):  # otherwise nothing tells what came of it
            found.append([(f"  {texts.glyphs.end} ", "done"), *texts.line(said, 160, "done")])
    if len(groups) > _GROUPS:
        found.append([(f"{texts.glyphs.more} {len(groups) - _GROUPS:,} groups not shown", "gap")])
    return found


def _group_rows(archive: Archive, rows: list[dict[str, Any]], texts: EventRows) -> list[Row]:
    found = _question(archive, rows[0], texts) if rows else []
    hashes = dict.fromkeys(row["prompt_hash"] for row in rows if row.get("prompt_hash"))
    if hashes:  # several, if the rows are of several steps or runs
        found.append([("    prompt ", "dim"), *texts.line(", ".join(map(str, hashes)), 200)])
    return [*found, *_chain_lines(archive, rows, texts)]


def _outcome(row: dict[str, Any]) -> Outcome:
    reward, error = row.get("reward"), row.get("error")
    ended = row.get("state") == "ended"
    unscored = ended and reward is None and row.get("error_where") == "reward"
    return Outcome(
        str(row["chain_id"]),
        reward if isinstance(reward, int | float) else None,
        str((row.get("finish_reason") if ended else row.get("state")) or "?"),
        error if isinstance(error, str) else None,
        unscored,
    )


def _question(archive: Archive, row: dict[str, Any], texts: EventRows) -> list[Row]:
    """The last message of the prompt, and the reference."""
    found: list[Row] = []
    first = row.get("first")
    reader = archive.events(first, until=first + 1) if isinstance(first, int) else ()
    for event in reader:
        messages = event.data.get("messages") if event.event_type is StreamEventType.CHAIN_START else None
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            text = one_line_of(messages[-1].get("content"))
            found.append([(f"  {texts.glyphs.start} ", "dim"), *texts.line(text, 160, "question")])
    if row.get("reference") is not None:
        found.append([("    reference ", "dim"), *texts.line(one_line_of(row["reference"]), 80)])
    return found


def _last_answer(archive: Archive, rows: list[dict[str, Any]]) -> str:
    """The answer of the last of these chains that has one, in one line."""
    return next(filter(None, (_answer(archive, row) for row in reversed(rows[-_CHAINS:]))), "")


def _answer(archive: Archive, row: dict[str, Any]) -> str:
    """The chain's answer, in one line. If nobody said how the chain ended, the last text that its model generated stands for it."""
    said = row.get("answer")
    if not said and (row.get("state") == "lost" or row.get("finish_reason") == "unknown"):
        messages = story_of(archive, row).view.messages
        texts = (each.get("content") for each in messages if each.get("role") == "assistant")
        said = next(filter(None, reversed([*texts])), None)
    return one_line_of(said) if said else ""


def _chain_lines(archive: Archive, rows: list[dict[str, Any]], texts: EventRows) -> list[Row]:
    found: list[Row] = []
    for row in rows[:_CHAINS]:
        outcome = _outcome(row)
        how = f"{outcome.end}, reward failed" if outcome.unscored else outcome.end
        line: Row = [
            *texts.line(str(row["chain_id"]), 24, "bold"),
            ("  ", ""),
            (number_text(row.get("reward")), "reward"),
        ]
        line += [("  ", ""), *texts.line(how, 40, "fail" if outcome.failed or outcome.unscored else "dim")]
        said = outcome.cause() if outcome.unscored else _answer(archive, row) or row.get("error") or ""
        for text in (_said_of(row), one_line_of(said)):
            line += [("  ", ""), *texts.line(text, 80, "dim" if text == _said_of(row) else "")]
        found.append(line)
    if len(rows) > _CHAINS:
        found.append([(f"{texts.glyphs.more} {len(rows) - _CHAINS:,} chains not shown", "gap")])
    return found


def _said_of(row: dict[str, Any]) -> str:
    parts = []
    if row.get("steps") is not None:
        parts.append(counted(row["steps"], "step"))
    if row.get("completion_tokens") is not None:
        parts.append(counted(row["completion_tokens"], "token"))
    if isinstance(row.get("advantage"), int | float):
        parts.append(f"advantage {row['advantage']:+.3g}")
    return ", ".join(parts)
