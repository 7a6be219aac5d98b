"""The subscriptions of each client: whether it has room for more, what it is still owed, and how it is closed if it is too slow."""

from __future__ import annotations

import threading

from rollcast.serve.history import History
from rollcast.serve.protocol import CloseCode
from rollcast.serve.settings import ServerSettings
from rollcast.serve.subscription import Outlet, Subscription

__all__ = ["TOO_SLOW", "Clients"]

TOO_SLOW = "this client reads too slowly; reconnect with its cursor"
FAILED = "the server could not encode what this client is to get next; the server's log says why"


class Clients:
    """All subscriptions, by client and id.

    Args:
        history: the server's history.
        lock: guards the history and the subscriptions.
        settings: the server's settings.

    Attributes:
        closed_slow: how many clients were closed because they read too slowly.
    """

    def __init__(self, history: History, lock: threading.RLock, settings: ServerSettings) -> None:
        self.subscriptions: dict[tuple[Outlet, str], Subscription] = {}
        self.closed_slow = 0
        self._history = history
        self._lock = lock
        self._settings = settings

    def subscription(self, outlet: Outlet, id: str) -> Subscription | None:
        """One of the outlet's subscriptions; None: it was closed meanwhile."""
        with self._lock:
            return self.subscriptions.get((outlet, id))

    def keys_of(self, outlet: Outlet) -> list[tuple[Outlet, str]]:
        """The keys of all of the outlet's subscriptions. The lock is held."""
        return [key for key in self.subscriptions if key[0] is outlet]

    def forget(self, key: tuple[Outlet, str]) -> None:
        """End a subscription, if there is one. The lock is held."""
        subscription = self.subscriptions.pop(key, None)
        if subscription is not None and subscription.feed is not None:
            subscription.feed.stop()
            subscription.feed = None

    def pending(self, head: int) -> bool:
        """Whether a client still lacks events before this position, or snapshots."""
        with self._lock:
            subscriptions = [s for s in self.subscriptions.values() if s.feed is None]
            return any(s.join is not None or s.position < head for s in subscriptions)

    def owes(self, outlet: Outlet) -> bool:
        """Whether the outlet must still be given snapshots, or must still take what it was given."""
        if outlet.unsent() > self._settings.client_buffer:
            return True
        with self._lock:
            own = [self.subscriptions[key] for key in self.keys_of(outlet)]
            return any(s.join is not None or (s.feed is not None and not s.feed.answered) for s in own)

    def can_take(self, subscription: Subscription) -> bool:
        """Whether the subscription's client has room. A client that is too far behind is closed. The lock is held."""
        history, limit = self._history, self._settings.client_buffer
        if subscription.position < history.tail:
            self.too_slow(subscription)
            return False
        unsent = subscription.outlet.unsent()
        if unsent <= (limit // 2 if subscription.behind else limit):
            return True
        subscription.behind = True
        live = max(subscription.position, subscription.owed_until)
        if history.total - history.before(live) > self._settings.behind_bytes:
            self.too_slow(subscription)
        return False

    def too_slow(self, subscription: Subscription, message: str = TOO_SLOW) -> None:
        """Close the client, which reads too slowly. The lock is held."""
        self.closed_slow += self._close(subscription.outlet, CloseCode.TOO_SLOW, message)

    def not_shortened(self, position: int, room: int) -> None:
        """Close the clients that wait for the event at this position, which could not be shortened."""
        with self._lock:
            subscriptions = self.subscriptions.values()
            self.failed(
                [s for s in subscriptions if s.join is None and (s.position, s.room) == (position, room)]
            )

    def failed(self, subscriptions: list[Subscription]) -> None:
        """Close the clients of subscriptions for which events could not be encoded."""
        with self._lock:
            for subscription in subscriptions:
                self._close(subscription.outlet, CloseCode.FAILED, FAILED)

    def _close(self, outlet: Outlet, code: CloseCode, message: str) -> bool:
        """End all subscriptions of a client, and close it. False if that was done already, because of another subscription."""
        keys = self.keys_of(outlet)
        for key in keys:
            self.forget(key)
        if keys:
            outlet.close(code, message)
        return bool(keys)
