"""The benchmarks run; what they measure is for `make bench`."""

import contextvars
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = [
    "off", "emit", "loop", "isolation", "serve", "snapshots", "import", "scale", "views", "page", "fleet", "recording", "archive", "attach", "peers", "backends", "engine", "learning", "trl", "ray", "proxy",
]  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__

    return __main__


@pytest.mark.timeout(600)  # they are real work, which takes as long as the machine needs
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "page" else name for name in NAMES]
)
def test_benchmark_runs(benchmarks, name, monkeypatch, tmp_path, capsys):
    """Each benchmark works at tiny sizes, prints a row a figure, and can be kept."""
    if name == "page":
        pytest.importorskip("benchmarks.page", exc_type=ImportError)
    if name == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
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


def test_the_parts_of_a_benchmark_are_those_that_it_has(benchmarks):
    """A part can be run by its name; another name is refused with a sentence."""
    from benchmarks import fleet

    assert (*fleet.PARTS, *fleet.EXTRA_PARTS) == benchmarks.PARTS["fleet"]
    module = pytest.importorskip("benchmarks.page", exc_type=ImportError)
    assert tuple(module.PARTS) == benchmarks.PARTS["page"]


@pytest.mark.parametrize("name", ["page.none", "off.on"])
def test_a_part_that_is_not_there_is_refused(benchmarks, name, capsys):
    """With those that are."""
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main([name])
    said = capsys.readouterr().err
    assert f"there is no part {name!r}; there are " in said
    assert " page.paint, " in said


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
