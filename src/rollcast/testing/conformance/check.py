"""A check: one fact about a backend, and what it needs to be checked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from rollcast.errors import InputError
from rollcast.testing.conformance.bench import Bench
from rollcast.testing.conformance.subject import BackendUnderTest, NotApplicable

__all__ = ["Check", "check"]


@dataclass(frozen=True)
class Check:
    """One fact that holds for every backend that keeps the contract.

    Attributes:
        name: its name, such as `deltas-join-to-the-text`.
        fact: the same as a sentence.
        needs: what the backend must have, or the subject must know; if it is lacking, the check is "n/a".
        fresh: whether it breaks the backend, or needs an unused one.
    """

    name: str
    fact: str
    needs: tuple[str, ...]
    fresh: bool
    run: Callable[[Bench], Awaitable[None]]

    def __str__(self) -> str:
        return self.name

    async def __call__(self, under_test: BackendUnderTest | Bench) -> None:
        """Check a backend: one made only for this check, or that of a bench.

        Raises:
            AssertionError: the backend breaks the contract; the message says what was found and what was expected.
            NotApplicable: the check does not apply to this backend; pytest shows a skip with the reason.
            InputError: Python runs without assertions, or the bench belongs to another event loop.
        """
        if isinstance(under_test, BackendUnderTest):
            async with Bench(under_test) as bench:
                await self(bench)
            return
        if not __debug__:
            raise InputError(
                "Python runs without assertions (-O), which the checks are made of; run it without -O"
            )
        bench = under_test
        bench.require(self.needs)
        await bench.prepare(fresh=self.fresh)
        try:
            bench.require(self.needs)
            await self._within(bench)
        except NotApplicable:
            raise
        except BaseException:
            # What a failed check leaves behind would make others fail; only its own failure is reported.
            with suppress(Exception):
                async with asyncio.timeout(bench.subject.timeout_s):
                    await bench.discard()
            raise
        if self.fresh:
            await bench.discard()

    async def _within(self, bench: Bench) -> None:
        limit = bench.subject.timeout_s
        try:
            async with asyncio.timeout(limit) as timer:
                await self.run(bench)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise AssertionError(f"{self.name} did not end within {limit:g} s: something hangs") from error
        except (AssertionError, NotApplicable):
            raise
        except Exception as error:  # anything that a backend raises here is a failure of the check
            raise AssertionError(
                f"{self.name} was broken off by {type(error).__name__}: {error}; expected the backend to raise nothing here"
            ) from error


def check(*needs: str, fresh: bool = False) -> Callable[[Callable[[Bench], Awaitable[None]]], Check]:
    """Make a check of a function: its name and the first line of its docstring are the check's."""

    def made(run: Callable[[Bench], Awaitable[None]]) -> Check:
        name = getattr(run, "__name__", "").replace("_", "-")
        return Check(name, (run.__doc__ or "").splitlines()[0], needs, fresh, run)

    return made
