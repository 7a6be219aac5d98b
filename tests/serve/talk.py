"""A client of `rollcast.v1` for tests, which sends and receives single frames."""

import asyncio
import json

HEAR_S = 60


def is_run_end(event):
    return event["event_type"] == "run_end"


class Talk:
    """Sends and receives frames on a WebSocket."""

    def __init__(self, socket):
        self.socket = socket

    async def say(self, kind, **fields):
        """Send a frame of this type."""
        await self.socket.send(json.dumps({"type": kind} | fields))

    async def hear(self, *types):
        """The next frame of one of these types; others are left out."""
        async with asyncio.timeout(HEAR_S):
            while True:
                frame = json.loads(await self.socket.recv())
                if frame["type"] in types:
                    return frame

    async def ask(self, what, **fields):
        """The rows of a query, and its `done` or `error`."""
        await self.say("query", id="q", what=what, **fields)
        rows = []
        while (frame := await self.hear("rows", "done", "error"))["type"] == "rows":
            rows += frame["rows"]
        return rows, frame

    async def events(self, last=is_run_end):
        """The events up to the batch that has one which `last` accepts, and the cursor after them."""
        events = []
        while True:
            batch = await self.hear("batch", "error")
            assert batch["type"] == "batch", batch
            events += batch["events"]
            if any(map(last, batch["events"])):
                return events, batch["cursor"]
