"""Which of LangChain's runs is which chain.

LangChain reports a tree of runs: a graph, its nodes, the sequences in them, models and tools. A chain of ours is one conversation: it
has one generation at a time, and its tool calls come between them. So each run at the top has a chain, and what runs beside it or inside
a tool has a chain of its own, whose parent is that one:

- a graph inside a graph;
- whatever a tool asks of a model;
- a branch of a `RunnableParallel`, and a node that was reached by `Send`;
- of the nodes of one step of a graph, each but the first;
- a model call that begins while another one of the same chain is still going on.

Nothing here knows the callbacks of LangChain, or runs in the host's threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rollcast.aio import why_left
from rollcast.attaching.langchain_messages import Answer, Piece, key_of, text_in
from rollcast.failures import class_name_of, text_of
from rollcast.records import Message, ToolCall
from rollcast.records.event import ToolStatus
from rollcast.records.jsonable import as_json
from rollcast.stream.chain import ChainWriter, GenerationWriter, ToolCallWriter
from rollcast.stream.run import RunWriter

__all__ = ["MOST_WAITING", "Beginning", "RunTree"]

MOST_WAITING = 256  # chains that nobody may ever go on with; the oldest ends then

_STEP = "graph:step:"  # LangGraph's tag of a node
_BRANCH = "map:key:"  # LangChain's tag of a branch of a RunnableParallel
_ONE_BRANCH = "RunnableParallel<"


class Beginning(NamedTuple):
    """What is known of a run when it begins.

    Attributes:
        run_id, parent_id: those of LangChain; the parent is None at the top.
        name: of the graph, node, model or tool.
        tags: LangChain's and the user's.
        task: LangGraph's name of this execution of a node.
        sent: whether it is below a node that was reached by `Send`, or that node itself.
        thread_id: LangGraph's name of a conversation that is kept in a checkpoint.
        messages: those in its input, if there are any.
    """

    run_id: Any
    parent_id: Any
    name: str
    tags: Sequence[str] = ()
    task: str = ""
    sent: bool = False
    thread_id: str | None = None
    messages: Sequence[Message] = ()


class _Run:
    """One run of LangChain.

    Attributes:
        open: whether it goes on.
        scope: the chain of what runs below it, if that is not the chain of what runs above it.
        ends: the chains that end with it.
    """

    __slots__ = (
        "about",
        "call",
        "ends",
        "generation",
        "hook",
        "open",
        "parent",
        "sampling",
        "scope",
        "step",
        "top",
    )

    def __init__(self, about: Beginning, parent: _Run | None) -> None:
        self.about = about
        self.parent = parent
        self.top: _Top = _Top() if parent is None else parent.top
        self.open = True
        self.scope: _Scope | None = None
        self.ends: list[_Scope] = []
        self.step = next((tag for tag in about.tags if tag.startswith(_STEP)), "")
        self.generation: GenerationWriter | None = None
        self.hook = ""  # the one that tells its tokens
        self.sampling: dict[str, Any] = {}
        self.call: ToolCallWriter | None = None

    def upwards(self) -> Iterator[_Run]:
        """The run itself and those around it, innermost first."""
        run: _Run | None = self
        while run is not None:
            yield run
            run = run.parent


class _Top:
    """What all runs below one run at the top share.

    Attributes:
        asked: by tool call, the chain whose model asked for it.
        interrupted: whether the graph stopped to ask somebody.
        latest: the run that began last.
    """

    __slots__ = ("asked", "interrupted", "latest")

    def __init__(self) -> None:
        self.asked: dict[str, _Scope] = {}
        self.interrupted = False
        self.latest: _Run | None = None


class _Scope:
    """A chain of ours, which begins when there is something to show of it.

    Attributes:
        parent: the chain around it.
        about: what it is called, and the messages of its input.
        chain: what writes it; None before it begins.
        known: the keys of the messages that it has so far.
        user: the run of the model that was called last.
        pending: the tool calls that were asked for and have not been made.
        reported: the failure that was reported last.
    """

    __slots__ = ("about", "chain", "known", "parent", "pending", "reported", "user")

    def __init__(self, about: Beginning, parent: _Scope | None) -> None:
        self.about = about
        self.parent = parent
        self.chain: ChainWriter | None = None
        self.known: list[Any] = []
        self.user: _Run | None = None
        self.pending: dict[str, ToolCall] = {}
        self.reported: tuple[str, str] | None = None

    def begun(
        self, run: RunWriter, messages: Sequence[Message] | None = None, tools: Sequence[str] = ()
    ) -> ChainWriter:
        """The chain; if it has not begun, it begins with these messages, and so do those around it."""
        if self.chain is None:
            around = self.parent.begun(run).trajectory.chain_id if self.parent is not None else None
            first = list(self.about.messages if messages is None else messages)
            row = {"name": _name_of(self.about), "thread_id": self.about.thread_id}
            self.chain = run.chain(
                first,
                tools=tools,
                row={name: value for name, value in row.items() if value},
                parent_chain_id=around,
            ).start()
            self.known = [key_of(message) for message in first]
        return self.chain

    def hear(self, messages: Sequence[Message]) -> bool:
        """Show the messages of a prompt that came from outside since the last one.

        Returns:
            Whether the prompt does not continue the conversation so far, but was written anew.
        """
        assert self.chain is not None
        keys = [key_of(message) for message in messages]
        afresh = keys[: len(self.known)] != self.known
        before, new = list(self.known), []
        for message, key in zip(messages, keys, strict=True):
            if key in before:
                before.remove(key)
            elif not self._made_by_hand(message):
                new.append(message)
        for message in new:
            self.chain.message(message, from_outside=True)
        self.known = keys
        return afresh

    def _made_by_hand(self, message: Message) -> bool:
        """Show a tool call that the program made without LangChain, if this is what came of it."""
        call_id = message.get("tool_call_id", "")
        asked = self.pending.pop(call_id, None) if message["role"] == "tool" else None
        if asked is None or self.chain is None or self.chain.spoken_to:
            return False
        free = _if_free(self.chain, call_id)
        call = self.chain.tool_call(asked.tool_name, asked.arguments, free).start()
        call.observation(text_in(message["content"])).end()
        self.chain.message(message)
        return True

    def say(self, message: Message) -> None:
        """Add a message that a turn or a tool call is behind."""
        if self.chain is not None and not self.chain.ended:
            self.chain.message(message)
            self.known.append(key_of(message))

    def report(self, error: BaseException, where: str) -> None:
        """Show a failure, once, although every run around the one that failed reports it; not after the chain has ended."""
        failure = class_name_of(error), text_of(error)
        if self.chain is not None and not self.chain.ended and failure != self.reported:
            self.reported = failure
            self.chain.error(error, where, goes_on=True)

    def _leave_tools(self, chain: ChainWriter) -> None:
        """Show the calls that the last turn asked for and nobody made, or of which nobody told: nothing more will come of them."""
        asked, self.pending = self.pending, {}
        if chain.spoken_to or chain.generation_open is not None:
            return
        for call_id, call in asked.items():
            chain.tool_call(call.tool_name, call.arguments, _if_free(chain, call_id)).start().end("cancelled")

    def end(self, error: BaseException | None, *, unknown: bool = False, response: str | None = None) -> None:
        """End the chain, if it has begun; `response` is its result if no turn of its own has that."""
        chain = self.chain
        if chain is None or chain.ended:
            return
        self._leave_tools(chain)
        if unknown:
            chain.end("unknown")
        elif error is None:
            turns = chain.trajectory.turns
            chain.end("answered", turns[-1].text if response is None and turns else response or "")
        elif why_left(error) == "cancelled":
            chain.end("cancelled")
        else:
            self.report(error, "agent")
            chain.trajectory.error = text_of(error)
            chain.end("error")


class RunTree:
    """Writes what LangChain's callbacks tell. Every method is called on the watch's thread, in the order of the callbacks.

    Args:
        run: gives the run to write to.
    """

    def __init__(self, run: Callable[[], RunWriter]) -> None:
        self._run = run
        self._runs: dict[Any, _Run] = {}
        self._waiting: list[_Scope] = []  # chains whose run ended, and which may go on in another one

    # -- runs ----------------------------------------------------------------------------------------------------------

    def began(self, about: Beginning) -> _Run:
        """A chain, graph, node or retriever begins; also called for models and tools."""
        parent = self._runs.get(about.parent_id)
        run = _Run(about, parent)
        run.top.latest = run
        self._runs[about.run_id] = run
        if parent is None:
            self._at_the_top(run)
        elif (about.sent and run.step) or _is_branch(run, parent):
            _own_scope(run)
        elif run.step and parent.scope is None:
            _own_scope(parent)  # a run that has nodes is a graph, and this one is inside another
        return run

    def _at_the_top(self, run: _Run) -> None:
        """Give a run at the top its chain: a new one, or the one that waits for this conversation to go on."""
        thread = run.about.thread_id
        waits = next((scope for scope in self._waiting if thread and scope.about.thread_id == thread), None)
        run.scope = self._resumed(waits, run) if waits else _Scope(run.about, None)
        run.ends.append(run.scope)

    def _resumed(self, scope: _Scope, run: _Run) -> _Scope:
        self._waiting.remove(scope)
        run.top.asked.update(dict.fromkeys(scope.pending, scope))
        return scope

    def ended(self, run_id: Any, error: BaseException | None = None, response: str | None = None) -> None:
        """A run ended, with this exception if it failed, or with this text as its result."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        run.open = False
        interrupted = error is not None and _is_control_flow(error)
        if interrupted:
            run.top.interrupted, error = True, None
        elif error is None and run.step:
            run.top.interrupted = False
        for scope in run.ends:
            if run.parent is None and error is None and self._may_go_on(run, scope):
                self._wait(scope)
            elif error is not None and run.parent is None and why_left(error) == "error":
                scope.begun(self._run())
                scope.end(error)
            else:
                scope.end(error, unknown=interrupted, response=response)

    def _may_go_on(self, run: _Run, scope: _Scope) -> bool:
        """Whether somebody else has to act before the chain goes on: approve of a call, or make it in a loop of their own."""
        if scope.chain is None or scope.chain.ended:
            return False
        if run.top.interrupted:
            return bool(scope.about.thread_id)
        return bool(scope.pending) and (bool(scope.about.thread_id) or run.top.latest is scope.user)

    def _wait(self, scope: _Scope) -> None:
        self._waiting.append(scope)
        if len(self._waiting) > MOST_WAITING:
            self._waiting.pop(0).end(None, unknown=True)

    def close(self) -> None:
        """End the chains that wait: nothing more comes. What is still going on is closed with its run."""
        waiting, self._waiting = self._waiting, []
        for scope in waiting:
            scope.end(None, unknown=True)

    # -- models --------------------------------------------------------------------------------------------------------

    def model_began(self, about: Beginning, sampling: dict[str, Any], tools: Sequence[str]) -> None:
        """A model is called with the messages of `about`."""
        run = self.began(about)
        scope = self._scope_of_model(run)
        chain = scope.begun(self._run(), about.messages, tools)
        afresh = scope.hear(about.messages)
        scope.user, scope.pending = run, {}
        run.sampling = sampling
        run.generation = chain.generation(sampling=sampling, model=_model_of(run), fresh=afresh).start()

    def _scope_of_model(self, run: _Run) -> _Scope:
        if run.parent is None:
            self._go_on_by_prompt(run)
        scope = _nearest(run)
        chain, user = scope.chain, scope.user
        if chain is None:
            return scope
        if chain.ended:  # the graph has ended, and what it began goes on
            return _own_scope(run)
        theirs, ours = _fork(user, run) if user is not None else (None, run)
        beside = theirs is not None and (theirs.open or _same_step(theirs, ours))
        if beside or chain.generation_open is not None or chain.tools_open:
            return _own_scope(ours)
        return scope

    def _go_on_by_prompt(self, run: _Run) -> None:
        """A model that is called by itself goes on with the chain whose messages its prompt begins with."""
        keys = [key_of(message) for message in run.about.messages]
        for scope in reversed(self._waiting):
            if scope.known == keys[: len(scope.known)]:
                run.scope, run.ends = self._resumed(scope, run), [scope]
                return

    def token(self, run_id: Any, piece: Piece, hook: str) -> None:
        """A model sent something. Some models tell two hooks of each token; the one that begins is listened to."""
        run = self._runs.get(run_id)
        if run is None or run.generation is None or not any(piece):
            return
        run.hook = run.hook or hook
        if run.hook == hook:
            self._add(run.generation, piece)

    @staticmethod
    def _add(generation: GenerationWriter, piece: Piece) -> None:
        generation.chunk(piece.text, piece.token_ids, piece.logprobs, reasoning=piece.reasoning or None)

    def again(self, run_id: Any) -> None:
        """The model's integration tries a failed call again."""
        run = self._runs.get(run_id)
        if run is None or run.generation is None or run.generation.chain.ended:
            return
        run.generation.end("error")
        run.generation = run.generation.chain.generation(sampling=run.sampling, model=_model_of(run)).start()

    def answered(self, run_id: Any, answer: Answer, *, asks: bool) -> None:
        """A model's call ended well.

        Args:
            run_id: its run.
            answer: all that it said.
            asks: whether its tool calls are meant to be made, rather than to be read as its answer.
        """
        run = self._runs.get(run_id)
        if run is not None and run.generation is not None:
            generation, scope = run.generation, _scope_of(run.generation, run)
            so_far = Piece(generation.turn.text, generation.turn.reasoning or "")
            rest = Piece(_rest(so_far.text, answer.text), _rest(so_far.reasoning, answer.reasoning))
            if any(rest):  # it did not stream, or not all
                self._add(generation, rest)
            generation.end(
                answer.finish_reason,
                completion_tokens=answer.completion_tokens,
                prompt_tokens=answer.prompt_tokens,
            )
            scope.say(answer.message)
            if asks:
                scope.pending.update((call.call_id, call) for call in answer.calls)
                run.top.asked.update((call.call_id, scope) for call in answer.calls)
        self.ended(run_id)

    def failed(self, run_id: Any, error: BaseException) -> None:
        """A model's call failed, or was cancelled."""
        run = self._runs.get(run_id)
        if run is not None and run.generation is not None:
            why = why_left(error)
            run.generation.end("cancelled" if why == "cancelled" else "error")
            if why == "error" and not _is_control_flow(error):
                _scope_of(run.generation, run).report(error, "backend")
        self.ended(run_id, error)

    # -- tools ---------------------------------------------------------------------------------------------------------

    def tool_began(self, about: Beginning, arguments: dict[str, Any] | str, call_id: str | None) -> None:
        """A tool is called."""
        at_the_top = about.parent_id not in self._runs
        run = self.began(about)
        around = (
            self._waiting[::-1]
            if at_the_top
            else [each.scope for each in run.upwards() if each.scope is not None]
        )
        call_id = call_id or _called_like(around, about.name, arguments)
        scope = next((each for each in around if call_id in each.pending), None)
        if at_the_top and scope is not None:
            run.scope, run.ends = scope, []
        scope = scope or run.top.asked.get(call_id or "") or _nearest(run)
        if scope.chain is not None and (scope.chain.generation_open is not None or scope.chain.ended):
            scope = _own_scope(run)
        chain = scope.begun(self._run())
        if not chain.trajectory.turns or chain.spoken_to:  # no model asked for it: the turn has no tokens
            chain.generation().start().end("tool_call")
        run.call = chain.tool_call(about.name, arguments, _if_free(chain, call_id)).start()
        scope.pending.pop(call_id or "", None)
        run.scope = _Scope(about, scope)  # whatever the tool asks of a model
        run.ends.append(run.scope)

    def tool_ended(
        self, run_id: Any, observation: str, status: ToolStatus, error: BaseException | None = None
    ) -> None:
        """A tool returned, failed, or was interrupted."""
        run = self._runs.get(run_id)
        if run is not None and run.call is not None:
            call, scope = run.call, run.scope.parent if run.scope is not None else None
            interrupted = error is not None and _is_control_flow(error)
            if interrupted:
                observation, status = f"interrupted: {_question_of(error)}", "cancelled"
            elif error is not None and why_left(error) == "cancelled":
                observation, status = "cancelled", "cancelled"
            call.observation(observation, status).end()
            if scope is not None and interrupted:
                scope.pending[call.record.call.call_id] = call.record.call
            elif scope is not None:
                scope.say({"role": "tool", "content": observation, "tool_call_id": call.record.call.call_id})
        self.ended(run_id, error)


