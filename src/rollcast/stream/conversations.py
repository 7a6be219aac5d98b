"""Tells which chain a request to a model belongs to, and writes the chains of those who only ask and answer.

    conversations = Conversations(run)
    call = conversations.begin(request_of("chat", body))
    for piece in pieces_of(payload):
        call.piece(piece)
    call.end()

A proxy and a watched client see requests, not chains. A request belongs to the chain of its session if it names one; otherwise to
the open chain, of the same API key, whose whole conversation it begins with. What an answer asked of tools is seen in the next request, as messages.
It does no I/O and has no lock: one thread at a time uses it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

from rollcast.errors import InputError
from rollcast.records import Message, prompt_hash
from rollcast.records.event import ChainFinishReason
from rollcast.records.jsonable import bounded_fields
from rollcast.records.openai_wire import WireRequest
from rollcast.stream.chain import ChainWriter
from rollcast.stream.conversation_call import Call, CallerName, Talk, new_ids
from rollcast.stream.conversation_keys import Mark, Trail, trail_of_ids, trail_of_messages, trail_of_text
from rollcast.stream.conversation_messages import arguments_of, content_text, message_key, shown_message
from rollcast.stream.run import RunWriter

__all__ = ["Call", "Conversations"]

MAX_IDLE = (
    4096  # chains that wait for their next request; beyond that the one that has waited longest is closed
)
_LONG_ID = 8  # characters of a call's id that is not just a number in an answer


class Conversations:
    """The chains of a run whose producer only sends requests and gets answers.

    Args:
        run: the run that they are chains of. It is open.
        idle_s: after how many seconds without a request a chain is closed; None: only when it is told, or if there are very many.
        beside: the chain in whose code all of them are begun. They are its children, and end with their first answer that asks for no tool.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        run: RunWriter,
        idle_s: float | None = None,
        *,
        beside: ChainWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self._beside = beside
        self.idle_s = idle_s
        self._clock = clock
        self._named: dict[str, Talk] = {}  # by session, by name and by chain id
        self._by_mark: dict[tuple[CallerName, Mark], list[Talk]] = {}
        self._lengths: dict[str, dict[int, int]] = {"ids": {}, "text": {}}  # how many marks have this length
        self._by_tool: dict[str, list[Talk]] = {}  # by the ids of open calls
        self._waiting: OrderedDict[int, Talk] = OrderedDict()  # the one that has waited longest first
        self._open: dict[int, Talk] = {}

    # -- what requests do ----------------------------------------------------------------------------------------------

    def begin(
        self,
        request: WireRequest,
        session: str | None = None,
        group: str | None = None,
        chain: str | None = None,
        key: str | None = None,
    ) -> Call:
        """A request has been sent: find its chain, or begin one, and begin a generation.

        Args:
            request: the request.
            session: the conversation's name, if the caller gives one: all its requests are one chain, unless they overlap.
            group: the group of a chain that begins; None: the prompt's hash, so that equal prompts are one group.
            chain: the chain's id, if the caller gives one. It is a session as well. In a run that several processes share the id ends
                with the source; if a chain that has ended had it, the new one is called otherwise.
            key: what the caller's API key is known by: a request that names no session goes on only with conversations of the same key.

        Raises:
            InputError: the run has ended.
        """
        self.close_idle()
        name = chain or session or None
        caller = CallerName(name, None if name else key)
        trail, keys = _trail_of(request)
        talk, parent = self._find(request, caller, trail)
        if talk is not None and (talk.writer.ended or talk.writer.trajectory.reward is not None):
            self._close(talk)  # nothing comes after a chain's own reward
            talk = None
        fork = talk is not None and not self._goes_on(talk, trail)
        if talk is None:
            talk = self._new(request, caller, group, chain, parent)
        else:
            self._hear(talk, request, keys, fork=fork)
        return self._generate(talk, request, keys, fork=fork)

    def reward(self, name: str, value: float, metrics: dict[str, Any] | None = None) -> None:
        """Give a chain its reward, which ends neither the chain nor its session's name.

        Args:
            name: the session, or the chain's id.
            value: the reward.
            metrics: numbers beside it.

        Raises:
            InputError: no open chain has that name, it is generating, it has a reward, or the reward is not a finite number.
        """
        talk = self._talk_named(name)
        if talk.call is None:
            self._leave_tools(talk)
        talk.writer.reward(value, metrics)

    def end(self, name: str, finish_reason: ChainFinishReason = "unknown") -> None:
        """End a chain, and those that its session began beside it.

        Raises:
            InputError: no open chain has that name, or the finish reason is unknown.
        """
        self._close(self._talk_named(name), finish_reason)

    def close_idle(self) -> int:
        """Close the chains that have waited too long for their next request; how many there were."""
        oldest = None if self.idle_s is None else self._clock() - self.idle_s
        closed = 0
        while self._waiting:
            talk = next(iter(self._waiting.values()))
            if len(self._waiting) <= MAX_IDLE and (oldest is None or talk.last_used > oldest):
                break
            self._close(talk)
            closed += 1
        return closed

    def close_all(self) -> None:
        """Close every chain; a generation that is open is cancelled."""
        for talk in list(self._open.values()):
            self._close(talk)

    @property
    def open_chains(self) -> int:
        """How many chains have begun and not ended."""
        return len(self._open)

    # -- who is the chain ----------------------------------------------------------------------------------------------

    def _find(
        self, request: WireRequest, caller: CallerName, trail: Trail
    ) -> tuple[Talk | None, Talk | None]:
        """The chain that the request goes on with; or None, and the chain that a new one is begun beside, if there is one."""
        branch: Talk | None = None
        if trail.length:
            lengths = range(1, trail.length + 1) if trail.kind == "messages" else self._lengths[trail.kind]
            for mark in trail.marks(lengths):
                talks = self._by_mark.get((caller, mark), ())
                waiting = [talk for talk in talks if talk.mark == mark]
                if len(waiting) == 1 or (waiting and waiting[0].certain):
                    if waiting[0].certain or mark.length < trail.length:
                        return waiting[0], None
                elif (
                    talks and branch is None and mark.length < trail.length
                ):  # else it only asks the same again
                    branch = talks[0]
        main = self._named.get(caller.session) if caller.session is not None else None
        if main is not None:
            beside = main.call is not None or (main.tools and not main.answers(request))
            return (None, main) if beside else (main, None)
        return self._by_calls(request, caller), branch

    def _by_calls(self, request: WireRequest, caller: CallerName) -> Talk | None:
        """The only chain that waits for a result that the request has, whatever else was rewritten."""
        for message in reversed(request.messages):
            call_id = message.get("tool_call_id")
            if isinstance(call_id, str) and len(call_id) >= _LONG_ID:
                talks = self._by_tool.get(call_id, ())
                if len(talks) == 1 and talks[0].caller == caller:
                    return talks[0]
        return None

    @staticmethod
    def _goes_on(talk: Talk, trail: Trail) -> bool:
        mark = talk.mark
        if mark is None or mark.kind != trail.kind:
            return False
        return not mark.length or mark in trail.marks([mark.length])

    def _new(
        self,
        request: WireRequest,
        caller: CallerName,
        group: str | None,
        chain: str | None,
        parent: Talk | None,
        *,
        repeat: bool = False,
    ) -> Talk:
        """Begin a chain.

        Args:
            request: its first request.
            caller: whose it is; a chain that is begun beside another does not answer to the session's name.
            group: the group, if the caller gives one.
            chain: the id, if the caller gives one.
            parent: the chain that it is begun beside.
            repeat: whether it is another answer to the same prompt, and not one that its parent began.
        """
        name, messages = caller.session, _prompt_messages(request)
        around = self._beside if parent is None else parent.writer
        if around is not None:
            group = group or around.trajectory.group_id
        if group is None:
            prompt: list[Any] = [*messages] or [request.prompt_token_ids]
            group = f"group_{prompt_hash(prompt)}"
        own = [name] if name is not None and parent is None else []
        given = f"{chain}{self.run.suffix}" if chain and own else None
        writer = self.run.chain(
            messages,
            chain_id=given if given is not None and not self.run.had_chain(given) else None,
            group_id=group,
            tools=request.tool_names,
            row={"session": name} if name else None,
            parent_chain_id=None if around is None or repeat else around.trajectory.chain_id,
        )
        Context().run(writer.start)  # it is not the current chain of whoever asks
        talk = Talk(writer, caller, [*own, writer.trajectory.chain_id])
        talk.keys = [message_key(message) for message in request.messages]
        for each in talk.names:
            self._named.setdefault(each, talk)
        if parent is not None:
            parent.children.append(talk)
        self._open[id(talk)] = talk
        return talk

    def _talk_named(self, name: str) -> Talk:
        talk = self._named.get(name)
        if talk is None:
            raise InputError(
                f"no open chain or session is called {name!r}; it has ended, or no request named it"
            )
        return talk

    # -- what a request says of the turn before ------------------------------------------------------------------------

    def _hear(self, talk: Talk, request: WireRequest, keys: list[bytes], *, fork: bool) -> None:
        """Write what came since the last answer: results of tools, and messages from outside."""
        if request.messages and talk.mark is not None and talk.mark.kind == "messages":
            known = set(talk.keys) if fork else None
            new = [
                (message, key)
                for at, (message, key) in enumerate(zip(request.messages, keys, strict=True))
                if (at >= len(talk.keys) if known is None else key not in known)
            ]
        else:
            new = list(zip(request.messages, keys, strict=True))
        rest = [message for message, _ in new if not self._is_result(talk, message)]
        self._leave_tools(talk)
        for message in rest:
            talk.writer.message(shown_message(message), from_outside=True)
        if request.prompt is not None:
            more = request.prompt.removeprefix(talk.text) if not fork else request.prompt
            if more:
                talk.writer.message({"role": "user", "content": more}, from_outside=True)
        talk.keys = list(keys)

    def _is_result(self, talk: Talk, message: Mapping[str, Any]) -> bool:
        """Write a tool's result, if the message is one."""
        call_id = message.get("tool_call_id")
        if message.get("role") == "function":  # before there were ids
            names = (
                key for key, tool in talk.tools.items() if tool.record.call.tool_name == message.get("name")
            )
            call_id = next(names, None)
        tool = talk.tools.pop(call_id, None) if isinstance(call_id, str) else None
        if tool is None:
            return False
        self._forget_tool(talk, call_id)  # type: ignore[arg-type]  # it is text
        shown = shown_message(message)
        tool.observation(content_text(shown["content"])).end()
        talk.writer.message(shown)
        return True

    def _leave_tools(self, talk: Talk) -> None:
        """End the calls whose results nobody sent."""
        for call_id, tool in talk.tools.items():
            self._forget_tool(talk, call_id)
            tool.end("cancelled")
        talk.tools.clear()

    def _forget_tool(self, talk: Talk, call_id: str) -> None:
        talks = self._by_tool.get(call_id, [])
        if talk in talks:
            talks.remove(talk)
        if not talks:
            self._by_tool.pop(call_id, None)

    # -- a generation --------------------------------------------------------------------------------------------------

    def _generate(self, talk: Talk, request: WireRequest, keys: list[bytes], *, fork: bool) -> Call:
        fresh_ids, fork = new_ids(talk, request.prompt_token_ids, fork=fork)
        generation = talk.writer.generation(
            prompt_ids=fresh_ids,
            prompt_tokens=len(request.prompt_token_ids) if request.prompt_token_ids else None,
            sampling=bounded_fields(request.sampling),
            fresh=fork,
            model=request.model or None,
        ).start()
        talk.mark, talk.failed = None, None
        talk.text = request.prompt or ""
        talk.keys = list(keys)
        talk.call = Call(self, talk, request, generation)
        self._waiting.pop(id(talk), None)
        return talk.call

    def ended(self, call: Call, failed: ChainFinishReason | None, answer: dict[str, Any] | None) -> None:
        """A call is over: open the tool calls that it asked for, and note what its chain's next request begins with."""
        talk = call.talk
        talk.call, talk.failed, talk.last_used = None, failed, self._clock()
        if answer is not None:
            talk.writer.message(answer)  # type: ignore[arg-type]  # it is one
            talk.keys.append(message_key(answer))
            for part in call.tool_calls:
                call_id = part.id if part.id not in talk.writer.tools_open else None
                tool = talk.writer.tool_call(part.name, arguments_of(part.text), call_id).start()
                talk.tools[tool.record.call.call_id] = tool
        mark, talk.certain = call.mark_after(talk.keys, answered=answer is not None)
        talk.mark = mark
        if mark.length:
            talk.marks.append(mark)
            self._by_mark.setdefault((talk.caller, mark), []).append(talk)
            if mark.kind != "messages":
                lengths = self._lengths[mark.kind]
                lengths[mark.length] = lengths.get(mark.length, 0) + 1
        for call_id in talk.tools:
            self._by_tool.setdefault(call_id, []).append(talk)
        if id(talk) in self._open:
            self._waiting[id(talk)] = talk
            if self._beside is not None and answer is not None and not talk.tools:
                self._close(talk, "answered")

    def beside(self, call: Call) -> Call:
        """Begin a chain for another choice of the same request. Called by the call."""
        first = call.generation.turn.step == 1
        talk = self._new(call.request, call.talk.caller, None, None, call.talk, repeat=first)
        return self._generate(talk, call.request, talk.keys, fork=False)

    def _close(self, talk: Talk, finish_reason: ChainFinishReason | None = None) -> None:
        """End a chain and forget it."""
        if self._open.pop(id(talk), None) is None:
            return
        for child in talk.children:
            self._close(child)
        if talk.call is not None:
            talk.call.cancelled()
        self._waiting.pop(id(talk), None)
        self._leave_tools(talk)
        for mark in talk.marks:
            talks = self._by_mark.get((talk.caller, mark), [])
            if talk in talks:
                talks.remove(talk)
            if not talks:
                self._by_mark.pop((talk.caller, mark), None)
            if mark.kind != "messages":
                lengths = self._lengths[mark.kind]
                lengths[mark.length] -= 1
                if not lengths[mark.length]:
                    del lengths[mark.length]
        for name in talk.names:
            if self._named.get(name) is talk:
                del self._named[name]
        trajectory = talk.writer.trajectory
        last = trajectory.turns[-1] if trajectory.turns else None
        text = last.text if last is not None and not last.tools else ""
        talk.writer.end(finish_reason or talk.failed or "unknown", text)


def _trail_of(request: WireRequest) -> tuple[Trail, list[bytes]]:
    keys = [message_key(message) for message in request.messages]
    if keys:
        return trail_of_messages(keys), keys
    if request.prompt_token_ids is not None:
        return trail_of_ids(request.prompt_token_ids), keys
    return trail_of_text(request.prompt or ""), keys


def _prompt_messages(request: WireRequest) -> list[Message]:
    if request.messages:
        return [shown_message(message) for message in request.messages]
    return [{"role": "user", "content": request.prompt}] if request.prompt else []
