"""A program that runs, serves and records, until it is killed: `python recorded_run.py DIRECTORY NAME PORT [PARENT]`."""

import asyncio
import sys
from pathlib import Path

from rollcast.archive import ArchiveObserver
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.stream import StreamingManager


async def one_chain(run, number):
    with run.chain(chain_id=f"chain_{number}") as chain:
        for turn in range(1000):
            with chain.generation() as generation:
                for word in range(50):
                    generation.chunk(f"{turn}:{word} ")
                    await asyncio.sleep(0.002)


async def main(directory, name, port, parent=None):
    manager = StreamingManager()
    manager.add_observer(
        ArchiveObserver(Path(directory) / name, about={"parent": parent} if parent else None, masker=False)
    )
    server = WebSocketStreamingServer(
        "127.0.0.1", int(port), settings=ServerSettings(history_bytes=8192, behind_bytes=8192, hello_s=60.0)
    )
    manager.add_observer(server.get_observer())
    async with server:
        print(server.port, flush=True)
        async with manager.run(chains=4, run_id=name) as run, asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(one_chain(run, number))


asyncio.run(main(*sys.argv[1:]))
