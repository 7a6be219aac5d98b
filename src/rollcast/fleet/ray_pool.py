"""The runners on a Ray cluster: they are started, watched, given weights, and replaced when they die."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import msgspec

from rollcast.errors import WorkersError
from rollcast.failures import text_of
from rollcast.fleet.loads import Loads
from rollcast.fleet.ray_cluster import RayCluster
from rollcast.fleet.runner import Runner, RunnerAbout, RunnerOrder

__all__ = ["RunnerDiedError", "RunnerNeeds", "RunnerPool"]

logger = logging.getLogger("rollcast.fleet")

AT_ONCE = 10_000  # chains at a runner; Ray's default is 1,000 calls
MAX_FAILED_STARTS = 3  # in a row at one place
BACK_OFF_S = 1.0  # before the second start that follows a failed one
CLOSE_S = 5.0  # how long a runner may take to close


_BECAUSE = re.compile(r"The actor is dead because (.+?)(?:\.|$)")


class RunnerDiedError(Exception):
    """The runner died. The message is a sentence that says how."""


class RunnerNeeds(msgspec.Struct, frozen=True):
    """What each runner needs.

    Attributes:
        cpus, gpus: as Ray counts them.
        start_timeout_s: how many seconds the first runner may take to start.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    start_timeout_s: float = 120.0


