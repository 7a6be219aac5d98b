"""The grammar of events, as a small pure state machine.

Per chain:  chain_start ((generation tool*) | message | reward of a step)* [final reward] chain_end
generation: llm_generation_start llm_generation_chunk* llm_generation_end
tool:       tool_call_start tool_observation+ tool_call_end     (parallel calls interleave, told apart by call_id)
Per run:    run_start … run_end; `seq` rises. A run of several sources is that once for each. `error` may come anywhere
inside. After a `gap`, or for an observer that joins late, a `chain_snapshot` opens a chain in the middle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rollcast.errors import GrammarError
from rollcast.records.event import StreamEvent, StreamEventType
from rollcast.records.lanes import leader_of

__all__ = ["GrammarChecker", "Part", "check_events"]

T = StreamEventType
# Looked up for every event: as attributes of their class they take ten times as long.
RUN_START, RUN_END, CHAIN_START, CHAIN_END = T.RUN_START, T.RUN_END, T.CHAIN_START, T.CHAIN_END
CHAIN_SNAPSHOT, GAP = T.CHAIN_SNAPSHOT, T.GAP
MAX_ENDED = 4096  # how many of the last ended runs are remembered
MAX_ENDED_CHAINS = 65_536  # how many of the last ended chains of a run are remembered
MAX_JOINED = (
    4096  # how many open runs are remembered after a late start, since a filter may hide that they end
)


_NO_TEXT: list[str] = []  # of a generation without chunks; a hub has a hundred thousand that nobody watches


class ReadEvent(Protocol):
    """What the rules look at of an event. Its data is a dict, or a struct with the same fields."""

    @property
    def event_type(self) -> StreamEventType:
        """See `StreamEvent`, like the others."""

    @property
    def chain_id(self) -> str: ...

    @property
    def step(self) -> int | None: ...

    @property
    def seq(self) -> int: ...

    @property
    def run_id(self) -> str: ...

    @property
    def data(self) -> Any: ...


@dataclass(slots=True)
class _Chain:
    chars: int | None = None  # characters in the open generation; None: no generation is open
    text: list[str] | None = None  # its pieces; None: its beginning was not seen
    step: int = 0
    open_calls: dict[str, int] = field(default_factory=dict)  # call_id -> final observations seen
    rewarded: bool = False
    blind: bool = False  # joined without a snapshot: unknown calls may be open
    ended_calls: set[str] | None = None  # used if blind


@dataclass
class Part:
    """One source's part of a run, as far as it came.

    Attributes:
        last_seq: the `seq` of its latest event.
    """

    last_seq: int = -1
    chains: dict[str, _Chain] = field(default_factory=dict)
    ended_chains: dict[str, None] = field(default_factory=dict)  # the latest last
    leader: str | None = None  # it ends with this source at the latest
    forgetful: bool = False  # a gap or a late start: unknown chains are not an error

    def next_chunk(self, chain_id: str, seq: int, offset: int, content: str) -> bool:
        """Take the next chunk of an open generation, without an event. It must have one logprob per token id, or none at all.

        Returns:
            Whether it continues the generation. If not, it was not taken: `feed` says what is wrong, if anything is.
        """
        chain = self.chains.get(chain_id)
        if chain is None or chain.chars != offset or seq <= self.last_seq:
            return False
        self.last_seq = seq
        chain.chars = offset + len(content)
        text = chain.text
        if text is _NO_TEXT:
            chain.text = [content]
        elif text is not None:
            text.append(content)
        return True

    def next_event(self, event: ReadEvent) -> bool:
        """Take the next event of a chain, of any type but `chain_start`, `chain_snapshot`, `llm_generation_chunk` and those of the run.

        Returns:
            Whether it may come now. If not, it was not taken: `feed` says what is wrong, if anything is.
        """
        name, kind = event.chain_id, event.event_type
        chain = self.chains.get(name)
        if chain is None or event.seq <= self.last_seq:
            return False
        try:
            _RULES[kind](chain, event)
        except GrammarError:
            return False
        self.last_seq = event.seq
        if kind is CHAIN_END:
            self.end_chain(name)
        return True

    def end_chain(self, name: str) -> None:
        """Note that the chain, which is open, has ended."""
        del self.chains[name]
        self.ended_chains[name] = None
        if len(self.ended_chains) > MAX_ENDED_CHAINS:
            del self.ended_chains[next(iter(self.ended_chains))]


class GrammarChecker:
    """Feed it events in the order in which one observer got them; it raises at the first that breaks the grammar.

    It may watch for ever: it remembers the last 4096 ended runs, the last 65,536 ended chains of each open run, and with `late` as
    many open runs as ended ones. A forgotten run is like
    one that it never saw: an error unless `late`, else it joins the run again. So it misses only one thing, with `late`: an
    event after the end of a run that 4096 others followed. Without `late`, open runs are not forgotten.

    Args:
        late: the observer joined while the run was going on, so openings may be missing.
        types: the types that its filter lets through; None: all. If they do not include all events of a generation, or of a
            tool call, their order is not checked beyond `seq`. Implies `late`.
    """

    def __init__(self, *, late: bool = False, types: Iterable[StreamEventType] | None = None) -> None:
        self._types = frozenset(T) if types is None else frozenset(types)
        self._unchecked = _unchecked(self._types)
        self._late = late or types is not None
        self._rules = {kind: rule for kind, rule in _RULES.items() if kind not in self._unchecked}
        self._runs: dict[tuple[str, str], Part] = {}
        self._ended_runs: dict[tuple[str, str], None] = {}  # the latest last

    def feed(self, event: StreamEvent) -> None:
        """Take the next event.

        Raises:
            GrammarError: it is not allowed here.
        """
        key = (event.source, event.run_id)
        kind = event.event_type
        if not event.run_id:
            return  # it belongs to no run: it was made by hand, or an observer failed between runs
        if key in self._ended_runs:
            raise _error(event, "its run has ended")
        run = self._runs.get(key)
        if run is None:
            if kind is T.ERROR and not event.chain_id and any(name == key[1] for _, name in self._runs):
                return  # somebody who watches the run elsewhere says that he failed
            if kind is not RUN_START and not self._late and kind not in (GAP, T.TRAIN_STEP):
                raise _error(event, "its run has not started")
            leader = leader_of(event) if kind is RUN_START else None
            run = self._runs[key] = Part(leader=leader, forgetful=self._late)
            if self._late and len(self._runs) > MAX_JOINED:
                del self._runs[next(iter(self._runs))]
        elif kind is RUN_START:
            raise _error(event, "its run has started already")
        if kind is GAP:
            run.chains.clear()
            run.forgetful = True
            run.last_seq = max(run.last_seq, event.data["to_seq"] or 0)
            return
        if kind is not CHAIN_SNAPSHOT:
            if event.seq <= run.last_seq:
                raise _error(event, f"seq {run.last_seq} came before it")
            run.last_seq = event.seq
        if kind is RUN_END:
            if run.chains and CHAIN_END in self._types:
                raise _error(event, f"still open: {', '.join(sorted(run.chains))}")
            for ended in [key, *self._led_by(key)]:
                del self._runs[ended]
                self._ended_runs[ended] = None
            while len(self._ended_runs) > MAX_ENDED:
                del self._ended_runs[next(iter(self._ended_runs))]
        elif event.chain_id:
            self._feed_chain(run, event)

    def feed_within(self, part: Part, event: StreamEvent) -> None:
        """Do the same as `feed` for an event of this part, of any type but `run_start`, `run_end`, `gap` and `chain_snapshot`.

        Raises:
            GrammarError: it is not allowed here.
        """
        if event.seq <= part.last_seq:
            raise _error(event, f"seq {part.last_seq} came before it")
        part.last_seq = event.seq
        if event.chain_id:
            self._feed_chain(part, event)

    def part_of(self, source: str, run_id: str) -> Part | None:
        """A source's part of a run, for `Part.next_chunk`; None if it is not open, or the filter may hide what belongs to a chunk.

        It holds until the next `run_start`, `run_end` or `gap`.
        """
        return None if self._unchecked else self._runs.get((source, run_id))

    def has_open_chains(self, event: StreamEvent) -> bool:
        """Whether chains are open in the event's run, as far as its source told."""
        run = self._runs.get((event.source, event.run_id))
        return run is not None and bool(run.chains)

    def _led_by(self, key: tuple[str, str]) -> list[tuple[str, str]]:
        """The parts of the run that end with this one, since they name its source as their leader."""
        source, run_id = key
        return [each for each, run in self._runs.items() if run.leader == source and each[1] == run_id]

    def close(self) -> None:
        """Check that every run has ended, after the last event.

        Raises:
            GrammarError: a run has not ended.
        """
        for (_, run_id), run in self._runs.items():
            chains = run.chains if CHAIN_END in self._types else {}
            if chains or not (self._late or run.forgetful):
                raise GrammarError(
                    f"the events end, but run {run_id!r} has not; still open: {sorted(run.chains)}"
                )

    def _feed_chain(self, run: Part, event: StreamEvent) -> None:
        kind, name = event.event_type, event.chain_id
        chain = run.chains.get(name)
        rule = self._rules.get(kind)
        if chain is not None and rule is not None and kind is not CHAIN_END:  # like most events
            rule(chain, event)
            return
        if kind is CHAIN_START:
            if chain is not None or name in run.ended_chains:
                raise _error(event, "its chain has started already")
            run.chains[sys.intern(name)] = _Chain()  # others may remember its name, too
            return
        if kind is CHAIN_SNAPSHOT:
            content = event.data["content"]
            run.chains[name] = _Chain(
                # A long text tells how much of it was left out.
                chars=None if content is None else event.data.get("content_omitted", 0) + len(content),
                text=None if content is None or event.data.get("content_omitted") else [content],
                step=event.step or 0,
                open_calls={
                    call["call_id"]: int(call.get("status") is not None) for call in event.data["tool_calls"]
                },
            )
            self._forget_unchecked(run.chains[name])
            return
        if chain is None:
            if name in run.ended_chains:
                raise _error(event, "its chain has ended")
            if not run.forgetful:
                raise _error(event, "its chain has not started")
            chain = run.chains[name] = _joined(event)
            self._forget_unchecked(chain)
        if rule is not None:
            rule(chain, event)
        if kind is CHAIN_END:
            run.end_chain(name)

    def _forget_unchecked(self, chain: _Chain) -> None:
        """Forget what is open if the filter may hide its end."""
        if T.LLM_GENERATION_END in self._unchecked:
            chain.chars = chain.text = None
        if T.TOOL_CALL_END in self._unchecked:
            chain.open_calls = {}


