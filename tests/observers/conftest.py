import asyncio
import errno
import itertools
import os
import time

import pytest

from doubles import Terminal
from rollcast.records import StreamEvent, StreamEventType


class Events:
    """Makes events of one run as a manager would stamp them."""

    def __init__(self, run_id="run-0001"):
        self.run_id = run_id
        self._seq = itertools.count()
        self._offsets = {}

    def __call__(self, kind, chain_id="", step=1, **data):
        return StreamEvent(
            StreamEventType(kind),
            chain_id,
            time.time(),
            data,
            step,
            step,
            next(self._seq),
            self.run_id,
            "group_0" if chain_id else None,
        )

    def run_start(self, chains):
        return self("run_start", chains=chains, groups=1, agent="a", model="m", backend="b", policy_version=0)

    def run_end(self, chains=1, failed=0):
        return self(
            "run_end",
            status="completed",
            chains=chains,
            failed=failed,
            mean_reward=0.5,
            completion_tokens=10,
            duration_s=2.0,
        )

    def start(self, chain_id, question="What is 2 + 2?"):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        return self("chain_start", chain_id, messages=messages, tools=[], index=0, policy_version=0)

    def end(self, chain_id, reason="answered"):
        return self(
            "chain_end",
            chain_id,
            finish_reason=reason,
            final_response="4",
            steps=1,
            completion_tokens=3,
            reward=1.0,
            metrics={},
            duration_s=0.5,
        )

    def generation_start(self, chain_id):
        self._offsets[chain_id] = 0
        return self(
            "llm_generation_start", chain_id, prompt_tokens=1, model="m", policy_version=0, sampling={}
        )

    def chunk(self, chain_id, text):
        offset = self._offsets.get(chain_id, 0)
        self._offsets[chain_id] = offset + len(text)
        return self("llm_generation_chunk", chain_id, content=text, offset=offset, token_ids=[1])

    def generation_end(self, chain_id, text, reason="stop"):
        self._offsets[chain_id] = 0
        return self(
            "llm_generation_end",
            chain_id,
            content=text,
            finish_reason=reason,
            prompt_tokens=1,
            completion_tokens=3,
            ttft_s=0.1,
            duration_s=0.2,
        )

    def generation(self, chain_id, *texts):
        """A whole generation, one chunk a text."""
        return [
            self.generation_start(chain_id),
            *[self.chunk(chain_id, text) for text in texts],
            self.generation_end(chain_id, "".join(texts)),
        ]

    def call(self, chain_id, name="calculator", arguments=None, call_id="c1"):
        return self(
            "tool_call_start",
            chain_id,
            call_id=call_id,
            tool_name=name,
            arguments={"x": 1} if arguments is None else arguments,
        )

    def observation(
        self, chain_id, text="4", *, status="success", name="calculator", call_id="c1", partial=False
    ):
        return self(
            "tool_observation",
            chain_id,
            call_id=call_id,
            tool_name=name,
            observation=text,
            status=status,
            partial=partial,
        )

    def call_end(self, chain_id, status="success", name="calculator", call_id="c1"):
        return self(
            "tool_call_end", chain_id, call_id=call_id, tool_name=name, status=status, duration_s=0.001
        )


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def make_events():
    return Events


@pytest.fixture
def other_run():
    return Events("run-0002")


@pytest.fixture
def terminal():
    return Terminal()


@pytest.fixture
def make_terminal():
    return Terminal


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def eventually():
    """Wait until a condition holds; fails after a minute."""

    async def wait(condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """Threaded observers may block: the manager gives them a thread. Here they are driven in the test's own loop."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be filled: `disk.room` bytes are left on it, None for enough."""

    class Disk:
        room = None
        write = staticmethod(os.write)

        def __call__(self, fd, data):
            if self.room is None or fd <= 2:
                return self.write(fd, data)
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.write(fd, bytes(data[: self.room]))
            self.room -= taken
            return taken

    disk = Disk()
    monkeypatch.setattr(os, "write", disk)
    return disk
