"""A viewer's cancel on its way to several producers, and one answer back."""

import pytest

from rollcast.fleet.cancels import Cancels
from rollcast.serve.protocol import Cancel, CancelRun, Done, ErrorFrame


class Link:
    """Remembers what was sent."""

    def __init__(self):
        self.sent = []

    def send(self, frame):
        """Sent."""
        self.sent.append(frame)


class Play:
    """Two producers, and a viewer's answers."""

    def __init__(self, **asked):
        self.now = 0.0
        self.cancels = Cancels(lambda: self.now, timeout_s=10)
        self.one, self.two = Link(), Link()
        self.answers = []
        links = {"one": self.one, "two": self.two}
        self.cancels.ask(
            CancelRun("r", asked.get("chain_id"), "v", asked.get("group_id")), links, self.answers.append
        )
        self.id = self.one.sent[0].id


def test_each_producer_is_asked():
    """With an id of the hub's own, since viewers may choose equal ones."""
    play = Play(chain_id="c")
    assert play.one.sent == play.two.sent == [Cancel("r", "c", play.id)]
    assert play.id != "v"


def test_the_answers_are_added_up():
    """The viewer is answered when all have answered."""
    play = Play()
    play.cancels.answered(play.one, Done(play.id, "r", chains=["a"], ending=1, over=2))
    assert play.answers == []
    play.cancels.answered(play.two, Done(play.id, "r", chains=["b"], ending=1, not_begun=3))
    assert play.answers == [Done("v", "r", chains=["a", "b"], ending=2, not_begun=3, over=2)]


def test_one_of_them_has_the_chain():
    """That the other has not is no error."""
    play = Play(chain_id="c")
    play.cancels.answered(play.one, ErrorFrame(404, "no such chain", play.id))
    play.cancels.answered(play.two, Done(play.id, "r", "c"))
    assert play.answers == [Done("v", "r", "c")]


def test_none_of_them_can():
    """The viewer gets the sentence that says most."""
    play = Play()
    play.cancels.answered(play.one, ErrorFrame(404, "no such run", play.id))
    play.cancels.answered(play.two, ErrorFrame(503, "it hangs", play.id))
    assert play.answers == [ErrorFrame(503, "it hangs", "v")]


@pytest.mark.parametrize("how", ["late", "gone"])
def test_one_that_does_not_answer(how):
    """The viewer is answered anyway, and told."""
    play = Play()
    play.cancels.answered(play.one, Done(play.id, "r", ending=1))
    if how == "gone":
        play.cancels.left(play.two)
    else:
        play.now = 10.0
        play.cancels.tick()
    (answer,) = play.answers
    assert (answer.ending, len(answer.missing)) == (1, 1)
    assert "'two'" in answer.missing[0]
    play.cancels.answered(play.two, Done(play.id, "r"))  # too late
    assert len(play.answers) == 1
