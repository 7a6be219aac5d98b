"""Plays many schedules, and says which break something."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from fleet_faults.nursery import Nursery
from fleet_faults.play import Outcome, play

__all__ = ["main"]


def main() -> int:
    """The campaign: how many schedules broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:300", help="first and last + 1, and single ones: 0:300,512")
    parser.add_argument("--verbose", action="store_true", help="tell the story of each")
    parser.add_argument("--keep", action="store_true", help="keep the folders of those that break something")
    arguments = parser.parse_args()
    logging.getLogger("rollcast").setLevel(logging.ERROR)  # that a hub is gone is no news
    began = time.monotonic()
    with Nursery() as nursery:
        outcomes = [
            _played(seed, nursery, verbose=arguments.verbose, keep=arguments.keep)
            for seed in _seeds(arguments.seeds)
        ]
    _tell(outcomes, time.monotonic() - began)
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def _seeds(given: str) -> list[int]:
    seeds: list[int] = []
    for part in given.split(","):
        first, colon, last = part.partition(":")
        seeds += range(int(first), int(last) if colon else int(first) + 1)
    return seeds


def _played(seed: int, nursery: Nursery, *, verbose: bool, keep: bool) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"fleet-faults-{seed}-"))
    outcome = play(seed, folder, nursery)
    if outcome.broken or verbose:
        print(outcome.told(), flush=True)
    if outcome.broken and keep:
        print(f"its folder: {folder}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _tell(outcomes: list[Outcome], seconds: float) -> None:
    bad = [outcome.seed for outcome in outcomes if outcome.broken]
    faults = Counter(fault.kind for outcome in outcomes for fault in outcome.plan.faults)
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} schedules hold, in {seconds:.0f} s")
    print(f"faults: {', '.join(f'{count} {kind}' for kind, count in faults.most_common())}")
    print(
        f"{sum(outcome.events for outcome in outcomes):,} events besides tokens, {sum(o.gaps for o in outcomes)} gaps; "
        f"the hub had {max(o.peak for o in outcomes) >> 20} MiB at most"
    )
    if bad:
        print(f"broken: {','.join(map(str, bad))}")