def _unchecked(types: frozenset[StreamEventType]) -> frozenset[StreamEventType]:
    """The types whose order cannot be checked, because the filter leaves out others that belong to them."""
    families = (
        {T.LLM_GENERATION_START, T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END},
        {T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.TOOL_CALL_END},
    )
    return frozenset().union(*(family for family in families if not family <= types))


def _joined(event: StreamEvent) -> _Chain:
    """A chain whose opening was not seen, in a state in which this event may come next."""
    chain = _Chain(step=(event.step or 1) - 1, blind=True)
    kind = event.event_type
    if kind is T.LLM_GENERATION_CHUNK:
        chain.chars = event.data["offset"]
    elif kind is T.LLM_GENERATION_END:
        chain.chars = len(event.data["content"])
    elif kind in (T.TOOL_OBSERVATION, T.TOOL_CALL_END):
        chain.open_calls[event.data["call_id"]] = int(kind is T.TOOL_CALL_END)
    if kind is not T.LLM_GENERATION_START:
        chain.step = event.step or 0
    return chain


def _told(event: ReadEvent, name: str) -> Any:
    """A field of the event's data. None if it is not there and need not be."""
    data = event.data
    return data.get(name) if isinstance(data, dict) else getattr(data, name)


def _generation_start(chain: _Chain, event: ReadEvent) -> None:
    if chain.chars is not None:
        raise _error(event, "a generation is open")
    if chain.open_calls:
        raise _error(event, f"tool calls are open: {sorted(chain.open_calls)}")
    if chain.rewarded:
        raise _error(event, "its reward was given")
    if (event.step or 0) != chain.step + 1:
        raise _error(event, f"the step before was {chain.step}")
    chain.chars, chain.text, chain.step = 0, _NO_TEXT, event.step or 0


