"""`python -m rollcast.testing.conformance MODULE:FUNCTION … [--page PAGE]`: run the suite, print or write the table."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rollcast.errors import InputError, RollcastError
from rollcast.testing.conformance import CHECKS
from rollcast.testing.conformance.report import run_checks, table, update_page
from rollcast.testing.conformance.subject import BackendUnderTest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks for each subject; return 1 if one of them fails, 2 if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m rollcast.testing.conformance", description=__doc__)
    parser.add_argument(
        "subject",
        nargs="+",
        metavar="MODULE:FUNCTION",
        help="gives a BackendUnderTest; it is called with an empty folder",
    )
    parser.add_argument("--page", type=Path, help="a Markdown page whose table gets these columns")
    given = parser.parse_args(arguments)
    columns, failed = {}, False
    try:
        for name in given.subject:
            with tempfile.TemporaryDirectory() as scratch:
                subject = _subject(name, Path(scratch))
                outcomes = asyncio.run(run_checks(subject, CHECKS))
            columns[subject.name] = {outcome.check.fact: str(outcome) for outcome in outcomes}
            for outcome in outcomes:
                if outcome.result == "no":
                    failed = True
                    print(f"{subject.name}: {outcome.check}: {outcome.reason}", file=sys.stderr)  # noqa: T201
        facts = [check.fact for check in CHECKS]
        if given.page is None:
            print(table(columns, facts), end="")  # noqa: T201
        else:
            given.page.write_text(update_page(given.page.read_text("utf-8"), columns, facts), "utf-8")
    except RollcastError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return int(failed)


def _subject(name: str, scratch: Path) -> BackendUnderTest:
    module, _, function = name.partition(":")
    try:
        subject = getattr(importlib.import_module(module), function)(scratch)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name!r} is not there ({error}); expected MODULE:FUNCTION") from error
    if not isinstance(subject, BackendUnderTest):
        raise InputError(f"{name!r} gave {type(subject).__name__}; expected a BackendUnderTest")
    return subject


if __name__ == "__main__":
    sys.exit(main())
