"""The rooms and the doors between them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rollcast

SRC = Path(rollcast.__file__).parent

# Which rooms a room may import from (docs/architecture.md).
GROUND = {"errors", "failures", "aio", "grace", "lazy", "lifetime", "text", "version"}
CORE = GROUND | {"records", "stream"}
MAY_IMPORT = {
    "errors": set(),
    "failures": set(),
    "aio": set(),
    "grace": {"aio", "failures"},
    "lazy": set(),
    "lifetime": set(),
    "text": set(),
    "version": set(),
    "records": GROUND,
    "stream": GROUND | {"records"},
    "terminal": CORE,
    "observers": CORE | {"terminal"},  # lines and consoles take turns at one output
    "models": CORE,
    "tools": CORE,
    "rollout": CORE | {"observers", "models", "tools", "archive"},
    "tasks": CORE | {"models", "tools", "rollout"},
    "train": CORE | {"models", "tools", "rollout", "tasks"},
    "archive": CORE,
    "serve": CORE | {"archive"},
    "attaching": CORE | {"archive", "observers", "serve", "terminal"},
    "proxy": CORE | {"archive", "observers", "serve", "terminal"},
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
    "click",
    "jinja2",
    "jsonschema",
    "prometheus_client",
    "opentelemetry",
    "aiohttp",
    "openai",
    "langchain_core",
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
    """A room imports only from the rooms below it.

    `stream/observers.py` stands for two rooms above it, under the paths that they had: it names them as text, and loads one
    when it is asked for.
    """
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


def modules():
    """Every module of the package, by name."""
    for path in sorted(SRC.rglob("*.py")):
        parts = ("rollcast", *path.relative_to(SRC).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported_modules(path, known):
    """What a file imports of ours: at its top, inside functions, and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the module"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circles(arrows):
    """One chain of names for each knot of `arrows`, from a name along the arrows back to itself."""
    found, done = [], set()
    for start in arrows:
        trail, open_ends = [start], [iter(arrows[start])]
        while trail and start not in done:
            ahead = next(open_ends[-1], None)
            if ahead is None:
                done.add(trail.pop())
                open_ends.pop()
            elif ahead in trail:
                found.append([*trail[trail.index(ahead) :], ahead])
            elif ahead not in done:
                trail.append(ahead)
                open_ends.append(iter(arrows[ahead]))
    return found


def test_circles_are_found():
    """A circle is told as the chain of modules along which it runs."""
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    assert circles({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == [["b", "d", "b"]]
    assert circles({"a": ["a"]}) == [["a", "a"]]


def test_no_module_imports_itself_by_a_detour():
    """There is no circle of imports, counting those inside functions and under `TYPE_CHECKING`.

    The lazy names of a package's `__init__` that are looked up by a string are not imports. What `rollcast/__init__.py` imports
    for type checkers counts: no module of ours may need the package itself.
    """
    known = dict(modules())
    arrows = {
        name: sorted({other for other in imported_modules(path, known) if other in known})
        for name, path in known.items()
    }
    assert not (found := circles(arrows)), "\n".join(" -> ".join(circle) for circle in found)


def test_import_is_light():
    """`import rollcast` loads no model, no server and no NumPy."""
    code = f"import sys, json, rollcast; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


@pytest.mark.parametrize(
    "module", ["rollcast.serve.protocol", "rollcast.records.view", "rollcast.records.hints"]
)
def test_what_does_no_io_loads_none(module):
    """The protocol and what watchers know of a run load no stream and nothing that talks to loops, sockets or terminals."""
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(out.stdout))
    assert not loaded & {"asyncio", "socket", "ssl", "websockets", "rich"}
    assert not [
        name for name in loaded if name.startswith(("rollcast.stream", "rollcast.aio", "rollcast.lifetime"))
    ]


def test_public_names():
    """The names at the top are these, and every one can be imported."""
    assert set(rollcast.__all__) == PUBLIC
    for name in rollcast.__all__:
        assert getattr(rollcast, name) is not None


PUBLIC = {
    "__version__",
    "attach",
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
    "HubStreamObserver",
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
