"""The streaming specification's examples, with only their import lines changed, judged by what comes out."""

import ast
import asyncio
import contextlib
import inspect
import io
import json
import logging
import re
import textwrap

import aiohttp
import pytest

import rollcast
from rollcast import BaseAgent, StreamEvent, StreamEventType
from rollcast.records import check_events, decode
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.tools import calculator

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
EVERYTHING = {
    name: getattr(rollcast, name) for name in rollcast.__all__
}  # the specification's later blocks import less


def script(request):
    """Each chain says something of its own, so that mixing would show."""
    chain = request.request_id.split("/")[1]
    if any(m["role"] == "tool" for m in request.messages):
        return f"{chain} says that the answer is 4."
    return f'{chain} thinks. <tool_call>{{"name": "calculator", "arguments": {{"expression": "2 + 2"}}}}</tool_call>'


class YourAgent(BaseAgent):
    def __init__(self, model_name="your-model", tools=(calculator,), **options):
        super().__init__(model_name, tools, ScriptedBackend(script), **options)


async def play(block, **names):
    """Run a block of the specification; its result, its printed text and every event."""
    agent = names.pop("agent", None) or YourAgent()
    # Where the specification writes `run_async(..., enable_streaming=True)`, the dots stand for the arguments before.
    source = textwrap.dedent(block).replace("run_async(...,", "run_async(5, your_messages,")
    source = source.replace("tools=[...]", "tools=[calculator]")
    namespace = EVERYTHING | {
        "agent": agent,
        "your_messages": MESSAGES,
        "YourAgent": YourAgent,
        "calculator": calculator,
        "asyncio": asyncio,
        **names,
    }
    code = compile(source, "spec/streaming.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = eval(code, namespace)
        if inspect.isawaitable(result):
            await result
        await namespace["agent"].aclose()
    return namespace, out.getvalue()


def lines_of(printed, chain_id):
    return [line for line in printed.splitlines() if re.search(rf"\b{chain_id}\b", line.split("│")[0])]


def assert_chains_do_not_mix(printed, chains):
    """Every line has one chain's id, and speaks of no other."""
    for i in range(chains):
        mine = lines_of(printed, f"chain_{i}")
        assert mine
        for line in mine:
            others = {f"chain_{j}" for j in range(chains)} - {f"chain_{i}"}
            assert not any(re.search(rf"\b{other}\b", line) for other in others), line


async def test_basic_console_streaming():
    """One chain on the console: its text, its tool call, its observation, its times."""
    namespace, printed = await play(
        """
        from rollcast import BaseAgent
        from rollcast import ConsoleStreamObserver

        # Initialize agent
        agent = YourAgent(model_name="your-model", tools=[...])

        # Add console observer
        console_observer = ConsoleStreamObserver(show_timestamps=True)
        agent.streaming_manager.add_observer(console_observer)

        # Run with streaming
        await agent.run_async(
            max_steps=5,
            start_messages=your_messages,
            num_chains=1,
            enable_streaming=True
        )
        """
    )
    assert "chain_0 thinks." in printed
    assert "chain_0 says that the answer is 4." in printed
    assert "calculator" in printed
    assert re.search(r"\d\d:\d\d:\d\d", printed)
    assert namespace["agent"].model_name == "your-model"


async def test_colored_output():
    """Three chains: whole lines, each with its id, none mixed, colours where there is a terminal."""
    block = """
        # Each chain gets a different color automatically
        console_observer = ConsoleStreamObserver(show_timestamps=True)
        agent.streaming_manager.add_observer(console_observer)

        await agent.run_async(
            max_steps=5,
            start_messages=your_messages,
            num_chains=3,  # Multiple chains
            enable_streaming=True
        )
        """
    _, printed = await play(block)
    assert_chains_do_not_mix(printed, 3)
    for i in range(3):
        said = " ".join(
            line.split("│", 1)[1].strip(" …") for line in lines_of(printed, f"chain_{i}") if "│" in line
        )
        assert f"chain_{i} says that the answer is 4." in re.sub(r"\s+", " ", said)


async def test_colours_differ_by_chain():
    """As many as the palette has; forced, since a test has no terminal."""
    out = io.StringIO()
    agent = YourAgent()
    agent.streaming_manager.add_observer(rollcast.ConsoleStreamObserver(file=out, color=True))
    await agent.run_async(5, MESSAGES, num_chains=3, enable_streaming=True)
    await agent.aclose()
    codes = {
        i: set(re.findall(rf"(\x1b\[[0-9;]*m)chain_{i}\b", out.getvalue())) - {"\x1b[0m"} for i in range(3)
    }
    assert all(codes.values())
    assert not codes[0] & codes[1]
    assert not codes[1] & codes[2]


async def test_chain_specific_observers():
    """Three consoles, one a chain, on one output: none mixes."""
    _, printed = await play(
        """
        from rollcast import MultiChainStreamObserver, ChainSpecificStreamObserver

        # Create multi-chain observer
        multi_observer = MultiChainStreamObserver()

        # Add observers for specific chains
        for chain_id in ["chain_0", "chain_1", "chain_2"]:
            console_observer = ConsoleStreamObserver(show_timestamps=True)
            chain_observer = ChainSpecificStreamObserver(chain_id, console_observer)
            multi_observer.add_chain_observer(chain_id, chain_observer)

        agent.streaming_manager.add_observer(multi_observer)

        await agent.run_async(5, your_messages, num_chains=3, enable_streaming=True)
        """
    )
    assert_chains_do_not_mix(printed, 3)


async def test_filter_by_chain():
    """The filtered console shows nothing of the others."""
    _, printed = await play(
        """
        # Only observe events from a specific chain
        filtered_observer = ConsoleStreamObserver(
            show_timestamps=True,
            chain_filter="chain_0"  # Only show chain_0 events
        )
        agent.streaming_manager.add_observer(filtered_observer)
        await agent.run_async(5, your_messages, num_chains=3, enable_streaming=True)
        """
    )
    assert "chain_0 says that the answer is 4." in printed
    assert "chain_1" not in printed
    assert "chain_2" not in printed


@pytest.mark.parametrize("when", ["before", "after"])
async def test_separate_async_generators_per_chain(when):
    """Each generator ends with its chain, and prints no other's events."""
    run = "await agent.run_async(5, your_messages, num_chains=3, enable_streaming=True)"
    block = """
        from rollcast import AsyncGeneratorStreamObserver

        # Create separate generators for each chain
        chain_generators = {}
        for i in range(3):
            chain_id = f"chain_{i}"
            async_observer = AsyncGeneratorStreamObserver(chain_filter=chain_id)
            agent.streaming_manager.add_observer(async_observer)
            chain_generators[chain_id] = async_observer.events()

        BEFORE

        # Process each chain separately
        async def process_chain(chain_id, generator):
            async for event in generator:
                print(f"{chain_id}: {event.event_type.value}")

        # Run all chains concurrently
        tasks = [process_chain(chain_id, generator) for chain_id, generator in chain_generators.items()]
        await asyncio.gather(*tasks)
        """
    started = f"run_task = asyncio.create_task({run.removeprefix('await ')})"
    block = block.replace("BEFORE", run if when == "before" else started)
    async with asyncio.timeout(60):
        _, printed = await play(block)
    for i in range(3):
        mine = [line.split(": ")[1] for line in printed.splitlines() if line.startswith(f"chain_{i}: ")]
        assert mine[0] == "chain_start"
        assert mine[-1] == "chain_end"
        assert mine.count("tool_observation") == 1


async def test_json_logging(tmp_path, monkeypatch):
    """The file parses, has every chain, and its lines carry the six specified fields under their names and types."""
    monkeypatch.chdir(tmp_path)
    agent = YourAgent()
    with capture_events(agent.streaming_manager) as capture:
        await play(
            """
            from rollcast import JSONStreamObserver

            # Add JSON observer
            json_observer = JSONStreamObserver(file_path="events.jsonl")
            agent.streaming_manager.add_observer(json_observer)
            await agent.run_async(5, your_messages, num_chains=3, enable_streaming=True)
            """,
            agent=agent,
        )
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    types = {"event_type": str, "chain_id": str, "timestamp": float, "data": dict}
    added = {"seq", "run_id", "group_id", "source"}
    for line in lines:
        fields = json.loads(line)
        assert set(fields) == {*types, "step", "depth", *added}
        assert all(isinstance(fields[name], kind) for name, kind in types.items())
        assert all(fields[name] is None or type(fields[name]) is int for name in ("step", "depth"))
    events = [decode(line) for line in lines]
    check_events(events)
    assert events == capture.events
    assert {e.chain_id for e in events} == {"", "chain_0", "chain_1", "chain_2"}


async def test_custom_streaming_callback():
    """What the callback printed is what the chain said."""
    agent = YourAgent()
    with capture_events(agent.streaming_manager) as capture:
        _, printed = await play(
            """
            async def custom_callback(chunk: str):
                print(f"🔄 {chunk}", end="", flush=True)

            await agent.run_async(
                max_steps=5,
                start_messages=your_messages,
                num_chains=1,
                enable_streaming=True,
                streaming_callback=custom_callback
            )
            """,
            agent=agent,
        )
    assert printed.replace("🔄 ", "") == capture.text("chain_0")


async def test_async_generator_events():
    """Every event as it comes; the loop ends with the run."""
    async with asyncio.timeout(60):
        namespace, printed = await play(
            """
            from rollcast import AsyncGeneratorStreamObserver

            # Create async generator observer
            async_observer = AsyncGeneratorStreamObserver()
            agent.streaming_manager.add_observer(async_observer)

            # Start agent run
            run_task = asyncio.create_task(agent.run_async(..., enable_streaming=True))

            # Process events as they arrive
            async for event in async_observer.events():
                print(f"Event: {event.event_type.value}")
                if event.event_type.value == "llm_generation_chunk":
                    print(f"Content: {event.data.get('content', '')}")

            await run_task
            """
        )
    assert printed.splitlines()[0] == "Event: run_start"
    assert printed.splitlines()[-1] == "Event: run_end"
    (trajectory,) = namespace["run_task"].result()
    contents = [
        line.removeprefix("Content: ") for line in printed.splitlines() if line.startswith("Content: ")
    ]
    assert "".join(contents) == "".join(turn.text for turn in trajectory.turns)


async def test_every_observer_of_the_specification_at_once():
    """Per chain, what an observer saw is what the trajectory has."""
    agent = YourAgent()
    generator = rollcast.AsyncGeneratorStreamObserver("chain_1")
    agent.streaming_manager.add_observer(generator)
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(5, MESSAGES, num_chains=4, enable_streaming=True)
        seen = [event async for event in generator.events()]
    for t in result:
        assert capture.text(t.chain_id) == "".join(turn.text for turn in t.turns)
        assert t.final_response == f"{t.chain_id} says that the answer is 4."
    chunks = [e.data["content"] for e in seen if e.event_type is StreamEventType.LLM_GENERATION_CHUNK]
    assert "".join(chunks) == capture.text("chain_1")


def test_event_structure():
    """A StreamEvent has the specified fields, in order, and is made of them alone."""
    names = ["event_type", "chain_id", "timestamp", "data", "step", "depth"]
    assert list(inspect.signature(StreamEvent).parameters)[:6] == names
    event = StreamEvent(StreamEventType.LLM_GENERATION_CHUNK, "uuid-123", 1234567890.123, {"content": "def"})
    assert (event.step, event.depth) == (None, None)
    assert (
        StreamEvent.from_dict(event.to_dict() | {"data": {"content": "def", "offset": 0}}).chain_id
        == "uuid-123"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_GENERATION_START", "llm_generation_start"),
        ("LLM_GENERATION_CHUNK", "llm_generation_chunk"),
        ("LLM_GENERATION_END", "llm_generation_end"),
        ("TOOL_CALL_START", "tool_call_start"),
        ("TOOL_CALL_END", "tool_call_end"),
        ("TOOL_OBSERVATION", "tool_observation"),
        ("CHAIN_START", "chain_start"),
        ("CHAIN_END", "chain_end"),
        ("ERROR", "error"),
    ],
)
async def test_event_types(name, value):
    """Each of the nine has its name and value; all but the error are really emitted by a run."""
    assert StreamEventType[name].value == value
    agent = YourAgent(reward=lambda final_response: "not a number")
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(5, MESSAGES, enable_streaming=True)
    assert capture.of(value)


