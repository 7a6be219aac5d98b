"""What 0.1.0 wrote and promised, kept for ever: names, logs, frames, schemas, and what a seed gives.

The files in `v0.1/` were written at the commit of 0.1.0 by `python tests/frozen/test_frozen.py tests/frozen/v0.1`. They
are never written anew. What they have must stay; what is new may be added beside it.
"""

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rollcast import BaseAgent, Sampling, ToolAgent, numeric_match, tool
from rollcast.records import StreamEvent, check_events, decode, encode, json_schema
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.serve.schema import frames_schema
from rollcast.stream import StreamingManager
from rollcast.stream.observers import JSONStreamObserver
from rollcast.testing import ScriptedBackend
from rollcast.tools import calculator

HERE = Path(__file__).parent / "v0.1"

PACKAGES = [
    "rollcast",
    "rollcast.errors",
    "rollcast.records",
    "rollcast.stream",
    "rollcast.stream.observers",
    "rollcast.models",
    "rollcast.models.parse",
    "rollcast.models.hf",
    "rollcast.tools",
    "rollcast.rollout",
    "rollcast.rollout.reward",
    "rollcast.tasks",
    "rollcast.train",
    "rollcast.train.trl",
    "rollcast.serve",
    "rollcast.testing",
    "rollcast.testing.conformance",
    "rollcast.cli",
    "rollcast.stream.observers.callback",
    "rollcast.stream.observers.composite",
    "rollcast.stream.observers.console",
    "rollcast.stream.observers.generator",
    "rollcast.stream.observers.jsonl",
    "rollcast.stream.observers.otel",
    "rollcast.stream.observers.prometheus",
]

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2? ✓"}]
ROWS = [
    {"messages": HELLO, "answer": 4},
    {"messages": [{"role": "user", "content": "What is 3 + 3?"}], "answer": 6},
]


def called(name, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


CALL = "Let me see. " + called("calculator", expression="2 + 2")
SEVERAL = (
    called("calculator", expression="1 / 0")
    + called("nothing", x=1)
    + '<tool_call>{"name": "calculator", </tool_call>'
    + called("fails", why="ünïcode 🙂")
)


@tool
def fails(why: str) -> str:
    """Fail."""
    raise RuntimeError(why)


@tool(terminal=True)
def submit(answer: str) -> str:
    """Submit the answer."""
    return answer


async def plain(manager):
    """A tool call, an answer, a reward, two groups of two."""
    await _agent([CALL, "The answer is 4."], manager).run_async(
        4, ROWS, num_chains=2, enable_streaming=True, seed=7, max_concurrent_chains=1
    )


async def several_calls(manager):
    """Calls side by side: a failing one, an unknown tool, a malformed one."""
    await _agent([SEVERAL, "I give up."], manager, tools=(calculator, fails)).run_async(
        4, ROWS[:1], enable_streaming=True, seed=7
    )


async def ends(manager):
    """Chains that end in every other way: a terminal tool, too many steps, too many tokens, a failing backend."""
    for script, steps, options in (
        (called("submit", answer="4"), 3, {}),
        (CALL, 2, {}),
        ("one two three four", 2, {"sampling": Sampling(max_tokens=2)}),
    ):
        agent = _agent(script, manager, tools=(calculator, submit), kind=ToolAgent)
        await agent.run_async(steps, ROWS[:1], enable_streaming=True, seed=7, **options)
    agent = BaseAgent("m", backend=ScriptedBackend("one two three", fail_at=2), streaming_manager=manager)
    await agent.run_async(2, ROWS[:1], enable_streaming=True, seed=7)


async def by_hand(manager):
    """The producer API, and events that are emitted by hand."""
    async with manager.run(agent="loop", model="m", backend="b", policy_version=3, chains=1) as run:
        with run.chain(HELLO, tools=["search"], reference={"a": [1, None]}) as chain:
            with chain.generation(
                prompt_ids=[1, 2], prompt_tokens=2, sampling={"temperature": 0.5}
            ) as generation:
                generation.chunk("Hel", [5], [-0.5])
                generation.chunk("lo 🙂\n", [6, 7], [-1.0, -2.0])
            with chain.tool_call("search", {"q": "x"}) as call:
                call.observation("part", partial=True)
                call.observation("whole")
            chain.error("something odd", "agent")
            chain.reward(0.5, {"letters": 3})
    manager.emit(
        StreamEvent.now(
            "train_step",
            train_step=1,
            policy_version=4,
            metrics={"loss": 0.25},
            chains={run.run_id: {"chain_0": {"advantage": 0.5, "staleness": 1}}},
        )
    )


SCENARIOS = (plain, several_calls, ends, by_hand)


def _agent(script, manager, tools=(calculator,), kind=BaseAgent):
    backend = ScriptedBackend(script)
    return kind("scripted", tools=tools, backend=backend, reward=numeric_match, streaming_manager=manager)


async def written(scenario, folder):
    """The log of a scenario."""
    path = Path(folder) / f"{scenario.__name__}.jsonl"
    manager = StreamingManager()
    manager.add_observer(JSONStreamObserver(path))
    await scenario(manager)
    await manager.aclose()
    return path


async def exchanged():
    """The frames of one client, [who, frame] in order: it reads two runs from the start, and asks for odd things."""
    import websockets

    manager = StreamingManager()
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings())
    await server.start()
    manager.add_observer(server.get_observer())
    await plain(manager)
    frames = []
    async with websockets.connect(server.url, subprotocols=["rollcast.v1"]) as socket:

        async def say(frame):
            frames.append(["client", frame])
            await socket.send(json.dumps(frame))

        async def hear(until):
            async with asyncio.timeout(60):
                while True:
                    frame = json.loads(await socket.recv())
                    frames.append(["server", frame])
                    if until(frame):
                        return

        await say({"type": "hello", "client": "frozen"})
        await hear(lambda f: f["type"] == "welcome")
        await say({"type": "subscribe", "id": "a", "filter": {"chains": ["chain_0"]}, "since": "start"})
        await hear(lambda f: f["type"] == "batch" and f["events"][-1]["event_type"] == "chain_end")
        await say({"type": "update", "id": "a", "filter": {"types": ["run_start", "run_end"]}})
        await say({"type": "ping"})
        await hear(lambda f: f["type"] == "pong")
        await say({"type": "cancel", "run_id": "gone"})
        await hear(lambda f: f["type"] == "error")
        await plain(manager)
        await hear(lambda f: f["type"] == "batch" and f["events"][-1]["event_type"] == "run_end")
        await say({"type": "unsubscribe", "id": "a"})
        await say({"type": "ping"})
        await hear(lambda f: f["type"] == "pong")
    await manager.aclose()
    await server.stop()
    return frames


