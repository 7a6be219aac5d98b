"""Measures the WebSocket server: what a client costs, latency, bytes on the wire, clients that never read, and requests for pages."""

from __future__ import annotations

import asyncio
import time

from benchmarks.measure import Figure, figure
from benchmarks.serve_asked import asked
from benchmarks.serve_fanout import fan_out
from benchmarks.serve_house import until
from benchmarks.serve_rate import rates
from benchmarks.serve_stuck import stuck
from benchmarks.serve_wire import wire
from rollcast.records import StreamEventType
from rollcast.serve import WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.stream import StreamingManager

__all__ = ["run"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK


def run(quick: bool) -> list[Figure]:
    """Measure the server. Clients read in another process, and their cost is not counted."""
    return [
        *fan_out(quick),
        *asyncio.run(_first_token(10 if quick else 200)),
        *rates(quick),
        *wire(quick),
        *stuck(quick),
        *asked(quick),
    ]


async def _first_token(generations: int) -> list[Figure]:
    """Measure from `chunk` until `WebSocketStreamingClient` has it, in one event loop, with a batch's usual 25 ms."""
    manager = StreamingManager()
    waits: list[float] = []
    async with WebSocketStreamingServer("127.0.0.1", 0) as server:
        manager.add_observer(server.get_observer())
        async with WebSocketStreamingClient(server.url) as client:
            events = aiter(client)
            run_start = asyncio.ensure_future(anext(events))
            await until(lambda: server.statistics().subscriptions == 1)
            run = manager.run().open()
            await run_start
            for _ in range(generations):
                with run.chain() as chain, chain.generation() as generation:
                    await asyncio.sleep(0.03)  # the event that opened the generation was sent
                    began = time.perf_counter()
                    generation.chunk("word")
                    while (await anext(events)).event_type is not CHUNK:
                        pass
                    waits.append((time.perf_counter() - began) * 1e3)
            run.close()
        await manager.aclose()
    last = sorted(waits)[int(0.99 * len(waits))]
    return [
        figure("serve: first token of a generation at the client", waits, "ms", "<= 10"),
        figure("serve: the same, 99th percentile", last, "ms"),
    ]
