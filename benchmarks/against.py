"""`python -m benchmarks.against CHECKOUT`: measures this tree and another one in turn, in one run.

Each round starts a process for each tree, in alternating order, which measures the emit path as `emit` does, in CPU time. The
ratio of the two trees is taken within each round, so that if the machine's speed changes, it changes for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import figure, ratios

HERE = Path(__file__).parents[1]

WORKER = """
import asyncio, json, sys, tempfile
from benchmarks import emit
from benchmarks.tokens import NoOp, tokens
deltas, generations = tokens(emit.LENGTH), int(sys.argv[1])
n = generations * emit.LENGTH
with tempfile.TemporaryDirectory() as folder:
    trials = {
        "build": lambda: emit._build(deltas, generations),
        "chunk(), 3 observers, delivery aside": lambda: asyncio.run(emit._emitted(deltas, generations)),
        "delivered to 3 observers": lambda: asyncio.run(emit._delivered(deltas, generations, [NoOp() for _ in range(3)])),
        "to a JSONL file": lambda: asyncio.run(emit._delivered(deltas, generations, [emit._jsonl(folder)])),
        "the loop's own turns": lambda: asyncio.run(emit._delivered(deltas, generations, [])),
    }
    for trial in trials.values():
        trial()
    print(json.dumps({name: min(trial() for _ in range(3)) / n * 1e6 for name, trial in trials.items()}))
"""


def main() -> int:
    """Measure both trees and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--generations", type=int, default=20)
    options = parser.parse_args()
    here: list[dict[str, float]] = []
    there: list[dict[str, float]] = []
    for r in range(options.rounds):
        for tree, kept in [(HERE, here), (options.checkout.resolve(), there)][:: 1 if r % 2 else -1]:
            kept.append(_measured(tree, options.generations))
    print("| what | this tree | the other | this / other | 95 % interval |\n|---|---|---|---|---|")
    for name in here[0]:
        ours, theirs = [row[name] for row in here], [row[name] for row in there]
        ratio = figure(name, ratios(ours, theirs), "×")
        low, high = ratio.low or 0.0, ratio.high or 0.0
        a, b = figure(name, ours, "µs").value, figure(name, theirs, "µs").value
        print(f"| {name} | {a:.3f} µs | {b:.3f} µs | {ratio.value:.3f} | {low:.3f} – {high:.3f} |")
    return 0


def _measured(tree: Path, generations: int) -> dict[str, float]:
    env = os.environ | {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"}
    out = subprocess.run(
        [sys.executable, "-c", WORKER, str(generations)],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout)


if __name__ == "__main__":
    sys.exit(main())