def timeless(event):
    """The event without what differs from run to run: times, and ids that are made."""
    data = {k: v for k, v in event["data"].items() if not k.endswith("_s")}
    if isinstance(data.get("observation"), str):
        data["observation"] = re.sub(r"0x[0-9a-f]+", "0x", data["observation"])
    if event["event_type"] == "error":  # a failure of the user's own code tells its place since
        data["error"] = re.sub(r" \(\w+\.py:\d+\)$", "", data["error"])
    if event["event_type"] == "train_step":
        data["chains"] = list(data["chains"].values())
    return {**event, "timestamp": 0, "run_id": "", "data": data}


def by_chain(lines):
    """The events of each chain in their order; chains of one run have none between them."""
    chains = {}
    for event in map(json.loads, lines):
        chains.setdefault(event["chain_id"], []).append({**timeless(event), "seq": 0})
    return chains


def kept(old, new, where=""):
    """What the old value has and the new one lacks, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key not in new:
                yield f"{where}.{key} is gone"
            else:
                yield from kept(value, new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from kept(one, other, f"{where}[{i}]")
    elif old != new:
        yield f"{where} was {old!r:.80} and is {new!r:.80}"


def missing(old, new, where="schema"):
    """What a schema had and has no more; a list of words may have more now."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key in {"description", "title"}:
                continue
            if key not in new:
                yield f"{where}.{key} is gone"
            else:
                yield from missing(value, new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        for item in old:
            if not any(not list(missing(item, other)) for other in new):
                yield f"{where} has no {item!r:.120}"
        if where.endswith(".required") and not set(new) <= set(old):
            yield f"{where} asks for {sorted(set(new) - set(old))}, which old logs lack"
    elif old != new:
        yield f"{where} was {old!r} and is {new!r}"


def public_names():
    names = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        names[package] = sorted(module.__all__)
    return names


# -- what holds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package",
    [
        pytest.param(name, marks=pytest.mark.torch if name.endswith((".hf", ".trl")) else ())
        for name in PACKAGES
    ],
)
def test_every_public_name_is_where_it_was(package):
    """A name that 0.1.0 listed can be imported from the same place."""
    module = importlib.import_module(package)
    for name in json.loads((HERE / "names.json").read_text())[package]:
        assert getattr(module, name) is not None, f"{package}.{name}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_an_old_log_is_read_whole(scenario):
    """Every line decodes, the grammar holds, and what is encoded again has everything that it had."""
    lines = (HERE / f"{scenario.__name__}.jsonl").read_text().splitlines()
    events = [decode(line) for line in lines]
    check_events(events)
    for line, event in zip(lines, events, strict=True):
        assert not list(kept(json.loads(line), json.loads(encode(event))))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
