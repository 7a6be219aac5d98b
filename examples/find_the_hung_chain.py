"""One of eight chains hangs in a tool while the others go on: which one, in which tool, and since when?

The hint is printed, and the chain is cancelled. With `--serve 8765` the page shows it: docs/find-it.md has a picture.
"""

import asyncio
import contextlib
import sys

from rollcast import BaseAgent, ChainContext, WebSocketStreamingServer, tool
from rollcast.archive import ArchiveObserver
from rollcast.observers import HintObserver
from rollcast.serve import ServerSettings
from rollcast.testing import ScriptedBackend

CALL = '<tool_call>{"name": "%s", "arguments": {"%s": "Ferdinand Braun"}}</tool_call>'
TURNS = [CALL % ("search", "query"), CALL % ("open_page", "title")]
MAY_CANCEL = ServerSettings(anonymous_scopes=("read", "control"))  # of everyone who opens the page


@tool
def search(query: str) -> str:
    """Search the encyclopedia."""
    return f"3 articles about {query}"


@tool(timeout=None)
async def open_page(title: str, ctx: ChainContext) -> str:
    """Read an article."""
    ctx.state["pages"] = ctx.state.get("pages", 0) + 1
    if ctx.chain_id == "chain_5" and ctx.state["pages"] == 3:
        await asyncio.Event().wait()  # as if no answer ever came; by default a tool has a minute
    await asyncio.sleep(0.3)
    return f"{title}, born in Fulda in 1850, was a physicist."


async def main(port=None):
    def cancel_it(change):
        if change.appeared:
            print(change.hint.sentence)
            manager.cancel(change.hint.run_id, *change.hint.chains)

    turns = [*TURNS * (150 if port else 14), "In Fulda."]
    backend = ScriptedBackend(turns, delay=0.02, logprob=lambda _: -0.01)
    agent = BaseAgent(backend=backend, tools=[search, open_page])
    manager = agent.streaming_manager
    if port:
        manager.add_observer(ArchiveObserver.within(name="hung", level="tokens"))
        server = WebSocketStreamingServer(port=int(port), settings=MAY_CANCEL)
        await server.start()
        print("in a browser:", server.page_url, flush=True)
    manager.add_observer(server.get_observer() if port else HintObserver(cancel_it))
    for t in await agent.run_async(301, [{"prompt": "Where was Braun born?"}], 8, enable_streaming=True):
        print(t.chain_id, t.finish_reason)
    if port:
        await asyncio.Event().wait()  # until Ctrl-C


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[2:]))
