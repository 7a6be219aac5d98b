"""`make bench-attach-vllm`: what an attached vLLM engine costs, and what its plugin costs where no hub is named.

It needs the environment of `make test-vllm`. An `LLM` and its engine are in one process here, whose CPU time with all threads is compared:
alone, attached but neither recorded nor watched, recorded, and with every token given to an observer. The model is that of
`bench-vllm`, so small that the code around it matters most; with `--large` it is of about the size that two cores can train.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rollcast
from benchmarks.machine import about_machine
from benchmarks.measure import estimate, paired, ratios
from benchmarks.vllm_bench import ENVIRONMENT, make_model
from rollcast import CallbackStreamObserver, StreamingManager
from rollcast.archive import ArchiveObserver

CHAINS, TOKENS = 16, 64
PROMPTS = [f"What is {i} * 28 + 9?" for i in range(CHAINS)]
WAYS = ("alone", "unwatched", "recorded", "watched")


def cpu_of(llm: Any, way: str) -> float:
    """CPU seconds of one `generate`, from before it is attached until it is detached."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=1.0, seed=1, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    seen: list[str] = []
    manager = StreamingManager(publish=False)
    with tempfile.TemporaryDirectory() as folder:
        if way == "recorded":
            manager.add_observer(ArchiveObserver(Path(folder) / "record"))
        elif way == "watched":
            manager.add_observer(CallbackStreamObserver(seen.append))
        before = time.process_time()
        handle = None if way == "alone" else rollcast.attach.vllm(llm, manager=manager, record=None)
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        if handle is not None:
            handle.detach()
        seconds = time.process_time() - before
        manager.close()
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == CHAINS * TOKENS
    assert handle is None or handle.watch.on is False
    assert bool(seen) == (way == "watched")
    print(f"  {way}: {seconds:.3f} s of CPU", flush=True)
    return seconds


def startup_ms() -> float:
    """CPU milliseconds that importing and calling the plugin take in a fresh process without a hub.

    The folder that it is in has been imported from before, as in vLLM's processes.
    """
    program = (
        "import os, time, rollcast.version\n"
        "os.environ.pop('ROLLCAST_HUB', None)\n"
        "before = time.thread_time()\n"
        "import rollcast_vllm\n"
        "rollcast_vllm.register()\n"
        "print((time.thread_time() - before) * 1000)\n"
    )
    return float(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    )


def main() -> None:
    """Print the figures with their intervals."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--large", action="store_true", help="a model of seven layers that are 512 wide")
    options = parser.parse_args()
    here = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    for name, value in {**ENVIRONMENT, **here}.items():  # one thread, since waiting OpenMP threads spin
        os.environ.setdefault(name, value)
    start = estimate([startup_ms() for _ in range(2 * options.rounds)])
    from vllm import LLM

    logging.getLogger("vllm").setLevel(logging.WARNING)
    about = about_machine()
    print(
        f"{about['cpu']}, {about['cores']} cores; load {about['load']}; {CHAINS} requests of {TOKENS} tokens"
        + (", large model" if options.large else "")
    )
    print(f"plugin without a hub, CPU ms: {start.value:.3f} [{start.low:.3f}, {start.high:.3f}], target <= 1")
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            make_model(Path(folder), large=options.large),
            dtype="float32", enforce_eager=True, max_num_seqs=32, seed=0,
        )  # fmt: skip
        trials: dict[str, Callable[[], float]] = {way: partial(cpu_of, llm, way) for way in WAYS}
        results = paired(trials, options.rounds)
    for way in WAYS:
        found = estimate([seconds * 1e6 / CHAINS / TOKENS for seconds in results[way]])
        print(f"{way}: {found.value:.0f} µs of CPU a token [{found.low:.0f}, {found.high:.0f}]")
    for way, target in (("unwatched", "about 1"), ("recorded", "a reference"), ("watched", "<= 1.05")):
        found = estimate(ratios(results[way], results["alone"]))
        print(f"{way} / alone: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], target {target}")


if __name__ == "__main__":
    main()