def _if_free(chain: ChainWriter, call_id: str | None) -> str | None:
    """The id, or None, so that the chain makes one up, if there is no id or an open call already has it.

    A call that came without an id may have been given the very id that a model asked for.
    """
    return call_id if call_id and call_id not in chain.tools_open else None


def _model_of(run: _Run) -> str:
    """What a model's run calls its model: the server's name of it, else that of its class."""
    return str(run.sampling.get("model") or run.sampling.get("model_name") or run.about.name)


def _nearest(run: _Run) -> _Scope:
    scope = next((each.scope for each in run.upwards() if each.scope is not None), None)
    assert scope is not None  # a run at the top has one
    return scope


def _called_like(scopes: Sequence[_Scope], name: str, arguments: Any) -> str | None:
    """The id of a call with this name and these arguments that one of the chains asked for: older versions of LangChain do not tell it."""
    pending = (call for scope in scopes for call in scope.pending.values())
    return next(
        (call.call_id for call in pending if call.tool_name == name and call.arguments == arguments), None
    )


def _own_scope(run: _Run) -> _Scope:
    """Give a run a chain of its own, for itself and for what runs below it."""
    run.scope = _Scope(run.about, _nearest(run))
    run.ends.append(run.scope)
    return run.scope


def _scope_of(generation: GenerationWriter, run: _Run) -> _Scope:
    """The scope whose chain a model's run writes."""
    found = next(
        (
            each.scope
            for each in run.upwards()
            if each.scope is not None and each.scope.chain is generation.chain
        ),
        None,
    )
    assert found is not None
    return found


