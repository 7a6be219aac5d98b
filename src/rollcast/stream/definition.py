"""Reads an observer's settings once and checks them, so that none of its code runs for them on the path of an event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from rollcast.errors import InputError
from rollcast.failures import by_signal, class_name_of
from rollcast.records import EventFilter
from rollcast.records.jsonable import described
from rollcast.stream.delivery import REST_S
from rollcast.stream.identity import ByIdentity
from rollcast.stream.observer import (
    ChunkInterest,
    DeliveryMode,
    EncodingObserver,
    StreamObserver,
    inherits,
    overrides_on_chain_closed,
)
from rollcast.stream.own_filter import guarded

__all__ = ["Definition", "check_filter", "defined", "manager_of", "name_of", "set_manager"]


class Definition(NamedTuple):
    """The settings of one leaf, an observer that events actually go to.

    Attributes:
        name: its name in warnings, errors and statistics.
        filter: which events it wants.
        lossless, threaded, loop, chunk_interest, queue_limit_bytes: see `StreamObserver`.
        encodes: whether it takes an `EncodableChunk` as it is.
        follows_chains: whether it has an `on_chain_closed` of its own.
        rest_s: see `EncodingObserver`.
    """

    name: str
    filter: EventFilter
    lossless: bool
    threaded: bool
    loop: asyncio.AbstractEventLoop | None
    chunk_interest: ChunkInterest
    queue_limit_bytes: int
    encodes: bool
    follows_chains: bool
    rest_s: float


def defined(observer: StreamObserver) -> ByIdentity[StreamObserver, Definition]:
    """The observer's leaves, each with what it says about itself.

    Raises:
        InputError: a setting is wrong, or reading it raises.
    """
    name = name_of(observer)
    try:
        leaves = observer.leaves()
        hash(observer)
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(_unreadable(name, "leaves()", error)) from error
    if not isinstance(leaves, Mapping):
        raise InputError(
            f"{name}.leaves() gave {type(leaves).__name__}; expected a dict of observers, each with its filter"
        )
    return ByIdentity((leaf, _definition(leaf, wanted, name)) for leaf, wanted in leaves.items())


def check_filter(name: str, wanted: Any) -> None:
    """Refuse what is no filter.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(wanted, EventFilter):
        raise InputError(
            f"the filter of {name} is {described(wanted)}; expected an EventFilter, such as EventFilter(chains='chain_0')"
        )


def _unreadable(name: str, what: str, error: BaseException) -> str:
    if isinstance(error, TypeError) and "unhashable" in str(error):  # a dataclass with eq=True
        return f"{name} cannot be hashed: {error}; if it is a dataclass, make it @dataclass(eq=False)"
    return f"{what} of {name} raised {class_name_of(error)}; make it return without an error"


def _definition(leaf: Any, wanted: Any, outer: str) -> Definition:
    if not inherits(leaf, StreamObserver):
        raise InputError(f"{outer}.leaves() gave {class_name_of(leaf)} as a leaf; expected a StreamObserver")
    name = name_of(leaf)
    check_filter(name, wanted)
    mode, threaded, loop = (_read(leaf, name, attribute) for attribute in ("mode", "threaded", "loop"))
    tokens, limit = _read(leaf, name, "chunk_interest"), _read(leaf, name, "queue_limit_bytes")
    modes = get_args(DeliveryMode)
    mode = str.__str__(mode) if isinstance(mode, str) else mode
    if not isinstance(mode, str) or mode not in modes:
        raise InputError(f"the mode of {name} is {_shown(mode)}; expected one of {', '.join(modes)}")
    if not isinstance(threaded, bool):
        raise InputError(f"{name}.threaded is {_shown(threaded)}; expected True or False")
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise InputError(f"{name}.loop is {type(loop).__name__}; expected an event loop, or None")
    interests = get_args(ChunkInterest)
    tokens = str.__str__(tokens) if isinstance(tokens, str) else tokens
    if not isinstance(tokens, str) or tokens not in interests:
        raise InputError(f"{name}.chunk_interest is {_shown(tokens)}; expected one of {', '.join(interests)}")
    if type(limit) is not int or limit < 0:
        raise InputError(f"{name}.queue_limit_bytes is {_shown(limit)}; expected a number of bytes")
    interest: ChunkInterest = tokens  # type: ignore[assignment]  # it is one of them
    encodes = inherits(leaf, EncodingObserver) and _takes_encodable(leaf, name)
    follows_chains = overrides_on_chain_closed(leaf)
    rest_s = leaf.rest_s if inherits(leaf, EncodingObserver) else REST_S
    return Definition(
        name,
        guarded(wanted),
        mode == "lossless",
        threaded,
        loop,
        interest,
        limit,
        encodes,
        follows_chains,
        rest_s,
    )


def _takes_encodable(leaf: EncodingObserver, name: str) -> bool:
    try:
        return bool(leaf.takes_encodable())
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(_unreadable(name, "takes_encodable()", error)) from error


def _shown(value: Any) -> str:
    """A plain value itself; for any other value its type, since its `__repr__` may raise."""
    return f"{value!r:.80}" if type(value) in (str, int, float, type(None)) else described(value)


def _read(observer: StreamObserver, name: str, attribute: str) -> Any:
    try:
        return getattr(observer, attribute)
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(_unreadable(name, attribute, error)) from error


def name_of(observer: StreamObserver) -> str:
    """The observer's name, or that of its class if the observer has none or it cannot be read."""
    name: Any
    try:
        name = observer.name
    except BaseException as error:  # the user's own property may raise anything, and a name is needed
        if by_signal(error):
            raise
        name = ""
    return name if isinstance(name, str) and name else class_name_of(observer)


def manager_of(observer: StreamObserver) -> Any:
    """The manager that the observer is added to, or None.

    Raises:
        InputError: reading it raises.
    """
    return _read(observer, name_of(observer), "manager")


def set_manager(observer: StreamObserver, manager: Any) -> None:
    """Set the manager that the observer is added to.

    Raises:
        InputError: it cannot be set.
    """
    try:
        observer.manager = manager
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(
            f"the manager of {name_of(observer)} cannot be set: setting `manager` raised {class_name_of(error)}; "
            "if it is a frozen dataclass, make it one that is not frozen"
        ) from error
