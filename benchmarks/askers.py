"""A process that requests a page from a server, over and over: `askers.py '{"port": 8765, "path": "/metrics", "clients": 4}'`.

Each client asks again as soon as it has its answer. When standard input closes, it prints how many answers there were with each
status, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

__all__ = ["main"]


async def _ask(port: int, path: str, answers: Counter[str]) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await reader.read(-1)
            writer.close()
        except OSError:
            await asyncio.sleep(0.01)
            continue
        answers[answer[9:12].decode() or "none"] += 1


async def main(port: int, path: str, clients: int) -> dict[str, Any]:
    """Ask until standard input closes."""
    answers = Counter[str]()
    tasks = [asyncio.create_task(_ask(port, path, answers)) for _ in range(clients)]
    print("asking", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return dict(answers)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))
