"""Measures a client that connects and never reads: what it costs the run, in time and in memory, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import time
import tracemalloc

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.readers import REQUEST, SUBPROTOCOL
from benchmarks.serve_house import House, until
from benchmarks.tokens import tokens

__all__ = ["stuck"]

EVENTS = 40_000  # per trial: more than the network, the buffer and the server's patience hold
BURST = 250
SMALL = {"history_bytes": 4 << 20, "behind_bytes": 4 << 20, "client_buffer": 1 << 20, "close_s": 0.2}
FRAMES = (b'{"type":"hello"}', b'{"type":"subscribe","id":"1"}')


def stuck(quick: bool) -> list[Figure]:
    """Measure a run's CPU with and without it, beside a client that reads; the server's memory; its close code."""
    events, rounds = (2000, 2) if quick else (EVENTS, 15)
    with asyncio.Runner() as runner:
        house = House(batch_s=0.025, **SMALL)
        runner.run(house.open(1))

        async def trial(dead: bool) -> float:
            client = await _dead(house) if dead else None
            began = time.process_time()
            await _emit(house, events)
            cost = time.process_time() - began
            if client is not None:
                client.close()
                await until(lambda: house.server.statistics().connections == 1)
            return cost / events * 1e6

        trials = {dead: lambda dead=dead: runner.run(trial(dead)) for dead in (True, False)}
        costs = paired({"dead": trials[True], "none": trials[False]}, rounds)
        runner.run(house.close())
        gained, closed = runner.run(_memory(2 * events if quick else 4 * events, events))
        codes = [runner.run(_code(events)) for _ in range(1 if quick else 5)]
    ratio = ratios(costs["dead"], costs["none"])
    return [
        figure("serve: CPU an event, one client that reads", costs["none"], "µs"),
        figure("serve: CPU, with one more that never reads / without it", ratio, "×", "about 1"),
        figure(f"serve: clients that never read, {4 * events:,} events: memory gained at most", gained, "MiB", "<= 4"),
        figure("serve: of them closed", float(closed), "clients"),
        figure("serve: such clients that were not told 4008", float(sum(c != 4008 for c in codes)), "clients",
               None if quick else "<= 0"),
    ]  # fmt: skip


async def _emit(house: House, events: int) -> None:
    """Emit events in chains that end, since what is kept of open chains would grow."""
    words = tokens(BURST)
    for _ in range(events // BURST):
        with house.run.chain() as chain, chain.generation() as generation:
            for text, ids, logprobs in words:
                generation.chunk(text, ids, logprobs, 0)
        await house.manager.drain()
        await asyncio.sleep(0)
        await house.sent()  # otherwise, on a busy machine, the client that reads would be too slow
    await house.flush()


async def _dead(house: House) -> socket.socket:
    """A client that has subscribed and will read no more."""
    there = house.server.statistics().subscriptions
    client = socket.create_connection(("127.0.0.1", house.server.port))
    client.sendall(REQUEST.format(port=house.server.port, query="", more=SUBPROTOCOL).encode())
    for frame in FRAMES:
        client.sendall(bytes([0x81, 0x80 | len(frame), 0, 0, 0, 0]) + frame)
    await until(lambda: house.server.statistics().subscriptions == there + 1)
    return client


async def _memory(events: int, trial: int) -> tuple[float, int]:
    """The most MiB that were gained after the history was full, with one dead client after another; how many there were."""
    house = House(batch_s=0.025, **SMALL)
    await house.open(1)
    tracemalloc.start()
    await _emit(house, trial)
    gc.collect()
    base, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    dead = await _dead(house)
    for _ in range(0, events, BURST):
        await _emit(house, BURST)
        if house.server.statistics().subscriptions == 1:
            dead.close()
            dead = await _dead(house)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    dead.close()
    closed = house.server.statistics().closed_slow
    await house.close()
    return (peak - base) / 2**20, closed


async def _code(events: int) -> int | None:
    """The close code that the client finds when it finally reads; None if it was not closed."""
    house = House(batch_s=0.025, **{**SMALL, "close_s": 5.0})
    await house.open(1)
    client = await _dead(house)
    await _emit(house, events)
    code = None
    if house.server.statistics().closed_slow:
        client.settimeout(5)
        code = await asyncio.to_thread(_last_code, client)
    client.close()
    await house.close()
    return code


def _last_code(client: socket.socket) -> int | None:
    """The code in the close frame at the end of what comes."""
    stream = client.makefile("rb")
    while stream.readline() != b"\r\n":
        pass
    while len(head := stream.read(2)) == 2:
        size = head[1] & 0x7F
        if size >= 126:
            size = int.from_bytes(stream.read(2 if size == 126 else 8))
        body = stream.read(size)
        if head[0] & 0x0F == 8:
            (code,) = struct.unpack("!H", body[:2])
            return int(code)
    return None
