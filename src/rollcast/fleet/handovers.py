"""Which records of ended producers a hub takes from other producers. Pure."""

from __future__ import annotations

from rollcast.fleet.sources import Key, Source, shown
from rollcast.serve.publishing import ProducerLink

__all__ = ["Handovers"]


class Handovers:
    """The records that were refused, each from the number on at which that began."""

    def __init__(self) -> None:
        self._refused: dict[ProducerLink, dict[Key, int]] = {}

    def why_not(
        self, link: ProducerLink, sender: Source, owner: Source | None, key: Key, number: int
    ) -> str | None:
        """Why these events of a record are not taken; None if they are.

        Args:
            link: the connection on which they came.
            sender: who hands the record over.
            owner: the source whose record it is; None if the hub does not know it.
            key: whose record it is.
            number: of the first of the events.
        """
        wrong = _wrong_sender(sender, owner, key) or self._must_begin_again(link, key, number)
        if wrong is not None:
            self._refused.setdefault(link, {}).setdefault(key, number)
        elif link in self._refused:
            self._refused[link].pop(key, None)
        return wrong

    def forget(self, link: ProducerLink) -> None:
        """The connection has ended: what comes on the next one begins anew."""
        self._refused.pop(link, None)

    def _must_begin_again(self, link: ProducerLink, key: Key, number: int) -> str | None:
        """What to say of more of a record whose beginning was refused: nothing of it may be taken for whole."""
        begin = self._refused.get(link, {}).get(key)
        if begin is None or number <= begin:
            return None
        return f"the record of source {shown(key[0])} was refused from number {begin:,} on; hand it over from there"


def _wrong_sender(sender: Source, owner: Source | None, key: Key) -> str | None:
    """Why this producer may not hand over the record of that one; None if it may."""
    name = shown(key[0])
    if owner is None:
        return None
    if owner.link is not None and owner.epoch == key[1]:
        return f"the record of source {name} is handed over, but that producer is connected itself"
    if owner.host and sender.host and owner.host != sender.host:
        return (
            f"the record of source {name} is handed over from host {shown(sender.host)}, but it was written on "
            f"{shown(owner.host)}"
        )
    return None
