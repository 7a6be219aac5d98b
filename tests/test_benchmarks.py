"""The benchmarks run; what they measure is for `make bench`. Two that take long are in files of their own."""

import contextvars
import sys

import pytest

from benchmark_runs import IN_FILES_OF_THEIR_OWN, check_that_it_runs, of_benchmarks

NAMES = [
    "off", "emit", "loop", "isolation", "serve", "snapshots", "import", "scale", "views", "page", "fleet", "recording", "archive", "attach", "peers", "backends", "engine", "learning", "trl", "ray", "proxy",
]  # fmt: skip


@pytest.fixture
def benchmarks():
    return of_benchmarks()


@pytest.mark.timeout(1800)  # they are real work, which takes as long as the machine needs
@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_FILES_OF_THEIR_OWN])
def test_benchmark_runs(name, monkeypatch, tmp_path, capsys):
    """Each benchmark works at tiny sizes."""
    check_that_it_runs(name, monkeypatch, tmp_path, capsys)


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