def _chunk(chain: _Chain, event: StreamEvent) -> None:
    if chain.chars is None:
        raise _error(event, "no generation is open")
    data = event.data
    if data["offset"] != chain.chars:
        if "from_seq" not in data or data["offset"] < chain.chars:
            # Python writes only 4,300 digits of a number, and an offset may have as many.
            came = chain.chars if chain.chars <= 1 << 53 else "more than 2**53"
            raise _error(event, f"its offset is {data['offset']}, and {came} characters came before it")
        chain.text = None
    chain.chars = data["offset"] + len(data["content"])
    if chain.text is _NO_TEXT:
        chain.text = [data["content"]]
    elif chain.text is not None:
        chain.text.append(data["content"])
    if "logprobs" in data and len(data["logprobs"]) != len(data.get("token_ids", ())):
        raise _error(event, "it does not have one logprob per token id")


def _generation_end(chain: _Chain, event: ReadEvent) -> None:
    if chain.chars is None:
        raise _error(event, "no generation is open")
    content = _told(event, "content")
    if chain.text is not None and not content.startswith("".join(chain.text)):
        raise _error(event, "its content is not the text of its chunks")
    chain.chars = chain.text = None


def _tool_start(chain: _Chain, event: ReadEvent) -> None:
    if chain.chars is not None:
        raise _error(event, "a generation is open")
    call_id = _told(event, "call_id")
    if call_id in chain.open_calls:
        raise _error(event, f"call {call_id} is open")
    chain.open_calls[call_id] = 0


