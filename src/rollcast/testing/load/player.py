"""Plays a load on a manager, paced by one clock from its beginning, so that what is late is caught up and no rate drifts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from typing import Literal

from rollcast.records import StreamEventType
from rollcast.records.event import RunStatus
from rollcast.stream import ChainWriter, GenerationWriter, StreamingManager, ToolCallWriter
from rollcast.testing.load.plan import VOCABULARY, ChainPlan, Load, plan_of_chain
from rollcast.testing.load.rollouts import Rollout, Rollouts, Tally

__all__ = ["LoadReport", "play_load"]

T = StreamEventType
clock = time.perf_counter
TICK_S = 0.005  # between two looks at the clock while nothing is due
SLICE = 4096  # about how many tokens are written before observers and other tasks get their turn
STEP_COST = 8  # how many tokens a step counts for in a slice
SHARE_IN_TOOLS = 8  # one chain in so many is in a tool call
_STATUS: dict[str, RunStatus] = {"answered": "completed", "cancelled": "cancelled", "error": "failed"}


@dataclass(frozen=True)
class LoadReport:
    """What was played.

    Attributes:
        events: how many events there were of each type, except for chunks. Only those that an observer wants were really made.
        tokens: how many tokens were written.
        chains, runs: how many began, all of which have ended.
        begin_s: how many seconds the beginning of the first chains took, before the clock of the rates starts.
        seconds: how long the rest took.
        behind_s: how far the load was behind its clock at the end.
        most_behind_s: how far it was behind at most.
    """

    events: dict[str, int]
    tokens: int
    chains: int
    runs: int
    begin_s: float
    seconds: float
    behind_s: float
    most_behind_s: float


async def play_load(manager: StreamingManager, load: Load, *, live: bool = True) -> LoadReport:
    """Play the load, end all its chains, and wait until observers have the events.

    It plays all that is due in `load.seconds`, also if that takes longer. When it is cancelled, its chains end as cancelled.
    A run or a chain that a watcher cancels ends, and another one begins instead.

    Args:
        manager: on which it is played.
        load: what is played.
        live: False: nothing is emitted, which is the cost that is there without streaming.
    """
    player = _Player(manager, load, live=live)
    try:
        return await player.play()
    except asyncio.CancelledError:
        player.end("cancelled")
        raise
    finally:
        player.end("error")


class _Speaker:
    """A place for one chain after another. What it has of a chain is set when that begins."""

    __slots__ = ("call", "calls_left", "chain", "place", "plan", "rollout", "turns_left")

    chain: ChainWriter
    plan: ChainPlan
    rollout: Rollout
    turns_left: int
    calls_left: int  # of the turn

    def __init__(self, place: int) -> None:
        self.place = place
        self.call: ToolCallWriter | None = None  # the open one


class _Player:
    """One play of a load.

    Args:
        manager, load, live: as for `play_load`.
    """

    def __init__(self, manager: StreamingManager, load: Load, *, live: bool) -> None:
        self._manager = manager
        self._load = load
        self._tally = Tally()
        self._rollouts = Rollouts(manager, load, self._tally, live=live)
        self._tokens_due = 0  # how many came up, with those of chains that are in a tool call
        self._left_out = 0  # those
        self._chains = 0
        self._speakers: list[_Speaker] = []
        self._generations: list[GenerationWriter | None] = []  # the open one of each speaker
        self._generating: deque[_Speaker] = deque()  # in the order in which their turns end
        self._in_tools: deque[_Speaker] = deque()

    # -- the clock -----------------------------------------------------------------------------------------------------

    async def play(self) -> LoadReport:
        """Play all of it."""
        load = self._load
        began = clock()
        for place in range(load.chains):
            speaker = _Speaker(place)
            self._generations.append(None)
            self._begin(speaker)
            self._speakers.append(speaker)
            if place % 64 == 63:
                await self._give_way(0)
        started, played, most = clock(), 0.0, 0.0
        self._tally.total = 0
        while played < load.seconds:
            until = load.seconds if load.flat_out else min(clock() - started, load.seconds)
            played = self._advance(until)
            most = max(most, clock() - started - played)
            while self._rollouts.cancelled:
                self._cancel(*self._rollouts.cancelled.popleft())
            await self._give_way(0 if load.flat_out or played < until else TICK_S)
        took = clock() - started
        self.end("answered")
        await self._manager.drain()
        return LoadReport(
            events={kind.value: count for kind, count in self._tally.events.items()},
            tokens=self._tokens_due - self._left_out,
            chains=self._chains,
            runs=self._rollouts.begun,
            begin_s=started - began,
            seconds=took,
            behind_s=0.0 if load.flat_out else max(0.0, took - load.seconds),
            most_behind_s=0.0 if load.flat_out else most,
        )

    async def _give_way(self, seconds: float) -> None:
        await self._manager.ready()
        await asyncio.sleep(seconds)

    def _advance(self, until: float) -> float:
        """Do what is due by then, at most about a slice of it; returns how far it came, in seconds.

        The order depends on the load alone: it is that of the times when things are due, however late they are done.
        """
        token_rate, event_rate, seconds = (
            self._load.all_tokens_per_s,
            self._load.all_events_per_s,
            self._load.seconds,
        )
        budget = SLICE
        while True:
            step_due = self._tally.total / event_rate if event_rate else seconds
            due = int(min(until, step_due) * token_rate)
            if due > self._tokens_due:
                last = min(due, self._tokens_due + budget)
                budget -= last - self._tokens_due
                self._say_until(last)
                if last < due:
                    return last / token_rate
            if step_due > until or step_due >= seconds:
                return until
            if budget <= 0:
                return step_due
            self._step()
            budget -= STEP_COST

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _say_until(self, last: int) -> None:
        """Write tokens, one at each place in turn, until `last` have come up."""
        generations, seed, at = self._generations, self._load.seed, self._tokens_due
        while at < last:
            lap, place = divmod(at, len(generations))
            some = generations[place : place + last - at]
            for number, generation in enumerate(some, at + 37 * lap + seed):  # a chain's words differ
                if generation is None:
                    self._left_out += 1
                else:
                    generation.chunk(*VOCABULARY[number & 511])
            at += len(some)
        self._tokens_due = last

    # -- everything else -----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Let the chain whose turn it is end its turn or its tool call, and go on."""
        enough = max(1, self._load.chains // SHARE_IN_TOOLS)
        if self._in_tools and (len(self._in_tools) >= enough or not self._generating):
            self._end_call(self._in_tools.popleft())
        else:
            self._end_turn(self._generating.popleft())

    def _begin(self, speaker: _Speaker) -> None:
        """Begin the next chain at this place, with its first turn."""
        load, number = self._load, self._chains
        self._chains += 1
        speaker.rollout = self._rollouts.begin_chain()
        speaker.plan = plan = plan_of_chain(load, number)
        speaker.turns_left = plan.turns
        speaker.chain = speaker.rollout.run.chain(
            [{"role": "user", "content": plan.question}],
            chain_id=f"chain_{number}",
            group_id=f"group_{number // load.group_size}",
            index=number % load.group_size,
            tools=["log_book"],
            reference=plan.reference,
        )
        Context().run(speaker.chain.start)  # in a context of its own: no chain begins inside another
        self._tally.count(T.CHAIN_START)
        self._begin_turn(speaker)

    def _begin_turn(self, speaker: _Speaker) -> None:
        speaker.turns_left -= 1
        speaker.calls_left = self._load.tool_calls if speaker.turns_left else 0
        self._generations[speaker.place] = speaker.chain.generation(prompt_tokens=40).start()
        self._tally.count(T.LLM_GENERATION_START)
        self._generating.append(speaker)

    def _end_turn(self, speaker: _Speaker) -> None:
        self._end_generation(speaker)
        self._go_on(speaker)

    def _end_generation(self, speaker: _Speaker) -> None:
        generation = self._generations[speaker.place]
        assert generation is not None
        self._generations[speaker.place] = None
        generation.end("tool_call" if speaker.calls_left else "stop")
        self._tally.count(T.LLM_GENERATION_END)

    def _go_on(self, speaker: _Speaker) -> None:
        """Call the next tool, or begin the next turn, or end the chain and begin another."""
        if speaker.calls_left:
            speaker.calls_left -= 1
            day = speaker.plan.turns - speaker.turns_left
            speaker.call = speaker.chain.tool_call("log_book", {"day": day}).start()
            self._tally.count(T.TOOL_CALL_START)
            self._in_tools.append(speaker)
        elif speaker.turns_left:
            self._begin_turn(speaker)
        else:
            self._end_chain(speaker)
            self._begin(speaker)

    def _end_call(self, speaker: _Speaker) -> None:
        self._observe(speaker)
        self._go_on(speaker)

    def _observe(self, speaker: _Speaker) -> None:
        assert speaker.call is not None
        speaker.call.observation(f"Wind from the west; {speaker.plan.reference} miles in all.").end()
        speaker.call = None
        self._tally.count(T.TOOL_OBSERVATION, T.TOOL_CALL_END)

    def _end_chain(self, speaker: _Speaker) -> None:
        """End the chain, in which nothing is open, with its reward."""
        if self._load.rewards:
            speaker.chain.reward(speaker.plan.reward, {"miles": speaker.plan.reference})
            self._tally.count(T.REWARD)
        speaker.chain.end("answered", speaker.plan.answer)
        self._tally.count(T.CHAIN_END)
        speaker.rollout.to_end -= 1
        self._rollouts.close_if_over(speaker.rollout)

    # -- ends that come early ------------------------------------------------------------------------------------------

    def _cancel(self, rollout: Rollout, chain_id: str | None) -> None:
        """End what a watcher cancelled, and begin other chains in its place."""
        ending = {
            speaker: None
            for speaker in self._speakers
            if speaker.rollout is rollout and chain_id in (None, speaker.chain.trajectory.chain_id)
        }
        self._generating = deque(speaker for speaker in self._generating if speaker not in ending)
        self._in_tools = deque(speaker for speaker in self._in_tools if speaker not in ending)
        for speaker in ending:
            self._end_early(speaker, "cancelled")
        if chain_id is None:
            self._rollouts.close(rollout, "cancelled")
        else:
            self._rollouts.close_if_over(rollout)
        for speaker in ending:
            self._begin(speaker)

    def end(self, how: Literal["answered", "cancelled", "error"]) -> None:
        """End everything that is open. A second time does nothing."""
        self._generating.clear()
        self._in_tools.clear()
        for speaker in self._speakers:
            if speaker.chain.ended:
                continue
            if how != "answered":
                self._end_early(speaker, how)
                continue
            if speaker.call is not None:
                self._observe(speaker)
            else:
                self._end_generation(speaker)
            self._end_chain(speaker)
        self._rollouts.close_all(_STATUS[how])

    def _end_early(self, speaker: _Speaker, how: Literal["cancelled", "error"]) -> None:
        """End the chain with what is open in it."""
        if speaker.call is not None:
            speaker.call = None
            self._tally.count(T.TOOL_OBSERVATION, T.TOOL_CALL_END)
        else:
            self._generations[speaker.place] = None
            self._tally.count(T.LLM_GENERATION_END)
        speaker.chain.end(how)
        self._tally.count(T.CHAIN_END)
        speaker.rollout.to_end -= 1
