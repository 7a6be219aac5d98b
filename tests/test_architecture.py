"""The rooms and the doors between them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import rollcast

SRC = Path(rollcast.__file__).parent

# Which rooms a room may import from (docs/architecture.md).
MAY_IMPORT = {
    "errors": set(),
    "failures": set(),
    "records": {"errors"},
    "stream": {"errors", "failures", "records"},
    "models": {"errors", "failures", "records", "stream"},
    "tools": {"errors", "failures", "records", "stream"},
    "rollout": {"errors", "failures", "records", "stream", "models", "tools"},
    "tasks": {"errors", "failures", "records", "stream", "models", "tools", "rollout"},
    "train": {"errors", "failures", "records", "stream", "models", "tools", "rollout", "tasks"},
    "archive": {"errors", "failures", "records", "stream"},
    "serve": {"errors", "failures", "records", "stream"},
}
MAY_SEE_ALL = {"cli", "fleet", "testing", "__init__", "__main__"}
HEAVY = [
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "rich",
    "tokenizers",
    "websockets",
    "typer",
    "jinja2",
    "jsonschema",
    "prometheus_client",
    "opentelemetry",
]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "rollcast" and len(parts) > 1:
                yield parts[1], node.lineno


def test_imports_go_one_way():
    """A room imports only from the rooms below it."""
    wrong = []
    for path in SRC.rglob("*.py"):
        room = path.relative_to(SRC).parts[0].removesuffix(".py")
        if room in MAY_SEE_ALL:
            continue
        assert room in MAY_IMPORT, f"{path} stands in no room of the map"
        wrong += [
            f"{path.relative_to(SRC)}:{line} imports {other}"
            for other, line in imported_rooms(path)
            if other != room and other not in MAY_IMPORT[room]
        ]
    assert not wrong, "\n".join(wrong)


def test_import_is_light():
    """`import rollcast` loads no model, no server and no NumPy."""
    code = f"import sys, json, rollcast; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_public_names():
    """The names at the top are these, and every one can be imported."""
    assert set(rollcast.__all__) == PUBLIC
    for name in rollcast.__all__:
        assert getattr(rollcast, name) is not None


PUBLIC = {
    "__version__",
    "AsyncGeneratorStreamObserver",
    "BaseAgent",
    "CallbackStreamObserver",
    "ChainContext",
    "ChainGeneration",
    "ChainSpecificStreamObserver",
    "CodeAgent",
    "ConsoleStreamObserver",
    "Delta",
    "EventFilter",
    "GenerationRequest",
    "InputError",
    "JSONStreamObserver",
    "MultiChainStreamObserver",
    "OpenTelemetryStreamObserver",
    "PrometheusStreamObserver",
    "ReactAgent",
    "RollcastError",
    "RunResult",
    "Sampling",
    "StreamEvent",
    "StreamEventType",
    "StreamObserver",
    "StreamingManager",
    "ToolAgent",
    "ToolError",
    "Trajectory",
    "WebSocketStreamingClient",
    "WebSocketStreamingServer",
    "current_chain",
    "exact_match",
    "numeric_match",
    "reward",
    "tool",
}


def test_functions_can_be_read_aloud():
    """No function is longer than 70 lines."""
    long = [
        f"{path.relative_to(SRC)}:{node.lineno} {node.name}"
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno > 70
    ]
    assert not long, "\n".join(long)


def test_exception_tree_is_printed():
    """The tree at the top of errors.py names every exception under its base."""
    from rollcast import errors

    tree = (errors.__doc__ or "").splitlines()
    for name in errors.__all__:
        assert any(name in line.replace("(", " ").split() for line in tree), name
