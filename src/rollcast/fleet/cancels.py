"""A viewer's `cancel` on its way through a hub: asked of each producer of the run, and answered once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rollcast.serve.protocol import Cancel, CancelRun, Done, ErrorCode, ErrorFrame
from rollcast.serve.publishing import ProducerLink
from rollcast.serve.runs import fitting_names

__all__ = ["Cancels"]

MOST_WAITING = 1024
Answer = Callable[[Done | ErrorFrame], object]


class _Asked(NamedTuple):
    """What a viewer asked for.

    Attributes:
        by: the viewer's frame.
        answer: answers it.
        waiting: the producers that have not answered, by source.
        answers: what the others said.
        give_up_at: the monotonic time in seconds at which the viewer is answered anyway.
    """

    by: CancelRun
    answer: Answer
    waiting: dict[str, ProducerLink]
    answers: dict[str, Done | ErrorFrame]
    give_up_at: float


class Cancels:
    """The cancels that producers have not answered yet.

    Args:
        clock: a monotonic clock in seconds.
        timeout_s: how many seconds a producer may take to answer.
    """

    def __init__(self, clock: Callable[[], float], timeout_s: float = 10.0) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._asked: dict[str, _Asked] = {}
        self._count = 0

    def ask(self, by: CancelRun, links: Mapping[str, ProducerLink], answer: Answer) -> None:
        """Ask the producers, each by its source; `answer` is called once, now or later."""
        if len(self._asked) >= MOST_WAITING:
            message = f"{MOST_WAITING:,} cancels wait for their producers; try again later"
            answer(ErrorFrame(ErrorCode.TOO_MANY, message, by.id))
            return
        self._count += 1
        name = f"cancel-{self._count}"
        self._asked[name] = _Asked(by, answer, dict(links), {}, self._clock() + self._timeout_s)
        for link in links.values():
            link.send(Cancel(by.run_id, by.chain_id, name, by.group_id))

    def answered(self, link: ProducerLink, frame: Done | ErrorFrame) -> None:
        """Take the answer of a producer; an answer that nobody waits for is ignored."""
        asked = self._asked.get(frame.id or "")
        if asked is None:
            return
        for source, waited in list(asked.waiting.items()):
            if waited is link:
                del asked.waiting[source]
                asked.answers[source] = frame
        if not asked.waiting:
            self._finish(frame.id or "")

    def left(self, link: ProducerLink) -> None:
        """A producer's connection has ended: its answers will not come."""
        for name, asked in list(self._asked.items()):
            for source, waited in list(asked.waiting.items()):
                if waited is link:
                    del asked.waiting[source]
                    asked.answers[source] = ErrorFrame(
                        ErrorCode.UNAVAILABLE, f"the connection to {source!r} broke before it answered"
                    )
            if not asked.waiting:
                self._finish(name)

    def tick(self) -> None:
        """Answer the viewers that have waited long enough."""
        now = self._clock()
        for name, asked in list(self._asked.items()):
            if asked.give_up_at <= now:
                for source in asked.waiting:
                    message = f"the producer {source!r} did not answer within {self._timeout_s:g} s"
                    asked.answers[source] = ErrorFrame(ErrorCode.UNAVAILABLE, message)
                self._finish(name)

    def _finish(self, name: str) -> None:
        asked = self._asked.pop(name)
        asked.answer(_merged(asked.by, asked.answers))


def _merged(by: CancelRun, answers: Mapping[str, Done | ErrorFrame]) -> Done | ErrorFrame:
    """One answer out of those of the producers: `done` if one of them did it, with what the others said in `missing`."""
    done = [each for each in answers.values() if isinstance(each, Done)]
    errors = [each for each in answers.values() if isinstance(each, ErrorFrame)]
    if not done:
        first = max(errors, key=lambda each: each.code != ErrorCode.NOT_FOUND)
        return ErrorFrame(first.code if first.code < 4000 else ErrorCode.UNAVAILABLE, first.message, by.id)
    others = [each.message for each in errors if each.code != ErrorCode.NOT_FOUND]
    if by.chain_id is not None:
        return Done(by.id, by.run_id, by.chain_id, missing=others)
    return Done(
        by.id,
        by.run_id,
        group_id=by.group_id,
        chains=fitting_names([chain for each in done for chain in each.chains]),
        ending=sum(each.ending for each in done),
        not_begun=sum(each.not_begun for each in done),
        over=sum(each.over for each in done),
        missing=others,
    )
