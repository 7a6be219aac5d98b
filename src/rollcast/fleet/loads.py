"""Which runner gets the next chain: the one with the fewest. This does no I/O."""

from __future__ import annotations

__all__ = ["Loads"]


class Loads:
    """How many chains each runner has."""

    def __init__(self) -> None:
        self._chains: dict[str, int] = {}

    def __contains__(self, runner: str) -> bool:
        return runner in self._chains

    def __len__(self) -> int:
        return len(self._chains)

    def join(self, runner: str) -> None:
        """A runner can take chains from now on."""
        self._chains[runner] = 0

    def leave(self, runner: str) -> None:
        """A runner takes no more chains; those that it has no longer count."""
        self._chains.pop(runner, None)

    def take(self) -> str | None:
        """Give a chain to the runner that has the fewest chains, or of several to the one that joined first. None without runners."""
        if not self._chains:
            return None
        runner = min(self._chains, key=self._chains.__getitem__)
        self._chains[runner] += 1
        return runner

    def give_back(self, runner: str) -> None:
        """A chain of the runner is over. A runner that has left is ignored."""
        if runner in self._chains:
            self._chains[runner] -= 1