async def test_a_run_writes_what_it_wrote(scenario, tmp_path):
    """The same script gives the same events, chain by chain; they may have more fields."""
    path = await written(scenario, tmp_path)
    old = by_chain((HERE / path.name).read_text().splitlines())
    new = by_chain(path.read_text().splitlines())
    assert not list(kept(old, new))


async def test_a_client_of_old_is_answered_as_it_was():
    """The same frames get the same answers; they may have more fields."""
    new = [frame for who, frame in await exchanged() if who == "server"]
    old = [frame for who, frame in json.loads((HERE / "frames.json").read_text()) if who == "server"]

    def told(frames):
        answers = [
            {k: v for k, v in f.items() if k not in {"events", "cursor"}}
            for f in frames
            if f["type"] != "batch"
        ]
        events = [timeless(e) for f in frames if f["type"] == "batch" for e in f["events"]]
        for answer in answers:
            for run in answer.get("runs", ()):
                run["run_id"] = ""
        return answers, [{**e, "seq": 0} for e in events]

    assert not list(kept(list(told(old)), list(told(new))))


def test_the_schemas_only_grew():
    """What either JSON Schema said of 0.1.0's events and frames, it says still."""
    for name, schema in (("event", json_schema()), ("frames", frames_schema())):
        old = json.loads((HERE / f"{name}.schema.json").read_text())
        assert not list(missing(old, json.loads(json.dumps(schema)), name))


def scripted_digests():
    async def run(kind, script, tools):
        backend = ScriptedBackend(script)
        agent = kind("scripted", tools=tools, backend=backend, reward=numeric_match)
        return [t.digest() for t in await agent.run_async(4, ROWS, 2, seed=11)]

    async def all_of_them():
        return {
            "plain": await run(BaseAgent, [CALL, "The answer is 4."], [calculator]),
            "several": await run(BaseAgent, [SEVERAL, "no"], [calculator, fails]),
            "seeded": await run(BaseAgent, lambda request: f"{request.sampling.seed} is my seed", []),
        }

    return asyncio.run(all_of_them())


TINY = """
import asyncio, hashlib, json
from threadpoolctl import threadpool_info
from rollcast import BaseAgent
from rollcast.tasks import get_task
found = {}
for name in ("arithmetic", "guess", "lookup", "grid"):
    task = get_task(name)
    agent = BaseAgent(tools=task.tools, reward=task.reward)
    rows = list(task.rows(3, 5))
    result = agent.run(6, rows, num_chains=4, seed=5)
    found[name] = hashlib.sha256("".join(t.digest() for t in result).encode()).hexdigest()
import numpy
kernels = sorted({i["architecture"] for i in threadpool_info() if "architecture" in i})
features = "AVX512" if any(k.startswith("AVX512") and v for k, v in numpy._core._multiarray_umath.__cpu_features__.items()) else "AVX2"
print(json.dumps([f"{'+'.join(kernels)} {features} numpy {numpy.__version__}", found]))
"""


def tiny_digests(kernel):
    """What the embedded model samples with one of OpenBLAS's kernels; a process of its own, which reads it once."""
    out = subprocess.run(
        [sys.executable, "-c", TINY],
        env=os.environ | {"OPENBLAS_CORETYPE": kernel},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout)


def test_a_seed_gives_what_it_gave():
    """Chains of a script have the digests that they had, on every machine."""
    assert scripted_digests() == json.loads((HERE / "digests.json").read_text())["scripted"]


@pytest.mark.parametrize(("kernel", "flag"), [("Haswell", "avx2"), ("SkylakeX", "avx512vl")])
def test_the_embedded_model_samples_what_it_sampled(kernel, flag):
    """With the same kernel of the same library, to the bit."""
    cpu = Path("/proc/cpuinfo")
    if cpu.exists() and f" {flag} " not in cpu.read_text():
        pytest.skip(f"this processor does not say that it has {flag}")
    found, digests = tiny_digests(kernel)
    recorded = json.loads((HERE / "digests.json").read_text())["tiny"]
    if found not in recorded:
        pytest.skip(f"nothing was recorded with {found}: another processor, or another NumPy")
    assert digests == recorded[found]


def record(folder):
    folder.mkdir(parents=True, exist_ok=True)

    def put(name, value):
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")

    async def logs():
        for scenario in SCENARIOS:
            (folder / f"{scenario.__name__}.jsonl").unlink(missing_ok=True)
            await written(scenario, folder)

    put("names.json", public_names())
    asyncio.run(logs())
    put("frames.json", asyncio.run(exchanged()))
    put("event.schema.json", json_schema())
    put("frames.schema.json", frames_schema())
    put(
        "digests.json",
        {"scripted": scripted_digests(), "tiny": dict(map(tiny_digests, ["Haswell", "SkylakeX"]))},
    )


if __name__ == "__main__":
    record(Path(sys.argv[1]))
