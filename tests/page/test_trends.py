"""The page finds the same trends as Python in the steps of trainings that were drawn at random."""

import json
import random
import subprocess
from pathlib import Path

import msgspec

from nodejs import NODE, needs_node
from rollcast.records.hints import StepSummary, trend_hints

pytestmark = needs_node
ROOT = Path(__file__).parents[2]
TRAININGS = 400
SCRIPT = """
import { readFileSync } from "node:fs";
import { trendHints } from "./src/rollcast/serve/page/hints.js";
const found = JSON.parse(readFileSync(0, "utf8")).map((steps) => trendHints(steps));
console.log(JSON.stringify(found.map((hints) => hints.map(({ runId, groupId, ...rest }) => ({ ...rest, run_id: runId, group_id: groupId })))));
"""


def training(rng):
    """The summaries of some steps, in which rewards, lengths and answers may drift."""
    steps, rise, drift = (
        rng.randint(6, 40),
        rng.choice([-0.3, 0, 0.1, 0.8, 0.8]),
        rng.choice([0.3, 0.5, 1, 2, 3]),
    )
    kinds = rng.choice([0, 0.3, 0.9]), rng.choice([0.5, 0.8, 1])
    found = []
    for number in range(steps):
        part = number / max(steps - 1, 1)
        questions = rng.choice([3, 8, 16, 16])
        found.append(
            StepSummary(
                f"run_{number}",
                rng.randint(1, 128),
                [f"chain_{i}" for i in range(rng.randint(1, 4))],
                0.125 + rise * part + rng.choice([0, 0, rng.uniform(-0.1, 0.1)]),
                rng.choice([0.0, 0.01, 0.25]),
                rng.choice([0.0, -1.0]),
                rng.choice([1.0, 1.25]),
                rng.choice([0, 20, 200]) if rng.random() < 0.05 else 40.5 * (1 + (drift - 1) * part),
                questions,
                min(1.0, kinds[0] + (kinds[1] - kinds[0]) * part) if questions else 0.0,
                rng.choice(["42", "so — \u202e", "a " * 80]),
            )
        )
    return found


def test_the_same_trends():
    """Four hundred trainings, of which many show a trend and many show none."""
    trainings = [training(random.Random(seed)) for seed in range(TRAININGS)]
    done = subprocess.run(
        [NODE, "--no-warnings", "--input-type=module", "-e", SCRIPT],
        input=json.dumps(msgspec.to_builtins(trainings)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    expected = [msgspec.to_builtins(trend_hints(steps)) for steps in trainings]
    for seed, (hints, wanted) in enumerate(zip(json.loads(done.stdout), expected, strict=True)):
        assert hints == wanted, f"seed {seed}"
    kinds = [hint["kind"] for hints in expected for hint in hints]
    assert min(kinds.count("same_answers"), kinds.count("length_drift"), expected.count([])) > 10
