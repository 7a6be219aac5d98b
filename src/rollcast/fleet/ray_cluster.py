"""A connection to a Ray cluster, or to one that is started here for this process alone."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from rollcast.errors import InputError, MissingExtraError, WorkersError
from rollcast.failures import text_of

__all__ = ["RayCluster", "checked_address", "load_ray"]

T = TypeVar("T")

CONNECT_S = 10.0  # how long the cluster's head may take to accept a connection
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


def load_ray() -> Any:
    """Import Ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("running chains on a Ray cluster", "ray") from error


def checked_address(address: str) -> str:
    """The address of a cluster, if it is one.

    Raises:
        InputError: it is not.
    """
    host, _, port = address.rpartition(":")
    if address in ("local", "auto") or (
        host and "/" not in host and port.isascii() and port.isdecimal() and int(port) < 1 << 16
    ):
        return address
    raise InputError(
        f"the address of the Ray cluster is {address!r}; expected HOST:PORT of its head, such as 10.0.0.1:6379, `auto` on a "
        "machine of the cluster, or `local` for one that is started here"
    )


class RayCluster:
    """A cluster to which this process is connected.

    Args:
        address: `local`, `auto` or `HOST:PORT`.
        runtime_env: Ray's description of what its workers need.

    Attributes:
        ray: the package.
        local: whether the cluster was started here, and ends with `close`.
    """

    def __init__(self, address: str, runtime_env: Mapping[str, Any] | None = None) -> None:
        self._address = checked_address(address)
        self._runtime_env = runtime_env
        self.local = address == "local"
        self.ray = load_ray()
        self._connected_here = False
        # Everything that blocks runs on this one thread: if several threads put objects, Ray 2.60 gives them the same id, and aborts.
        self._thread = ThreadPoolExecutor(1, "rollcast-ray")

    async def connect(self) -> None:
        """Connect, or start the cluster.

        A process has one connection to Ray: if the user's own code has connected already, that cluster is used.

        Raises:
            WorkersError: no cluster can be reached at this address, it refuses this process, or it has another version of Ray or of Python.
        """
        try:
            await self._on_thread(self._connect)
        finally:
            _take_back_sigterm()

    async def _on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _connect(self) -> None:
        if self.ray.is_initialized():
            self.local = False
            return
        options: dict[str, Any] = {"runtime_env": dict(self._runtime_env)} if self._runtime_env else {}
        if self.local:
            # A cluster of one process is not worth a usage report, which Ray sends by default.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"num_cpus": os.cpu_count(), "include_dashboard": False}
        self._check_that_somebody_listens()
        try:
            with _quiet_logger("ray"):
                self.ray.init(self._address, log_to_driver=False, configure_logging=False, **options)
        except Exception as error:  # Ray raises many kinds
            raise WorkersError(self._why_not(error)) from error
        self._connected_here = True
        _keep_ray_from_printing()

    def _check_that_somebody_listens(self) -> None:
        """Find out at once whether a head is there, for which Ray itself would look for minutes.

        Raises:
            WorkersError: nothing listens at the address.
        """
        host, colon, port = self._address.rpartition(":")
        if not colon:
            return
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except OSError as error:
            raise WorkersError(
                f"the Ray cluster {self._address} cannot be reached: {error.strerror or error}; give HOST:PORT of its head, "
                "which `ray start --head` prints"
            ) from None

    def _why_not(self, error: Exception) -> str:
        """Why the cluster cannot be reached, in a sentence."""
        text = " ".join(text_of(error).split())
        place = "a Ray cluster here" if self.local else f"the Ray cluster {self._address}"
        versions = _VERSIONS.findall(text)
        if len(versions) == 2:
            (theirs, their_python), (ours, our_python) = versions
            return (
                f"{place} runs Ray {theirs} with Python {their_python}, and this process Ray {ours} with Python {our_python}; "
                "install the cluster's versions here"
            )
        if type(error).__name__ == "AuthenticationError":
            return (
                f"{place} refused the token of this process; give it the cluster's: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH"
            )
        if self._address == "auto" and "any running Ray instance" in text:
            return (
                "this machine belongs to no running Ray cluster; give HOST:PORT of a cluster's head instead of `auto`, or `local` "
                "for one that is started here"
            )
        if (
            not self.local and isinstance(error, ConnectionError) and self._address != "auto"
        ):  # somebody listens there
            return (
                f"{place} takes no connection from this process, although something listens there: it is not the head of a Ray "
                "cluster, or the cluster wants another token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        what = "cannot be started" if self.local else "cannot be reached"
        return f"{place} {what}: {type(error).__name__}: {text[:300]}"

    def how_many(self, cpus: float, gpus: float) -> int:
        """How many runners fit into the cluster, at least 1."""
        there = self.ray.cluster_resources()
        fits = [there.get(kind, 0.0) // needed for kind, needed in (("CPU", cpus), ("GPU", gpus)) if needed]
        return max(1, int(min(fits, default=1)))

    @property
    def resources(self) -> str:
        """What the cluster has and what of it is free, in words."""
        there, free = self.ray.cluster_resources(), self.ray.available_resources()
        told = [
            f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in there
        ]
        return " and ".join(told) or "nothing"

    @property
    def host(self) -> str:
        """The address at which the cluster's hosts reach this process."""
        return "127.0.0.1" if self.local else str(self.ray.util.get_node_ip_address())

    async def put(self, value: Any) -> Any:
        """Ray's reference to a copy of the value, which is fetched where it is used."""
        return await self._on_thread(self.ray.put, value)

    async def close(self) -> None:
        """Disconnect, if `connect` connected; a local cluster ends."""
        await self._on_thread(self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._connected_here:
            self._connected_here = False
            self.ray.shutdown()


def _keep_ray_from_printing() -> None:
    """Keep Ray's threads from printing what happens to workers to the standard output, where events or a panel may be.

    Whoever loses a runner is told by Rollcast. The flag is not public; without it the lines come as before.
    """
    worker = sys.modules.get("ray._private.worker")
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False  # type: ignore[union-attr]  # noqa: SLF001


def _take_back_sigterm() -> None:
    """Install Python's handler again: Ray puts one in its place that prints a stack and aborts, so that no run could end properly."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _quiet_logger(name: str) -> Iterator[None]:
    """Keep a logger from giving advice to a program that never spoke to it; errors are still logged."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
