"""What a load consists of, and what its chains say. Nothing here knows a clock or a manager."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from rollcast.errors import InputError

__all__ = ["VOCABULARY", "ChainPlan", "Load", "Token", "plan_of_chain"]

Token = tuple[str, list[int], list[float]]
"""Text, one id, its log-probability."""

VOCABULARY: list[Token] = [
    (f" word{i}", [1000 + i], [-(i % 61 + 1) / 32]) for i in range(512)
]  # shared by all chunks: whoever gets one does not change its lists
TOKENS_OF_A_TURN = 50  # if the rate of the other events follows from that of the tokens
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load to play.

    Attributes:
        chains: how many are open at once: when one ends, the next begins.
        tokens_per_s: the tokens per second of each chain while it generates.
        events_per_s: all other events per second, of all chains together. None: as many as give turns of 50 tokens. 0: the
            chains do nothing but generate until the load ends.
        seconds: how long it goes on after all chains have begun.
        turns: the mean number of a chain's turns; each chain has from 1 to twice as many less one.
        tool_calls: how many tool calls follow each turn except the last.
        rewards: whether chains get rewards.
        group_size: how many chains have the same question.
        chains_per_run: after so many chains another run begins. None: after as many as are open at once.
        seed: of everything that is said.
        flat_out: play it as fast as possible instead of at these rates; the events and their order are the same.

    Raises:
        InputError: a number is out of range, or there is nothing to play.
    """

    chains: int = 100
    tokens_per_s: float = 20.0
    events_per_s: float | None = None
    seconds: float = 10.0
    turns: int = 3
    tool_calls: int = 1
    rewards: bool = True
    group_size: int = 8
    chains_per_run: int | None = None
    seed: int = 0
    flat_out: bool = False

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("turns", 1), ("tool_calls", 0), ("group_size", 1)):
            _check_count(name, getattr(self, name), least)
        if self.chains_per_run is not None:
            _check_count("chains_per_run", self.chains_per_run, 1)
        _check_count("seed", self.seed, 0)
        _check_number("tokens_per_s", self.tokens_per_s)
        _check_number("seconds", self.seconds)
        if self.events_per_s is not None:
            _check_number("events_per_s", self.events_per_s)
        elif self.tokens_per_s == 0:
            raise InputError(
                "a load without tokens has no rate for its other events; give events_per_s, or tokens_per_s above 0"
            )

    @property
    def all_tokens_per_s(self) -> float:
        """The tokens per second of all chains together while all of them generate."""
        return self.tokens_per_s * self.chains

    @property
    def all_events_per_s(self) -> float:
        """The other events per second, of all chains together."""
        if self.events_per_s is not None:
            return self.events_per_s
        return self.all_tokens_per_s / TOKENS_OF_A_TURN * (2 + 3 * self.tool_calls)


class ChainPlan(NamedTuple):
    """What one chain will do.

    Attributes:
        question, reference: of the chain's group.
        turns: how many it will have.
        reward: from 0 to 1.
        answer: its final response.
    """

    question: str
    reference: int
    turns: int
    reward: float
    answer: str


def plan_of_chain(load: Load, number: int) -> ChainPlan:
    """The plan of the chain that is the load's `number`-th, from 0."""
    shared, own = _mixed(load.seed, number // load.group_size), _mixed(~load.seed, number)
    a, b = shared & 0xFFFF, shared >> 16 & 0xFFFF
    right = own & 3 != 0
    return ChainPlan(
        question=f"A ship sails {a} miles on the first day and {b} on the second. How far has it come?",
        reference=a + b,
        turns=(own >> 2 & 0xFFFF) % (2 * load.turns - 1) + 1,
        reward=1.0 if right else 0.0,
        answer=f"It has come {a + b if right else a + b + 1} miles.",
    )


def _mixed(seed: int, number: int) -> int:
    """64 bits that look random and depend only on the arguments (splitmix64): a `Random` would cost as much as the chain."""
    z = (seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xD1342543DE82EF95) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number from {least}")


def _check_number(name: str, value: object) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{name} is {value!r}; expected a number from 0")
