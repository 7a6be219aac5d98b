"""A process with a server and what it shows: `python -m benchmarks.page_stage`.

It prints the address of its page. Each line of standard input is an action, JSON such as `{"do": "stream", "chains": 8}`, whose result
is printed as a line of JSON. It ends when standard input closes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.helper import Action, obey
from rollcast.archive import ArchiveObserver
from rollcast.archive.format import RunFile
from rollcast.archive.line_log import LineLog
from rollcast.archive.skeleton import Skeleton
from rollcast.models.tiny import TinyBackend
from rollcast.records import StreamEvent, StreamEventType, encode_lines
from rollcast.rollout import BaseAgent
from rollcast.serve import ServerSettings, WebSocketStreamingServer, queries
from rollcast.stream import ChainWriter, RunWriter, StreamingManager
from rollcast.tasks import get_task
from rollcast.train import GRPOConfig, train

__all__ = ["main"]

T = StreamEventType
RUN = "01a22362-9796-7bd9-b031-b70bcfaca05b"  # of the record
EVENTS_OF_A_TURN = 5
TICK_S = 0.002  # between two bursts of tokens
TURN = 200  # tokens in a turn of a chain whose tokens are watched
queries.KEEP_S = 0.1  # so that the next trial, without a page, does not pay for the table of the one before


class Stage:
    """A server and the runs that it shows."""

    def __init__(self) -> None:
        self.manager = StreamingManager(drain_timeout=5)
        self.server = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings(close_s=0.5))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._task = get_task("arithmetic")
        self._backend: TinyBackend | None = None
        self._open: list[Speaker] = []
        self._runs: list[RunWriter] = []

    @property
    def actions(self) -> dict[str, Action]:
        """What it does, by name."""
        return {
            "stream": self.stream, "turnover": self.turnover, "wall": self.wall, "long": self.long, "ended": self.ended, "play": self.play,
            "say": self.say, "clients": self.clients, "record": self.record, "train": self.train,
        }  # fmt: skip

    async def clients(self) -> dict[str, Any]:
        """How many clients are connected, or are still paid for: a table of rows outlives the last query."""
        tables = sum("(rows)" in each.name for each in self.manager.statistics())
        return {"clients": self.server.statistics().connections + tables}

    async def stream(self, chains: int, rate: int, seconds: float) -> dict[str, Any]:
        """One group whose chains write `rate` tokens a second together; a token's text is the time, in milliseconds, when it was sent."""
        async with self.manager.run(chains=chains, groups=1, agent="stream", model="staged") as run:
            speakers = [Speaker(run, number, TURN) for number in range(chains)]
            said = await _paced(speakers, rate, seconds)
            for speaker in speakers:
                speaker.end()
        return {"tokens": said, "run": run.run_id}

    async def turnover(self, chains: int, rate: int, seconds: float) -> dict[str, Any]:
        """Runs of a few seconds, one after another, as a training has them: groups whose chains write `rate` tokens a second together."""
        said, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            said += (await self.stream(chains, rate, min(3.0, seconds)))["tokens"]
        return {"tokens": said}

    async def wall(self, chains: int, group: int, rate: int, seconds: float) -> dict[str, Any]:
        """Many chains in groups that write, call a tool and write again, at `rate` tokens a second together; a tenth have ended."""
        async with self.manager.run(
            chains=chains, groups=chains // group, agent="wall", model="staged"
        ) as run:
            speakers = [Speaker(run, number, TURN, group, said=number % TURN) for number in range(chains)]
            for speaker in speakers[::10]:
                speaker.end()
            await asyncio.sleep(0)
            going = [speaker for number, speaker in enumerate(speakers) if number % 10]
            said = await _paced(going, rate, seconds)
            for speaker in going:
                speaker.end()
        return {"tokens": said}

    async def long(self, turns: int, tokens: int, chains: int = 1) -> dict[str, Any]:
        """Chains that have so many turns of so many tokens, and go on: the last turn is open until `ended`."""
        run = self.manager.run(chains=chains, groups=1, agent="long", model="staged").open()
        for number in range(chains):
            speaker = Speaker(run, number, tokens)
            for turn in range(turns * tokens):
                speaker.say()
                if turn % 500 == 0:
                    await asyncio.sleep(0)
            self._open.append(speaker)
        self._runs.append(run)
        return {"run": run.run_id}

    async def say(self, rate: int, seconds: float) -> dict[str, Any]:
        """Continue the chains that `long` has left open, at `rate` tokens a second together."""
        return {"tokens": await _paced(self._open, rate, seconds)}

    async def ended(self) -> dict[str, Any]:
        """End the chains that `long` has left open."""
        for speaker in self._open:
            speaker.end()
        for run in self._runs:
            run.close()
        self._open, self._runs = [], []
        return {}

    async def play(self, chains: int, runs: int = 1) -> dict[str, Any]:
        """Run the arithmetic task on the embedded model, so many times one after another; returns the CPU seconds of this process."""
        self._backend = self._backend or TinyBackend()
        agent = BaseAgent(backend=self._backend, tools=self._task.tools, reward=self._task.reward)
        agent.streaming_manager = self.manager
        began, cpu = time.perf_counter(), time.process_time()
        rows = self._task.rows(chains // 8, seed=7)
        results = [await agent.run_async(8, rows, enable_streaming=True, seed=7) for _ in range(runs)]
        await self.manager.drain()
        spent = time.process_time() - cpu
        digest = "".join(t.digest() for result in results for t in result.trajectories)
        return {"cpu": spent, "wall": time.perf_counter() - began, "digest": hash(digest)}

    async def train(self, steps: int, record: str | None = None) -> dict[str, Any]:
        """Train the embedded model on the arithmetic task, 128 chains a step; returns the CPU seconds of this process.

        With a `record`, a directory, it leaves one there, as `rollcast train` does.
        """
        recording = None if record is None else ArchiveObserver.within(record, name="arithmetic")
        if recording is not None:
            self.manager.add_observer(recording)
        agent = BaseAgent(
            backend=TinyBackend(),
            tools=self._task.tools,
            reward=self._task.reward,
            streaming_manager=self.manager,
        )
        config = GRPOConfig(steps=steps, eval_questions=1, eval_every=0, save_every=0)
        began, cpu = time.perf_counter(), time.process_time()
        result = await train(agent, self._task, config)
        await self.manager.drain()
        spent = time.process_time() - cpu
        await agent.backend.close()
        if recording is not None:
            self.manager.remove_observer(recording)
            await recording.aclose()
        rewards = [progress.metrics.get("mean_reward") for progress in result.history]
        return {"cpu": spent, "wall": time.perf_counter() - began, "digest": hash(str(rewards))}

    async def record(self, path: str, chains: int, events: int) -> dict[str, Any]:
        """Write a record with this many events, and this many chains in groups of eight, to a new folder."""
        return {"events": await asyncio.to_thread(write_record, Path(path), chains, events)}


class Speaker:
    """A chain that writes turns of `length` tokens, with a tool call after each. It starts `said` tokens into its first turn."""

    def __init__(
        self, run: RunWriter, number: int, length: int, group: int | None = None, said: int = 0
    ) -> None:
        in_group = 0 if group is None else number // group
        self.chain: ChainWriter = run.chain(
            [{"role": "user", "content": "Write what time it is."}],
            group_id=f"group_{in_group}",
            index=number if group is None else number % group,
            reference=in_group,
        ).start()
        self._length = length
        self._reward = number % 5 / 4
        self._said = said
        self._turn = 0
        self._generation: Any = None

    def say(self) -> None:
        """Write the next token."""
        if self._generation is None:
            self._generation = self.chain.generation().start()
        now = f"{time.time() * 1e3 % 1e8:.1f}"
        self._generation.chunk(f"{now} ", token_ids=[self._said % 500], logprobs=[self._logprob()])
        self._said += 1
        if self._said % self._length == 0:
            self._turn += 1
            self._generation.end()
            self._generation = None
            with self.chain.tool_call("clock", {"turn": self._turn}) as call:
                call.observation("ticked")

    def _logprob(self) -> float:
        """The log-probability of the next token: the model is sure of four in five."""
        return -0.01 if self._said % 5 else -(self._said % 31) / 10 - 0.2

    def end(self) -> None:
        """End the chain."""
        if self._generation is not None:
            self._generation.end()
        self.chain.reward(self._reward)
        self.chain.end("answered", final_response="so late")


async def _paced(speakers: list[Speaker], rate: int, seconds: float) -> int:
    """Let the chains write one after another, at `rate` tokens a second together; returns how many tokens they wrote."""
    began, said = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        for said in range(said + 1, int(now * rate) + 1):  # noqa: B020  (goes on where it was)
            speakers[said % len(speakers)].say()
        await asyncio.sleep(TICK_S)
    return said


def write_record(path: Path, chains: int, events: int) -> int:
    """Write a finished record; returns how many events it has."""
    path.mkdir(parents=True)
    (path / "run.json").write_bytes(msgspec.json.encode(RunFile(id=RUN, name="large", status="completed")))
    log, skeleton = LineLog(path / "events"), Skeleton()
    turns = max((events // chains - 3) // EVENTS_OF_A_TURN, 1)
    begun = StreamEvent(T.RUN_START, "", 1e9, {"chains": chains, "agent": "large"}, None, None, 0, RUN)
    with (path / "chains.jsonl").open("wb") as rows:
        for number in range(chains):
            told = [begun] if number == 0 else []
            told += _story(number, turns, 1 + number * 100_000)
            if number == chains - 1:
                told.append(
                    StreamEvent(T.RUN_END, "", 1e9 + 1e4, {"status": "completed"}, None, None, 1 << 40, RUN)
                )
            first = log.position
            log.append(encode_lines(told), len(told))
            for position, event in enumerate(told, first):
                skeleton.feed(event, position)
            rows.write(b"".join(msgspec.json.encode(row) + b"\n" for row in skeleton.take_rows()))
    log.close()
    return log.position


def _story(number: int, turns: int, seq: int) -> list[StreamEvent]:
    call = {"call_id": "call_0", "tool_name": "look"}
    said = {"content": "a generation of some length " * 5, "finish_reason": "tool_call", "prompt_tokens": 3}
    start = {
        "messages": [{"role": "user", "content": f"question {number // 8}"}],
        "tools": ["look"],
        "index": number % 8,
    }
    events: list[tuple[StreamEventType, int | None, dict[str, Any]]] = [(T.CHAIN_START, None, start)]
    for turn in range(1, turns + 1):
        own = call | {"call_id": f"call_{turn}"}
        events += [
            (
                T.LLM_GENERATION_START,
                turn,
                {"prompt_tokens": 3, "model": "m", "policy_version": 0, "sampling": {}},
            ),
            (T.LLM_GENERATION_END, turn, said | {"completion_tokens": 30, "ttft_s": 0.1, "duration_s": 0.4}),
            (T.TOOL_CALL_START, turn, own | {"arguments": {"at": turn}}),
            (T.TOOL_OBSERVATION, turn, own | {"observation": "seen", "status": "success", "partial": False}),
            (T.TOOL_CALL_END, turn, own | {"status": "success", "duration_s": 0.1}),
        ]
    reward = number % 7 / 7
    end = {
        "finish_reason": "answered",
        "final_response": "so",
        "steps": turns,
        "completion_tokens": 30 * turns,
        "reward": reward,
        "metrics": {},
        "duration_s": 1.0,
    }
    events += [(T.REWARD, turns, {"reward": reward, "metrics": {}}), (T.CHAIN_END, turns, end)]
    return [
        StreamEvent(kind, f"chain_{number}", 1e9 + number + i / 1e4, data, step, step, seq + i, RUN, f"group_{number // 8}")
        for i, (kind, step, data) in enumerate(events)
    ]  # fmt: skip


async def main() -> None:
    """Perform the actions on standard input until it closes."""
    stage = Stage()
    async with stage.server:
        stage.manager.add_observer(stage.server.get_observer())
        await obey({"url": stage.server.page_url}, stage.actions)
        await stage.manager.aclose()


if __name__ == "__main__":
    asyncio.run(main())
