"""What an observer says about itself, read once and checked: nothing of it is asked for on the path of an event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from rollcast.errors import InputError
from rollcast.failures import by_signal
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.jsonable import described
from rollcast.stream.observer import DeliveryMode, StreamObserver, TokenInterest

__all__ = ["Definition", "defined", "manager_of", "name_of", "set_manager"]


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
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(_unreadable(name, "leaves()", error)) from error
    if not isinstance(leaves, Mapping):
        raise InputError(
            f"{name}.leaves() gave {type(leaves).__name__}; expected a dict of observers, each with its filter"
        )
    return {leaf: _definition(leaf, wanted, name) for leaf, wanted in leaves.items()}


class _Guarded(EventFilter):
    """A filter of the user's own class, whose methods may raise anything. If `wants` does, that is reported by the delivery."""

    def __init__(self, own: EventFilter) -> None:
        super().__init__(own.runs, own.chains, own.groups, own.types, ids=own.ids)
        object.__setattr__(self, "others", own.others)
        object.__setattr__(self, "own", own)

    def _asked(self, method: str, *arguments: Any, otherwise: Any) -> Any:
        try:
            return getattr(self.own, method)(*arguments)  # type: ignore[attr-defined]  # set above: the class is frozen
        except (KeyboardInterrupt, SystemExit) as error:
            if by_signal(error):
                raise
            return otherwise
        except BaseException:  # noqa: BLE001  (isolation: as what an observer raises)
            return otherwise

    def wants(
        self, event_type: StreamEventType, chain_id: str = "", group_id: str | None = None, run_id: str = ""
    ) -> bool:
        return bool(self.own.wants(event_type, chain_id, group_id, run_id))  # type: ignore[attr-defined]  # as above

    def wants_snapshot(self, chain_id: str, group_id: str | None, run_id: str) -> bool:
        return bool(self._asked("wants_snapshot", chain_id, group_id, run_id, otherwise=False))

    def wants_ids(self, chain_id: str, group_id: str | None, run_id: str) -> bool:
        return bool(self._asked("wants_ids", chain_id, group_id, run_id, otherwise=False))

    def wants_gap(self, run_id: str) -> bool:
        return bool(self._asked("wants_gap", run_id, otherwise=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Guarded) and other.own is self.own  # type: ignore[attr-defined]  # as above

    __hash__ = object.__hash__


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
    mode = str.__str__(mode) if isinstance(mode, str) else mode
    if not isinstance(mode, str) or mode not in modes:
        raise InputError(f"the mode of {name} is {_shown(mode)}; expected one of {', '.join(modes)}")
    if not isinstance(threaded, bool):
        raise InputError(f"{name}.threaded is {_shown(threaded)}; expected True or False")
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise InputError(f"{name}.loop is {type(loop).__name__}; expected an event loop, or None")
    interests: dict[str, TokenInterest] = {interest: interest for interest in get_args(TokenInterest)}
    if not isinstance(tokens, str) or tokens not in interests:
        raise InputError(f"{name}.tokens is {_shown(tokens)}; expected one of {', '.join(interests)}")
    if not isinstance(limit, int) or limit < 0:
        raise InputError(f"{name}.queue_limit is {_shown(limit)}; expected a number of bytes")
    checked = wanted if type(wanted) is EventFilter else _Guarded(wanted)
    return Definition(name, checked, mode == "lossless", threaded, loop, interests[tokens], limit)


def _shown(value: Any) -> str:
    """A plain value as it is; of any other its type: its own `__repr__` may raise."""
    return f"{value!r:.80}" if type(value) in (str, int, float, type(None)) else described(value)


def _read(observer: StreamObserver, name: str, attribute: str) -> Any:
    try:
        return getattr(observer, attribute)
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(_unreadable(name, attribute, error)) from error


def name_of(observer: StreamObserver) -> str:
    """The observer's name; that of its class if it has none that can be read."""
    name: Any
    try:
        name = observer.name
    except BaseException as error:  # a property of the user's own: whatever it raises, a name is needed
        if by_signal(error):
            raise
        name = ""
    return name if isinstance(name, str) and name else type(observer).__name__


def manager_of(observer: StreamObserver) -> Any:
    """The manager to which it is added, or None.

    Raises:
        InputError: reading it raises.
    """
    return _read(observer, name_of(observer), "manager")


def set_manager(observer: StreamObserver, manager: Any) -> None:
    """Tell it to which manager it is added.

    Raises:
        InputError: it cannot be told.
    """
    try:
        observer.manager = manager
    except BaseException as error:
        if by_signal(error):
            raise
        raise InputError(
            f"{name_of(observer)} cannot be told its manager: setting `manager` raised {type(error).__name__}; "
            "if it is a frozen dataclass, make it one that is not"
        ) from error
