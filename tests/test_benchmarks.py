"""The benchmarks run; what they measure is for `make bench`."""

import contextvars
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = [
    "off", "emit", "loop", "isolation", "serve", "snapshots", "import", "scale", "views", "recording", "archive", "peers", "backends", "engine", "learning", "trl",
]  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__

    return __main__


@pytest.mark.timeout(600)  # they are real work, which takes as long as the machine needs
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_runs(benchmarks, name, monkeypatch, tmp_path, capsys):
    """Each benchmark works at tiny sizes, prints a row a figure, and can be kept."""
    monkeypatch.setattr(benchmarks, "HISTORY", tmp_path)
    context = contextvars.copy_context()  # they leave chains open, which `current_chain` would find later
    figures = context.run(benchmarks.main, ["--quick", "--save", name])
    printed = capsys.readouterr().out
    assert figures
    assert all(f"| {figure.name} |" in printed for figure in figures)
    (kept,) = tmp_path.iterdir()
    assert [f["name"] for f in json.loads(kept.read_text())["figures"]] == [f.name for f in figures]


def test_every_benchmark_is_tried(benchmarks):
    """The names above are all there are."""
    assert list(benchmarks.BENCHMARKS) == NAMES


def test_missing_extra_is_one_sentence(benchmarks, monkeypatch, capsys):
    """A benchmark whose extra is not installed is left out, the line says what to install, and the others run."""
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "benchmarks.trl_learning", raising=False)
    context = contextvars.copy_context()
    with pytest.raises(SystemExit, match="1"):
        context.run(benchmarks.main, ["--quick", "trl", "off"])
    printed = capsys.readouterr().out
    assert "trl was left out" in printed
    assert "pip install 'rollcast[train]'" in printed
    assert "| off: " in printed