def _tool_observation(chain: _Chain, event: ReadEvent) -> None:
    call_id = _told(event, "call_id")
    seen = chain.open_calls.get(call_id)
    if seen is None and chain.blind and call_id not in (chain.ended_calls or ()):
        seen = 0
    if seen is None:
        raise _error(event, f"call {call_id} is not open")
    if seen:
        raise _error(event, f"call {call_id} had its final observation")
    chain.open_calls[call_id] = int(not _told(event, "partial"))


def _tool_end(chain: _Chain, event: ReadEvent) -> None:
    call_id = _told(event, "call_id")
    unknown = int(chain.blind and call_id not in (chain.ended_calls or ()))
    if chain.open_calls.get(call_id, unknown) != 1:
        raise _error(event, f"call {call_id} is not open, or has no final observation")
    chain.open_calls.pop(call_id, None)
    if chain.blind:
        chain.ended_calls = {*(chain.ended_calls or ()), call_id}


def _reward(chain: _Chain, event: ReadEvent) -> None:
    if chain.chars is not None or chain.open_calls or chain.rewarded:
        raise _error(event, "a generation or a tool call is open, or the chain's own reward was given")
    chain.rewarded = (
        _told(event, "final") is not False
    )  # one that does not say is the chain's own, as in a log of 0.1


def _message(chain: _Chain, event: ReadEvent) -> None:
    if chain.chars is not None or chain.open_calls or chain.rewarded:
        raise _error(event, "a generation or a tool call is open, or the chain's own reward was given")


def _chain_end(chain: _Chain, event: ReadEvent) -> None:
    if chain.chars is not None:
        raise _error(event, "a generation is open")
    if chain.open_calls:
        raise _error(event, f"tool calls are open: {sorted(chain.open_calls)}")


def _anywhere(chain: _Chain, event: ReadEvent) -> None:
    """`error` and types of later versions may come anywhere inside a chain."""


_RULES: dict[StreamEventType, Callable[[_Chain, Any], None]] = {
    T.LLM_GENERATION_START: _generation_start,
    T.LLM_GENERATION_CHUNK: _chunk,
    T.LLM_GENERATION_END: _generation_end,
    T.TOOL_CALL_START: _tool_start,
    T.TOOL_OBSERVATION: _tool_observation,
    T.TOOL_CALL_END: _tool_end,
    T.REWARD: _reward,
    T.MESSAGE: _message,
    T.CHAIN_END: _chain_end,
    T.ERROR: _anywhere,
    T.TRAIN_STEP: _anywhere,
    T.RUN_START: _anywhere,
}


def _error(event: ReadEvent, why: str) -> GrammarError:
    place = f"{event.event_type} (seq {event.seq}, run {event.run_id!r}, {event.chain_id or 'the run'})"
    return GrammarError(f"{place} is not allowed here: {why}")


def check_events(
    events: Iterable[StreamEvent], *, late: bool = False, types: Iterable[StreamEventType] | None = None
) -> None:
    """Check a whole stream as one observer got it; `late` and `types` are those of `GrammarChecker`.

    Raises:
        GrammarError: an event is not allowed where it is, or something that was opened is not closed.
    """
    checker = GrammarChecker(late=late, types=types)
    for event in events:
        checker.feed(event)
    checker.close()
