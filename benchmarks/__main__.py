"""`python -m benchmarks [names…] [--quick] [--save]`."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import about_machine
from benchmarks.measure import Figure, NotInstalledError
from rollcast.errors import MissingExtraError

__all__ = ["BENCHMARKS", "main"]

BENCHMARKS = {
    "off": "benchmarks.off",
    "emit": "benchmarks.emit",
    "loop": "benchmarks.loop",
    "isolation": "benchmarks.isolation",
    "serve": "benchmarks.serve",
    "snapshots": "benchmarks.snapshots",
    "import": "benchmarks.imports",
    "scale": "benchmarks.scale",
    "views": "benchmarks.views",
    "page": "benchmarks.page",
    "fleet": "benchmarks.fleet",
    "recording": "benchmarks.recording",
    "archive": "benchmarks.archive",
    "attach": "benchmarks.attach",
    "peers": "benchmarks.peers",
    "backends": "benchmarks.backends",
    "engine": "benchmarks.engine",
    "learning": "benchmarks.learning",
    "trl": "benchmarks.trl_learning",
    "ray": "benchmarks.ray_cost",
    "proxy": "benchmarks.proxy",
}
PARTS = {
    "attach": ("function", "openai", "langchain", "trl"),
    "page": ("paint", "delay", "wall", "long", "memory", "record", "cost"),
    "fleet": (
        "load",
        "unwatched",
        "watched",
        "viewers",
        "intake",
        "producer",
        "lifecycle",
        "many",
        "memory",
        "soak",
    ),
}
HISTORY = Path(__file__).parent / "history"


def main(arguments: list[str] | None = None) -> list[Figure]:
    """Run the named benchmarks, or all, and print their figures as a Markdown table.

    Raises:
        SystemExit: a name is wrong, or a named benchmark needs an extra that is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(main.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "names",
        nargs="*",
        help=f"from {', '.join(BENCHMARKS)}; by default all; page.paint and fleet.load are parts",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: to check that it works, not to measure"
    )
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/history")
    options = parser.parse_args(arguments)
    unknown = sorted({name.partition(".")[0] for name in options.names} - set(BENCHMARKS))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    for name in options.names:
        if "." in name and name.partition(".")[2] not in PARTS.get(name.partition(".")[0], ()):
            parts = ", ".join(f"{whole}.{part}" for whole, parts in PARTS.items() for part in parts)
            parser.error(f"there is no part {name!r}; there are {parts}")
    about = {**about_machine(), "quick": options.quick}
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['system']}, {about['python']}; load {about['load']}\n"
    )
    print("| what | target | measured | 95 % interval | |\n|---|---|---|---|---|")
    figures, seconds, left_out = _measured(options.names or list(BENCHMARKS), quick=options.quick)
    print("\n" + ", ".join(f"{name} took {took} s" for name, took in seconds.items()))
    for name, why in left_out.items():
        print(f"{name} was left out: {why}")
    if options.save:
        kept = {**about, "seconds": seconds, "figures": [asdict(figure) for figure in figures]}
        for name in ("learning", "trl"):
            if name in seconds:
                kept.setdefault("curves", {}).update(importlib.import_module(BENCHMARKS[name]).CURVES)
        _save(kept)
    if options.names and left_out:
        raise SystemExit(1)
    return figures


def _measured(
    names: list[str], *, quick: bool
) -> tuple[list[Figure], dict[str, float], dict[str, ImportError]]:
    """The figures; how long each benchmark took; and which were left out, and why."""
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    left_out: dict[str, ImportError] = {}
    # Observers that fail on purpose are logged as in any program, but not in this table.
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("rollcast").addHandler(handler)
    try:
        for name in names:
            began = time.monotonic()
            whole, _, part = name.partition(".")
            try:
                benchmark = importlib.import_module(BENCHMARKS[whole])
            except (MissingExtraError, NotInstalledError) as error:
                left_out[name] = error
                continue
            for figure in benchmark.run(quick, part) if part else benchmark.run(quick):
                figures.append(figure)
                print(_row(figure), flush=True)
            seconds[name] = round(time.monotonic() - began, 1)
    finally:
        logging.getLogger("rollcast").removeHandler(handler)
    return figures, seconds, left_out


def _row(figure: Figure) -> str:
    low, high = figure.low, figure.high
    interval = "" if low is None or high is None else f"{_number(low)} – {_number(high)}"
    target = figure.target.replace("<=", "≤").replace(">=", "≥") if figure.target else ""
    verdict = "" if figure.met is None else "met" if figure.met else "**not met**"
    value = f"{_number(figure.value)} {figure.unit}"
    return f"| {figure.name} | {target} | {value} | {interval} | {verdict} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _save(record: dict[str, Any]) -> None:
    HISTORY.mkdir(exist_ok=True)
    number = 1
    while (path := HISTORY / f"{record['date']}-{number}.json").exists():
        number += 1
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"kept in {path.name}")


if __name__ == "__main__":
    main()
