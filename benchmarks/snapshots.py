"""Watchers that come while much is open: 700 chains whose prompts have 100 kB each.

How long until a watcher has all snapshots, what that costs the run, and what clients cost that never read. Each trial is a
process of its own, `snapshots.py '{"chains": 700, …}'`, so that its peak of memory is its own; the watcher is another one.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.readers import REQUEST, SUBPROTOCOL
from rollcast import BaseAgent
from rollcast.serve import ServerSettings, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.stream import StreamingManager
from rollcast.testing import ScriptedBackend

__all__ = ["run"]

CHAINS = 700
PROMPT = 100_000  # characters
TOKENS = 1000  # of each chain
WATCHERS = 40
FRAMES = (b'{"type":"hello"}', b'{"type":"subscribe","id":"1"}')


def run(quick: bool) -> list[Figure]:
    """The run alone, with one watcher, and with forty that never read."""
    size = {"chains": 20, "tokens": 200} if quick else {"chains": CHAINS, "tokens": TOKENS}
    rounds, dead = (1, 4) if quick else (5, WATCHERS)
    came = paired(
        {
            "alone": lambda: _trial(**size),
            "watched": lambda: _trial(**size, watchers=1),
            "unread": lambda: _trial(**size, dead=dead),
        },
        rounds,
    )
    rates = {name: [t["tokens_per_s"] for t in trials] for name, trials in came.items()}
    cpu = {name: [t["cpu_s"] for t in trials] for name, trials in came.items()}
    what = f"snapshots: {size['chains']} chains × {PROMPT // 1000} kB"
    return [
        figure(f"{what}: until a watcher has all", [t["seconds"] for t in came["watched"]], "s"),
        figure(f"{what}: the run alone", rates["alone"], "tokens/s"),
        figure(f"{what}: with a watcher / alone", ratios(rates["watched"], rates["alone"]), "×"),
        figure(f"{what}: with {dead} that never read / alone", ratios(rates["unread"], rates["alone"]), "×"),
        figure(f"{what}: CPU with a watcher / alone", ratios(cpu["watched"], cpu["alone"]), "×"),
        figure(f"{what}: CPU with {dead} that never read / alone", ratios(cpu["unread"], cpu["alone"]), "×"),
        figure(f"{what}: memory that {dead} cost that never read", _gained(came), "MiB", "<= 50"),
    ]  # fmt: skip


def _gained(came: dict[str, list[dict[str, Any]]]) -> list[float]:
    pairs = zip(came["unread"], came["alone"], strict=True)
    return [unread["peak_mib"] - alone["peak_mib"] for unread, alone in pairs]


def _trial(**options: Any) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), json.dumps(options)]
    told = subprocess.run(command, capture_output=True, check=True, timeout=300)
    came: dict[str, Any] = json.loads(told.stdout)
    return came


async def main(
    chains: int, tokens: int, watchers: int = 0, dead: int = 0, prompt: int = PROMPT
) -> dict[str, Any]:
    """One run; the watchers come when each chain has said a word.

    Returns:
        Tokens a second; seconds of CPU; seconds until the (last) watcher had a snapshot of each chain, None if it had not; the peak of memory in MiB.
    """
    manager = StreamingManager()
    said, begun = set(), asyncio.Event()

    async def count(request: Any, token: int) -> None:
        said.add(request.request_id)
        if len(said) == chains and token > 0:
            begun.set()
        await asyncio.sleep(0)

    backend = ScriptedBackend("word " * tokens, token_exact=False, before_token=count)
    rows = [{"messages": [{"role": "user", "content": f"{i:06} " + "x" * prompt}]} for i in range(chains)]
    agent = BaseAgent(backend=backend, streaming_manager=manager)
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings(heartbeat_s=5.0))
    async with server:
        manager.add_observer(server.get_observer())
        readers = [await _reader(server.port, chains) for _ in range(watchers)]
        began, spent = time.perf_counter(), time.process_time()
        going = asyncio.create_task(
            agent.run_async(1, rows, enable_streaming=True, max_concurrent_chains=chains)
        )
        await begun.wait()
        sockets = [_unread(server.port) for _ in range(dead)]
        for reader in readers:
            reader.stdin.write(b"now\n")
        await going
        rate = chains * tokens / (time.perf_counter() - began)
        spent = time.process_time() - spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told = [json.loads((await reader.communicate())[0]) for reader in readers]
        for each in sockets:
            each.close()
    await manager.aclose()
    seconds = [t["seconds"] for t in told]
    return {
        "tokens_per_s": rate,
        "cpu_s": spent,
        "seconds": max(seconds, default=None),
        "peak_mib": peak,
        "told": told,
    }


async def _reader(port: int, chains: int) -> asyncio.subprocess.Process:
    command = [sys.executable, str(Path(__file__)), json.dumps({"watch": port, "chains": chains})]
    pipe = asyncio.subprocess.PIPE
    reader = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert reader.stdout is not None
    await reader.stdout.readline()
    return reader


def _unread(port: int) -> socket.socket:
    """A client that asks for everything and never reads."""
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(REQUEST.format(port=port, query="", more=SUBPROTOCOL).encode())
    for frame in FRAMES:
        client.sendall(bytes([0x81, 0x80 | len(frame), 0, 0, 0, 0]) + frame)
    return client


async def watch(port: int, chains: int) -> dict[str, Any]:
    """Come when a line stands in standard input; how long it took until there was a snapshot of each chain."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began, seen, gaps = time.perf_counter(), set(), 0
    took = None
    client = WebSocketStreamingClient(f"ws://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(120):
            async for event in client:
                gaps += event.event_type == "gap"
                if event.event_type == "chain_snapshot":
                    seen.add(event.chain_id)
                    if len(seen) == chains:
                        took = time.perf_counter() - began
                if event.event_type == "run_end":
                    break
    except TimeoutError:
        pass
    await client.aclose()
    return {
        "seconds": took, "snapshots": len(seen), "gaps": gaps, "reconnections": client.reconnections
    }  # fmt: skip


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if "watch" in given:
        print(json.dumps(asyncio.run(watch(given["watch"], given["chains"]))))
    else:
        print(json.dumps(asyncio.run(main(**given))))