async def test_observers_come_and_go_at_runtime_and_streaming_is_opt_in():
    """Existing code works without it; nothing is built when it is off."""
    agent = YourAgent()
    (t,) = await agent.run_async(5, MESSAGES)
    assert t.final_response == "chain_0 says that the answer is 4."
    observer = rollcast.AsyncGeneratorStreamObserver()
    agent.streaming_manager.add_observer(observer)
    agent.streaming_manager.remove_observer(observer)
    assert agent.streaming_manager.observers == []


async def test_debug_mode(caplog):
    """Debug logging tells of runs, chains, tools and observers."""
    with caplog.at_level(logging.DEBUG, "rollcast"):
        agent = YourAgent()
        agent.streaming_manager.add_observer(rollcast.AsyncGeneratorStreamObserver())
        await agent.run_async(5, MESSAGES, enable_streaming=True)
        await agent.aclose()
    for said in (
        "run ",
        "chain_0 begins",
        "calls calculator",
        "added AsyncGeneratorStreamObserver",
        "chain_0 is answered",
    ):
        assert said in caplog.text, said


async def test_websocket_streaming():
    """A client of another package reads every event, one a message; port 0 stands for 8765."""
    got = []

    async def watch(url):
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            watching.set()
            async for message in socket:
                got.append(decode(message.data))

    watching, watchers = asyncio.Event(), []

    async def connected(server):
        watchers.append(asyncio.create_task(watch(server.url)))
        await watching.wait()
        while not server.statistics().subscriptions:
            await asyncio.sleep(0)

    agent = YourAgent()
    with capture_events(agent.streaming_manager) as capture:
        async with asyncio.timeout(60):
            namespace, _ = await play(
                """
                from rollcast import WebSocketStreamingServer

                # Start WebSocket server
                server = WebSocketStreamingServer(host="localhost", port=0)
                await server.start()

                # Add WebSocket observer
                agent.streaming_manager.add_observer(server.get_observer())
                await connected(server)

                # Run agent
                await agent.run_async(..., enable_streaming=True)
                """,
                agent=agent,
                connected=connected,
            )
            await namespace["server"].stop()
            await asyncio.gather(*watchers)
    assert got == capture.events
    check_events(got)
