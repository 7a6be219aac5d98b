"""What fault schedules found about hubs that are restarted, each as its smallest case."""

import asyncio

from fleet.by_hand import TOKEN, chain, is_kind, producing, start, talking
from rollcast.fleet.acks_file import AcksFile
from rollcast.fleet.hub import Hub
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.stream import StreamingManager


async def test_a_process_is_known_before_its_events_are_seen(tmp_path):
    """Else a hub that dies before the first acknowledgement would take the rest of its run for another process's (seed 29)."""
    tokens = (Token(TOKEN, ("read", "control", "publish")),)
    server = WebSocketStreamingServer(
        "127.0.0.1", 0, settings=ServerSettings(tokens=tokens, hello_s=60.0, close_s=0.5)
    )
    acks = await asyncio.to_thread(AcksFile, tmp_path)
    async with (
        Hub(server, StreamingManager(publish=False), acks=acks) as hub,
        talking(hub.server.url) as viewer,
        producing(hub.server.url) as producer,
    ):
        await viewer.say("subscribe", id="s")
        await viewer.hear("subscribed")
        await producer.publish(1, start(0), chain(1, "chain_0"))
        await viewer.events(is_kind("run_start"))
        assert ("w", "e1") in acks.acked
        assert '["w","e1",0]' in await asyncio.to_thread(acks.path.read_text)
