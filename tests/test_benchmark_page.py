"""The benchmark `page` runs; what it measures is for `make bench`."""

import pytest

from benchmark_runs import check_that_it_runs


@pytest.mark.timeout(1800)  # it is real work, which takes as long as the machine needs
def test_it_runs(monkeypatch, tmp_path, capsys):
    """At tiny sizes."""
    check_that_it_runs("page", monkeypatch, tmp_path, capsys)
