"""Runs on a stage for the page: a server and a manager in a thread of their own, with chains that stop where a test wants them to."""

import asyncio
import contextlib
import functools
import threading

from rollcast.archive import ArchiveObserver
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.stream import StreamingManager

QUESTION = "I think of a number from 1 to 15. Find it."
HOSTILE = (
    "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
    "<a href='javascript:alert(1)'>press</a> \x1b[31mred\x1b[0m \u202etxt.exe\u202c {{7*7}} ${7*7}"
)


class StagedRuns:
    """A server at `url` (`http://…/`), and runs that go on when they are let.

    Attributes:
        goes_on: an event of the thread's loop; chains wait for it before their last turn.
        writes: another one; `stream` waits for it behind its first tokens.
    """

    def __init__(self, token=None, *, port=0, record=None, parent=None, **settings):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self._open(token, port, record, parent, {"close_s": 0.5, "hello_s": 60.0} | settings))

    async def _open(self, token, port, record, parent, settings):
        self.manager = StreamingManager()
        if record is not None:
            about = None if parent is None else {"parent": str(parent)}
            self.manager.add_observer(ArchiveObserver(record, about=about))
        self.server = WebSocketStreamingServer(
            "127.0.0.1", port, token=token, settings=ServerSettings(**settings)
        )
        await self.server.start()
        self.manager.add_observer(self.server.get_observer())
        self.goes_on = asyncio.Event()
        self.writes = asyncio.Event()
        self.tasks = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.port}/"

    def call(self, coroutine, timeout=120):
        """Run it in the thread's loop, and give what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def begin(self, coroutine):
        """Run it in the thread's loop, without waiting for it."""

        async def started():
            self.tasks.append(asyncio.ensure_future(coroutine))

        self.call(started())

    def let_go_on(self):
        self.loop.call_soon_threadsafe(self.goes_on.set)

    def let_write(self):
        self.loop.call_soon_threadsafe(self.writes.set)

    def finish(self):
        """Let everything end, and wait for it."""
        self.let_go_on()

        async def ended():
            await asyncio.gather(*self.tasks)

        self.call(ended())

    def close(self):
        async def closed():
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await self.manager.aclose()
            await self.server.stop()

        self.call(closed())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # -- runs --------------------------------------------------------------------------------------------------------------

    async def guesses(self, chains=4, tail="Found it."):
        """A group whose chains guess: all begin alike, then they part; before their last turn they wait to be let go on."""
        async with self.manager.run(chains=chains, groups=1, agent="guess", model="staged") as run:
            await asyncio.gather(*(self._guess(run, number, tail) for number in range(chains)))

    async def _guess(self, run, number, tail):
        messages = [{"role": "user", "content": QUESTION}]
        with run.chain(messages, group_id="group_0", index=number, reference=12) as chain:
            for guess, result, logprob in (
                (8, "higher", -0.05),
                (12 if number % 2 else 13 + number % 3, "lower", -1.5),
            ):
                with chain.generation() as generation:
                    for text, id_, lp in (
                        ("guess ", 5, -0.01),
                        (str(guess), 100 + guess, logprob),
                        (".", 22, -0.001),
                    ):
                        generation.chunk(text, token_ids=[id_], logprobs=[lp])
                        await asyncio.sleep(0)
                with chain.tool_call("guess", {"number": guess}) as call:
                    call.observation(result)
            with chain.generation() as generation:
                generation.chunk("Well, ", token_ids=[7], logprobs=[-0.2])
                await self.goes_on.wait()
                generation.chunk(tail, token_ids=[8], logprobs=[-0.3])
            chain.reward(1.0 if number % 2 else 0.25)
            chain.end("answered", final_response=tail)

    async def hostile(self):
        """A chain whose model, tool and prompt write what would harm a page that believes it, and a line of a million characters."""
        async with self.manager.run(chains=1, groups=1, agent=HOSTILE, model="staged") as run:
            with run.chain(
                [{"role": "user", "content": HOSTILE}], group_id="group_0", reference=HOSTILE
            ) as chain:
                with chain.generation() as generation:
                    for at in range(0, len(HOSTILE), 7):
                        generation.chunk(HOSTILE[at : at + 7], token_ids=[at], logprobs=[-0.5])
                with chain.tool_call(HOSTILE, {HOSTILE: HOSTILE}) as call:
                    call.observation(HOSTILE)
                with chain.generation() as generation:
                    generation.chunk("again")
                with chain.tool_call("long", {}) as call:
                    call.observation("x" * 1_000_000)
                with chain.generation() as generation:
                    generation.chunk(HOSTILE)
                chain.reward(0.5, {HOSTILE[:40]: 1.0})
                chain.end("answered", final_response=HOSTILE)

    async def stream(self, tokens, pause_s=0.001, first=None):
        """One chain that writes `tokens` tokens, and waits then; after the `first` of them it waits until it is let write the others."""
        async with self.manager.run(chains=1, groups=1, agent="long", model="staged") as run:
            with run.chain([{"role": "user", "content": "Write."}], group_id="group_0") as chain:
                with chain.generation() as generation:
                    for number in range(tokens):
                        if number == first:
                            await self.writes.wait()
                        generation.chunk(f"word{number} ", token_ids=[number], logprobs=[-0.01])
                        await asyncio.sleep(pause_s)
                    await self.goes_on.wait()
                chain.end("answered", final_response="done")

    async def searches(self, chains=8, ended=5, group="group_0"):
        """A group of which some chains have ended; the others hang in a tool until they are cancelled or let go on."""
        on_cancel = functools.partial(self._cancel, tasks := {})
        async with self.manager.run(chains=chains, groups=1, agent="search", on_cancel=on_cancel) as run:
            for number in range(chains):
                chain_id = f"chain_{number}"
                tasks[chain_id] = asyncio.ensure_future(self._search(run, chain_id, group, number < ended))
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            if any(task.cancelled() for task in tasks.values()) and len(tasks) == chains:
                run.close("cancelled" if self.run_cancelled else "completed")

    run_cancelled = False

    def _cancel(self, tasks, chain_id):
        def cancel():
            self.run_cancelled |= chain_id is None
            for name, task in tasks.items():
                if chain_id in (None, name):
                    task.cancel()

        self.loop.call_soon_threadsafe(cancel)

    async def _search(self, run, chain_id, group, ends):
        with run.chain([{"role": "user", "content": QUESTION}], chain_id=chain_id, group_id=group) as chain:
            for _ in range(3):
                with chain.generation() as generation:
                    generation.chunk("search ", token_ids=[1], logprobs=[-0.1])
                with chain.tool_call("search", {"q": "twelve"}) as call:
                    call.observation("found")
            if not ends:
                with chain.generation() as generation:
                    generation.chunk("search again", token_ids=[1], logprobs=[-0.1])
                with chain.tool_call("search", {"q": "thirteen"}) as call:
                    await self.goes_on.wait()
                    call.observation("found at last")
            chain.reward(1.0)
            chain.end("answered", final_response="12")


@contextlib.contextmanager
def staged(token=None, **options):
    """A stage for the time of the block."""
    stage = StagedRuns(token, **options)
    try:
        yield stage
    finally:
        stage.close()