class RunnerPool:
    """A number of runners of one agent. It belongs to the event loop in which it was started.

    Args:
        cluster: where they run.
        order: what each begins with.
        how_many: runners.
        needs: what each needs.
        on_death: called with what a runner said of itself, after it has died.

    Attributes:
        loop: the event loop.
        about: by name, what each runner said of itself.
    """

    def __init__(
        self,
        cluster: RayCluster,
        order: RunnerOrder,
        how_many: int,
        needs: RunnerNeeds,
        on_death: Callable[[RunnerAbout], object] = lambda _: None,
    ) -> None:
        self._on_death = on_death
        self._cluster = cluster
        self._ray = cluster.ray
        self._order = order
        self._needs = needs
        self._how_many = how_many
        self._kind = self._ray.remote(Runner).options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, max_concurrency=AT_ONCE, scheduling_strategy="SPREAD"
        )
        self._actors: dict[str, Any] = {}  # by the runner's name: those that have started
        self.about: dict[str, RunnerAbout] = {}
        self._loads = Loads()
        self._coming = how_many  # runners that are starting
        self._keepers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._why_none = ""  # why a runner is not there
        self._refused = False
        self._weights: tuple[Any, int] | None = None
        self.loop = asyncio.get_running_loop()

    # -- starting and replacing ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the runners, and wait until all have started, or until the time is up and one has.

        Raises:
            WorkersError: none could start, or the agent cannot be loaded where one did.
        """
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(self._how_many)]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._needs.start_timeout_s):
                while self._coming and not self._refused:
                    await self._next_change()
        if self._refused or not len(self._loads):
            why = self._why_none or await asyncio.to_thread(self._why_pending)
            await self.close()
            raise WorkersError(why)
        if self._coming:
            logger.warning("%s; going on with %d runners", self._why_pending(), len(self._loads))

    def _why_pending(self) -> str:
        needs = self._needs
        asked = f"{needs.cpus:g} CPUs" + (f" and {needs.gpus:g} GPUs" if needs.gpus else "")
        return (
            f"{self._coming} of {self._how_many} runners could not be started within {needs.start_timeout_s:g} s: each needs "
            f"{asked}, and of the cluster {self._cluster.resources} are free"
        )

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _keep(self, place: int) -> None:
        """Keep a runner at a place: whenever it dies, start another."""
        failed = 0
        for time in count(1):
            name = f"runner_{place}" if time == 1 else f"runner_{place}.{time}"
            actor = self._kind.remote()
            try:
                if not await self._begun(name, actor):
                    return
                failed = 0
                await actor.watch.remote()
            except self._ray.exceptions.RayError as error:
                failed = 0 if name in self._loads else failed + 1
                self._left(name, error)
            finally:
                self._ray.kill(actor)
            if failed == MAX_FAILED_STARTS:
                self._set_coming(-1)
                return
            await asyncio.sleep(BACK_OFF_S * failed)

    async def _begun(self, name: str, actor: Any) -> bool:
        """Start a runner, and let it take chains. Returns False if it refuses the agent."""
        about: RunnerAbout = await actor.start.remote(self._order)
        if about.refusal:
            self._why_none, self._refused = about.refusal, True
            self._set_coming(-1)
            return False
        weights = None
        while weights is not self._weights:  # newer ones may come meanwhile
            weights = self._weights
            assert weights is not None
            await actor.update_weights.remote(*weights)
        self._actors[name], self.about[name] = actor, about
        self._loads.join(name)
        self._set_coming(-1)
        logger.debug("%s runs on %s, process %d", name, about.host, about.pid)
        return True

    def _left(self, name: str, error: BaseException) -> None:
        """Note that a runner died, before it started or after."""
        self._why_none = self._how_died(name, error)
        if name in self._loads:
            self._loads.leave(name)
            del self._actors[name]
            self._on_death(self.about[name])
            logger.warning("%s; another one is started", self._why_none)
            self._set_coming(+1)

    def _how_died(self, name: str, error: BaseException) -> str:
        about = self.about.get(name)
        where = "" if about is None else f" (process {about.pid} on {about.host})"
        return f"{name}{where} died: {why_died(error)}"

    def _set_coming(self, change: int) -> None:
        self._coming += change
        self._changed.set()

    # -- chains --------------------------------------------------------------------------------------------------------

    async def take(self) -> str:
        """The name of the runner that is to have the next chain. Give it back when the chain is over.

        Raises:
            WorkersError: all runners died, and no other one starts.
        """
        while (name := self._loads.take()) is None:
            if not self._coming:
                raise WorkersError(f"no runner is left: {self._why_none}")
            try:
                async with asyncio.timeout(self._needs.start_timeout_s):
                    await self._next_change()
            except TimeoutError:
                raise WorkersError(f"no runner is left: {self._why_none}; {self._why_pending()}") from None
        return name

    def give_back(self, name: str) -> None:
        """A chain of this runner is over."""
        self._loads.give_back(name)

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of a runner.

        Raises:
            RunnerDiedError: it died before it answered, or had died.
        """
        actor = self._actors.get(name)
        if actor is None:
            raise RunnerDiedError(self._why_none)
        try:
            return await getattr(actor, method).remote(*arguments)
        except (self._ray.exceptions.RayTaskError, self._ray.exceptions.TaskCancelledError):
            raise  # the runner lives, and its code raised this
        except self._ray.exceptions.RayError as error:
            self._ray.kill(
                actor
            )  # it may only be out of reach, and must not run a chain that runs again elsewhere
            raise RunnerDiedError(self._how_died(name, error)) from error

    async def call_all(self, method: str, *arguments: Any, timeout: float | None = None) -> dict[str, Any]:
        """Call a method of every runner, and wait for it, or for the timeout. Those that die meanwhile are passed over.

        Returns:
            The answers by the runners' names.

        Raises:
            BaseException: what a runner's code raised.
        """
        calls = {asyncio.create_task(self.call(name, method, *arguments)): name for name in self._actors}
        if not calls:
            return {}
        done, late = await asyncio.wait(calls, timeout=timeout)
        for call in late:
            call.cancel()
        answers = {}
        for call in done:
            with suppress(RunnerDiedError):
                answers[calls[call]] = call.result()
        return answers

    async def update_weights(self, reference: Any, version: int) -> None:
        """Give every runner new weights, also those that start later. When this returns, all of them sample from these.

        Args:
            reference: Ray's reference to the weights.
            version: their number.
        """
        self._weights = reference, version
        await self.call_all("update_weights", reference, version)

    async def close(self) -> None:
        """End the runners."""
        await self.call_all("close", timeout=CLOSE_S)
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        self._loads = Loads()
        self._actors.clear()


def why_died(error: BaseException) -> str:
    """How a runner died, in words without a full stop: Ray's texts have many lines."""
    text = text_of(getattr(error, "cause", None) or error).strip()
    if "creation task" in text:  # a traceback, whose last line says what was raised
        return text.splitlines()[-1].strip().rstrip(".")
    because = _BECAUSE.search(" ".join(text.split()))
    return because[1] if because else " ".join(text.split())[:200].rstrip(".")
