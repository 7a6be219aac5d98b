"""The plugin that vLLM loads in each of its processes: nothing without a hub, and never a reason for an engine not to start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PROGRAM = """
import json, sys
before = set(sys.modules)
import rollcast_vllm
after_import = set(sys.modules)
said = rollcast_vllm.register()
print(json.dumps([sorted(after_import - before), sorted(set(sys.modules) - after_import), said]))
"""


def load(**environment):
    """The modules that importing and calling the plugin load, what it returns, and what is printed beside."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ROLLCAST_")}
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**clean, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [*json.loads(program.stdout), program.stderr]


@pytest.mark.parametrize(
    "environment", [{}, {"ROLLCAST_HUB": ""}, {"ROLLCAST_HUB": "  "}], ids=["unset", "empty", "blank"]
)
def test_without_a_hub_it_imports_nothing(environment):
    """Neither Rollcast nor anything else."""
    assert load(**environment) == [["rollcast_vllm"], [], None, ""]


def test_with_a_hub_an_engine_starts_whatever_is_wrong_here():
    """Here vLLM itself is missing: that is said, and nothing is raised."""
    _, loaded, returned, errors = load(ROLLCAST_HUB="ws://localhost:1")
    assert "rollcast.attaching.vllm_engine" in loaded
    assert returned is None
    assert "Rollcast steps aside from vLLM" in errors
    assert "No module named 'vllm'" in errors


def test_with_a_hub_no_engine_means_no_manager():
    """vLLM loads its plugins in workers, too, which have no engine: there they import little."""
    fake = (
        "import sys, types\n"
        "for name in ('vllm', 'vllm.v1', 'vllm.v1.engine', 'vllm.v1.engine.output_processor'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "class OutputProcessor:\n"
        "    def process_outputs(self, engine_core_outputs): pass\n"
        "    def add_request(self, request): pass\n"
        "    def abort_requests(self, request_ids): pass\n"
        "    def propagate_error(self, e): pass\n"
        "sys.modules['vllm.v1.engine.output_processor'].OutputProcessor = OutputProcessor\n"
        "import rollcast_vllm; rollcast_vllm.register()\n"
        "print(hasattr(OutputProcessor.process_outputs, '__wrapped__'),\n"
        "      [name for name in ('rollcast.serve', 'rollcast.archive', 'websockets', 'numpy', 'torch') if name in sys.modules])\n"
    )
    program = subprocess.run(
        [sys.executable, "-c", fake],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "ROLLCAST_HUB": "ws://localhost:1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert program.stdout.split(maxsplit=1) == ["True", "[]\n"]
    assert program.stderr == ""
