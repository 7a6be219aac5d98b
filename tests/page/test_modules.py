"""The tests of the page's modules, which run in Node: `make check-page` runs them too, and fails if there is no Node."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from nodejs import NODE, needs_node

HERE = Path(__file__).parent


@needs_node
@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.js")), ids=lambda path: path.stem)
def test_modules_without_a_dom(path):
    """Every test of this file passes, and there is one."""
    done = subprocess.run(
        [NODE, "--no-warnings", "--test", "--test-reporter=tap", str(path)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nok 1" in done.stdout


def test_cases_of_hints_are_what_the_rules_say_now():
    """The page's twin of the rules is held against them; `hint_cases.py` says how to write them anew."""
    spec = importlib.util.spec_from_file_location("hint_cases", HERE / "hint_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.made() == json.loads(module.PATH.read_text("utf-8"))
