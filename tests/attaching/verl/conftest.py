"""verl's own worker on a CPU, in an environment of its own (`make attach-verl`). Without verl there is nothing here to collect.

With ROLLCAST_TEST_VERL set, a missing verl is an error, and so is a skipped test.
"""

import importlib.util
import os

import pytest

WANTED = bool(os.environ.get("ROLLCAST_TEST_VERL"))

if importlib.util.find_spec("verl") is None:
    if WANTED:
        raise pytest.UsageError("ROLLCAST_TEST_VERL is set, but verl is not installed")
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if WANTED and reporter is not None:
        passed, skipped = (len(reporter.stats.get(kind, [])) for kind in ("passed", "skipped"))
        if skipped or not passed:
            reporter.write_line(f"{passed} passed and {skipped} were skipped; with verl wanted none may be")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """verl blocks its own loop in many places; that nobody else is blocked, a test elsewhere says."""
