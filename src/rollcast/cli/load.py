"""Loads what the command line names: the user's own agent, and rows in a file."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from rollcast.errors import InputError, RollcastError
from rollcast.failures import place_of, text_and_place
from rollcast.records import validated_messages
from rollcast.records.jsonable import JSON_ERRORS
from rollcast.rollout import BaseAgent
from rollcast.rollout.rows import row_with_messages
from rollcast.tasks import Task

__all__ = ["backend_options", "load_agent", "load_agent_or_task", "load_rows"]

logger = logging.getLogger("rollcast.cli")


def load_agent(target: str) -> BaseAgent:
    """Load the agent at `module:name` or `path/to/file.py:name`; a function without arguments is called for it.

    Raises:
        InputError: there is no such module or name, it cannot be loaded, or it is not an agent.
    """
    found = load_agent_or_task(target)
    if isinstance(found, Task):
        raise InputError(
            f"{target} is a Task; expected a BaseAgent: an agent has a task's tools and reward, "
            "BaseAgent(tools=task.tools, reward=task.reward), and `rollcast run` takes the task itself"
        )
    return found


def load_agent_or_task(target: str) -> BaseAgent | Task:
    """Load an agent as `load_agent` does, or a task.

    Raises:
        InputError: as in `load_agent`; if no name is given, the message lists the agents and tasks in the module.
    """
    where, colon, name = target.rpartition(":")
    if not colon and target.endswith(".py") and Path(target).is_file():
        raise InputError(f"{target!r} names no agent; {_runnable_in(_module(target, target), target)}")
    if not colon or not where or not name:
        raise InputError(f"{target!r} names no agent; expected module:name or path/to/file.py:name")
    module = _module(where, target)
    if not hasattr(module, name):
        raise InputError(f"{where} has no {name!r}; {_runnable_in(module, where)}")
    found = getattr(module, name)
    if not isinstance(found, BaseAgent | Task) and callable(found):
        found = _call_users_code(found, target)
    if not isinstance(found, BaseAgent | Task):
        raise InputError(
            f"{target} is {type(found).__name__}; expected a BaseAgent or a Task, or a function without arguments that "
            "returns one"
        )
    return found


def _runnable_in(module: ModuleType, where: str) -> str:
    """What can be run in a module, as the end of a sentence."""
    agents = [name for name, value in vars(module).items() if isinstance(value, BaseAgent)]
    tasks = [name for name, value in vars(module).items() if isinstance(value, Task)]
    told = f"the agents in it: {', '.join(agents) or 'none'}"
    if tasks:
        told += f"; the tasks: {', '.join(tasks)}"
    first = next(iter([*agents, *tasks]), None)
    if first is None:
        return f"{told}; write agent = BaseAgent(…) there, and run {where}:agent"
    return f"{told}; run {where}:{first}"


def _module(where: str, target: str) -> ModuleType:
    if where.endswith(".py"):
        path = Path(where)
        try:
            there = path.is_file()
        except OSError:  # the name is too long
            there = False
        if not there:
            raise InputError(f"there is no file {where!r}; expected path/to/file.py:name")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        sys.path.insert(0, str(path.resolve().parent))
        _call_users_code(lambda: spec.loader.exec_module(module), target)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: ModuleType = _call_users_code(lambda: importlib.import_module(where), target)
    return found


def _call_users_code(what: Any, target: str) -> Any:
    """Call the user's code; an exception becomes an InputError with its place."""
    try:
        return what()
    except RollcastError:
        raise
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        place = place_of(error)
        raise InputError(
            f"{target} cannot be loaded: it called sys.exit({error.code!r})"
            + (f" ({place})" if place else "")
            + "; put the code that the file runs as a program under: if __name__ == '__main__':"
        ) from error
    except BaseException as error:  # the user's module can raise anything
        logger.debug("%s cannot be loaded", target, exc_info=error)
        told = f"{error.msg} ({place_of(error)})" if isinstance(error, SyntaxError) else text_and_place(error)
        told = " ".join(told.split())
        raise InputError(f"{target} cannot be loaded: {type(error).__name__}: {told}") from error


def backend_options(given: list[str]) -> dict[str, Any]:
    """Turn `name=value`s into keyword arguments; a value that is not JSON is taken as text.

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
    """Load the rows in a file: JSON lines, a JSON array or one JSON object.

    A row is an object with `messages` or a `prompt` (text, or messages), and fields of its own. An array of messages is
    one conversation.

    Raises:
        InputError: there is no such file, or something in it is not a row; the message names the line.
    """
    file = Path(path)
    try:
        text = file.read_bytes().removeprefix(BOM_UTF8)  # some editors on Windows write it
    except OSError as error:
        raise InputError(f"the rows cannot be read: {error.strerror or error} ({path})") from None
    if text.startswith((b"PAR1", *_UTF16)) or file.suffix.lower() in _TABLES:
        raise InputError(
            f"{path} is not JSON; {_EXPECTED}, in UTF-8. Convert a table of another kind with: "
            "datasets.load_dataset(…).to_json(FILE)"
        )
    rows = [_row(value, place) for value, place in _values(text, path)]
    if not rows:
        raise InputError(
            f'{path} has no rows; expected lines such as {{"prompt": "What is 2 + 2?", "answer": 4}}'
        )
    return rows


_EXPECTED = 'expected an object with "messages" or "prompt"'
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_TABLES = {".csv", ".tsv", ".parquet", ".arrow", ".xlsx"}


def _values(text: bytes, path: str) -> Iterator[tuple[Any, str]]:
    """Each value in the file, and its place for messages."""
    if text.lstrip()[:1] in (b"[", b"{"):
        try:
            whole = _decoded(text)
        except JSON_ERRORS as error:
            if text.lstrip()[:1] == b"[":
                raise InputError(f"{path} is not JSON: {error}; {_EXPECTED}, or an array of them") from None
        else:  # one value, since it is not lines
            yield from _parts(whole, path if b"\n" in text.strip() else f"{path}:1")
            return
    for i, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield _decoded(line), f"{path}:{i}"
            except JSON_ERRORS as error:
                raise InputError(f"{path}:{i} is not JSON: {error}; {_EXPECTED}") from None


def _parts(whole: Any, path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(whole, dict):
        yield whole, path
    elif whole and all(isinstance(item, dict) and "role" in item for item in whole):
        yield {"messages": whole}, path
    else:
        yield from ((item, f"{path}[{i}]") for i, item in enumerate(whole))


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        try:
            return json.loads(text)  # it takes NaN and Infinity, which Python itself writes
        except ValueError:
            pass
        raise


def _row(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place} is not a row: {_EXPECTED}, found {type(value).__name__}")
    if value.get("messages") is not None and value.get("prompt") is not None:
        raise InputError(f"{place} is not a row: {_EXPECTED}, not both")
    row = row_with_messages(value, place)
    validated_messages(row["messages"], f"{place}['messages']")
    return row
