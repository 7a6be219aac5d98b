"""The tests of the page's modules, which run in Node: `make check-page` runs them too, and fails if there is no Node."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NODE = shutil.which("node")


def node_version():
    """Of the Node on this machine, 0 if there is none."""
    if NODE is None:
        return 0
    done = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True)
    return int(done.stdout.removeprefix("v").split(".")[0])


needs_node = pytest.mark.skipif(
    node_version() < 20, reason="needs Node 20 or newer (Debian's package nodejs)"
)


@needs_node
@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.js")), ids=lambda path: path.stem)
def test_modules_without_a_dom(path):
    """Every test of this file passes, and there is one."""
    done = subprocess.run(
        [NODE, "--no-warnings", "--test", "--test-reporter=tap", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
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
