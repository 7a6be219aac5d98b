"""Two processes, watched in one place: a hub here, and two lines of environment there. Usually `rollcast hub` is the hub."""

import asyncio
import os
import sys

from rollcast import CallbackStreamObserver, StreamEvent, StreamingManager, WebSocketStreamingServer
from rollcast.fleet import Hub
from rollcast.serve import ServerSettings, Token

WORKER = """
import asyncio
from rollcast import BaseAgent
from rollcast.testing import ScriptedBackend

agent = BaseAgent(backend=ScriptedBackend(["The answer is 42."]))
asyncio.run(agent.run_async(1, [{"role": "user", "content": "What is 6 * 7?"}], num_chains=2))
"""


def show(_: str, event: StreamEvent) -> None:
    """Print who says what of which chain."""
    print(event.source, event.event_type, event.chain_id)


async def main() -> None:
    """Run two workers, and print what both of them do."""
    manager = StreamingManager(publish=False)
    types = ["run_start", "chain_end", "run_end"]
    manager.add_observer(CallbackStreamObserver(show, types=types))
    settings = ServerSettings(tokens=(Token("a-secret", ("publish",)),))
    server = WebSocketStreamingServer(port=0, settings=settings)
    async with Hub(server, manager, viewers=False) as hub:
        for source in ("left", "right"):
            there = {"ROLLCAST_HUB": server.url, "ROLLCAST_HUB_TOKEN": "a-secret", "ROLLCAST_SOURCE": source}
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-c", WORKER, env=os.environ | there
            )
            await worker.wait()
        print([(row["source"], row["events"]) for row in hub.rows()])
    await manager.aclose()


asyncio.run(main())