def _fork(one: _Run, other: _Run) -> tuple[_Run | None, _Run]:
    """Where the ways from the top to two runs part: the first run of each that is not on the other's way."""
    ways = [list(run.upwards())[::-1] for run in (one, other)]
    for theirs, ours in zip(*ways, strict=False):
        if theirs is not ours:
            return theirs, ours
    return None, other


def _same_step(one: _Run, other: _Run) -> bool:
    """Whether they are two nodes of one step of a graph, rather than one that is tried again."""
    return (
        bool(one.step)
        and one.step == other.step
        and one.parent is other.parent
        and one.about.task != other.about.task
    )


def _name_of(about: Beginning) -> str:
    """What a chain is called: a branch by its key, everything else by its own name."""
    return next((tag.removeprefix(_BRANCH) for tag in about.tags if tag.startswith(_BRANCH)), about.name)


def _is_branch(run: _Run, parent: _Run) -> bool:
    if not any(tag.startswith(_BRANCH) for tag in run.about.tags):
        return False
    return not (parent.about.name.startswith(_ONE_BRANCH) and "," not in parent.about.name)


def _is_control_flow(error: BaseException) -> bool:
    """Whether LangGraph raises it to stop a graph and ask somebody, or to leave a graph for the one around it."""
    return any(base.__name__ == "GraphBubbleUp" for base in type(error).__mro__)


def _question_of(error: BaseException | None) -> str:
    """What LangGraph's `interrupt(value)` asks."""
    found = error.args[0] if error is not None and error.args else ""
    values = [
        as_json(getattr(each, "value", each))
        for each in (found if isinstance(found, tuple | list) else [found])
    ]
    return ", ".join(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
    )


def _rest(so_far: str, whole: str) -> str:
    """What was not streamed; nothing if the whole text is another one than what was."""
    return whole[len(so_far) :] if whole.startswith(so_far) else ""
