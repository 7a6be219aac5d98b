"""The observers of one manager, the leaves that they stand for, and the pump that calls each leaf."""

from __future__ import annotations

import logging
import weakref
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from rollcast import aio
from rollcast.errors import InputError
from rollcast.failures import class_name_of
from rollcast.records import StreamEvent
from rollcast.stream.belonging import Belonging
from rollcast.stream.definition import Definition, defined, name_of
from rollcast.stream.delivery import Delivery, ObserverStatistics, ensure_not_in_own_hook
from rollcast.stream.fanout import Fanout
from rollcast.stream.homes import Departures, Homes
from rollcast.stream.identity import ByIdentity
from rollcast.stream.observer import StreamObserver, inherits, is_pulled
from rollcast.stream.pump import FAILURES_TO_DETACH, Pump
from rollcast.stream.shift import shared_running_loop

__all__ = ["Owner", "Roster"]

logger = logging.getLogger("rollcast.stream")


class Owner(Protocol):
    """What a roster needs from the manager. `StreamObserver.manager` is set to it while an observer is added."""

    @property
    def observers(self) -> list[StreamObserver]:
        """The observers that are added."""
        ...

    def remove_observer(self, observer: StreamObserver) -> None:
        """Stop calling an observer."""
        ...

    def report(self, observer: StreamObserver, error: BaseException, run_id: str | None = None) -> None:
        """Report to the other observers that this one failed."""
        ...


