"""What an observer says about itself, read once and checked: nothing of it is asked for on the path of an event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from rollcast.errors import InputError
from rollcast.records import EventFilter
from rollcast.records.jsonable import described
from rollcast.stream.observer import DeliveryMode, StreamObserver, TokenInterest

__all__ = ["Definition", "defined", "name_of"]


class Definition(NamedTuple):
    """One leaf: an observer to which events really go.

    Attributes:
        name: for warnings, errors and statistics.
        filter: which events it wants.
        lossless, threaded, loop, tokens, queue_limit: as `StreamObserver` has them.
    """

    name: str
    filter: EventFilter
    lossless: bool
    threaded: bool
    loop: asyncio.AbstractEventLoop | None
    tokens: TokenInterest
    queue_limit: int


def defined(observer: StreamObserver) -> dict[StreamObserver, Definition]:
    """The observer's leaves, each with what it says about itself.

    Raises:
        InputError: something is not what it should be, or reading it raises.
    """
    name = name_of(observer)
    try:
        leaves = observer.leaves()
        hash(observer)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(_unreadable(name, "leaves()", error)) from error
    if not isinstance(leaves, Mapping):
        raise InputError(
            f"{name}.leaves() gave {type(leaves).__name__}; expected a dict of observers, each with its filter"
        )
    return {leaf: _definition(leaf, wanted, name) for leaf, wanted in leaves.items()}


def _unreadable(name: str, what: str, error: BaseException) -> str:
    if isinstance(error, TypeError) and "unhashable" in str(error):  # a dataclass with eq=True
        return (
            f"{name} cannot be told from others: {error}; if it is a dataclass, make it @dataclass(eq=False)"
        )
    return f"{what} of {name} raised {type(error).__name__}; make it return without an error"


def _definition(leaf: Any, wanted: Any, outer: str) -> Definition:
    if not isinstance(leaf, StreamObserver):
        raise InputError(f"{outer}.leaves() gave {type(leaf).__name__} as a leaf; expected a StreamObserver")
    name = name_of(leaf)
    if not isinstance(wanted, EventFilter):
        raise InputError(
            f"the filter of {name} is {described(wanted)}; expected an EventFilter, such as EventFilter(chains='chain_0')"
        )
    mode, threaded, loop = (_read(leaf, name, attribute) for attribute in ("mode", "threaded", "loop"))
    tokens, limit = _read(leaf, name, "tokens"), _read(leaf, name, "queue_limit")
    modes = get_args(DeliveryMode)
    if mode not in modes:
        raise InputError(f"the mode of {name} is {mode!r:.80}; expected one of {', '.join(modes)}")
    if not isinstance(threaded, bool):
        raise InputError(f"{name}.threaded is {threaded!r:.80}; expected True or False")
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise InputError(f"{name}.loop is {type(loop).__name__}; expected an event loop, or None")
    interests = get_args(TokenInterest)
    if tokens not in interests:
        raise InputError(f"{name}.tokens is {tokens!r:.80}; expected one of {', '.join(interests)}")
    if not isinstance(limit, int) or limit < 0:
        raise InputError(f"{name}.queue_limit is {limit!r:.80}; expected a number of bytes")
    return Definition(name, wanted, mode == "lossless", threaded, loop, tokens, limit)


def _read(observer: StreamObserver, name: str, attribute: str) -> Any:
    try:
        return getattr(observer, attribute)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(_unreadable(name, attribute, error)) from error


def name_of(observer: StreamObserver) -> str:
    """The observer's name; that of its class if it has none that can be read."""
    name: Any
    try:
        name = observer.name
    except Exception:  # noqa: BLE001  (a property of the user's own: whatever it raises, a name is needed)
        name = ""
    return name if isinstance(name, str) and name else type(observer).__name__
