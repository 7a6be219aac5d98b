"""How an agent gets to another process: by its name in a module that can be imported there, or pickled. This does no I/O."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from rollcast.errors import InputError
from rollcast.failures import text_of
from rollcast.rollout.agent_value import AgentValue

__all__ = ["PackedAgent", "pack_agent", "pack_value", "what_cannot_cross"]

MAX_DEPTH = 12  # of parts within parts, in the search for what cannot cross
MAX_PARTS = 2000  # looked at in that search

Dumps = Callable[[Any], bytes]


class PackedAgent(msgspec.Struct, frozen=True):
    """An agent on its way.

    Attributes:
        name: the agent's name.
        target: `module:name`, to be imported where it arrives; None: it is in `pickled`.
        pickled: the agent, pickled; None: it is imported.
    """

    name: str
    target: str | None = None
    pickled: bytes | None = None


def pack_agent(agent: AgentValue, target: str | None, dumps: Dumps) -> PackedAgent:
    """Pack an agent for another process.

    Args:
        agent: the agent; it stays as it is.
        target: `module:name`, if the other process is to import it.
        dumps: pickles a value; functions by value, as cloudpickle does.

    Raises:
        InputError: the agent cannot be pickled; the message names the attribute.
    """
    if target is not None:
        return PackedAgent(agent.name, target)
    pickled = pack_value(
        agent,
        f"agent {agent.name}",
        dumps,
        "make it where it is used, or write the agent in a module and name it as module:name, so that each runner makes its own",
    )
    return PackedAgent(agent.name, None, pickled)


def pack_value(value: Any, what: str, dumps: Dumps, remedy: str) -> bytes:
    """Pickle a value for another process.

    Raises:
        InputError: it cannot be pickled; the message names the part.
    """
    try:
        return dumps(value)
    except Exception as error:  # a class of the user's own can raise anything
        place, part, why = what_cannot_cross(value, dumps) or ("", value, error)
        raise InputError(
            f"{what} cannot be sent to other processes: its {place.lstrip('.') or 'value'}, of type {type(part).__name__}, cannot "
            f"be pickled ({_sentence(why)}); {remedy}"
        ) from error


def _sentence(error: BaseException) -> str:
    """The first line of an exception's text, without a full stop."""
    lines = text_of(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def what_cannot_cross(value: Any, dumps: Dumps) -> tuple[str, Any, BaseException] | None:
    """Find the innermost part of a value that cannot be pickled.

    Returns:
        Its place, such as `.tools['search'].function.<closure>.lock`; the part; what was raised for it. None: the value can be
        pickled.
    """
    found: tuple[str, Any, BaseException] | None = None
    seen: dict[int, Any] = {}  # by id; they are kept, since ids are used again
    parts: Iterator[tuple[str, Any]] = iter([("", value)])
    for _ in range(MAX_DEPTH):
        worst = next(
            ((place, part, error) for place, part in parts if (error := _failure(part, dumps, seen))), None
        )
        if worst is None:
            break
        found = worst
        parts = _parts_of_worst(*worst)
    return found


def _parts_of_worst(place: str, part: Any, error: BaseException) -> Iterator[tuple[str, Any]]:
    return ((place + name, inner) for name, inner in _parts(part, error))


def _failure(part: Any, dumps: Dumps, seen: dict[int, Any]) -> BaseException | None:
    """What pickling the part raises; None if it can be pickled, or was looked at before."""
    if id(part) in seen or len(seen) >= MAX_PARTS:
        return None
    seen[id(part)] = part
    try:
        dumps(part)
    except Exception as error:  # noqa: BLE001  (as above)
        return error
    return None


def _parts(value: Any, error: BaseException) -> Iterator[tuple[str, Any]]:
    """What is in a value, with the way to it."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r:.40}]", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", inner) for i, inner in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    else:
        yield from ((f".{name}", inner) for name, inner in _state(value, error).items())


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables that a function takes from around it, and its defaults."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f", its variable {name}", cell.cell_contents
        except ValueError:
            continue  # it is not set yet
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f", the global {name}", function.__globals__[name]
    yield from ((f", its default {i}", inner) for i, inner in enumerate(function.__defaults__ or ()))


def _state(value: Any, error: BaseException) -> Mapping[str, Any]:
    """What of a value is pickled: its attributes, or what it says that it is made from; empty if it is the value that refuses.

    Args:
        value: any object.
        error: what pickling it raised.
    """
    try:
        _, arguments, *rest = value.__reduce_ex__(4)
    except Exception as own:  # noqa: BLE001  (the user's own)
        return {} if text_of(own) == text_of(error) else _attributes(value)
    state = rest[0] if rest else None
    if isinstance(state, tuple) and len(state) == 2:  # with slots
        state = {**(state[0] or {}), **(state[1] or {})}
    if isinstance(state, Mapping):
        return state
    return _named(arguments, value) | _attributes(value)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def _named(arguments: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The arguments by the attributes that have them, else by their places."""
    named = {}
    for i, argument in enumerate(arguments):
        name = next((n for n in dir(value) if n[0] != "_" and getattr(value, n, None) is argument), None)
        named[name or f"argument {i}"] = argument
    return named