class Roster:
    """The observers that were added to one manager.

    Args:
        owner: the manager.
        fanout: has the observers' deliveries. Its lock guards the roster.
    """

    def __init__(self, owner: Owner, fanout: Fanout) -> None:
        self._owner = owner
        self._fanout = fanout
        self._lock = fanout.lock
        self._added = ByIdentity[StreamObserver, ByIdentity[StreamObserver, Definition]]()
        # The leaves of those that were added, with what calls them; None if they take their events themselves.
        self._leaves = ByIdentity[StreamObserver, Pump | None]()
        self._detached = ByIdentity[StreamObserver, None]()  # leaves that failed too often
        self._belonging = Belonging(owner, fanout.lock, self._is_wanted_locked)
        self._closings = ByIdentity[StreamObserver, Future[None]]()  # that are not done
        self._homes = Homes(fanout)
        self._departures = Departures(fanout)
        self._host = _Host(owner, fanout, self._homes, self._departures)

    @property
    def observers(self) -> list[StreamObserver]:
        """The observers that were added, in that order."""
        with self._lock:
            return list(self._added)

    # -- coming and going ----------------------------------------------------------------------------------------------

    def add(self, observer: StreamObserver) -> None:
        """See `StreamingManager.add_observer`."""
        if not inherits(observer, StreamObserver):
            raise InputError(
                f"add_observer got {class_name_of(observer)}; expected a StreamObserver "
                "(wrap a function in CallbackStreamObserver)"
            )
        # Nothing that runs the observer's own code is done with the lock held.
        definitions = defined(observer)
        with self._belonging.joining(observer, definitions), self._lock:
            for leaf in definitions:
                self._detached.pop(leaf, None)
            self._added[observer] = definitions
            self._apply_locked()
        self._belonging.settle(self._leaves)
        logger.debug("added %s", name_of(observer))

    def _is_wanted_locked(self, observer: StreamObserver) -> bool:
        """Whether it was added, or is a leaf of one that was."""
        return observer in self._added or observer in self._leaves

    def remove(self, observer: StreamObserver) -> None:
        """See `StreamingManager.remove_observer`."""
        with self._lock:
            if observer in self._added:
                del self._added[observer]
            elif observer in self._leaves:
                self._detached[observer] = None
            else:
                return
            self._apply_locked()
        self._belonging.settle(self._leaves)
        logger.debug("removed %s", name_of(observer))
        self.take_here_at_exit()

    def refresh(self, observer: StreamObserver | None) -> None:
        """See `StreamingManager.refresh`."""
        failures: list[tuple[StreamObserver, InputError]] = []
        for each in self.observers if observer is None else [observer]:
            try:
                definitions = defined(each)
            except InputError as error:
                failures.append((each, error))
                continue
            with self._lock:
                if each in self._added:
                    self._added[each] = definitions
        with self._lock:
            self._apply_locked()
        self._belonging.settle(self._leaves)
        for each, failure in failures:
            logger.error("%s stays as it was: %s", name_of(each), failure, exc_info=failure.__cause__)
            self._owner.report(each, failure)

    def _apply_locked(self) -> None:
        """Have a pump for each leaf that is wanted, and for no other."""
        wanted = ByIdentity[StreamObserver, Definition]()
        for definitions in self._added.values():
            for leaf, definition in definitions.items():
                known = wanted.get(leaf)
                wanted[leaf] = (
                    definition
                    if known is None
                    else definition._replace(filter=known.filter | definition.filter)
                )
        for leaf in self._detached:
            if wanted.pop(leaf, None) is None:  # it was taken off, and may come back
                del self._detached[leaf]
        for leaf in [leaf for leaf in self._leaves if leaf not in wanted]:
            self._remove_locked(leaf)
        for leaf, definition in wanted.items():
            if leaf not in self._leaves:
                self._add_locked(leaf, definition)
            elif (pump := self._leaves[leaf]) is not None:
                pump.own_loop = definition.loop
                if pump.delivery.filter != definition.filter:
                    self._fanout.set_filter(pump.delivery, definition.filter)
            elif is_pulled(leaf):
                leaf.set_filter_locked(definition.filter)
        if shared_running_loop() is not None:  # pumps that were interrupted in an earlier loop continue
            for pump in self.pumps_locked():
                pump.ensure_running_locked()

    def _add_locked(self, leaf: StreamObserver, definition: Definition) -> None:
        if is_pulled(leaf):
            self._leaves[leaf] = None
            leaf.attach_locked(self._fanout, definition.name, definition.filter)
            return
        self._fanout.wake_leaving_locked()
        delivery = self._fanout.delivery(
            definition.name,
            definition.filter,
            lossless=definition.lossless,
            threaded=definition.threaded,
        )
        delivery.tokens = definition.chunk_interest
        delivery.encodes = definition.encodes
        delivery.rest_s = definition.rest_s
        delivery.follows_chains = definition.follows_chains or not definition.lossless
        delivery.limit = max(delivery.limit, definition.queue_limit_bytes)
        pump = Pump(leaf, delivery, self._host, after=self._closings.pop(leaf, None))
        pump.own_loop = definition.loop
        self._leaves[leaf] = pump
        self._fanout.add(delivery)

    def _remove_locked(self, leaf: StreamObserver) -> None:
        pump = self._leaves.pop(leaf)
        if is_pulled(leaf):
            leaf.detach_locked()
        if pump is None:
            return
        self._closings[leaf] = pump.finished
        pump.finished.add_done_callback(partial(self._has_closed, leaf))
        self._departures.add_locked(pump)
        self._fanout.remove(pump.delivery)

    def _has_closed(self, leaf: StreamObserver, finished: Future[None]) -> None:
        with self._lock:
            if self._closings.get(leaf) is finished:
                del self._closings[leaf]

    # -- closing -------------------------------------------------------------------------------------------------------

    def ensure_not_in_own_hook_locked(self, what: str) -> None:
        """Refuse to wait for an observer inside one of its own hooks.

        Raises:
            InputError: `what` was called in such a hook.
        """
        ensure_not_in_own_hook(what, (p.delivery for p in [*self.pumps_locked(), *self._departures.pumps]))

    def remove_all(self) -> None:
        """Remove every observer, and end every subscription."""
        for observer in self.observers:
            self._owner.remove_observer(observer)
        for delivery in self._fanout.deliveries:
            self._fanout.remove(delivery)
        with self._lock:
            self._fanout.wake_leaving_locked()

    async def all_closed(self) -> None:
        """Wait until all removed observers have closed: see `Departures`."""
        await self._departures.wait()
        self._stop_background()

    def all_closed_blocking(self) -> None:
        """Do the same as `all_closed`, but block the thread."""
        self._departures.wait_blocking()
        self._stop_background()

    def take_here_at_exit(self) -> None:
        """Hand over what waits in this thread, if the interpreter exits and no other thread could be started for that."""
        if aio.interpreter_exits() and aio.running_loop() is None:
            with self._lock:
                pumps = self.pumps_locked()
            for pump in (*pumps, *self._departures.pumps):
                pump.run_here()

    def _stop_background(self) -> None:
        if not self._departures:  # otherwise a slow observer may still run there
            self._homes.stop()

    # -- what is there -------------------------------------------------------------------------------------------------

    def pumps_locked(self) -> list[Pump]:
        """The pumps, which call the observers that do not take their events themselves."""
        return [pump for pump in self._leaves.values() if pump is not None]

    def delivery_of(self, observer: StreamObserver) -> Delivery | None:
        """The queue of one observer, if it is added or is a leaf of one that is."""
        with self._lock:
            pump = self._leaves.get(observer)
            return None if pump is None else pump.delivery

    def statistics(self) -> list[ObserverStatistics]:
        """The statistics of each leaf, in the order in which they were added."""
        with self._lock:
            found = []
            for leaf, pump in self._leaves.items():
                if pump is not None:
                    found.append(pump.delivery.statistics())
                elif is_pulled(leaf):
                    found.append(leaf.statistics_locked())
            return found

    def after_fork_locked(self) -> None:
        """Reset in a forked child, which has none of the threads and loops."""
        self._homes.after_fork_locked()
        self._departures.after_fork_locked()
        self._closings.clear()
        self._belonging.after_fork_locked()
        for pump in self.pumps_locked():
            pump.after_fork_locked()


class _Host:
    """What the pumps need from the roster. See `PumpHost`."""

    def __init__(self, owner: Owner, fanout: Fanout, homes: Homes, departures: Departures) -> None:
        self._owner = owner
        self._fanout = fanout
        self._homes = homes
        self._departures = departures
        self.loop_for = homes.loop_for
        self.look_again = homes.look_again_locked
        self._reported: weakref.WeakSet[Pump] = weakref.WeakSet()

    @property
    def patience(self) -> float:
        return self._fanout.drain_timeout

    def expects_more(self) -> bool:
        return bool(self._fanout.runs)

    def failed(self, pump: Pump, error: BaseException, event: StreamEvent | None) -> None:
        if pump not in self._reported:
            self._reported.add(pump)
            self._owner.report(pump.observer, error, run_id=event.run_id if event else "")
        if (
            pump.failures_in_a_row == FAILURES_TO_DETACH and not pump.delivery.ended
        ):  # otherwise it is leaving, or was added again
            self._owner.remove_observer(pump.observer)

    def left_behind(self, pump: Pump) -> None:
        if not pump.delivery.ended:  # as above
            self._owner.remove_observer(pump.observer)

    def closed(self, pump: Pump) -> None:
        self._departures.remove_locked(pump)
        self._fanout.forget_locked(pump.delivery)
        if not (self._departures or self._owner.observers):  # the last one was slow
            self._homes.stop()
