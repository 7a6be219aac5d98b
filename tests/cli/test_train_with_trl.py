"""`rollcast train --trainer trl`, looked at from inside: how it ends where somebody who watches ends a part of it."""

import math

import pytest

pytest.importorskip("trl", reason="needs the extra")

from rollcast import StreamEventType, StreamObserver
from rollcast.cli.train.settings import TrainSettings
from rollcast.cli.train.with_trl import make_agent, train_with_trl
from rollcast.errors import BackendError
from rollcast.tasks import get_task

TASK = get_task("arithmetic")


class Canceller(StreamObserver):
    """Ends the evaluation of this number, from 1, as soon as it begins."""

    def __init__(self, manager, number):
        super().__init__()
        self.watched = manager
        self.number = number
        self.begun = 0

    async def on_event(self, event):
        if event.event_type is StreamEventType.RUN_START and event.data.get("split") == "eval":
            self.begun += 1
            if self.begun == self.number:
                self.watched.cancel(event.run_id)


async def trained(agent, out, told):
    settings = TrainSettings(trainer="trl", steps=1, group=2, questions=2, out=str(out))
    return await train_with_trl(agent, TASK, settings, out, told.append, lambda: False, "arithmetic")


@pytest.mark.parametrize(("number", "steps"), [(1, 0), (3, 1)])
async def test_who_cancels_an_evaluation_ends_the_training(tmp_path, number, steps):
    """It is not scored, and what was learned until then is saved."""
    agent, told = make_agent(TASK, None), []
    agent.streaming_manager.add_observer(Canceller(agent.streaming_manager, number))
    result = await trained(agent, tmp_path / "o", told)
    assert result.stopped == "interrupted"
    assert [progress.step for progress in result.history] == [0, 1][: steps + 1 if steps else 0]
    assert math.isnan(result.end.sampled) == (steps == 0)
    assert [path.name for path in (tmp_path / "o").glob("checkpoint-*")] == ["checkpoint-1"] * steps


async def test_an_evaluation_whose_chains_all_fail_ends_the_training(tmp_path, monkeypatch):
    """With the first one's error, and not with a success of 0."""
    agent = make_agent(TASK, None)

    async def generate(request):
        raise BackendError("the device is gone")
        yield

    monkeypatch.setattr(agent.backend, "generate", generate)
    with pytest.raises(BackendError, match="the evaluation after step 0 failed; the first says: the device"):
        await trained(agent, tmp_path / "o", [])
