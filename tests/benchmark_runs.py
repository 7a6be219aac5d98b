"""Runs a benchmark at tiny sizes: what it measures is for `make bench`."""

import contextvars
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IN_FILES_OF_THEIR_OWN = ("fleet", "page")  # they take minutes, in which others can run beside them


def of_benchmarks():
    """The module that runs benchmarks."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from benchmarks import __main__

    return __main__


def check_that_it_runs(name, monkeypatch, tmp_path, capsys):
    """It prints a row a figure, and can be kept."""
    if name == "page":
        pytest.importorskip("benchmarks.page", exc_type=ImportError)
    if name == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
    benchmarks = of_benchmarks()
    monkeypatch.setattr(benchmarks, "HISTORY", tmp_path)
    context = contextvars.copy_context()  # they leave chains open, which `current_chain` would find later
    figures = context.run(benchmarks.main, ["--quick", "--save", name])
    printed = capsys.readouterr().out
    assert figures
    assert all(f"| {figure.name} |" in printed for figure in figures)
    (kept,) = tmp_path.iterdir()
    assert [f["name"] for f in json.loads(kept.read_text())["figures"]] == [f.name for f in figures]
