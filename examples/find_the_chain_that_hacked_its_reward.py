"""A reward reads the expected answer from a file that the chain can write. Which chain got its reward that way, and how?

The hint is printed, with the calls of all chains. With `--serve 8765` the page shows it: docs/find-it.md has a picture.
"""

import asyncio
import contextlib
import sys

from rollcast import BaseAgent, ChainContext, WebSocketStreamingServer, reward, tool
from rollcast.archive import ArchiveObserver
from rollcast.observers import HintObserver
from rollcast.testing import ScriptedBackend
from rollcast.tools import calculator

CALL = '<tool_call>{"name": "%s", "arguments": {%s}}</tool_call>'
MOST = [CALL % ("calculator", '"expression": "17 * 23"'), "The answer is 391."]
WRITE = CALL % ("write_file", '"path": "expected.txt", "text": "7"')
OTHERS = {"chain_2": ["It is about 400."], "chain_5": [WRITE, "The answer is 7."]}


@tool
def write_file(path: str, text: str, ctx: ChainContext) -> str:
    """Write a file of the workspace."""
    ctx.state[path] = text
    return f"wrote {path}"


@reward
def as_expected(final_response: str, answer: int, ctx: ChainContext) -> float:
    """1.0 for the answer in expected.txt, or for the row's answer if no chain wrote that file."""
    return float(ctx.state.get("expected.txt", str(answer)) in final_response)


def script(request):
    """What a chain writes in this turn."""
    _run, chain, turn = request.request_id.split("/")
    return OTHERS.get(chain, MOST)[int(turn) - 1]


async def main(port=None):
    backend = ScriptedBackend(script, logprob=lambda token: -2.5 if "expected" in token else -0.01)
    agent = BaseAgent(backend=backend, tools=[calculator, write_file], reward=as_expected)
    manager = agent.streaming_manager
    manager.add_observer(HintObserver(lambda change: print(change.hint.sentence)))
    if port:
        manager.add_observer(ArchiveObserver.within(name="hacked", level="tokens"))
        server = WebSocketStreamingServer(port=int(port))
        await server.start()
        manager.add_observer(server.get_observer())
        print("in a browser:", server.page_url, flush=True)
    row = {"prompt": "What is 17 * 23?", "answer": 391}
    for t in await agent.run_async(3, [row], num_chains=10, enable_streaming=True):
        print(t.chain_id, t.reward, *(r.call.tool_name for r in t.tool_calls), t.final_response)
    if port:
        await asyncio.Event().wait()  # until Ctrl-C


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[2:]))
