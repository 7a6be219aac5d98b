"""Measures what the package costs before anything runs: the import, and the disk."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import rollcast
from benchmarks.measure import Figure, figure, paired

__all__ = ["run"]

CODES = {
    "import rollcast": "import rollcast",
    "the agent, its manager and observers": "from rollcast import BaseAgent, StreamingManager, JSONStreamObserver",
    "the command": "import rollcast.cli.app",
    "the command, with what records": "import rollcast.cli.app, rollcast.archive",
}
TIMED = """\
import time
wall, cpu = time.perf_counter(), time.process_time()
{code}
print((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)
"""


def run(quick: bool) -> list[Figure]:
    """Times in fresh interpreters whose byte code is compiled; sizes of the installed distributions."""
    times = paired({name: _fresh(code) for name, code in CODES.items()}, 2 if quick else 15)
    lines = []
    for name, values in times.items():
        target = "<= 100" if name == "import rollcast" else None
        lines += [
            figure(f"import: {name}", [wall for wall, _ in values], "ms", target),
            figure(f"import: {name}, CPU", [cpu for _, cpu in values], "ms"),
        ]
    own = sum(path.stat().st_size for path in Path(rollcast.__file__).parent.rglob("*") if _shipped(path))
    names = _dependencies()
    others = sum(_installed(name) for name in names)
    return [
        *lines,
        figure("import: rollcast on disk", own / 1e6, "MB"),
        figure(
            f"import: its {len(names)} dependencies on disk, as their wheels list them", others / 1e6, "MB"
        ),
    ]


def _fresh(code: str) -> Callable[[], tuple[float, float]]:
    path = str(Path(rollcast.__file__).parent.parent)

    def trial() -> tuple[float, float]:
        program = f"import sys; sys.path.insert(0, {path!r})\n" + TIMED.format(code=code)
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        wall, cpu = out.stdout.split()
        return float(wall), float(cpu)

    return trial


def _shipped(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


def _dependencies() -> set[str]:
    """Every distribution that `pip install rollcast` brings, by name."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    found: set[str] = set()
    todo: list[tuple[str, frozenset[str]]] = [(line, frozenset()) for line in project["dependencies"]]
    while todo:
        line, extras = todo.pop()
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in {"", *extras}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name not in found:
            found.add(name)
            asked = frozenset(requirement.extras)
            todo += [(below, asked) for below in metadata.requires(name) or ()]
    return found


def _installed(name: str) -> int:
    """The size of the files that the wheel's RECORD lists, without byte code."""
    return sum(file.size or 0 for file in metadata.files(name) or () if file.suffix != ".pyc")
