"""A producer that is written by hand: single frames on a WebSocket, as another implementation would send them."""

import asyncio
import contextlib
import json
import time
from pathlib import Path

from websockets.asyncio.client import connect

TOKEN = "shibboleth"
CHAIN = {"messages": [{"role": "user", "content": "Say it."}], "tools": [], "index": 0, "policy_version": 0}
GENERATION = {"prompt_tokens": 1, "model": "m", "policy_version": 0, "sampling": {}}
HEAR_S = 60


def event(kind, seq, chain="", *, run="r", source="w", step=None, **data):
    """An event as JSON has it."""
    return {
        "event_type": kind,
        "chain_id": chain,
        "timestamp": time.time(),
        "data": data,
        "step": step,
        "depth": step,
        "seq": seq,
        "run_id": run,
        "group_id": None,
        "source": source,
    }


def start(seq=0, **place):
    """The start of a run."""
    about = {"chains": 1, "groups": 1, "agent": "A", "model": "m", "backend": "B", "policy_version": 0}
    return event("run_start", seq, **about, **place)


def end(seq, **place):
    """The end of a run."""
    about = {"status": "completed", "chains": 1, "failed": 0, "mean_reward": None, "completion_tokens": 0}
    return event("run_end", seq, **about, duration_s=1.0, **place)


def chain(seq, name, **place):
    """The start of a chain."""
    return event("chain_start", seq, name, **CHAIN, **place)


def chain_end(seq, name, **place):
    """The end of a chain."""
    about = {"finish_reason": "answered", "final_response": "done", "steps": 1, "completion_tokens": 1}
    return event("chain_end", seq, name, **about, reward=None, metrics={}, duration_s=1.0, **place)


def chunk(seq, name, content, offset, **place):
    """A token."""
    return event("llm_generation_chunk", seq, name, content=content, offset=offset, **place)


class Talk:
    """Sends and receives frames on a WebSocket.

    Attributes:
        welcome: the answer to `hello`.
        compact: whether its JSON is as short as Rollcast's own, which a hub reads by a quicker way.
    """

    def __init__(self, socket):
        self.socket = socket
        self.compact = False

    async def say(self, kind, **fields):
        """Send a frame of this type."""
        separators = (",", ":") if self.compact else None
        await self.socket.send(json.dumps({"type": kind} | fields, separators=separators))

    async def hear(self, *types, where=lambda _: True):
        """The next frame of one of these types of which this is true; others are left out."""
        async with asyncio.timeout(HEAR_S):
            while True:
                frame = json.loads(await self.socket.recv())
                if frame["type"] == "ping":
                    await self.say("pong")
                if frame["type"] in types and where(frame):
                    return frame

    async def publish(self, seq, *events, **fields):
        """Send events, the first of which has this number."""
        await self.say("publish", seq=seq, events=list(events), **fields)

    async def acked(self, seq):
        """Wait until everything up to this number is acknowledged."""
        return await self.hear("ack", where=lambda frame: frame["seq"] >= seq)

    async def events(self, until):
        """The events of batches up to one of which `until` is true."""
        found = []
        while True:
            batch = await self.hear("batch")
            found += batch["events"]
            if any(map(until, batch["events"])):
                return found

    async def rows(self, what, **fields):
        """The rows of a query."""
        await self.say("query", id="q", what=what, **fields)
        rows = []
        while (frame := await self.hear("rows", "done", "error"))["type"] == "rows":
            rows += frame["rows"]
        assert frame["type"] == "done", frame
        return rows


@contextlib.asynccontextmanager
async def talking(url, **hello):
    """A connection that has been welcomed; or that was told otherwise, if `welcome` is an `error`."""
    async with connect(url, subprotocols=["rollcast.v1"]) as socket:
        talk = Talk(socket)
        await talk.say("hello", **{"token": TOKEN} | hello)
        talk.welcome = await talk.hear("welcome", "error")
        yield talk


def producing(url, source="w", epoch="e1", **hello):
    """The same for a producer."""
    return talking(url, **{"role": "producer", "source": source, "epoch": epoch, "host": "there"} | hello)


def is_kind(kind):
    """Whether an event is of this type."""
    return lambda event: event["event_type"] == kind


def folders(directory):
    """The records in a directory."""
    return sorted(path.parent for path in Path(directory).glob("*/run.json"))
