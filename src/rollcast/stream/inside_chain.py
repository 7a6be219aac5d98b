"""Writes the requests that are made inside a chain of somebody's own loop as generations of that chain.

What the loop reports itself is left to it: if it opens a generation around the request, that is the generation; if it reports its
tool calls, they are not reported again; a message that is in the chain already is not added.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

from rollcast.errors import InputError
from rollcast.records.event import ChainFinishReason
from rollcast.records.jsonable import bounded_fields
from rollcast.records.openai_wire import ToolCallText, WireRequest
from rollcast.stream.chain import ChainWriter
from rollcast.stream.conversation_call import Call, CallerName, Talk, new_ids
from rollcast.stream.conversation_messages import arguments_of, content_text, message_key, shown_message
from rollcast.stream.conversations import Conversations

__all__ = ["InsideChain"]

_FROM_OUTSIDE = ("user", "system", "developer")


class InsideChain:
    """The requests of one chain, which are made one after the other; those that overlap become chains beside it.

    Args:
        chain: the chain, which somebody else begins and ends.
    """

    def __init__(self, chain: ChainWriter) -> None:
        self._talk = Talk(chain, CallerName(), [])
        self._who: object = None  # asked last
        self._aside: Conversations | None = None
        self._asked: list[
            ToolCallText
        ] = []  # the tool calls of the last answer, until they are known to be reported or not
        self._shown: Counter[bytes] = Counter()  # messages that were added here, by what they say

    @property
    def chain(self) -> ChainWriter:
        """The chain."""
        return self._talk.writer

    def begin(self, request: WireRequest, who: object = None) -> Call | None:
        """Begin the generation of a request; None if the loop has opened one itself.

        Args:
            request: the request.
            who: equal for requests that cannot overlap, since one and the same task makes them. An answer that is open then was
                left half read.

        Raises:
            InputError: the chain cannot generate now, since it has its reward or has ended.
        """
        talk, chain = self._talk, self._talk.writer
        if talk.call is not None and (talk.call.abandoned or who == self._who):
            talk.call.cancelled()
        if chain.generation_open is not None and (
            talk.call is None or chain.generation_open is not talk.call.generation
        ):
            return None
        chain.must_be_open("generate")
        if chain.generation_open is not None or chain.tools_open:
            if self._aside is None:
                self._aside = Conversations(chain.run, beside=chain)  # type: ignore[arg-type]  # it is a RunWriter
            return self._aside.begin(request)
        self._hear(request)
        ids, fork = new_ids(talk, request.prompt_token_ids, fork=False)
        generation = chain.generation(
            prompt_ids=ids,
            prompt_tokens=len(request.prompt_token_ids) if request.prompt_token_ids else None,
            sampling=bounded_fields(request.sampling),
            fresh=fork,
            model=request.model or None,
        )
        generation.gives_way = True
        talk.call = Call(self, talk, request, generation.start())
        self._who = who
        return talk.call

    def ended(self, call: Call, failed: ChainFinishReason | None, answer: dict[str, Any] | None) -> None:
        """See `OwnerOfCall`. Whether the loop reports the tool calls is seen when it asks again."""
        if self._talk.call is call:  # one that was left may end late, on another thread
            self._talk.call = None
            self._asked = call.tool_calls if answer is not None else []

    def beside(self, call: Call) -> Call:
        """See `OwnerOfCall`."""
        if self._aside is None:
            self._aside = Conversations(call.chain.run, beside=call.chain)  # type: ignore[arg-type]  # it is a RunWriter
        return self._aside.begin(call.request)

    def _hear(self, request: WireRequest) -> None:
        """Write what the request says of the turn before, and of messages from outside, if the loop has not."""
        chain, asked = self._talk.writer, self._asked
        self._asked = []
        results = {message.get("tool_call_id"): message for message in request.messages}
        turns = chain.trajectory.turns
        if asked and turns and not turns[-1].tools:
            with suppress(InputError):  # the loop has written something in between, such as a message
                for part in asked:
                    if (result := results.get(part.id)) is not None:
                        text = content_text(shown_message(result)["content"])
                        chain.tool_call(part.name, arguments_of(part.text), part.id).start().observation(
                            text
                        ).end()
        first = not chain.trajectory.messages and not turns
        known = Counter(map(message_key, chain.trajectory.messages))
        known |= self._shown
        for message in request.messages:
            if not first and message.get("role") not in _FROM_OUTSIDE:
                continue
            key = message_key(message)
            if known[key]:
                known[key] -= 1
            else:
                chain.message(shown_message(message), from_outside=True)
                self._shown[key] += 1
