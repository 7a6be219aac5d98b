"""The batch: a row has the same ids and log-probabilities to the bit, alone or in any company."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import rollcast
from rollcast.models.backend import Sampling
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.models.tiny.batch import MAX_DECODING, PROMPT_ROWS, Batch, Row
from rollcast.models.tiny.product import measure_block
from rollcast.models.tiny.weights import build_parameters, read_config, read_weights

CONFIG = read_config(CHECKPOINT)
PARAMETERS = build_parameters(read_weights(CHECKPOINT), CONFIG)


def new_batch():
    layer = PARAMETERS.layers[0]
    matrices = [layer.qkv_DE, layer.out_ED, layer.gate_up_DF, layer.down_FD, PARAMETERS.unembed_DV]
    return Batch(CONFIG, PARAMETERS, measure_block(matrices))


def job(seed):
    """A row with a prompt of 1 to 170 tokens, in a third of the cases beginning like others, and how far it runs."""
    rng = random.Random(seed)
    prompt = [rng.randrange(512) for _ in range(rng.randint(1, 150))]
    if seed % 3 == 0:
        prompt = [*range(20, 20 + rng.randint(40, 100)), *prompt[:20]]
    sampling = Sampling(
        temperature=rng.choice([0.0, 0.7, 1.0, 1.3]),
        top_p=rng.choice([1.0, 1.0, 0.9]),
        top_k=rng.choice([0, 0, 20]),
        seed=seed,
    )
    return Row(prompt, sampling, 90), rng.randint(1, 90)


def run(batch, rows, limits, sampled):
    """One step; collects what each row sampled and removes those that reached their limit."""
    for row, token, logprob in zip(*batch.step()[:3], strict=True):
        seed = rows[row]
        sampled[seed].append((token, logprob))
        if len(sampled[seed]) == limits[seed]:
            batch.remove(row)


def alone(seed):
    batch, (row, limit) = new_batch(), job(seed)
    batch.add(row)
    sampled = {seed: []}
    while len(batch):
        run(batch, {row: seed}, {seed: limit}, sampled)
    return sampled[seed]


def together(seeds, schedule):
    """All of them, joining at random times; every fifth leaves early."""
    rng, batch = random.Random(schedule), new_batch()
    rows, limits, sampled, waiting = {}, {}, {seed: [] for seed in seeds}, list(seeds)
    rng.shuffle(waiting)
    while waiting or len(batch):
        while waiting and rng.random() < 0.4:
            seed = waiting.pop()
            row, limits[seed] = job(seed)
            if seed % 5 == 0:
                limits[seed] = min(limits[seed], 7)
            rows[row] = seed
            batch.add(row)
        run(batch, rows, limits, sampled)
    return sampled


def check(count, schedules):
    seeds = range(count)
    with threadpool_limits(1, "blas"), np.errstate(over="ignore"):
        expected = {seed: alone(seed) for seed in seeds}
        for schedule in range(schedules):
            for seed, sampled in together(seeds, schedule).items():
                assert sampled
                assert sampled == expected[seed][: len(sampled)], f"row {seed}, schedule {schedule}"


def test_company_does_not_change_a_bit():
    """Random rows that join and leave at random times sample what each samples alone."""
    check(40, 3)


@pytest.mark.parametrize(("kernels", "flag"), [("Haswell", "avx2"), ("SkylakeX", "avx512vl")])
def test_company_does_not_change_a_bit_with_other_kernels(kernels, flag):
    """The same with the kernels that OpenBLAS chooses on other processors, as far as this one can run them."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or f" {flag} " not in cpu.read_text():
        pytest.skip(f"this processor does not say that it has {flag}")
    if not any(info["internal_api"] == "openblas" for info in threadpool_info()):
        pytest.skip("NumPy stands on another BLAS than OpenBLAS")
    source = str(Path(rollcast.__file__).parents[1])
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, __file__, kernels],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_reading_again_gives_the_same_bits():
    """A prompt that is what an earlier row read and sampled goes on exactly as if it had been read anew."""
    with threadpool_limits(1, "blas"), np.errstate(over="ignore"):
        used, fresh = new_batch(), new_batch()
        first = Row(list(range(30, 100)), Sampling(seed=1), 40)
        used.add(first)
        while first.sampled < 40:
            used.step()
        used.remove(first)
        results = []
        for batch in (used, fresh):
            row = Row([*first.ids, 5, 6, 7], Sampling(seed=2), 20)
            batch.add(row)
            steps = [batch.step() for _ in range(20)]
            results.append([(step.tokens, step.logprobs) for step in steps if step.rows])
    assert len(results[0]) == 20
    assert results[1] == results[0][: len(results[1])]


def test_a_long_prompt_is_read_in_parts():
    """While a prompt of several steps is read, the rows that decode go on."""
    with threadpool_limits(1, "blas"), np.errstate(over="ignore"):
        batch = new_batch()
        decoding, joining = (
            Row([1, 2], Sampling(seed=1), 50),
            Row([3] * (3 * PROMPT_ROWS), Sampling(seed=1), 50),
        )
        batch.add(decoding)
        batch.step()
        batch.add(joining)
        assert [batch.step().rows for _ in range(3)] == [[decoding], [decoding], [decoding, joining]]


def test_more_rows_than_places_wait_their_turn():
    """No step multiplies more rows than were measured; who waits begins when another leaves."""
    with threadpool_limits(1, "blas"), np.errstate(over="ignore"):
        batch, rows = new_batch(), [Row([1], Sampling(seed=i), 50) for i in range(MAX_DECODING + 10)]
        for row in rows:
            batch.add(row)
        for _ in range(12):
            batch.step()
        waiting = [row for row in rows if not row.sampled]
        assert len(waiting) == 10
        batch.remove(rows[0])
        batch.step()
        assert sum(not row.sampled for row in rows) == 9


def test_new_weights_do_not_use_old_keys():
    """A row that begins after an update computes as if there had never been other weights."""
    weights = read_weights(CHECKPOINT)
    other = build_parameters({name: array * np.float32(0.9) for name, array in weights.items()}, CONFIG)
    with threadpool_limits(1, "blas"), np.errstate(over="ignore"):
        results = []
        for before in (True, False):
            batch = new_batch()
            if before:
                old = Row(list(range(60)), Sampling(seed=3), 9)
                batch.add(old)
                batch.step()
            batch.set_parameters(other)
            if before:
                batch.step()
                batch.remove(old)
            new = Row(list(range(60)), Sampling(seed=3), 9)
            batch.add(new)
            results.append([batch.step()[1:] for _ in range(3)])
    assert results[0] == results[1]


if __name__ == "__main__":
    wanted = sys.argv[1]
    found = [info["architecture"] for info in threadpool_info() if info["internal_api"] == "openblas"]
    assert wanted in found, f"OpenBLAS runs {found}, not {wanted}"
    check(30, 2)
