"""What the command line names: an agent of the user's own, and rows in a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from codecs import BOM_UTF8
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from rollcast.errors import InputError, RollcastError
from rollcast.rollout import BaseAgent

__all__ = ["backend_options", "load_agent", "load_rows"]


def load_agent(target: str) -> BaseAgent:
    """The agent that `module:name` or `path/to/file.py:name` names; a function of no arguments is called for it.

    Raises:
        InputError: there is no such module or name, it cannot be loaded, or it is no agent.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise InputError(f"{target!r} names no agent; expected module:name or path/to/file.py:name")
    module = _module(where, target)
    if not hasattr(module, name):
        public = ", ".join(n for n in vars(module) if isinstance(getattr(module, n), BaseAgent)) or "none"
        raise InputError(f"{where} has no {name!r}; the agents in it: {public}")
    found = getattr(module, name)
    if not isinstance(found, BaseAgent) and callable(found):
        found = _calling(found, target)
    if not isinstance(found, BaseAgent):
        raise InputError(
            f"{target} is {type(found).__name__}; expected a BaseAgent, or a function without arguments that returns one"
        )
    return found


def _module(where: str, target: str) -> ModuleType:
    if where.endswith(".py"):
        path = Path(where)
        try:
            there = path.is_file()
        except OSError:  # a name that is too long
            there = False
        if not there:
            raise InputError(f"there is no file {where!r}; expected path/to/file.py:name")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        sys.path.insert(0, str(path.resolve().parent))
        _calling(lambda: spec.loader.exec_module(module), target)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: ModuleType = _calling(lambda: importlib.import_module(where), target)
    return found


def _calling(what: Any, target: str) -> Any:
    """Call the user's code; whatever it raises becomes a sentence with the place."""
    try:
        return what()
    except RollcastError:
        raise
    except Exception as error:  # the user's module can raise anything
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "importlib" not in f.filename), frames[-1])
        raise InputError(
            f"{target} cannot be loaded: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        ) from error


def backend_options(given: list[str]) -> dict[str, Any]:
    """`name=value`s as keyword arguments; a value that is not JSON is a word.

    Raises:
        InputError: one has no name or no value.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals:
            raise InputError(f"--backend-option is {text!r}; expected NAME=VALUE, such as device=cuda")
        try:
            options[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[name] = value
    return options


def load_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file: objects with `messages` or a `prompt` (one user message), and fields of their own.

    Raises:
        InputError: there is no such file, or a line is no row; it names the line.
    """
    file = Path(path)
    try:
        lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()  # as Windows' editors write it
    except OSError as error:
        raise InputError(f"the rows cannot be read: {error.strerror or error} ({path})") from None
    rows = [_row(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(
            f'{path} has no rows; expected lines such as {{"prompt": "What is 2 + 2?", "answer": 4}}'
        )
    return rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    expected = 'expected an object with "messages" or "prompt"'
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}; {expected}") from None
    if not isinstance(row, dict) or ("messages" in row) == ("prompt" in row):
        raise InputError(f"{where} is no row: {expected}, one of them")
    if "prompt" in row:
        prompt = row.pop("prompt")
        row["messages"] = [{"role": "user", "content": prompt}]
    return row
